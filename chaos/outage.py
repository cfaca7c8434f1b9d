"""Outages in a history: when a layer answered nobody, when it answered only some, and how sure that is. Pure.

A layer that is up completes an answer about once an interval. So an outage is a gap between two completions, whatever
its cause: connections that are refused, packets that vanish, answers that are held back. Who asks late, or how long a
question is tried, does not move its ends.
"""

import statistics
from collections import Counter
from collections.abc import Container, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

from chaos.history import Aborted, Event, History, Probe, Write

# Failures amid answers that are closer together than this are one episode.
EPISODE_S = 2.0
# Where only some fail, several may do so in a row: so many are an outage for all even among others.
ROW = 10
# Probes that a busy machine sent late by this share of a gap may have made it.
LATE_SHARE = 0.5


class NothingMeasured(Exception):
    """A layer was not probed well enough for anything to be said of it; the message says what is missing."""


@dataclass(frozen=True)
class Ruler:
    """What a layer looks like while nothing is wrong: seconds."""

    interval_s: float
    latency_median_s: float
    latency_max_s: float

    @property
    def gap_max_s(self) -> float:
        """The longest time without a completion that is no outage."""
        return 2 * self.interval_s + self.latency_max_s - self.latency_median_s


@dataclass(frozen=True)
class Outage:
    """A time in which a layer failed all who asked (`total`) or some; its ends are known to `error_s` together."""

    layer: str
    began_s: float
    ended_s: float | None
    error_s: float
    total: bool
    asked: int
    failed: int
    errors: tuple[tuple[str, int], ...]
    late: bool = False

    def length_s(self, until_s: float) -> float:
        """How long it went; up to `until_s` if it never ended."""
        return (self.ended_s if self.ended_s is not None else until_s) - self.began_s


def ruler_of(layer: str, probes: Sequence[Probe], steady: tuple[float, float], interval_s: float) -> Ruler:
    """The ruler by a layer's probes of the steady phase; raises NothingMeasured when it was not steady."""
    # What was under way when the phase ended may have met what ended it, however long it had been.
    began_s, ended_s = steady
    within = [probe for probe in probes if began_s <= probe.intended_s and probe.ended_s < ended_s]
    failed = [probe for probe in within if not probe.ok]
    if failed:
        raise NothingMeasured(f"{layer} failed before anything was done to it: {failed[0].error}")
    latencies = [probe.ended_s - probe.intended_s for probe in within] or [0.0]
    median_s = statistics.median(latencies)
    # Who waits for each answer asks no more often than it is answered.
    ruler = Ruler(max(interval_s, median_s) if _serial(layer) else interval_s, median_s, max(latencies))
    if len(within) < 0.5 * (ended_s - began_s) / ruler.interval_s or len(within) < 2:
        raise NothingMeasured(f"{layer} was asked {len(within)} times in the steady phase, too few to measure by")
    silent_s = ended_s - max(probe.ended_s for probe in within)
    if silent_s > ruler.gap_max_s:
        raise NothingMeasured(f"{layer} answered nobody for {silent_s:.1f} s before anything was done to it")
    return ruler


def outages(layer: str, probes: Iterable[Probe], ruler: Ruler, until_s: float) -> list[Outage]:
    """Every outage of a layer in order, total and partial; `until_s` is when the last question was asked.

    A total outage is never joined to another, unless it is shorter than `ROW` intervals and others failed next to it.
    """
    asked = sorted(probes, key=lambda probe: probe.intended_s)
    gaps = list(_total(layer, asked, ruler, until_s))
    found = [gap for gap in gaps if gap.length_s(until_s) >= ROW * ruler.interval_s]
    short = [gap for gap in gaps if gap not in found]
    failed = [probe for probe in asked if not probe.ok and not any(_asked_in(gap, probe, ruler) for gap in found)]
    for episode in _episodes(failed):
        alone = next((gap for gap in short if _alone(gap, episode, ruler)), None)
        if alone is None:
            found.append(_partial(layer, asked, episode, ruler))
        elif alone not in found:  # questions that are tried for long make several episodes of one gap
            found.append(alone)
    # Answers that were held back, and came in the end: nobody failed.
    found += [gap for gap in short if not any(_asked_in(gap, probe, ruler) for probe in failed)]
    return sorted(found, key=lambda outage: outage.began_s)


