"""What is made of lies, and that the catalogue holds what it must; needs no target."""

from dataclasses import replace

import pytest

from certificate.verdict import Finding, Verdict
from tests.sabotage.catalogue import LIES
from tests.sabotage.features import every_scenario
from tests.sabotage.lie import Lie, nothing
from tests.sabotage.matrix import Row, Told, bystanders, lines, owing, sample, unbroken

SCENARIOS = every_scenario()
BY_NAME = {scenario.name: scenario for scenario in SCENARIOS}
LIE = Lie("swap", "nodes", ("P12",), "in fstab", nothing)
TAGS = {"No swap": frozenset({"nodes", "P12"}), "Front page": frozenset({"site", "P4"})}
SEEN, WELL = Finding(Verdict.REFUTED, "found: in fstab"), Finding(Verdict.PROVEN)


def row(**found: Finding) -> Row:
    return Row(LIE, {name.replace("_", " "): finding for name, finding in found.items()}, TAGS)


def test_a_lie_is_caught_for_the_stated_reason_only() -> None:
    assert row(No_swap=SEEN).complaint == ""
    assert "expected P12 to fall" in row(No_swap=WELL).complaint
    assert "expected P12 to fall" in row(No_swap=Finding(Verdict.REFUTED, "no connection")).complaint
    assert "expected P12 to fall" in row(No_swap=Finding(Verdict.UNKNOWN, "in fstab")).complaint


def test_whoever_breaks_and_is_not_owed_to_the_lie_cries_wolf() -> None:
    assert "false alarm of “Front page”" in row(No_swap=SEEN, Front_page=Finding(Verdict.UNKNOWN, "slow")).complaint
    assert row(No_swap=SEEN, Front_page=Finding(Verdict.NOT_EXERCISED, "two cores")).complaint == ""
    known = replace(LIE, may=("P4",))
    assert Row(known, {"No swap": SEEN, "Front page": SEEN}, TAGS).complaint == ""


def test_what_could_not_be_told_is_not_caught() -> None:
    told = replace(row(No_swap=SEEN), trouble="no connection")
    assert told.complaint == "no connection"
    assert "0 of 1 lies caught" in "\n".join(lines([told], SCENARIOS))


def test_every_promise_that_a_lie_breaks_must_fall() -> None:
    both = replace(LIE, breaks=("P12", "P4"))
    assert Row(both, {"No swap": SEEN}, TAGS).missed == ("P4",)


def test_scenarios_that_nothing_breaks_are_listed() -> None:
    told = (Told("No swap", TAGS["No swap"]), Told("Front page", TAGS["Front page"]))
    assert unbroken([row(No_swap=SEEN)], told) == ("Front page",)


def test_bystanders_are_picked_by_a_seed_among_those_that_the_lie_is_nothing_to() -> None:
    first, second = (bystanders(LIE, SCENARIOS, seed, 5) for seed in (1, 2))
    assert first == bystanders(LIE, SCENARIOS, 1, 5)
    assert first != second
    assert all("acceptance" in BY_NAME[name].tags and "P12" not in BY_NAME[name].tags for name in first)


def test_a_sample_is_repeated_by_its_seed_and_disrupts_nothing() -> None:
    first, second = (sample(LIES, SCENARIOS, seed, 10) for seed in (1, 2))
    assert first == sample(LIES, SCENARIOS, 1, 10)
    assert first != second
    assert len(first) == 10
    assert all("acceptance" in BY_NAME[name].tags for lie in first for name in owing(lie, SCENARIOS))


@pytest.mark.parametrize("seed", range(5))
def test_a_small_sample_has_no_layer_twice(seed: int) -> None:
    picked = sample(LIES, SCENARIOS, seed, 5)
    assert len({lie.layer for lie in picked}) == len(picked) == 5


def test_no_two_scenarios_have_one_name() -> None:
    assert len(BY_NAME) == len(SCENARIOS)


def test_there_are_enough_lies_over_every_layer_of_the_target() -> None:
    assert len(LIES) >= 60
    assert len({lie.name for lie in LIES}) == len(LIES)
    layers = {
        "hypervisor",
        "nodes",
        "cluster",
        "load_balancer",
        "database",
        "storage",
        "site",
        "edge",
        "limits",
        "chaos",
    }
    assert {lie.layer for lie in LIES} == layers


@pytest.mark.parametrize("lie", LIES, ids=lambda lie: lie.name)
def test_a_lie_names_scenarios_that_are_evidence_for_what_it_breaks(lie: Lie) -> None:
    names = owing(lie, SCENARIOS)
    assert names
    assert [name for name in names if name not in BY_NAME] == []
    evidence = {tag for name in names for tag in BY_NAME[name].tags}
    assert {*lie.breaks} <= evidence
