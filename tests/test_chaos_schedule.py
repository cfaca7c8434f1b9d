"""Schedules are the same for the same seed, keep to what is allowed, and are made as short as they still fail."""

from collections.abc import Sequence
from itertools import combinations

from hypothesis import given
from hypothesis import strategies as st

from chaos.drill import down_at_most, planned
from chaos.drills import Blow
from chaos.schedule import as_drill, schedule, shrunk
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


def test_a_schedule_says_what_it_does() -> None:
    drill = as_drill([Blow("hang", "srvdbm01", 5, 10), Blow("power cut", "srv-nfs01", 8.5, 2)], 7)
    assert drill.does == "power cut of srv-nfs01 at 2 s for 8.5 s; hang of srvdbm01 at 10 s for 5 s"
    assert drill.hold_s == 15