def _total(layer: str, asked: Sequence[Probe], ruler: Ruler, until_s: float) -> Iterable[Outage]:
    completions = sorted(probe.ended_s for probe in asked if probe.ok)
    if not completions:
        completions = [asked[0].intended_s] if asked else []
    for before_s, after_s in pairwise([*completions, until_s + ruler.gap_max_s]):
        if after_s - before_s <= ruler.gap_max_s or (after_s > until_s and until_s - before_s <= ruler.gap_max_s):
            continue
        # Completions lie anywhere within an interval, and the first one afterwards took its time.
        began_s = before_s + ruler.interval_s / 2
        ended_s = None if after_s > until_s else after_s - ruler.interval_s / 2 - ruler.latency_median_s
        gap = Outage(layer, began_s, ended_s, ruler.interval_s, total=True, asked=0, failed=0, errors=())
        answered = [p for p in asked if p.ok and before_s <= p.intended_s < after_s - ruler.latency_median_s]
        failed = [p for p in asked if not p.ok and _asked_in(gap, p, ruler)]
        yield replace(
            gap,
            asked=len(answered) + len(failed),
            failed=len(failed),
            errors=_kinds(failed),
            late=any(p.started_s - p.intended_s > LATE_SHARE * (after_s - before_s) for p in [*answered, *failed]),
        )


def _asked_in(gap: Outage, probe: Probe, ruler: Ruler) -> bool:
    """Whether it was asked in that gap, or under way when it began; one that is tried for longer failed before it."""
    slack_s = gap.error_s + ruler.latency_max_s
    return gap.began_s - slack_s <= probe.intended_s and (
        gap.ended_s is None or probe.intended_s <= gap.ended_s + gap.error_s
    )


def _alone(gap: Outage, episode: Sequence[Probe], ruler: Ruler) -> bool:
    """Whether a short gap is all that those failures are: asked in it, and over in it, unless nobody else was answered.

    Who is still tried while others are answered again fails among others; the last that was asked may end the gap.
    """
    own = all(_asked_in(gap, probe, ruler) for probe in episode)
    over = gap.ended_s is None or all(probe.ended_s <= gap.ended_s + gap.error_s for probe in episode)
    return own and (over or gap.asked - gap.failed <= 1)


def _episodes(failed: Sequence[Probe]) -> list[list[Probe]]:
    """Failures in groups, by `EPISODE_S`."""
    episodes: list[list[Probe]] = []
    for probe in failed:
        if episodes and probe.intended_s - episodes[-1][-1].intended_s <= EPISODE_S:
            episodes[-1].append(probe)
        else:
            episodes.append([probe])
    return episodes


def _partial(layer: str, asked: Sequence[Probe], episode: Sequence[Probe], ruler: Ruler) -> Outage:
    began_s, last_s = episode[0].intended_s, episode[-1].intended_s
    meanwhile = [probe for probe in asked if began_s <= probe.intended_s <= last_s]
    return Outage(
        layer,
        began_s - ruler.interval_s / 2,
        last_s + ruler.interval_s / 2,
        ruler.interval_s,
        total=False,
        asked=len(meanwhile),
        failed=len(episode),
        errors=_kinds(episode),
    )


def _kinds(probes: Iterable[Probe]) -> tuple[tuple[str, int], ...]:
    return tuple(Counter(probe.error.partition(":")[0] for probe in probes if not probe.ok).most_common())


def by_layer(events: Iterable[Event], layers: Container[str]) -> dict[str, list[Probe]]:
    """What `layers` were asked, and what was written to them as questions of their own. Pure."""
    found: dict[str, list[Probe]] = {}
    for event in events:
        probe = event.as_probe if isinstance(event, Write) else event
        if isinstance(probe, Probe) and probe.layer in layers:  # others are recorded, and no one's outages
            found.setdefault(probe.layer, []).append(probe)
    return found


def unsteady(events: Iterable[Event], steady: tuple[float, float], intervals_s: Mapping[str, float]) -> str:
    """Why outages of some layer could not be measured by this phase; nothing where those of all can be. Pure."""
    asked = by_layer(events, intervals_s)
    try:
        for layer, interval_s in intervals_s.items():
            ruler_of(layer, asked.get(layer, ()), steady, interval_s)
    except NothingMeasured as error:
        return str(error)
    return ""


def of_history(history: History) -> tuple[dict[str, list[Outage]], dict[str, str]]:
    """The outages of every layer that was probed or written to, and of the layers that cannot be judged why not."""
    steady, header = history.phase("steady"), history.header
    why = "".join(f"; the drill ended early: {one.reason}" for one in history.of(Aborted))
    found: dict[str, list[Outage]] = {}
    unjudged: dict[str, str] = {}
    for layer, asked in by_layer(history.events, header.intervals_s).items():
        try:
            if steady is None:
                raise NothingMeasured(f"{layer} has no steady phase to be measured by")
            ruler = ruler_of(layer, asked, steady, header.intervals_s[layer])
        except NothingMeasured as error:
            unjudged[layer] = f"{error}{why}"
            continue
        # While a writer waits, that is its last question.
        until_s = max(probe.ended_s if _serial(layer) else probe.intended_s for probe in asked)
        found[layer] = outages(layer, asked, ruler, until_s)
    return found, unjudged


def _serial(layer: str) -> bool:
    """Writers ask one thing at a time; probes ask whatever the answers do."""
    return layer.startswith("write/")
