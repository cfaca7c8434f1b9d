"""Lies told to the record of a drill: every sentence of its scenario falls by one of them; needs no target."""

from collections.abc import Callable, Mapping
from dataclasses import replace

import pytest

from certificate.verdict import Finding, Verdict
from chaos.drills import DRILLS
from chaos.judgement import Judgement
from steps.drills import Unjudged
from tests.test_chaos_steps import SCENARIOS, kept, meaning

LATE = Finding(Verdict.REFUTED, "it was back too late")
UNKNOWN = Finding(Verdict.UNKNOWN, "it was never healed")


def late(honest: Judgement) -> Judgement:
    """Every layer took longer than its budget allows."""
    return replace(honest, layers=tuple(replace(layer, finding=LATE) for layer in honest.layers))


def back_early(honest: Judgement) -> Judgement:
    """Every layer was back before anything was healed."""
    layers = (
        replace(layer, outages=tuple(replace(outage, ended_s=15.0) for outage in layer.outages))
        for layer in honest.layers
    )
    return replace(honest, layers=tuple(layers))


def lost(honest: Judgement) -> Judgement:
    """Of each sort of write one is gone."""
    return replace(honest, writes=tuple(replace(account, lost=("one",)) for account in honest.writes))


def never_whole(honest: Judgement) -> Judgement:
    """The drill ended before the target was whole again."""
    return replace(honest, course=(UNKNOWN,), redundant_s=None)


LIES: Mapping[str, Callable[[Judgement], Judgement]] = {
    lie.__name__: lie for lie in (late, back_early, lost, never_whole)
}
SENTENCES = sorted(
    {(DRILL.name, step.name)
     for scenario in SCENARIOS
     for DRILL in DRILLS.values()
     if DRILL.does in {step.name for step in scenario.steps}
     for step in scenario.steps if step.type == "then"}
)  # fmt: skip


@pytest.mark.parametrize(("drill", "sentence"), SENTENCES)
def test_every_sentence_about_a_drill_falls_by_a_lie_in_its_record(drill: str, sentence: str) -> None:
    honest, means = kept(DRILLS[drill]), meaning(sentence)
    means(honest)
    fallen = []
    for name, lie in LIES.items():
        try:
            means(lie(honest))
        except (AssertionError, Unjudged):
            fallen.append(name)
    assert fallen, f"no lie breaks “{sentence}” of {drill}"
