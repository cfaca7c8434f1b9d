"""What a history proves: each layer's outages beside its budget, each write beside its promise. Pure.

Nothing that was not tested is a pass: too few questions, no fault, or a fault that never came are *not judged*.
"""

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from certificate.verdict import Finding, Verdict, weightiest
from chaos.history import SILENCE, Aborted, Allowed, Fault, Found, History, Phase, Probe, Seen, Write
from chaos.outage import Outage, by_layer, of_history
from chaos.writes import Account, accounts

# An answer that is held back for less fails nobody: it is latency, which load tests judge. (Nielsen: up to a second a
# person's thoughts are not interrupted; twice that is given for machines that start next to the one that answers.)
PATIENCE_S = 2.0
# A whole page is waited for: ten seconds hold a person's attention (Nielsen).
PAGE_PATIENCE_S = 10.0
# A time in which a layer was asked nothing says nothing of it: so many intervals, and a moment for a busy machine.
UNASKED_INTERVALS, UNASKED_S = 5, 2.0
# To give a machine its power, or start a unit, takes seconds; a hypervisor that is busy may take minutes.
HEALING_S = 60.0
UPLOAD = "upload"
# What is seen from outside, or comes after: its change is no sign that the target's own parts noticed anything.
NOT_DETECTING = {"machines", "restarts", "endpoints", "site", "clock"}
# Whom a layer asks to answer; of layers with names of their own (`pod/…`), what stands before the slash.
ASKS: Mapping[str, tuple[str, ...]] = {
    "public": ("vip",),
    "vip": ("pod",),
    "page/public": ("public", "pod", "sql"),
    "page": ("vip", "pod", "sql"),
    "pod": ("sql", "nfs"),
    "write/row": ("sql",),
    "write/post": ("vip", "pod", "sql"),
    "write/upload": ("vip", "pod", "sql", "nfs"),
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
    takes_data: bool = False


@dataclass(frozen=True)
class Loss:
    """What a layer lost by one turn: blows that are over before the next turn's first; seconds.

    `struck_s`: from the blow before it until the last outage was over that began before the last heal.
    `healed_s`: from that heal until the last outage was over that began after it.
    `away_s`: of both together, how long it failed somebody at least.
    `silent_s`: before or after that heal, whichever is more, how long it answered nobody.
    `error_s`: of each of the others, at most.
    """

    struck_s: float
    healed_s: float
    away_s: float
    silent_s: float
    error_s: float


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
    """Judge a whole history. A judge that fails has said nothing: that is *not judged*, with the reason."""
    try:
        return _judged(history)
    except Exception as error:  # noqa: BLE001 - whatever it was, it is no verdict, and no reason to lose the history
        finding = Finding(Verdict.UNKNOWN, f"the judge itself failed: {type(error).__name__}: {error}")
        return Judgement((), (), (), None, None, history.header.loss_window_s, (finding,), finding)


def _judged(history: History) -> Judgement:
    struck = strikes(history.of(Fault))
    found, unjudged = of_history(history)
    allowed = {budget.layer: budget for budget in history.of(Allowed)}
    unjudged = _unasked(history, allowed, struck) | unjudged
    course = tuple(_of_drill(history, struck))
    layers = tuple(
        _layer(layer, history, found, unjudged, allowed.get(layer), struck, course)
        for layer in sorted({*found, *unjudged, *allowed})
    )
    window_s = history.header.loss_window_s
    spans = list(_loss_spans(struck, found.get("write/row", ()), window_s, history.ended_s))

    def unsaved(write: Write) -> bool:
        # A file that is on its server outlives what is written of it in the database. An editor hears that a post was
        # written some time after it was.
        return write.sort != UPLOAD and any(
            since_s <= write.ended_s and write.started_s <= until_s for since_s, until_s in spans
        )

    looked_for = any(phase.name == "end" for phase in history.of(Phase))
    written = tuple(accounts(history.of(Write), history.of(Found), unsaved, looked_for=looked_for))
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


def _loss_spans(
    struck: Sequence[Strike], writing: Sequence[Outage], window_s: float, ended_s: float
) -> Iterable[tuple[float, float]]:
    """When what was acknowledged may be lost: shortly before those that hold the data go, until nobody writes any more.

    A strike that never came about may have struck at any time.
    """
    for strike in struck:
        if not window_s or not strike.takes_data:
            continue
        gone_s = ended_s if strike.injected_s is None else strike.injected_s
        taken_back_s = ended_s if strike.heal_s is None else strike.heal_s
        # Those that are left may have written on until they gave up.
        meanwhile = [
            outage.began_s + outage.error_s
            for outage in writing
            if outage.total and outage.began_s < taken_back_s and outage.began_s + outage.length_s(ended_s) >= gone_s
        ]
        yield strike.inject_s - window_s, max(gone_s, min(meanwhile, default=gone_s))


def _unasked(history: History, layers: Collection[str], struck: Sequence[Strike]) -> dict[str, str]:
    """Of layers that were to be asked from the first blow until all was over and were not: since when not."""
    verified = history.phase("verification")
    began_s = struck[0].inject_s if struck else history.ended_s
    until_s = verified[0] if verified else history.ended_s
    probes = by_layer(history.events, layers)
    found = {}
    for layer in layers:
        asked = [(probe.intended_s, probe.ended_s) for probe in probes.get(layer, ())]
        most_s = UNASKED_S + UNASKED_INTERVALS * history.header.intervals_s.get(layer, 0.0)
        last_s = began_s
        for intended_s, ended_s in [*sorted(asked), (until_s, until_s)]:
            if intended_s - last_s > most_s:
                at_s = last_s - history.header.at_s
                found[layer] = f"{layer} was asked nothing for {intended_s - last_s:.1f} s from {at_s:.1f} s on"
                break
            last_s = max(last_s, ended_s)
        if not asked:
            found[layer] = f"{layer} was never asked, and something is promised of it"
    return found


def strikes(faults: Iterable[Fault]) -> tuple[Strike, ...]:
    """The faults whose injection began, with how far they came."""
    found: list[Strike] = []
    for fault in faults:
        if fault.step == "inject":
            found.append(Strike(fault.name, fault.targets, fault.at_s, takes_data=fault.takes_data))
            continue
        for at, strike in enumerate(found):
            if (strike.name, strike.targets, strike.healed_s) == (fault.name, fault.targets, None):
                found[at] = _advanced(strike, fault)
    return tuple(found)


def _advanced(strike: Strike, fault: Fault) -> Strike:
    match fault.step:
        case "injected":
            return replace(strike, injected_s=fault.at_s)
        case "heal":  # that the first attempt failed does not make it begin later
            return strike if strike.heal_s is not None else replace(strike, heal_s=fault.at_s)
        case _:
            return replace(strike, healed_s=fault.at_s)


def owed_to(layer: str, outage: Outage, found: Mapping[str, Sequence[Outage]], until_s: float) -> tuple[str, ...]:
    """The innermost layers below `layer` that failed at the same time; itself where none did."""
    asked = ASKS.get(layer, ASKS.get(layer.partition("/")[0], ()))
    below = [
        other
        for other in found
        if other.partition("/")[0] in asked and any(_overlap(outage, theirs, until_s) for theirs in found[other])
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
    course: Sequence[Finding],
) -> LayerJudgement:
    until_s = history.ended_s
    own = tuple(found.get(layer, ()))
    since_s = struck[0].inject_s if struck else until_s
    felt = [begun_with(outage, since_s, until_s) for outage in own if not held_back(outage, until_s)]
    owed = tuple(owed_to(layer, outage, found, until_s) for outage in own)
    losses = [_loss(felt, turn, next_s, until_s) for turn, next_s in turns(struck)]
    restored_s = max((max(loss.struck_s, loss.healed_s) for loss in losses), default=0.0)
    finding = _within(layer, felt, unjudged, allowed, losses)
    if finding.verdict is Verdict.PROVEN and course:
        finding = course[0]  # what did not take its course proves nothing
    elif finding.verdict is Verdict.REFUTED and (why := _unhealed(felt, struck)):
        finding = Finding(Verdict.UNKNOWN, f"{finding.reason}; but {why}")
    return LayerJudgement(layer, own, owed, allowed, restored_s, finding)


def _unhealed(own: Sequence[Outage], struck: Sequence[Strike]) -> str:
    """Why an outage may be owed to whoever was to heal, and not to the target; empty where it is not."""
    for strike in struck:
        names = f"{strike.name} of {', '.join(strike.targets)}"
        if strike.healed_s is None and any(outage.ended_s is None for outage in own):
            return f"{names} was never healed"
        if strike.heal_s is not None and strike.healed_s is not None and strike.healed_s - strike.heal_s > HEALING_S:
            return f"it took {strike.healed_s - strike.heal_s:.0f} s to heal {names}"
    return ""


def begun_with(outage: Outage, strike_s: float, until_s: float) -> Outage:
    """An outage that went on at the first strike began with it: until then its layer was steady. Pure.

    It seems to begin earlier where an answer was under way for longer than most.
    """
    if outage.began_s < strike_s < outage.began_s + outage.length_s(until_s):
        return replace(outage, began_s=strike_s)
    return outage


def patience_s(layer: str) -> float:
    """How long an answer of a layer may be held back and fail nobody."""
    return PAGE_PATIENCE_S if layer.startswith("page/") else PATIENCE_S


def held_back(outage: Outage, until_s: float) -> bool:
    """Whether its answers came late, and none of them so late that it fails anybody."""
    return not outage.failed and outage.length_s(until_s) < patience_s(outage.layer)


def turns(struck: Sequence[Strike]) -> list[tuple[tuple[Strike, ...], float]]:
    """Blows that go on at once, together, with the moment that the next ones begin."""
    found: list[list[Strike]] = []
    for strike in sorted(struck, key=lambda strike: strike.inject_s):
        if found and any(other.heal_s is None or other.heal_s > strike.inject_s for other in found[-1]):
            found[-1].append(strike)
        else:
            found.append([strike])
    began = [turn[0].inject_s for turn in found]
    return [(tuple(turn), next_s) for turn, next_s in zip(found, [*began[1:], float("inf")], strict=False)]


def _loss(own: Sequence[Outage], turn: Sequence[Strike], next_s: float, until_s: float) -> Loss:
    heals = [strike.heal_s for strike in turn if strike.heal_s is not None]
    healed_s = max(heals) if len(heals) == len(turn) else float("inf")
    moments = [*(strike.inject_s for strike in turn), healed_s, next_s]
    since: dict[float, list[Outage]] = {moment: [] for moment in moments}
    for outage in own:
        begun = [moment for moment in moments if moment <= outage.began_s + outage.error_s]
        if begun:
            since[max(begun)].append(outage)
    del since[next_s]  # the next turn's
    phases = (
        [outage for moment, some in since.items() if moment < healed_s for outage in some],
        since.get(healed_s, []),
    )
    # Answers that were held back and came failed nobody: they delay the end of an outage, and add none.
    failing = [outage for some in phases for outage in some if outage.failed]
    restored = [
        max((outage.began_s + outage.length_s(until_s) - moment for outage in some), default=0.0)
        for moment, some in since.items()
        if moment < healed_s
    ]
    return Loss(
        struck_s=max(restored, default=0.0),
        healed_s=max((o.began_s + o.length_s(until_s) - healed_s for o in phases[1]), default=0.0),
        away_s=_length_s(failing, until_s) - sum(outage.error_s for outage in failing),
        silent_s=max(
            _length_s([o for o in some if o.total and o.length_s(until_s) >= PATIENCE_S], until_s) for some in phases
        ),
        error_s=max((outage.error_s for some in phases for outage in some), default=0.0),
    )


def _length_s(outages: Sequence[Outage], until_s: float) -> float:
    """How long any of them went on; what two of them share counts once."""
    length_s, last_s = 0.0, float("-inf")
    for began_s, ended_s in sorted((o.began_s, o.began_s + o.length_s(until_s)) for o in outages):
        length_s += max(0.0, ended_s - max(began_s, last_s))
        last_s = max(last_s, ended_s)
    return length_s


def _within(
    layer: str, own: Sequence[Outage], unjudged: Mapping[str, str], allowed: Allowed | None, losses: Sequence[Loss]
) -> Finding:
    if layer in unjudged:
        return Finding(Verdict.UNKNOWN, unjudged[layer])
    if allowed is None:
        return Finding(Verdict.PROVEN)  # it was watched to tell whom outages are owed to; nothing was promised of it
    told = [found for loss in losses for found in _beyond(layer, loss, allowed)]
    if not told:
        return Finding(Verdict.PROVEN)
    if any(outage.late for outage in own):
        return Finding(Verdict.UNKNOWN, f"{told[0]}; but the machine that asked stood still itself")
    return Finding(Verdict.REFUTED, told[0])


def _beyond(layer: str, loss: Loss, allowed: Allowed) -> Iterable[str]:
    """In what a turn took more than is allowed: each phase by its own budget, and both together."""
    silent_s = allowed.seconds if allowed.total_s is None else allowed.total_s
    afterwards_s = max(allowed.seconds - allowed.held_s, allowed.back_s)
    for what, measured_s, error_s, most_s in (
        ("was back after", loss.struck_s, loss.error_s, allowed.seconds),
        ("answered nobody for", loss.silent_s, loss.error_s, silent_s),
        ("was back, once healed, after", loss.healed_s, loss.error_s, afterwards_s),
        ("failed, before and after the heal, for", loss.away_s, 0.0, allowed.seconds + allowed.back_s),
    ):
        if measured_s > most_s + error_s:
            yield f"{layer} {what} {measured_s:.1f} s (± {error_s:.2f} s) of {most_s:.1f} s: {allowed.formula}"


def _detected_s(history: History, struck: Sequence[Strike]) -> float | None:
    """From the first fault to the first change that the target's own parts told of."""
    last: dict[str, str] = {}
    for seen in sorted(history.of(Seen), key=lambda seen: seen.at_s):
        # A part that does not answer has not noticed anything.
        if seen.subject in NOT_DETECTING or seen.state.startswith(SILENCE):
            continue
        changed = last.get(seen.subject, seen.state) != seen.state
        last[seen.subject] = seen.state
        if changed and struck and seen.at_s >= struck[0].inject_s:
            return seen.at_s - struck[0].inject_s
    return None


def _redundant_s(history: History, struck: Sequence[Strike]) -> float | None:
    """From the last heal of a turn to a target that is whole: the longest of all turns."""
    if history.phase("verification") is None:
        return None
    whole = [phase.at_s for phase in history.of(Phase) if phase.name == "afterwards"]
    healed = [strike.healed_s for strike in struck if strike.healed_s is not None]
    took = [moment_s - max(before) for moment_s in whole if (before := [at_s for at_s in healed if at_s <= moment_s])]
    return max(took, default=None)
