"""Heals when whoever breaks things is gone: a process of its own that outlives the one it watches.

`python -m chaos.healer --env NAME`; its standard input is the pipe that it watches. A line “done” dismisses it. A line
“heal” asks for everything in the journal to be taken back, by whoever holds the environment meanwhile; the pipe's end
without either means that the drill died, and the healer holds the environment itself.
"""

import argparse
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial

from chaos.journal import HealFailed, Journal
from chaos.ledger import sweep
from environments.load import find, load
from provisioning.action import ActionFailed
from provisioning.poll import DeadlineExceeded, NotYet, poll
from provisioning.session import Session, open_session
from provisioning.state import Busy, State

DONE, HEAL = "done\n", "heal\n"
HEAL_TIMEOUT_S = 600
END_TIMEOUT_S = 30


@contextmanager
def watched_over(name_or_file: str) -> Iterator["subprocess.Popen[str]"]:
    """Whatever becomes of this process, what it notes in the journal is healed: by the process that is given.

    While anything is noted the healer is not dismissed: it goes on trying, and is waited for.
    """
    journal = Journal(State.of(load(find(name_or_file)).name).broken)
    command = [sys.executable, "-m", "chaos.healer", "--env", name_or_file]
    # A session of its own: a Ctrl-C in the terminal is not for it.
    with subprocess.Popen(command, stdin=subprocess.PIPE, text=True, start_new_session=True) as process:
        assert process.stdin is not None
        try:
            yield process
        finally:
            left = journal.held()
            try:
                process.stdin.write(HEAL if left else DONE)
                process.stdin.close()
            except BrokenPipeError:
                pass  # it ended before; there is nothing to dismiss
            if left:
                sys.stderr.write(f"{len(left)} faults are not healed yet; trying for {HEAL_TIMEOUT_S // 60} minutes\n")
            process.wait(None if left else END_TIMEOUT_S)
            if still := journal.held():
                names = ", ".join(f"{wound.fault} of VM {wound.vmid}" for wound in still)
                sys.stderr.write(f"NOT healed: {names}; try `python -m chaos heal --env {name_or_file}`\n")


def heal_now(session: Session) -> str:
    """Take back what is noted, as somebody asked for it; what was done, in lines. Raises Busy and HealFailed."""
    with session.state.locked("healing"):
        healed = Journal(session.state.broken).heal(session)
    return "".join(f"healed: {line}\n" for line in healed) or "nothing was broken on purpose\n"


def heal_all(session: Session, held: Callable[[], AbstractContextManager[None]]) -> list[str]:
    """Take back all that is noted, and clear what was written, as often as it takes; raises DeadlineExceeded.

    Each time while the environment is `held`. Where another run holds it by now, that one has healed before anything.
    """
    healed: list[str] = []

    def whole() -> bool:
        try:
            with held():
                healed.extend(Journal(session.state.broken).heal(session))
                sweep(session)
        except (ActionFailed, Busy, HealFailed) as error:
            raise NotYet(str(error)) from error
        return True

    poll("everything healed", whole, timeout_s=HEAL_TIMEOUT_S, interval_s=5)
    return healed


def main(arguments: Sequence[str] | None = None) -> int:
    """Wait for the pipe's end; heal, where nobody said that it is done."""
    parser = argparse.ArgumentParser(prog="python -m chaos.healer", description=__doc__)
    parser.add_argument("--env", required=True, help="name or file of the environment")
    env = parser.parse_args(arguments).env
    for number in (signal.SIGINT, signal.SIGHUP, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    session = open_session(env)
    told = sys.stdin.read()
    if told.endswith(DONE):
        return 0
    # The terminal may have gone with the drill.
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stderr.fileno())
    try:
        heal_all(session, nullcontext if told.endswith(HEAL) else partial(session.state.locked, "healing"))
    except DeadlineExceeded:
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
