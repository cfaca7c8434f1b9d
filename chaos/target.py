"""Whom a fault strikes: machines picked by words, from facts that were just read, by a seed. Pure."""

import difflib
import random
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass

from environments.model import Machine, Role


class NoSuchTarget(Exception):
    """Nothing goes by these words, or nothing does now; the message offers the nearest names."""


class NobodyNow(NoSuchTarget):
    """The words are understood, and nobody, or too few, goes by them just now."""


@dataclass(frozen=True)
class Facts:
    """What picking goes by: machines by role and name, and who has which part just now."""

    machines: tuple[Machine, ...]
    endpoint: str
    announcer: str | None = None
    arbitrator: str | None = None
    etcd_leader: str | None = None
    replicas: Mapping[str, int] | None = None

    @property
    def told(self) -> str:
        """Who has which part, in a line."""
        parts = {"API endpoint": self.endpoint, "announcer": self.announcer, "arbitrator": self.arbitrator}
        return ", ".join(f"{part}: {name or 'nobody'}" for part, name in parts.items())

    def with_role(self, *roles: Role) -> list[Machine]:
        """Machines of any of the roles, in the file's order."""
        return [machine for machine in self.machines if machine.role in roles]

    def named(self, name: str | None) -> list[Machine]:
        """The machine of that name; none where nobody has the part."""
        return [machine for machine in self.machines if machine.name == name]


def _replica(facts: Facts, *, announcing: bool) -> list[Machine]:
    holding = facts.replicas or {}
    return [
        machine
        for machine in facts.with_role(Role.WORKER)
        if holding.get(machine.name) and (machine.name == facts.announcer) is announcing
    ]


KUBERNETES = (Role.CONTROL_PLANE, Role.WORKER)
DATABASE = (Role.NDB_MANAGEMENT, Role.NDB_DATA, Role.NDB_SQL)
# Each gives the candidates; `select` takes as many of them as are asked for.
CANDIDATES: Mapping[str, Callable[[Facts], list[Machine]]] = {
    "master": lambda facts: facts.with_role(Role.CONTROL_PLANE),
    "worker": lambda facts: facts.with_role(Role.WORKER),
    "data node": lambda facts: facts.with_role(Role.NDB_DATA),
    "management node": lambda facts: facts.with_role(Role.NDB_MANAGEMENT),
    "SQL node": lambda facts: facts.with_role(Role.NDB_SQL),
    "file server": lambda facts: facts.with_role(Role.NFS),
    "connector": lambda facts: facts.with_role(Role.TUNNEL),
    "API endpoint": lambda facts: facts.named(facts.endpoint),
    "API endpoint that announces": lambda facts: [m for m in facts.named(facts.endpoint) if m.name == facts.announcer],
    "other master": lambda facts: [m for m in facts.with_role(Role.CONTROL_PLANE) if m.name != facts.endpoint],
    "announcer": lambda facts: facts.named(facts.announcer),
    "etcd leader": lambda facts: facts.named(facts.etcd_leader),
    "arbitrator": lambda facts: facts.named(facts.arbitrator),
    "worker with a replica": lambda facts: [
        m for m in facts.with_role(Role.WORKER) if (facts.replicas or {}).get(m.name)
    ],
    "worker with a replica that announces": lambda facts: _replica(facts, announcing=True),
    "worker with a replica that does not announce": lambda facts: _replica(facts, announcing=False),
    "kubernetes": lambda facts: facts.with_role(*KUBERNETES),
    "database": lambda facts: facts.with_role(*DATABASE),
    "everything": lambda facts: list(facts.machines),
}
WHOLE = {"kubernetes", "database", "everything"}


def select(words: str, facts: Facts, seed: int, count: int = 1, turn: int = 0) -> tuple[Machine, ...]:
    """`count` machines that go by `words`, or by their own name; the same for the same facts and seed.

    Another `turn` takes others, as long as there are. Groups are taken whole, as is everybody for a `count` of -1.
    Raises NoSuchTarget, or NobodyNow where only now nobody is meant.
    """
    if words not in CANDIDATES:
        if own := facts.named(words):
            return tuple(own)
        raise NoSuchTarget(f"nothing is called “{words}”; {_nearest(words, facts.machines)}")
    found = CANDIDATES[words](facts)
    if found and (words in WHOLE or count < 0):
        return tuple(found)
    if len(found) < count:
        told = ", ".join(machine.name for machine in found) or "none"
        raise NobodyNow(f"{count} of “{words}” are wanted, and there is {told} ({facts.told})")
    order = random.Random(seed).sample(found, len(found))
    picked = [order[(turn * count + at) % len(order)] for at in range(count)]
    return tuple(machine for machine in facts.machines if machine in picked)


def _nearest(words: str, machines: Sequence[Machine]) -> str:
    return nearest(words, [*CANDIDATES, *(machine.name for machine in machines)])


def nearest(word: str, names: Collection[str]) -> str:
    """The names that come nearest to a word that is none of them; all of them where none comes near."""
    close = difflib.get_close_matches(word, names, n=3, cutoff=0.5)
    return f"did you mean {' or '.join(close)}?" if close else f"there are {', '.join(names)}"
