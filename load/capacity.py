"""The highest rate at which the objective holds, found by trying. Pure: whoever asks measures.

Rates double until one is too much; then the interval between the highest that holds and the lowest that does not is
halved (by ratio) until it is narrow. A rate is tried again until two trials agree.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

NARROW = 1.15  # highest rate that holds, to lowest that does not
TRIALS_MAX = 3
RATE_MIN, RATE_MAX = 0.5, 10_000.0


@dataclass(frozen=True)
class Trial:
    """A rate, and what was not good enough at it; nothing where it held."""

    rate: float
    misses: str


@dataclass(frozen=True)
class Capacity:
    """Arrivals a second: the highest rate that held, the lowest that did not, and every trial."""

    holds: float
    fails: float
    trials: tuple[Trial, ...]

    @property
    def limit(self) -> str:
        """What gave way first."""
        over = [trial for trial in self.trials if trial.misses]
        return min(over, key=lambda trial: trial.rate).misses if over else ""


def search(measure: Callable[[float], str], first: float) -> Capacity:
    """Search from a first rate; `measure` tells what a rate misses. What it raises ends the search.

    Where not even RATE_MIN holds, `holds` is 0; where RATE_MAX does, `fails` is infinite.
    """
    trials: list[Trial] = []

    def holds(rate: float) -> bool:
        said: list[bool] = []
        while len(said) < TRIALS_MAX and said.count(True) < 2 and said.count(False) < 2:
            trials.append(Trial(rate, measure(rate)))
            said.append(not trials[-1].misses)
        return said.count(True) >= 2

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
    return Capacity(low, high, tuple(trials))
