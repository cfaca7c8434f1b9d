"""Writers: one thing at a time, each as soon as it is due."""

import threading
import time

from chaos.history import Write
from chaos.workload import Rows, write_all


class Slow(Rows):
    """Takes longer for a row than there is time until the next."""

    def put(self, name: str, content: bytes) -> None:
        """As a busy machine does."""
        threading.Event().wait(0.05)


def test_what_falls_due_while_a_writer_waits_is_not_made_up_for() -> None:
    written: list[Write] = []
    stop = threading.Event()

    def record(write: Write) -> None:
        written.append(write)
        if len(written) == 5:
            stop.set()

    began_s = time.monotonic()
    slow = Slow(interval_s=0.01, timeout_s=1, host="-", port=1, user="-", password="-", database="-", table="t")
    write_all(slow, record, stop)
    assert [write.error for write in written] == [""] * 5
    assert all(write.started_s - write.intended_s < 0.03 for write in written), "the last ones were made up for"
    assert written[-1].intended_s - began_s > 0.15
