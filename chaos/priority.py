"""Being served first by a processor, for what measures how long others take."""

import os
import sys
from contextlib import suppress
from pathlib import Path

# Where the kernel groups by session, it is the session's nice value that counts among the groups (sched(7)).
SESSION_NICENESS = Path("/proc/self/autogroup")
FIRST = -10


def served_first() -> None:
    """Let this thread have a processor before anything ordinary on its machine, where that is permitted.

    On a busy machine the target may be one's neighbour (the lab is): a question that waits for a processor, or an
    answer that waits to be read, would be taken for the target's. What the thread starts is ordinary again.
    """
    if sys.platform == "linux":
        with suppress(PermissionError):
            least = os.sched_param(os.sched_get_priority_min(os.SCHED_RR))
            os.sched_setscheduler(0, os.SCHED_RR | os.SCHED_RESET_ON_FORK, least)


def session_served_first() -> None:
    """Let all of this process come before other sessions, where it leads one and that is permitted.

    What records how long others take is not to be late by its own machine's doing. And a thread that may wait for a
    processor while it holds the interpreter's lock would keep those waiting that are served first.
    """
    if sys.platform == "linux" and os.getsid(0) == os.getpid():
        with suppress(OSError):
            SESSION_NICENESS.write_text(str(FIRST))
