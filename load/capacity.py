"""The highest rate at which the objective holds, found by trying. Pure: whoever asks measures.

Rates double until one is too much; then the interval between the highest that holds and the lowest that does not is
halved (by ratio) until it is narrow. A rate is tried again until two trials agree.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

NARROW = 1.15  # highest rate that holds, to lowest that does not
AGREE, TRIALS_MAX = 2, 3
RATE_MIN, RATE_MAX = 0.5, 10_000.0


@dataclass(frozen=True)
class Trial:
    """A rate, and what was not good enough at it; nothing where it held."""

    rate: float
    misses: str


@dataclass(frozen=True)
class Capacity:
    """What trials showed, all of a search's or those until it was ended; arrivals a second."""

    trials: tuple[Trial, ...]

    @property
    def holds(self) -> float:
        """The highest rate that held, by more than one trial; 0 where none did."""
        return max((rate for rate in self._rates if self._agree(rate, missed=False)), default=0.0)

    @property
    def fails(self) -> float:
        """The lowest rate that did not, by more than one trial; infinite where every one held."""
        return min((rate for rate in self._rates if self._agree(rate, missed=True)), default=math.inf)

    @property
    def limit(self) -> str:
        """What gave way first."""
        return next((trial.misses for trial in self.trials if trial.misses and trial.rate == self.fails), "")

    @property
    def _rates(self) -> set[float]:
        return {trial.rate for trial in self.trials}

    def _agree(self, rate: float, *, missed: bool) -> bool:
        return sum(trial.rate == rate and bool(trial.misses) is missed for trial in self.trials) >= AGREE


def search(measure: Callable[[float], str], first: float) -> Capacity:
    """Search from a first rate; `measure` tells what a rate misses. What it raises ends the search."""
    trials: list[Trial] = []

    def holds(rate: float) -> bool:
        said: list[bool] = []
        while len(said) < TRIALS_MAX and said.count(True) < AGREE and said.count(False) < AGREE:
            trials.append(Trial(rate, measure(rate)))
            said.append(not trials[-1].misses)
        return said.count(True) >= AGREE

    low, high = 0.0, math.inf
    rate = first
    while high / max(low, RATE_MIN / 2) > NARROW and RATE_MIN <= rate <= RATE_MAX:
        if holds(rate):
            low = rate
        else:
            high = rate
        if math.isinf(high):
            rate = low * 2
        elif not low:
            rate = high / 2
        else:
            rate = math.sqrt(low * high)
    return Capacity(tuple(trials))
