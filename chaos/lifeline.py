"""The pipe between a drill and the processes that record: a plan goes through it, and its end ends them.

So none of them outlives a drill that was killed, and no secret is in a process list.
"""

import argparse
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TextIO, TypeVar

from pydantic import BaseModel

from chaos.history import HistoryError, Recorder
from chaos.priority import session_served_first

Plan = TypeVar("Plan", bound=BaseModel)


class Lost(Exception):
    """A recording process did not come to its end in good order: what it recorded may not be all."""


CHECKOUT = Path(__file__).resolve().parent.parent
END_TIMEOUT_S = 75.0  # whoever writes waits for an answer up to a minute


def listen(pipe: TextIO, stop: threading.Event) -> str:
    """The plan, in the pipe's first line, nothing where it ends before; from then on its end sets `stop`."""
    plan = pipe.readline()

    def watch() -> None:
        # Below Python's buffer, whose lock a thread would still hold when the process ends.
        while os.read(pipe.fileno(), 1024):
            pass
        stop.set()

    threading.Thread(target=watch, name="lifeline", daemon=True).start()
    return plan


def recording(
    module: str,
    does: str | None,
    plan_type: type[Plan],
    work: Callable[[Plan, Recorder, threading.Event], None],
    arguments: Sequence[str] | None = None,
) -> int:
    """The main function of a recording process, with its exit code: `work` by the plan until told to end."""
    parser = argparse.ArgumentParser(prog=f"python -m {module}", description=does)
    parser.add_argument("file", type=Path, help="where the record goes; must not exist")
    file = parser.parse_args(arguments).file
    session_served_first()
    stop = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: stop.set())
    if not (told := listen(sys.stdin, stop)):
        return 0  # nothing came of what it was started for
    plan = plan_type.model_validate_json(told)
    try:
        recorder = Recorder.into(file)
        work(plan, recorder, stop)
    except HistoryError as error:
        sys.stderr.write(f"{error}\n")
        return 1
    recorder.close()
    return 0


@dataclass(frozen=True)
class Helper:
    """A recording process, which loads what it needs while nobody knows yet what it is to do."""

    module: str
    process: "subprocess.Popen[str]"

    def begin(self, plan: BaseModel) -> None:
        """Set it to work; raises Lost where it has ended before."""
        assert self.process.stdin is not None
        try:
            self.process.stdin.write(plan.model_dump_json() + "\n")
            self.process.stdin.flush()
        except BrokenPipeError as error:
            raise Lost(f"{self.module} ended before it was set to work; it has said why") from error

    def dismiss(self) -> None:
        """Let it come to its end, without waiting for that."""
        assert self.process.stdin is not None
        with suppress(BrokenPipeError):  # it has ended before
            self.process.stdin.close()


@contextmanager
def helper(module: str, file: Path) -> Iterator[Helper]:
    """A recording process, ended in good order afterwards; raises Lost where it did not end so."""
    command = [sys.executable, "-m", module, str(file.absolute())]
    # A session of its own: a Ctrl-C in the terminal is the drill's, which ends this process in its order.
    with subprocess.Popen(command, cwd=CHECKOUT, stdin=subprocess.PIPE, text=True, start_new_session=True) as process:
        at_work = Helper(module, process)
        try:
            yield at_work
        finally:
            at_work.dismiss()
            try:
                process.wait(END_TIMEOUT_S)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        if process.returncode:
            raise Lost(f"{module} ended with exit code {process.returncode}")
