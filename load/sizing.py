"""Where more visitors get no more, and what a multiple of them takes. Pure."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from load import usl
from load.found import Searched

SIZES = (1, 2, 5, 10)
COPIES_MAX = 1000


@dataclass(frozen=True)
class Knee:
    """Requests under way, answered requests a second, and why this is it."""

    at_once: float
    rate: float
    why: str


@dataclass(frozen=True)
class Size:
    """So many times the traffic, in arrivals a second, and how many copies of what gave out first that takes.

    `linear` is a lower bound: copies that never wait for each other. `by_law` and `at_worst` are None where no number
    of copies suffices, and where no law was `fitted`.
    """

    times: int
    rate: float
    linear: int
    by_law: int | None
    at_worst: int | None
    fitted: bool


def law_of(one: Searched) -> usl.Fit | None:
    """The law behind a search's trials; None where these do not settle it."""
    return usl.fit([(trial.at_once, trial.requests_rate) for trial in one.trials])


def knee(one: Searched, law: usl.Fit | None) -> Knee | None:
    """The law's maximum where trials went that far, else the last rate that held; None where none did, or all did."""
    counts = [trial.at_once for trial in one.trials]
    if law and counts and law.peak_at <= max(counts):
        return Knee(law.peak_at, law.throughput(law.peak_at), "more at once get less, by the law")
    held = [trial for trial in one.trials if trial.rate == one.capacity.holds and not trial.misses]
    if not held or math.isinf(one.capacity.fails):
        return None
    rate = sum(trial.requests_rate for trial in held) / len(held)
    at_once = sum(trial.at_once for trial in held) / len(held)
    return Knee(at_once, rate, "beyond it the objective is missed")


def sizes(found: Sequence[Searched]) -> list[Size]:
    """For multiples of the traffic that holds now, by the least of the capacities, which is the one that counts.

    What a search found until it was ended is none: it may be any part of what holds.
    """
    least = min((one for one in found if one.whole), key=lambda one: one.capacity.holds, default=None)
    if least is None or not least.capacity.holds:
        return []
    law = law_of(least)
    return [
        Size(
            times,
            least.capacity.holds * times,
            times,
            copies(law.contention, law.coherency, times) if law else None,
            copies(law.contention + law.contention_half, law.coherency + law.coherency_half, times) if law else None,
            law is not None,
        )
        for times in SIZES
    ]


def copies(contention: float, coherency: float, times: float) -> int | None:
    """The least number that does `times` the work of one; None where none does.

    p copies do p / (1 + s (p - 1) + k p (p - 1)) times as much (Gunther, Guerrilla Capacity Planning, 4.4: the law of
    hardware, with the parameters that were seen of requests at once).
    """
    most = math.sqrt(max(0.0, 1 - contention) / coherency) if coherency > 0 else math.inf
    for count in range(1, min(COPIES_MAX, math.ceil(most)) + 1 if math.isfinite(most) else COPIES_MAX + 1):
        if count / (1 + contention * (count - 1) + coherency * count * (count - 1)) >= times:
            return count
    return None
