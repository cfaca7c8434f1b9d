"""What came of lies: caught by whom, missed, cried wolf, and scenarios that nothing has broken yet. Pure."""

import random
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from certificate.verdict import Finding, Verdict
from tests.sabotage.lie import Lie

SLOW_S = 30  # a lie that waits for no timer is judged by then
QUIET = (Verdict.PROVEN, Verdict.NOT_EXERCISED)


@dataclass(frozen=True)
class Told:
    """A scenario as it stands in the features."""

    name: str
    tags: frozenset[str]


@dataclass(frozen=True)
class Row:
    """One lie and what came of it; times in seconds. `trouble`: why it could not be told, judged or taken back."""

    lie: Lie
    found: Mapping[str, Finding]
    tags: Mapping[str, frozenset[str]]
    judged_s: float = 0.0
    whole_s: float = 0.0
    trouble: str = ""

    @property
    def caught(self) -> dict[str, str]:
        """Scenarios that broke as they should, and the reason that they gave."""
        return {
            name: finding.reason
            for name, finding in self.found.items()
            if finding.verdict is self.lie.verdict
            and self.tags[name] & {*self.lie.breaks}
            and re.search(self.lie.because, finding.reason)
        }

    @property
    def missed(self) -> tuple[str, ...]:
        """Promises that the lie must break, and that no scenario saw broken."""
        return tuple(
            promise for promise in self.lie.breaks if not any(promise in self.tags[name] for name in self.caught)
        )

    @property
    def alarms(self) -> dict[str, str]:
        """Scenarios that broke and are owed to the lie by none of their promises."""
        owed = {*self.lie.breaks, *self.lie.may}
        return {
            name: f"{finding.verdict}: {finding.reason}"
            for name, finding in self.found.items()
            if finding.verdict not in QUIET and not self.tags[name] & owed
        }

    @property
    def complaint(self) -> str:
        """Why the lie was not dealt with as it must be; empty when it was."""
        parts = [self.trouble] if self.trouble else []
        if not self.trouble and self.missed:
            said = "; ".join(f"{name}: {f.verdict} {f.reason}".strip() for name, f in self.found.items())
            parts.append(f"expected {', '.join(self.missed)} to fall because of “{self.lie.because}”, found {said}")
        parts += [f"false alarm of “{name}”: {why}" for name, why in self.alarms.items()]
        return "; ".join(parts)


def owing(lie: Lie, scenarios: Iterable[Told]) -> tuple[str, ...]:
    """Names of the scenarios that could notice a lie: those that it names, or its layer's that change nothing."""
    if lie.scenarios:
        return lie.scenarios
    return tuple(s.name for s in scenarios if {lie.layer, "acceptance"} <= s.tags and s.tags & {*lie.breaks})


def bystanders(lie: Lie, scenarios: Sequence[Told], seed: int, count: int) -> tuple[str, ...]:
    """Scenarios picked by a seed that the lie is nothing to: none of their promises may fall with it."""
    owed = {*lie.breaks, *lie.may}
    free = [s.name for s in scenarios if "acceptance" in s.tags and not s.tags & owed]
    return tuple(random.Random(f"{seed} {lie.name}").sample(free, min(count, len(free))))


def sample(lies: Sequence[Lie], scenarios: Iterable[Told], seed: int, count: int) -> tuple[Lie, ...]:
    """So many lies picked by a seed, in their order, of those that are noticed while nothing is disrupted.

    Over the layers: none gives a second one before each has given its first.
    """
    told = tuple(scenarios)
    calm = {scenario.name for scenario in told if "acceptance" in scenario.tags}
    quick = [lie for lie in lies if not lie.rollback and calm.issuperset(owing(lie, told))]
    given: Counter[str] = Counter()
    ranked = []
    for lie in random.Random(seed).sample(quick, len(quick)):
        ranked.append((given[lie.layer], lie))
        given[lie.layer] += 1
    picked = [lie for _, lie in sorted(ranked, key=lambda pair: pair[0])[:count]]
    return tuple(lie for lie in quick if lie in picked)


def unbroken(rows: Iterable[Row], scenarios: Iterable[Told]) -> tuple[str, ...]:
    """Scenarios that no lie has broken: they assert nothing that anybody needs, or a lie is lacking.

    Those of drills are left out: every one is broken by lies told to its record (`test_records`).
    """
    broken = {name for row in rows for name in row.caught}
    return tuple(s.name for s in scenarios if s.name not in broken and "drill" not in s.tags)


def line(row: Row) -> str:
    """What came of a lie, in one line."""
    sign, caught = "!" if row.complaint else "+", "; ".join(row.caught) or "MISSED"
    times = f"{row.judged_s:4.0f} s {row.whole_s:4.0f} s"
    return f"{sign} {row.lie.layer:<13} {row.lie.name:<44} {times}  {', '.join(row.lie.breaks)}: {caught}"


def lines(rows: Sequence[Row], scenarios: Sequence[Told]) -> list[str]:
    """The matrix for people: a line a lie, then what is wrong, then what was never broken."""
    caught = sum(not row.missed and not row.trouble for row in rows)
    alarms, left = sum(len(row.alarms) for row in rows), unbroken(rows, scenarios)
    slow = sorted((row for row in rows if row.judged_s > SLOW_S), key=lambda row: -row.judged_s)
    minutes = sum(row.judged_s + row.whole_s for row in rows) / 60
    return [
        *map(line, rows),
        f"{caught} of {len(rows)} lies caught, {alarms} false alarms, in {minutes:.0f} min",
        f"{len(slow)} of {len(rows)} took more than {SLOW_S} s to a verdict, as those may that wait for a timer:",
        *(f"  {row.lie.name}: {row.judged_s:.0f} s" for row in slow),
        *(f"! {row.lie.name}: {row.complaint}" for row in rows if row.complaint),
        f"{len(left)} of {len(scenarios)} scenarios were broken by none of these lies:",
        *(f"  {name}" for name in left),
    ]
