"""The Universal Scalability Law, fitted to what was measured. Pure.

Throughput X(N) = g N / (1 + s (N - 1) + k N (N - 1)) at N requests at once: g is what one gets, s what waits for a
shared part, k what keeps copies in step (N. J. Gunther, Guerrilla Capacity Planning, Springer 2007, chapter 5). N
follows from rate and mean latency by Little's law. X counts what was answered as wanted, N all that was under way.
"""

import math
import warnings
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

POINTS_MIN = 4  # three parameters, and something left to see how well they fit
CONFIDENCE = 0.95


@dataclass(frozen=True)
class Fit:
    """Parameters with the half width of their 95 % interval, and where throughput is highest."""

    gain: float
    contention: float
    coherency: float
    gain_half: float
    contention_half: float
    coherency_half: float

    def throughput(self, at_once: float) -> float:
        """Answered requests a second with so many at once."""
        waiting = self.contention * (at_once - 1) + self.coherency * at_once * (at_once - 1)
        return self.gain * at_once / (1 + waiting)

    @property
    def peak_at(self) -> float:
        """How many at once give the most; infinite where more always gives more."""
        return math.sqrt((1 - self.contention) / self.coherency) if self.coherency > 0 else math.inf


def at_once(rate: float, mean_ms: float) -> float:
    """Requests under way, on average: Little's law."""
    return rate * mean_ms / 1000


def fit(points: Sequence[tuple[float, float]]) -> Fit | None:
    """By least squares through (requests at once, answered ones a second); None where these do not settle it."""
    if len({round(n, 6) for n, _ in points}) < POINTS_MIN or not any(x for _, x in points):
        return None
    from scipy import optimize, stats  # noqa: PLC0415 - a second to import, which only a search for the capacity needs

    n, x = (np.array(values, dtype=float) for values in zip(*points, strict=True))

    def law(at: "np.ndarray[tuple[int], np.dtype[np.float64]]", g: float, s: float, k: float) -> object:
        return g * at / (1 + s * (at - 1) + k * at * (at - 1))

    start = (float(np.max(x / np.maximum(n, 1e-9))), 0.05, 0.001)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", optimize.OptimizeWarning)
            found, covariance = optimize.curve_fit(law, n, x, p0=start, bounds=([0, 0, 0], [np.inf, 1, 1]))
    except (RuntimeError, ValueError, optimize.OptimizeWarning):
        return None
    half = stats.t.ppf((1 + CONFIDENCE) / 2, len(points) - 3) * np.sqrt(np.diag(covariance))
    if not np.all(np.isfinite(half)):
        return None
    return Fit(*(float(value) for value in (*found, *half)))
