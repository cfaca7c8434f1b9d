"""What a history proves: each layer's outages beside its budget, each write beside its promise. Pure.

Nothing that was not tested is a pass: too few questions, no fault, or a fault that never came are *not judged*.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

from certificate.verdict import Finding, Verdict, weightiest
from chaos.history import Aborted, Allowed, Fault, Found, History, Phase, Probe, Seen, Write
from chaos.outage import Outage, of_history
from chaos.writes import Account, accounts

# An answer that is held back for less fails nobody: it is latency, which load tests judge. (Nielsen: up to a second a
# person's thoughts are not interrupted; twice that is given for machines that start next to the one that answers.)
PATIENCE_S = 2.0
# Whom a layer asks to answer; of layers with names of their own (`pod/…`), what stands before the slash.
ASKS: Mapping[str, tuple[str, ...]] = {
    "public": ("vip",),
    "vip": ("pod",),
    "pod": ("sql", "nfs"),
    "write": ("ndb",),
    "sql": ("ndb",),
}


@dataclass(frozen=True)
class Strike:
    """What was done to whom: when it began and had been done, and when taking it back began and was done."""

    name: str
    targets: tuple[str, ...]
    inject_s: float
    injected_s: float | None = None
    heal_s: float | None = None
    healed_s: float | None = None


@dataclass(frozen=True)
class LayerJudgement:
    """A layer's outages, with the layers that each is owed to, and what that says of its budget."""

    layer: str
    outages: tuple[Outage, ...]
    owed_to: tuple[tuple[str, ...], ...]
    allowed: Allowed | None
    restored_s: float
    finding: Finding


@dataclass(frozen=True)
class Judgement:
    """What is said of a drill."""

    strikes: tuple[Strike, ...]
    layers: tuple[LayerJudgement, ...]
    writes: tuple[Account, ...]
    detected_s: float | None
    redundant_s: float | None
    loss_window_s: float
    course: tuple[Finding, ...]
    finding: Finding


def judge(history: History) -> Judgement:
    """Judge a whole history."""
    struck = strikes(history.of(Fault))
    found, unjudged = of_history(history)
    allowed = {budget.layer: budget for budget in history.of(Allowed)}
    layers = tuple(
        _layer(layer, history, found, unjudged, allowed.get(layer), struck)
        for layer in sorted({*found, *unjudged, *allowed})
    )
    window_s = history.header.loss_window_s
    moments = [strike.inject_s for strike in struck]

    def unsaved(write: Write) -> bool:
        return window_s > 0 and any(at_s - window_s <= write.ended_s for at_s in moments)

    looked_for = any(phase.name == "end" for phase in history.of(Phase))
    written = tuple(accounts(history.of(Write), history.of(Found), unsaved, looked_for=looked_for))
    course = tuple(_of_drill(history, struck))
    findings = [*course, *(layer.finding for layer in layers), *(account.finding for account in written)]
    return Judgement(
        struck,
        layers,
        written,
        _detected_s(history, struck),
        _redundant_s(history, struck),
        window_s,
        course,
        weightiest(findings) if findings else Finding(Verdict.UNKNOWN, "nothing was tested"),
    )


def strikes(faults: Iterable[Fault]) -> tuple[Strike, ...]:
    """The faults whose injection began, with how far they came."""
    found: list[Strike] = []
    for fault in faults:
        if fault.step == "inject":
            found.append(Strike(fault.name, fault.targets, fault.at_s))
            continue
        for at, strike in enumerate(found):
            if (strike.name, strike.targets, strike.healed_s) == (fault.name, fault.targets, None):
                found[at] = _advanced(strike, fault)
    return tuple(found)


def _advanced(strike: Strike, fault: Fault) -> Strike:
    match fault.step:
        case "injected":
            return replace(strike, injected_s=fault.at_s)
        case "heal":
            return replace(strike, heal_s=fault.at_s)
        case _:
            return replace(strike, healed_s=fault.at_s)


