"""Trials of a search for the capacity: each a run of its own, in a folder of its own."""

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from environments.model import Environment, Objective
from load import capacity
from load.busy import busiest
from load.found import Searched, Trial
from load.objective import Summary
from load.record import Sample, read

# So many in a row at one rate are no accident.
VOID_MAX = 3


class Void(Exception):
    """A trial says nothing of the site; the message says why."""


@dataclass
class Trials:
    """Searches one target; `generate` sends under a condition, at a rate, as the so-manieth trial, and leaves a record.

    `searched` holds every search that had a trial at least, also one that ended early.
    """

    environment: Environment
    wanted: Objective
    folder: Path
    generate: Callable[[str, float, int, Path], Summary]
    say: Callable[[str], None]
    searched: list[Searched] = field(default_factory=list)
    _count: int = 0

    def search(self, condition: str, start: float) -> None:
        """Under one condition; raises Void, and what `generate` raises."""
        trials: list[Trial] = []
        samples: dict[float, list[Sample]] = {}
        whole = False

        def measure(rate: float) -> str:
            name, said = self._valid(condition, rate)
            missed = said.misses(self.wanted)
            self.say(f"{condition}: {rate:6.1f} visitors a second: {missed or 'held'}")
            trials.append(_trial(rate, said, missed, name))
            samples.setdefault(rate, []).extend(s for s in read(self.folder / name) if isinstance(s, Sample))
            return missed

        try:
            capacity.search(measure, start)
            whole = True
        finally:
            if trials:
                self.searched.append(self._kept(condition, trials, samples, whole=whole))

    def _valid(self, condition: str, rate: float) -> tuple[str, Summary]:
        """A trial that says something of the site, and its folder's name; raises Void.

        A moment without a processor is enough to void a short trial at a low rate, and need not come again.
        """
        voided: list[str] = []
        while True:
            self._count += 1
            name = f"{self._count:02d}"
            said = self.generate(condition, rate, self._count, self.folder / name)
            if not said.void:
                return name, said
            voided.append(f"trial {name} is void: {said.void}")
            if said.incomplete:
                raise Void(voided[-1])
            if len(voided) == VOID_MAX:
                raise Void(f"{voided[0]}; so was each of the {VOID_MAX - 1} after it")
            self.say(f"{condition}: {rate:6.1f} visitors a second: once more, for {voided[-1]}")

    def _kept(
        self, condition: str, trials: list[Trial], samples: dict[float, list[Sample]], *, whole: bool
    ) -> Searched:
        found = Searched(condition=condition, trials=tuple(trials), whole=whole)
        said = found.capacity
        # What gave out shows where the objective is first missed: far beyond it, much else is busy as well.
        at_limit = samples.get(said.fails if math.isfinite(said.fails) else said.holds, [])
        return found.model_copy(update={"machines": busiest(at_limit, self.environment)})


def _trial(rate: float, said: Summary, misses: str, folder: str) -> Trial:
    p95_ms = said.percentiles_ms[95.0]
    return Trial(
        rate=rate,
        requests_rate=said.throughput,
        mean_ms=said.mean_ms,
        p95_ms=p95_ms,
        misses=misses,
        folder=folder,
        under_way=said.under_way,
    )
