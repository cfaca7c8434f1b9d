"""Conditions that load is sent under: all is well, or a machine is away, or something is done in the middle of it."""

import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field

from chaos.facts import WHOLE, Live
from chaos.fault import KINDS, Struck
from chaos.healer import watched_over
from chaos.journal import Journal, Wound
from chaos.target import select
from load.record import Mark
from load.run import Refused
from provisioning.poll import NotYet, poll
from provisioning.session import Session
from provisioning.site import unready_replicas

WELL = "all is well"
WHOLE_TIMEOUT_S = 600
# A node is called NotReady and leaves its Services, and what connections to it are remembered by is forgotten (Linux,
# nf_conntrack_tcp_timeout_syn_sent): what is measured is what is left, not how it came to be.
SETTLED_S = 50 + 120


@dataclass(frozen=True)
class Away:
    """A fault, on whom, and how long until what is left has settled."""

    fault: str
    target: str
    settled_s: float = SETTLED_S


CONDITIONS: Mapping[str, Away | None] = {
    WELL: None,
    "a worker is down": Away("power cut", "worker with a replica that does not announce"),
    "a data node is down": Away("power cut", "data node", 20),
}


@contextmanager
def under(session: Session, env: str, condition: str, seed: int) -> Iterator[None]:
    """While a condition holds; afterwards all is whole again, whatever becomes of this process.

    Raises Refused where the target is not whole at first, and what injecting and healing raise.
    """
    away = CONDITIONS[condition]
    if away is None:
        yield
        return
    live = Live(session, session.cluster)
    if found := {part: state for part, state in live.states().items() if state != WHOLE}:
        raise Refused(f"the target is not whole, so nothing is taken away from it: {found}")
    (machine,) = select(away.target, live.facts(), seed)
    kind, journal = KINDS[away.fault], Journal(session.state.broken)
    wounds = [Wound(kind.name, machine.vmid)]
    with watched_over(env):
        journal.note(wounds)
        try:
            kind.inject(session, Struck(machine))
            threading.Event().wait(away.settled_s)
            yield
        finally:
            journal.heal(session, wounds)
            poll("a whole target", lambda: _whole(live), timeout_s=WHOLE_TIMEOUT_S, interval_s=2)


def _whole(live: Live) -> bool:
    if found := {part: state for part, state in live.states().items() if state != WHOLE}:
        raise NotYet(str(found))
    return True


@dataclass
class RollingUpdate:
    """Every replica is replaced, one after another, some time into a run."""

    session: Session
    after_s: float
    marks: list[Mark] = field(default_factory=list)

    @contextmanager
    def during(self) -> Iterator[None]:
        """While the block runs; it is over when every replica is Ready again."""
        began_s, over = time.monotonic(), threading.Event()

        def replace() -> None:
            if over.wait(self.after_s):
                return
            first_s = time.monotonic() - began_s
            kind, machines = KINDS["rolling restart"], self.session.environment.machines
            kind.inject(self.session, Struck(machines[0]))
            poll("every replica", self._ready, timeout_s=WHOLE_TIMEOUT_S, interval_s=1)
            self.marks.append(Mark(what="rolling update", began_s=first_s, ended_s=time.monotonic() - began_s))

        thread = threading.Thread(target=replace, daemon=True)
        thread.start()
        try:
            yield
        finally:
            over.set()
            thread.join()

    def _ready(self) -> bool:
        if lines := unready_replicas(self.session.cluster):
            raise NotYet(lines[0])
        return True
