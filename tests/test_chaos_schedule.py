"""Schedules are the same for the same seed, keep to what is allowed, and are made as short as they still fail."""

from collections.abc import Sequence
from itertools import combinations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from chaos.drill import down_at_most, planned
from chaos.drills import Blow
from chaos.schedule import POOL, as_drill, holding, schedule, shrunk
from tests.test_chaos_target import FACTS


@given(st.integers(0, 10**6), st.integers(1, 6), st.floats(10, 120), st.integers(1, 4))
def test_a_schedule_keeps_to_its_bounds(seed: int, count: int, duration_s: float, down_max: int) -> None:
    drill = schedule(FACTS, seed, count, duration_s, down_max)
    assert drill == schedule(FACTS, seed, count, duration_s, down_max)
    assert 1 <= len(drill.blows) <= count
    assert drill.hold_s <= duration_s + 0.2
    assert down_at_most(planned(drill, FACTS, seed)) <= down_max
    for one, other in combinations(drill.blows, 2):
        if one.target == other.target:
            assert one.after_s + one.hold_s < other.after_s


@given(st.sets(st.integers(0, 7), min_size=1, max_size=3), st.integers(8, 12))
def test_what_is_left_of_a_failing_schedule_is_what_it_fails_by(needed: set[int], count: int) -> None:
    blows = [Blow("power cut", f"machine{number}", 5, number) for number in range(count)]
    tried = []

    def fails(some: Sequence[Blow]) -> bool:
        tried.append(some)
        return needed <= {int(blow.after_s) for blow in some}

    assert {int(blow.after_s) for blow in shrunk(blows, fails)} == needed
    assert len(tried) <= count


@given(st.integers(0, 10**6))
def test_whom_a_partition_cuts_off_is_struck_by_nothing_else_meanwhile(seed: int) -> None:
    blows = schedule(FACTS, seed, 6, 60, 4).blows
    for blow in (blow for blow in blows if blow.fault == "partition"):
        meanwhile = [o for o in blows if o.after_s < blow.after_s + blow.hold_s and blow.after_s < o.after_s + o.hold_s]
        assert [other for other in meanwhile if other.target.startswith("srvdbm0")] == [blow]


def test_every_kind_of_machine_and_of_fault_comes_to_its_turn() -> None:
    blows = [blow for seed in range(200) for blow in schedule(FACTS, seed, 4, 90, 4).blows]
    assert {blow.target for blow in blows} == {machine.name for machine in FACTS.machines}
    assert {blow.fault for blow in blows} == {fault for fault, _ in POOL}


def test_what_is_left_is_held_no_longer_than_it_takes_to_fail() -> None:
    """Two blows are needed, one of them for nine seconds at least: halved, it is held for 15, and 7.5 are too few."""
    blows = [Blow("hang", "a", 30, 0), Blow("hang", "b", 20, 40), Blow("hang", "c", 30, 70)]

    def fails(some: Sequence[Blow]) -> bool:
        held = {blow.target: blow.hold_s for blow in some}
        return held.get("a", 0) >= 9 and "c" in held

    left = shrunk(blows, fails)
    assert {blow.target: blow.hold_s for blow in left} == {"a": 15, "c": 5}
    assert fails(left)


@pytest.mark.parametrize(
    ("blows", "takes_data"),
    [
        ([Blow("hang", "srvdbm01", 20, 0)], {}),
        ([Blow("hang", "srvdbm01", 20, 0), Blow("hang", "srvdbm02", 20, 50)], {}),
        ([Blow("hang", "srvdbm01", 20, 0), Blow("hang", "srv-nfs01", 20, 0)], {}),
        (
            [Blow("power cut", "srvdbm-mgm01", 20, 0), Blow("hang", "srvdbm02", 20, 10)],
            {"srvdbm-mgm01": True, "srvdbm02": True},
        ),
    ],
)
def test_only_several_at_once_take_the_data_away(blows: list[Blow], takes_data: dict[str, bool]) -> None:
    drill = as_drill(blows, 1, holding(FACTS))
    assert {blow.target: True for blow in drill.blows if blow.takes_data} == takes_data


def test_a_schedule_says_what_it_does() -> None:
    drill = as_drill([Blow("hang", "srvdbm01", 5, 10), Blow("power cut", "srv-nfs01", 8.5, 2)], 7)
    assert drill.does == "power cut of srv-nfs01 at 2 s for 8.5 s; hang of srvdbm01 at 10 s for 5 s"
    assert drill.hold_s == 15
