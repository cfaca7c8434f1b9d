"""Being served first by a processor, for what measures how long others take."""

import os
import sys
from contextlib import suppress


def served_first() -> None:
    """Let this thread have a processor before anything ordinary on its machine, where that is permitted.

    On a busy machine the target may be one's neighbour (the lab is): a question that waits for a processor, or an
    answer that waits to be read, would be taken for the target's. What the thread starts is ordinary again.
    """
    if sys.platform == "linux":
        with suppress(PermissionError):
            least = os.sched_param(os.sched_get_priority_min(os.SCHED_RR))
            os.sched_setscheduler(0, os.SCHED_RR | os.SCHED_RESET_ON_FORK, least)
