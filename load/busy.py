"""How busy machines were, as their samples say, and what gave out. Pure."""

from collections.abc import Sequence
from dataclasses import dataclass

from environments.model import Environment, Role
from load.record import Sample

SATURATED = 0.85  # of all processors: what comes on top waits


@dataclass(frozen=True)
class Busy:
    """A machine over a while: the mean share of its processors in use, and how many threads served the site."""

    machine: str
    role: str
    cpu: float
    serves: str = ""
    at_work: float = 0.0
    at_work_max: float = 0.0


def busiest(samples: Sequence[Sample], environment: Environment) -> tuple[Busy, ...]:
    """Every machine that was sampled, busiest first. Pure."""
    found: dict[str, list[Sample]] = {}
    for sample in samples:
        found.setdefault(sample.machine, []).append(sample)
    rows = [_busy(name, own, environment.machine(name).role) for name, own in found.items()]
    return tuple(sorted(rows, key=lambda row: -row.cpu))


def _busy(machine: str, samples: Sequence[Sample], role: Role) -> Busy:
    cpu = sum(sample.cpu for sample in samples) / len(samples)
    counts = [(serves, count) for sample in samples for serves, count in sample.busy.items()]
    if not counts:
        return Busy(machine, str(role), cpu)
    at_work = [count for _, count in counts]
    return Busy(machine, str(role), cpu, counts[0][0], sum(at_work) / len(at_work), max(at_work))


def saturated(found: Sequence[Busy]) -> str:
    """What gave out, in words; that nothing did, where no machine's processors were. Pure."""
    if not found:
        return "no machine could be sampled"
    together = sum(one.cpu for one in found)
    if full := [f"{one.machine} ({one.role}): {one.cpu:.0%}" for one in found if one.cpu >= SATURATED]:
        told = f"processors of {', '.join(full)}"
    else:
        shared = f"; all machines together use {together:.0%} of one's processors" if together >= SATURATED else ""
        first = max(found, key=lambda one: one.cpu)
        told = f"no machine's own processors: the busiest is {first.machine} with {first.cpu:.0%}{shared}"
    serving: dict[str, float] = {}
    for one in found:
        if one.serves:
            serving[one.serves] = serving.get(one.serves, 0.0) + one.at_work
    threads = ", ".join(f"{name} {count:.1f}" for name, count in sorted(serving.items(), key=lambda pair: -pair[1]))
    return f"{told}; threads at work: {threads}" if threads else told
