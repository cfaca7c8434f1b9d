"""What scenarios ask of drills is what drills have budgets for: else they would pass for want of a question."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
from pytest_bdd.steps import step_function_context_registry

from certificate.promises import templates
from certificate.verdict import Finding, Verdict
from chaos.drill import allowed
from chaos.drills import DRILLS, Drill
from chaos.judgement import Judgement, LayerJudgement, Strike
from chaos.outage import Outage
from chaos.writes import Account
from steps.drills import Unjudged, away, within, writes_kept
from tests.test_chaos_fault import budgets
from tests.test_house_rules import FEATURES

PROVEN = Finding(Verdict.PROVEN)
SCENARIOS = [scenario for scenario in templates(FEATURES) if "drill" in {*scenario.tags, *scenario.feature.tags}]
STRIKE = Strike("power cut", ("a",), inject_s=10, injected_s=11, heal_s=30, healed_s=31)


def kept(drill: Drill) -> Judgement:
    """What is said of a target that does all that the drill's budgets allow, and loses nothing."""
    layers = []
    for layer, budget in budgets(drill).items():
        # What has no stand-in is away until the heal.
        lost = (Outage(layer, 10, 35, 0.1, total=True, asked=9, failed=9, errors=()),) if budget.held_s else ()
        owed = tuple((layer,) for _ in lost)
        layers.append(LayerJudgement(layer, lost, owed, allowed(layer, budget), 25.0, PROVEN))
    none: tuple[str, ...] = ()
    writes = tuple(
        Account(sort, 9, 9, lost=none, unsaved=none, duplicated=none, corrupted=none)
        for sort in ("row", "post", "upload")
    )
    return Judgement((STRIKE,), tuple(layers), writes, 1.0, 9.0, drill.loss_window_s, (), PROVEN)


def meaning(words: str) -> Callable[[Judgement], None]:
    found: list[Any] = [
        context.step_func
        for context in step_function_context_registry.values()
        if context.type == "then" and context.parser.is_matching(words)
    ]
    assert len(found) == 1, words
    meant: Callable[[Judgement], None] = found[0]
    return meant


@pytest.mark.parametrize("scenario", SCENARIOS, ids=lambda scenario: scenario.name)
def test_every_sentence_about_a_drill_can_be_judged_by_it(scenario: Any) -> None:
    does = next(step.name for step in scenario.steps if step.type == "when")
    drill = next(drill for drill in DRILLS.values() if drill.does == does)
    for step in scenario.steps:
        if step.type == "then":
            meaning(step.name)(kept(drill))


def test_a_layer_that_nothing_is_asked_of_is_not_proven() -> None:
    said = kept(DRILLS["replica-deleted"])
    within(said, ("vip",))
    with pytest.raises(Unjudged, match="no budget for sql"):
        within(said, ("vip", "sql"))


def test_what_may_be_felt_at_the_heal_is_no_never() -> None:
    said = kept(DRILLS["other-master-power"])
    with pytest.raises(Unjudged, match="page/vip may be away"):
        within(said, ("page/vip",), at_all=False)


def test_what_was_back_before_the_heal_was_not_away_until_it() -> None:
    said = kept(DRILLS["sql-power"])
    away(said, ("sql",))
    early = tuple(
        replace(layer, outages=tuple(replace(outage, ended_s=20.0) for outage in layer.outages))
        for layer in said.layers
    )
    with pytest.raises(AssertionError, match="it was back before"):
        away(replace(said, layers=early), ("sql",))


def test_what_ended_a_drill_early_is_told_before_what_is_therefore_not_known() -> None:
    said = kept(DRILLS["kubelet-stopped"])
    unknown = tuple(replace(account, looked_for=False) for account in said.writes)
    ended = Finding(Verdict.UNKNOWN, "the drill ended early: healing failed")
    with pytest.raises(Unjudged, match="never looked for"):
        writes_kept(replace(said, writes=unknown))
    with pytest.raises(Unjudged, match="healing failed"):
        writes_kept(replace(said, writes=unknown, course=(ended,)))
