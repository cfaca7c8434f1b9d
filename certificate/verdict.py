"""What is said of a scenario, of a promise and of a whole run. Pure: never more than the evidence carries."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from enum import StrEnum

from certificate.promises import Promise
from provisioning.action import carried


class NotExercised(Exception):
    """Raised by a step where the target cannot show what is asked; the message is the reason."""


class Outcome(StrEnum):
    """What is said of a whole run."""

    CERTIFIED = "certified"
    LIMITED = "certified with declared limits"
    REFUSED = "refused"
    NOT_JUDGED = "not judged"


class Verdict(StrEnum):
    """What is known. The order is that of weight: the first that occurs decides."""

    REFUTED = "refuted"
    UNKNOWN = "not judged"
    NOT_EXERCISED = "not exercised"
    PROVEN = "proven"


@dataclass(frozen=True)
class Finding:
    """A verdict and the reason for it; a proven one needs none."""

    verdict: Verdict
    reason: str = ""


NOT_SELECTED = Finding(Verdict.NOT_EXERCISED, "not selected in this run")


def of_error(error: BaseException, *, during_steps: bool) -> Finding:
    """What an exception says of its scenario.

    Only a step's own assertion refutes. Anything else, be it an error, a timeout or a failed clean-up, means
    that the scenario was not judged; it is never a pass.
    """
    told = words_of(error)
    if isinstance(error, NotExercised):
        return Finding(Verdict.NOT_EXERCISED, str(error))
    if isinstance(error, AssertionError) and during_steps:
        return Finding(Verdict.REFUTED, told)
    return Finding(Verdict.UNKNOWN, f"{type(error).__name__}: {told}")


def words_of(error: BaseException) -> str:
    """The first line of what an error says, and the answer that it carries: Kubernetes' begins with a mere number."""
    first = (str(error).strip() or type(error).__name__).splitlines()[0]
    return " ".join([first, *carried(error).split()])


def weightiest(findings: Iterable[Finding]) -> Finding:
    """The finding that decides among those of one scenario's phases and examples."""
    order = list(Verdict)
    return min(findings, key=lambda finding: order.index(finding.verdict), default=NOT_SELECTED)


def of_promise(promise: Promise, found: Mapping[str, Finding]) -> Finding:
    """What the findings of a promise's scenarios, by name, say of it.

    Proven takes that the promise is built, and that every one of its scenarios was run and held. What they hold may be
    the promise's limit: then they refute it.
    """
    for verdict in (Verdict.REFUTED, Verdict.UNKNOWN):
        if names := [name for name, finding in found.items() if finding.verdict is verdict]:
            return Finding(verdict, "; ".join(names))
    if not promise.built:
        return Finding(Verdict.NOT_EXERCISED, promise.reason)
    missing = [name for name, finding in found.items() if finding.verdict is not Verdict.PROVEN]
    if missing or not found:
        return Finding(Verdict.NOT_EXERCISED, "; ".join(missing) or "no scenario is evidence for it")
    return Finding(Verdict.REFUTED, promise.limit) if promise.limit else Finding(Verdict.PROVEN)


def of_run(
    judged: Mapping[Promise, tuple[Finding, Mapping[str, Finding]]], interrupted: str = ""
) -> tuple[Outcome, tuple[str, ...]]:
    """What all promises together say, and each reason for saying no more than that.

    What the topology cannot keep and what this run did not exercise are limits: declared, never passed over. A run that
    was `interrupted`, and why, certifies nothing; what it refuted by then stays refuted.
    """
    fallen: list[str] = []
    unknown: list[str] = []
    limits: list[str] = []
    proven = 0
    for promise, (finding, found) in judged.items():
        told = [(name, one) for name, one in found.items() if one.verdict is finding.verdict]
        match finding.verdict:
            case Verdict.PROVEN:
                proven += 1
            case Verdict.NOT_EXERCISED:
                limits.append(f"{promise.id} not exercised: {finding.reason}")
            case Verdict.REFUTED if not told:
                limits.append(f"{promise.id} refuted by the topology: {finding.reason}")
            case _:
                reasons = fallen if finding.verdict is Verdict.REFUTED else unknown
                reasons += [f"{promise.id}: {name}: {one.reason}" for name, one in told]
    if fallen:
        return Outcome.REFUSED, tuple(fallen)
    if interrupted or unknown or not proven:
        reasons = [interrupted, *unknown] if interrupted else unknown
        return Outcome.NOT_JUDGED, tuple(reasons or limits or ["no promise was looked at"])
    return (Outcome.LIMITED, tuple(limits)) if limits else (Outcome.CERTIFIED, ())
