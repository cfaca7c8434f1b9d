"""The ruler: outages of known beginning and length, made by a model of a layer, and what is measured of them."""

import math
import random
from collections.abc import Callable, Iterator
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from chaos.history import Probe
from chaos.outage import NothingMeasured, Outage, outages, ruler_of

INTERVAL_S, STEADY_S, LAST_S = 0.05, 10.0, 60.0
TIMEOUT_S = 2.0
Windows = list[tuple[float, float]]


def held_until(at_s: float, windows: Windows) -> float:
    """When whoever comes at that moment is first served."""
    return next((ended_s for began_s, ended_s in windows if began_s <= at_s < ended_s), at_s)


def refuses(at_s: float, latency_s: float, windows: Windows) -> tuple[float, str]:
    """A layer whose port is closed meanwhile; what it was at work on is cut off."""
    for began_s, ended_s in windows:
        if began_s < at_s + latency_s and at_s < ended_s:
            return max(began_s, at_s) + 0.001, "ConnectionRefusedError"
    return at_s + latency_s, ""


def swallows(at_s: float, latency_s: float, windows: Windows) -> tuple[float, str]:
    """A layer whose packets vanish meanwhile: a first packet is sent again after 1 and 3 s (RFC 6298)."""
    for sent_s in (at_s, at_s + 1, at_s + 3):
        if sent_s - at_s > TIMEOUT_S:
            break
        if held_until(sent_s, windows) == sent_s:
            return sent_s + latency_s, ""
    return at_s + TIMEOUT_S, "TimeoutError"


def stalls(at_s: float, latency_s: float, windows: Windows) -> tuple[float, str]:
    """A layer that takes every question and answers none of them meanwhile."""
    ended_s = max(at_s + latency_s, held_until(at_s + latency_s, windows))
    return (ended_s, "") if ended_s - at_s < TIMEOUT_S else (at_s + TIMEOUT_S, "TimeoutError")


Layer = Callable[[float, float, Windows], tuple[float, str]]
LAYERS: list[Layer] = [refuses, swallows, stalls]


def asked(layer: Layer, windows: Windows, seed: int = 1, phase_s: float = 0.0) -> list[Probe]:
    """What a prober sees of it."""
    chance = random.Random(seed)

    def probes() -> Iterator[Probe]:
        for number in range(int(LAST_S / INTERVAL_S)):
            at_s = phase_s + number * INTERVAL_S
            ended_s, error = layer(at_s, chance.uniform(0.002, 0.012), windows)
            yield Probe(layer="x", intended_s=at_s, started_s=at_s, ended_s=ended_s, error=error)

    return list(probes())


def measured(probes: list[Probe]) -> list[Outage]:
    return outages("x", probes, ruler_of("x", probes, (0.0, STEADY_S), INTERVAL_S), LAST_S)


@pytest.mark.parametrize("layer", LAYERS)
@settings(max_examples=60)
@given(
    began_s=st.floats(STEADY_S, 30.0), length_s=st.sampled_from([0.5, 1.0, 3.0, 10.0]), phase_s=st.floats(0, INTERVAL_S)
)
def test_an_outage_is_as_long_as_it_was(layer: Layer, began_s: float, length_s: float, phase_s: float) -> None:
    found = measured(asked(layer, [(began_s, began_s + length_s)], phase_s=phase_s))
    assert [outage.total for outage in found] == [True]
    assert found[0].ended_s is not None
    assert found[0].began_s == pytest.approx(began_s, abs=INTERVAL_S + 0.013)
    assert found[0].ended_s - found[0].began_s == pytest.approx(length_s, abs=INTERVAL_S + 0.013)


@pytest.mark.parametrize("layer", LAYERS)
def test_flaps_are_not_merged(layer: Layer) -> None:
    windows = [(20.0 + 2 * n, 21.0 + 2 * n) for n in range(5)]
    found = measured(asked(layer, windows))
    assert len(found) == len(windows)
    for outage, (began_s, ended_s) in zip(found, windows, strict=True):
        assert (outage.began_s, outage.ended_s) == pytest.approx((began_s, ended_s), abs=INTERVAL_S + 0.013)


@pytest.mark.parametrize("layer", LAYERS)
@pytest.mark.parametrize("seed", range(5))
def test_none_is_invented(layer: Layer, seed: int) -> None:
    assert measured(asked(layer, [], seed)) == []


def test_what_fails_for_one_in_three_is_a_partial_outage_with_its_share() -> None:
    """A worker without power, until its endpoints are dropped."""
    chance = random.Random(7)
    probes = [
        probe.model_copy(update={"error": "TimeoutError", "ended_s": probe.intended_s + TIMEOUT_S})
        if 20 <= probe.intended_s < 57 and chance.random() < 1 / 3
        else probe
        for probe in asked(refuses, [])
    ]
    found = measured(probes)
    assert [outage.total for outage in found] == [False]
    assert found[0].length_s(LAST_S) == pytest.approx(37, abs=0.5)
    assert found[0].failed / found[0].asked == pytest.approx(1 / 3, abs=0.05)
    assert found[0].errors == (("TimeoutError", found[0].failed),)


@pytest.mark.parametrize("layer", LAYERS)
def test_a_short_outage_is_one_where_nobody_else_failed(layer: Layer) -> None:
    found = measured(asked(layer, [(20.0, 20.3)]))
    assert [outage.total for outage in found] == [True]
    assert found[0].length_s(LAST_S) == pytest.approx(0.3, abs=INTERVAL_S + 0.013)


