"""Conditions that load is sent under: all is well, or a machine is away, or something is done in the middle of it."""

import threading
import time
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field

from chaos.facts import Live
from chaos.fault import KINDS, Struck
from chaos.healer import watched_over
from chaos.journal import Journal, Wound
from chaos.target import select
from load.record import Mark, said_of
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
    try:
        live.whole()
    except NotYet as error:
        raise Refused(f"the target is not whole, so nothing is taken away from it: {error}") from error
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
            poll("a whole target", live.whole, timeout_s=WHOLE_TIMEOUT_S, interval_s=2)


@dataclass
class RollingUpdate:
    """Every replica is replaced, one after another, so long after the first visitor; times by the monotonic clock."""

    session: Session
    after_s: float
    began_s: float | None = None
    ended_s: float | None = None
    trouble: str = "it had not begun when the run was over"
    _visitors: threading.Event = field(default_factory=threading.Event)
    _over: threading.Event = field(default_factory=threading.Event)

    def begin(self) -> None:
        """Visitors come from now on."""
        self._visitors.set()

    @contextmanager
    def during(self) -> Iterator[None]:
        """While the block runs; it is over when every replica is Ready again. What went wrong is in `trouble`."""
        with ThreadPoolExecutor(1) as pool:
            replaced = pool.submit(self._replace)
            try:
                yield
            finally:
                self._over.set()
                self._visitors.set()
                if error := replaced.exception():
                    self.trouble = said_of(error)

    def marks(self, second_0_s: float) -> list[Mark]:
        """When it was, counted from that moment of the monotonic clock; nothing where it never began or ended."""
        if self.began_s is None or self.ended_s is None:
            return []
        began_s, ended_s = self.began_s - second_0_s, self.ended_s - second_0_s
        return [Mark(what="rolling update", began_s=began_s, ended_s=ended_s)]

    def _replace(self) -> None:
        self._visitors.wait()
        if self._over.wait(self.after_s):
            return
        self.began_s = time.monotonic()
        KINDS["rolling restart"].inject(self.session, Struck(self.session.environment.machines[0]))
        poll("every replica", self._ready, timeout_s=WHOLE_TIMEOUT_S, interval_s=1)
        self.ended_s = time.monotonic()
        self.trouble = ""

    def _ready(self) -> bool:
        if lines := unready_replicas(self.session.cluster):
            raise NotYet(lines[0])
        return True
