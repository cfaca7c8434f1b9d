"""Whether a figure is worse than it used to be, by how much, and how sure that is. Pure."""

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

# Of all figures of a run together: so often all are within their intervals. Only what is above one is told, so mere
# noise is taken for worse in half of the rest, in one run of forty.
CONFIDENCE = 0.95
EARLIER_MIN = 3  # fewer say nothing of how much a figure varies by itself
RESOLUTION = 0.1  # of a figure's own unit: probes are 50 ms apart, at both ends


@dataclass(frozen=True)
class Effect:
    """By how much a figure differs from its earlier ones, and between which bounds a difference may be meant."""

    usual: float
    difference: float
    low: float
    high: float

    @property
    def is_worse(self) -> bool:
        """Beyond noise: the whole interval is above nothing, which is half of the cases in which noise leaves it."""
        return self.low > 0


def effects(values: Mapping[str, float], earlier: Mapping[str, Sequence[float]]) -> dict[str, Effect]:
    """Each figure against its earlier ones, where it has enough of them, by name.

    The more figures are looked at, the more of them are far off by chance: each has its share of the doubt only
    (Bonferroni; Montgomery & Runger, 10-1).
    """
    known = {name: earlier[name] for name in values if len(earlier.get(name, ())) >= EARLIER_MIN}
    found = {name: effect(values[name], before, len(known)) for name, before in known.items()}
    return {name: each for name, each in found.items() if each is not None}


def effect(value: float, earlier: Sequence[float], figures: int = 1) -> Effect | None:
    """One of so many figures against its earlier ones, by Student's prediction interval; None with too few of them.

    s * sqrt(1 + 1/n), where s holds what the ruler cannot tell apart, too (Montgomery & Runger, Applied Statistics and
    Probability for Engineers, 8-6).
    """
    count = len(earlier)
    if count < EARLIER_MIN:
        return None
    from scipy.special import stdtrit  # noqa: PLC0415 - a second to import, which a first run need not wait for

    usual = statistics.fmean(earlier)
    spread = math.hypot(statistics.stdev(earlier), RESOLUTION)
    half = float(stdtrit(count - 1, 1 - (1 - CONFIDENCE) / figures / 2)) * spread * math.sqrt(1 + 1 / count)
    difference = value - usual
    return Effect(usual, difference, difference - half, difference + half)