def among_others(failing_s: list[float], slow: tuple[float, float], until_s: float) -> list[Probe]:
    """One replica of several answers none of those that it is asked; what others are asked meanwhile waits."""
    return [
        probe.model_copy(update={"error": "TimeoutError", "ended_s": probe.intended_s + TIMEOUT_S})
        if any(probe.intended_s == pytest.approx(at_s) for at_s in failing_s)
        else probe.model_copy(update={"ended_s": max(probe.ended_s, until_s)})
        if slow[0] <= probe.intended_s < slow[1]
        else probe
        for probe in asked(refuses, [])
    ]


def test_who_is_still_tried_while_others_are_answered_fails_among_others() -> None:
    """Seen as the address moved: a few answers came 0.2 s late, and passed for an outage of all."""
    (found,) = measured(among_others([20.0, 20.05, 20.15, 20.3, 20.6, 21.05, 21.1, 21.15], (21.0, 21.2), 21.2))
    assert (found.total, found.failed) == (False, 8)
    assert found.length_s(LAST_S) == pytest.approx(1.2)


def test_a_failure_is_not_hidden_by_answers_that_were_held_back_while_it_was_tried() -> None:
    """Its time-out ends in a gap, in which nobody who was asked failed."""
    found = measured(among_others([20.0, 20.05, 20.15], (21.9, 22.6), 22.6))
    assert [(outage.total, outage.failed) for outage in found] == [(False, 3), (True, 0)]


def test_what_an_outage_cut_off_counts_as_its_own() -> None:
    """What was under way when it began had been asked before."""
    probes = [
        probe.model_copy(update={"error": "ConnectionResetError", "ended_s": 20.0})
        if probe.intended_s == 20.0
        else probe.model_copy(update={"ended_s": max(probe.ended_s, 20.4)})
        if 20.0 < probe.intended_s < 20.4
        else probe
        for probe in asked(refuses, [])
    ]
    assert [(outage.total, outage.failed) for outage in measured(probes)] == [(True, 1)]


def test_a_gap_that_several_questions_in_a_row_met_is_one() -> None:
    """A writer who waits: each of three posts fails after 3 s, further apart than what is one episode."""
    posts = [
        Probe(layer="write/post", intended_s=at_s, started_s=at_s, ended_s=ended_s, error=error)
        for at_s, ended_s, error in [
            *((number * 1.5, number * 1.5 + 0.2, "") for number in range(20)),
            *((30 + number * 3.0, 33 + number * 3.0, "TimeoutError") for number in range(3)),
            *((39 + number * 1.5, 39.2 + number * 1.5, "") for number in range(10)),
        ]
    ]
    found = outages("write/post", posts, ruler_of("write/post", posts, (0.0, STEADY_S), 1.5), LAST_S)
    assert [(outage.total, outage.failed) for outage in found if outage.began_s < 40] == [(True, 3)]


def test_an_outage_that_did_not_end_has_no_end() -> None:
    found = measured(asked(refuses, [(40.0, math.inf)]))
    assert [(outage.total, outage.ended_s) for outage in found] == [(True, None)]
    assert found[0].length_s(LAST_S) == pytest.approx(20, abs=2 * INTERVAL_S)


def test_an_asker_that_was_late_itself_says_so() -> None:
    """A machine that stood still for two seconds asked its questions afterwards, all at once."""
    probes = [
        probe.model_copy(update={"started_s": max(p.started_s, 22.0), "ended_s": max(p.ended_s, 22.005)})
        if 20 <= (p := probe).intended_s < 22
        else probe
        for probe in asked(refuses, [])
    ]
    found = measured(probes)
    assert [(outage.total, outage.late) for outage in found] == [(True, True)]


def test_a_layer_that_was_not_steady_is_not_measured() -> None:
    with pytest.raises(NothingMeasured, match="failed before"):
        measured(asked(refuses, [(5.0, 6.0)]))
    with pytest.raises(NothingMeasured, match="too few"):
        measured(asked(refuses, [])[::3])
    with pytest.raises(NothingMeasured, match=r"answered nobody for 1\.5 s before"):
        measured(asked(swallows, [(STEADY_S - 1.5, STEADY_S + 3)]))


def test_a_writer_that_is_slower_than_its_interval_is_measured_by_its_own_pace() -> None:
    starts_s = [2.5 * number for number in range(4)] + [30 + 2.5 * number for number in range(10)]
    writes = [Probe(layer="write/post", intended_s=at, started_s=at, ended_s=at + 2.4) for at in starts_s]
    ruler = ruler_of("write/post", writes, (0.0, 10.0), interval_s=1.5)
    assert ruler.interval_s == pytest.approx(2.4)
    (found,) = outages("write/post", writes, ruler, max(write.ended_s for write in writes))
    assert (round(found.began_s), round(found.ended_s or 0)) == (11, 29)
    ruler_of("write/post", writes[:3], (0.0, 10.0), interval_s=1.5)
    with pytest.raises(NothingMeasured, match="too few"):  # who does not wait for answers is late
        ruler_of("page/vip", writes[:3], (0.0, 10.0), interval_s=1.5)


def test_outages_come_in_order_and_apart() -> None:
    found = measured(asked(swallows, [(20, 21), (25, 28), (40, 50)]))
    assert [round(outage.length_s(LAST_S)) for outage in found] == [1, 3, 10]
    assert all(one.ended_s is not None and one.ended_s < other.began_s for one, other in pairwise(found))
