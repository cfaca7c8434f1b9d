"""When visitors come: an open model, whose times are settled before the first of them. Pure.

A shape is a list of segments whose rate changes linearly; the k-th visitor comes when the integral of the rate reaches
k, or, with Poisson arrivals, the sum of k exponential times of mean 1 (inversion of a non-homogeneous Poisson process:
Cinlar, Introduction to Stochastic Processes, 4.7).
"""

import math
import random
from collections.abc import Iterator, Sequence
from enum import StrEnum
from itertools import islice
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

STEPS = 5
SPIKE_FACTOR = 5.0


class Shape(StrEnum):
    """How the rate goes over a run."""

    CONSTANT = "constant"
    RAMP = "ramp"
    STEPS = "steps"
    SPIKE = "spike"


class Segment(BaseModel):
    """So many seconds, in which the rate goes from one value to another; arrivals a second."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    duration_s: Annotated[float, Field(gt=0)]
    first_rate: Annotated[float, Field(ge=0)]
    last_rate: Annotated[float, Field(ge=0)]

    @property
    def arrivals(self) -> float:
        """The integral of the rate."""
        return self.duration_s * (self.first_rate + self.last_rate) / 2

    def when(self, count: float) -> float:
        """Seconds into the segment at which the integral of the rate is `count`, which is within it."""
        slope = (self.last_rate - self.first_rate) / self.duration_s
        # Of the two roots of slope/2 t^2 + first t - count, in the form that does not cancel.
        root = math.sqrt(max(0.0, self.first_rate**2 + 2 * slope * count))
        return min(self.duration_s, 2 * count / (self.first_rate + root)) if count else 0.0


def segments(shape: Shape, rate: float, duration_s: float) -> tuple[Segment, ...]:
    """A shape with `rate` as its highest (its ordinary one for a spike); raises ValueError for no rate or no time."""
    if not (rate > 0 and duration_s > 0 and math.isfinite(rate) and math.isfinite(duration_s)):
        raise ValueError(f"expected a rate and a duration above 0, found {rate:g}/s for {duration_s:g} s")

    def part(share: float, first: float, last: float) -> Segment:
        return Segment(duration_s=duration_s * share, first_rate=first, last_rate=last)

    match shape:
        case Shape.CONSTANT:
            return (part(1, rate, rate),)
        case Shape.RAMP:
            return (part(1, 0, rate),)
        case Shape.STEPS:
            levels = [rate * step / STEPS for step in range(1, STEPS + 1)]
            return tuple(part(1 / STEPS, level, level) for level in levels)
        case Shape.SPIKE:
            high = rate * SPIKE_FACTOR
            return part(0.4, rate, rate), part(0.1, high, high), part(0.5, rate, rate)


def times(parts: Sequence[Segment], poisson_seed: int | None = None) -> Iterator[float]:
    """Seconds from the begin at which visitors come, in order; at random where a seed is given."""
    dice = None if poisson_seed is None else random.Random(poisson_seed)
    # Evenly spaced ones come in the middle of their share, so that none falls on the very begin or end.
    wanted = dice.expovariate(1) if dice else 0.5
    began_s = passed = 0.0
    for part in parts:
        while wanted < passed + part.arrivals:
            yield began_s + part.when(wanted - passed)
            wanted += dice.expovariate(1) if dice else 1.0
        began_s += part.duration_s
        passed += part.arrivals


def share(of: Iterator[float], index: int, count: int) -> Iterator[float]:
    """What one of `count` workers sends, so that all together send everything once."""
    return islice(of, index, None, count)


def duration_s(parts: Sequence[Segment]) -> float:
    """How long a run takes in its arrivals."""
    return sum(part.duration_s for part in parts)
