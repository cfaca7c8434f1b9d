"""Whether a run was good enough, and whether it says anything at all. Pure."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from hdrh.histogram import HdrHistogram

from environments.model import Objective
from load.percentile import values_ms
from load.record import VISIT, VOID_SHARE, AnyLine, End, Header, Request, Second, histogram

PERCENTILES = (50.0, 90.0, 95.0, 99.0, 99.9)


@dataclass(frozen=True)
class Summary:
    """A run in figures: milliseconds from the intended start, requests a second, shares.

    Visitors came for `arrivals_s`, the last request was meant to begin within `duration_s`, and all that were sent
    waited for `waited_s` together.
    """

    requests: int
    failed: int
    visitors: int
    visitors_lost: int
    visitors_late: int
    duration_s: float
    arrivals_s: float
    waited_s: float
    percentiles_ms: Mapping[float, float]
    mean_ms: float
    max_ms: float
    errors: Mapping[str, int]
    lost: Mapping[str, int]
    incomplete: str

    @property
    def rate(self) -> float:
        """Requests a second, those that failed and those that nobody was sent for among them."""
        return self.requests / self.duration_s if self.duration_s else 0.0

    @property
    def throughput(self) -> float:
        """Requests a second that were answered as wanted, over the time in which visitors came."""
        return (self.requests - self.failed) / self.arrivals_s if self.arrivals_s else 0.0

    @property
    def under_way(self) -> float:
        """Requests under way, on average: Little's law, of all that were sent, for those that fail are work too."""
        return self.waited_s / self.arrivals_s if self.arrivals_s else 0.0

    @property
    def failed_share(self) -> float:
        """Of all requests."""
        return self.failed / self.requests if self.requests else 0.0

    @property
    def void(self) -> str:
        """Why the run says nothing of the site; empty where it does."""
        if self.incomplete:
            return f"the run is incomplete: {self.incomplete}"
        held_back = self.visitors_lost + self.visitors_late
        if held_back > VOID_SHARE * self.visitors:
            why = f" ({', '.join(f'{kind} {count}' for kind, count in sorted(self.lost.items()))})" if self.lost else ""
            return (
                f"the generator did not deliver {self.visitors_lost} visitors{why} and sent {self.visitors_late} too "
                f"late, more than {VOID_SHARE:.0%} of {self.visitors} visitors; use more workers"
            )
        return "" if self.requests else "nothing was sent"

    def misses(self, objective: Objective) -> str:
        """What is not good enough; empty where all is."""
        if self.failed_share > objective.failed_max:
            return f"{self.failed_share:.1%} of requests failed, of {objective.failed_max:.1%} that may"
        p95_ms = self.percentiles_ms[95.0]
        return f"p95 is {p95_ms:.0f} ms, of {objective.p95_ms:g} ms" if p95_ms > objective.p95_ms else ""


def summary(lines: Sequence[AnyLine]) -> Summary:
    """What a record says, all requests together. Histograms are added, percentiles never."""
    requests = [line for line in lines if isinstance(line, Request)]
    seconds = [line for line in lines if isinstance(line, Second)]
    ends = [line for line in lines if isinstance(line, End)]
    asked_s = sum(part[0] for line in lines if isinstance(line, Header) for part in line.segments)
    duration_s = float(max((second.at_s + 1 for second in seconds), default=0))
    incomplete = ends[-1].incomplete if ends else "its record has no end"
    merged, waited_us = histogram(), 0.0
    errors: dict[str, int] = {}
    for request in requests:
        found = HdrHistogram.decode(request.latencies)
        merged.add(found)
        if request.name != VISIT:
            waited_us += found.get_total_count() * found.get_mean_value()
        for kind, count in request.errors.items():
            errors[kind] = errors.get(kind, 0) + count
    count = merged.get_total_count()
    return Summary(
        requests=count,
        failed=sum(errors.values()),
        visitors=sum(second.visitors for second in seconds),
        visitors_lost=sum(second.undelivered for second in seconds),
        visitors_late=sum(second.late for second in seconds),
        duration_s=duration_s,
        arrivals_s=min(asked_s, duration_s) if incomplete else asked_s,
        waited_s=waited_us / 1e6,
        percentiles_ms=dict(zip(PERCENTILES, values_ms(merged, PERCENTILES), strict=True)),
        mean_ms=merged.get_mean_value() / 1000 if count else 0.0,
        max_ms=merged.get_max_value() / 1000 if count else 0.0,
        errors=errors,
        lost=dict(ends[-1].lost) if ends else {},
        incomplete=incomplete,
    )