def owed_to(layer: str, outage: Outage, found: Mapping[str, Sequence[Outage]], until_s: float) -> tuple[str, ...]:
    """The innermost layers below `layer` that failed at the same time; itself where none did."""
    below = [
        other
        for other in found
        if other.partition("/")[0] in ASKS.get(layer.partition("/")[0], ())
        and any(_overlap(outage, theirs, until_s) for theirs in found[other])
    ]
    if not below:
        return (layer,)
    return tuple(sorted({deepest for other in below for deepest in owed_to(other, outage, found, until_s)}))


def _overlap(one: Outage, other: Outage, until_s: float) -> bool:
    ends = [until_s if outage.ended_s is None else outage.ended_s for outage in (one, other)]
    return one.began_s - one.error_s < ends[1] and other.began_s - other.error_s < ends[0]


def _of_drill(history: History, struck: Sequence[Strike]) -> Iterable[Finding]:
    for aborted in history.of(Aborted):
        yield Finding(Verdict.UNKNOWN, f"the drill ended early: {aborted.reason}")
    if not struck:
        yield Finding(Verdict.UNKNOWN, "no fault was injected, so nothing was tested")
    for strike in struck:
        for done_s, told in ((strike.injected_s, "did not come about"), (strike.healed_s, "was never healed")):
            if done_s is None:
                yield Finding(Verdict.UNKNOWN, f"{strike.name} of {', '.join(strike.targets)} {told}")
    if not history.of(Probe):
        yield Finding(Verdict.UNKNOWN, "no layer was asked anything")
    if history.phase("end") is None and not history.of(Aborted):
        yield Finding(Verdict.UNKNOWN, "the drill did not come to its end")


def _layer(
    layer: str,
    history: History,
    found: Mapping[str, Sequence[Outage]],
    unjudged: Mapping[str, str],
    allowed: Allowed | None,
    struck: Sequence[Strike],
) -> LayerJudgement:
    until_s = history.ended_s
    own = tuple(found.get(layer, ()))
    felt = [outage for outage in own if outage.failed or outage.length_s(until_s) >= PATIENCE_S]
    owed = tuple(owed_to(layer, outage, found, until_s) for outage in own)
    restored_s = max(_restored(felt, struck, until_s), default=0.0)
    return LayerJudgement(layer, own, owed, allowed, restored_s, _within(layer, felt, unjudged, allowed, restored_s))


def _restored(own: Sequence[Outage], struck: Sequence[Strike], until_s: float) -> Iterable[float]:
    """For each thing that was done, how long it took until the last outage that began after it was over."""
    moments = sorted(moment for s in struck for moment in (s.inject_s, s.heal_s) if moment is not None)
    for at_s, next_s in pairwise([*moments, float("inf")]):
        since = [o for o in own if at_s - o.error_s <= o.began_s < next_s - o.error_s]
        yield max((o.began_s + o.length_s(until_s) - at_s for o in since), default=0.0)


def _within(
    layer: str, own: Sequence[Outage], unjudged: Mapping[str, str], allowed: Allowed | None, restored_s: float
) -> Finding:
    if layer in unjudged:
        return Finding(Verdict.UNKNOWN, unjudged[layer])
    if allowed is None:
        return Finding(Verdict.PROVEN)  # it was watched to tell whom outages are owed to; nothing was promised of it
    error_s = max((outage.error_s for outage in own), default=0.0)
    if restored_s <= allowed.seconds + error_s:
        return Finding(Verdict.PROVEN)
    told = (
        f"{layer} was back after {restored_s:.1f} s (± {error_s:.2f} s) of {allowed.seconds:.1f} s: {allowed.formula}"
    )
    if any(outage.late for outage in own):
        return Finding(Verdict.UNKNOWN, f"{told}; but the machine that asked stood still itself")
    return Finding(Verdict.REFUTED, told)


def _detected_s(history: History, struck: Sequence[Strike]) -> float | None:
    """From the first fault to the first change that the target's own parts told of."""
    if not struck:
        return None
    later = [seen.at_s for seen in history.of(Seen) if seen.at_s >= struck[0].inject_s]
    return min(later) - struck[0].inject_s if later else None


def _redundant_s(history: History, struck: Sequence[Strike]) -> float | None:
    """From the last heal to a target that is whole."""
    verified = history.phase("verification")
    healed = [strike.healed_s for strike in struck if strike.healed_s is not None]
    return verified[0] - max(healed) if verified and healed else None
