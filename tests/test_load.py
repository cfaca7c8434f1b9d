"""Load: arrivals, what is counted, what is made of it; then the generator, against a server of this test's own."""

import csv
import errno
import json
import math
import re
from datetime import UTC, datetime
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from hdrh.histogram import HdrHistogram
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError
from typer.testing import CliRunner

from environments.load import find, load
from environments.model import Objective, Visit
from load import capacity, capacity_report, report, usl
from load.__main__ import app
from load.arrivals import Segment, Shape, duration_s, segments, share, times
from load.busy import Busy, busiest, saturated
from load.found import Found, Searched, Trial
from load.objective import summary
from load.percentile import values_ms
from load.plan import Editor, Plan
from load.record import (
    LINE,
    VISIT,
    End,
    Header,
    Mark,
    RecordError,
    Sample,
    Second,
    Tally,
    histogram,
    own_fault,
    read,
    write,
)
from load.run import add
from load.samples import Sampler
from load.sizing import copies, knee, law_of, sizes

LAB = load(find("lab"))
RATES = st.floats(0.5, 50)


# Arrivals


@given(RATES, st.floats(1, 30), st.sampled_from(Shape))
def test_as_many_come_as_the_shape_says_in_order_and_in_time(rate: float, duration: float, shape: Shape) -> None:
    parts = segments(shape, rate, duration)
    found = list(times(parts))
    assert abs(len(found) - sum(part.arrivals for part in parts)) <= 0.5 + 1e-6
    assert found == sorted(found)
    assert all(0 <= at <= duration + 1e-6 for at in found)
    assert duration_s(parts) == pytest.approx(duration)


def test_a_ramp_comes_denser_and_a_constant_rate_evenly() -> None:
    assert list(times(segments(Shape.CONSTANT, 2, 3))) == pytest.approx([0.25, 0.75, 1.25, 1.75, 2.25, 2.75])
    ramp = list(times(segments(Shape.RAMP, 20, 10)))
    assert len(ramp) == 100
    # The integral of 2 t is t squared.
    assert ramp[49] == pytest.approx(math.sqrt(49.5))


def test_poisson_arrivals_are_a_seeds_and_as_many_on_average() -> None:
    parts = segments(Shape.CONSTANT, 50, 200)
    one, again, other = (list(times(parts, seed)) for seed in (1, 1, 2))
    assert one == again != other
    assert len(one) == pytest.approx(10_000, abs=4 * math.sqrt(10_000))
    gaps = [later - earlier for earlier, later in pairwise(one)]
    # Exponential: as large a standard deviation as mean.
    mean = sum(gaps) / len(gaps)
    assert math.sqrt(sum((gap - mean) ** 2 for gap in gaps) / len(gaps)) == pytest.approx(mean, rel=0.1)


@given(st.integers(1, 7))
def test_workers_share_without_a_gap_or_a_double(count: int) -> None:
    parts = [Segment(duration_s=3, first_rate=10, last_rate=30)]
    dealt = [list(share(times(parts), index, count)) for index in range(count)]
    assert sorted(at for one in dealt for at in one) == list(times(parts))


@pytest.mark.parametrize(("rate", "duration"), [(0, 10), (-1, 10), (math.nan, 10), (10, 0), (10, math.inf)])
def test_no_rate_and_no_time_are_refused(rate: float, duration: float) -> None:
    with pytest.raises(ValueError, match="expected a rate and a duration above 0"):
        segments(Shape.CONSTANT, rate, duration)


def plan(url: str, **changes: Any) -> Plan:
    told = {"url": url, "segments": segments(Shape.CONSTANT, 20, 3), "weights": {Visit.PAGE: 1.0}, **changes}
    return Plan.model_validate(told)


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"weights": {Visit.PAGE: 0}}, "a weight above 0"),
        ({"weights": {Visit.PUBLISH: 1}}, "need an editor's account"),
        ({"segments": ()}, "at least 1 item"),
    ],
)
def test_a_plan_that_cannot_be_done_is_refused(changes: dict[str, Any], told: str) -> None:
    with pytest.raises(ValidationError, match=told):
        plan("http://127.0.0.1/", **changes)


# What is counted


# Histograms are large, and a busy machine slow: how long it takes is not what is asked.
@given(st.lists(st.tuples(st.floats(0, 30), st.floats(0, 20), st.booleans()), max_size=60), st.integers(1, 4))
def test_what_workers_count_adds_up_exactly(requests: list[tuple[float, float, bool]], workers: int) -> None:
    alone, together = Tally(), Tally()
    parts = [Tally() for _ in range(workers)]
    for number, (intended_s, latency_s, failed) in enumerate(requests):
        for tally in (alone, parts[number % workers]):
            tally.answered("page", intended_s, intended_s + latency_s, "HTTP 500" if failed else "")
    for part in parts:
        together.add(part.drained())
        assert part.drained()["seconds"] == {}
    one, other = list(alone.lines()), list(together.lines())
    assert [line.model_copy(update={"latencies": ""}) for line in one] == [
        line.model_copy(update={"latencies": ""}) for line in other
    ]
    assert alone.overall.equals(together.overall)


HEADER = Header(
    environment="lab",
    url="http://172.31.0.100/",
    command="python -m load run",
    began=datetime(2026, 11, 23, tzinfo=UTC),
    segments=((10, 20, 20),),
    workers=1,
    weights={"page": 1},
    objective={"p95_ms": 500, "failed_max": 0.01},
)


def recorded(folder: Path, tally: Tally, *more: Any, end: End | None = End()) -> list[Any]:  # noqa: B008 - frozen
    folder.mkdir(exist_ok=True)
    with (folder / "record.jsonl").open("w") as file:
        for line in (HEADER, *tally.lines(), *more, *([end] if end else ())):
            write(file, line)
    return list(read(folder))


def a_minute(slow_s: float = 0.05, failed: int = 0, late: int = 0, requests_each: int = 1) -> Tally:
    tally = Tally()
    for number in range(1200):
        at_s = number / 20
        if number % requests_each == 0:
            tally.meant(at_s)
        tally.answered(
            "page", at_s, at_s + (slow_s if number % 10 == 0 else 0.02), "HTTP 503" if number < failed else ""
        )
    for number in range(late):
        tally.late(number)
    return tally


@given(
    st.lists(st.integers(1, 3_600_000_000), max_size=50),
    st.lists(st.sampled_from([0, 50, 90.0, 99.9, 100]) | st.floats(0, 100), min_size=1),
)
def test_percentiles_are_those_of_the_histograms_own_library(took_us: list[int], percentiles: list[float]) -> None:
    counted = histogram()
    for value_us in took_us:
        counted.record_value(value_us)
    for found in (counted, HdrHistogram.decode(counted.encode())):
        assert values_ms(found, percentiles) == [found.get_value_at_percentile(p) / 1000 for p in percentiles]


@pytest.mark.parametrize(
    ("tally", "end", "told"),
    [
        (a_minute(), End(), "held"),
        (a_minute(slow_s=2), End(), "missed: p95 is 2001 ms, of 500 ms"),
        (a_minute(failed=60), End(), "missed: 5.0% of requests failed, of 1.0% that may"),
        (a_minute(late=12), End(), "held"),
        (a_minute(late=13), End(), "void: the generator did not deliver 0 visitors and sent 13 too late"),
        # Ten requests each: 120 visitors, of whom two are more than one in a hundred.
        (a_minute(late=2, requests_each=10), End(), "void: the generator did not deliver 0 visitors and sent 2 too"),
        (a_minute(), End(incomplete="stopped by hand"), "void: the run is incomplete: stopped by hand"),
        (a_minute(), None, "void: the run is incomplete: its record has no end"),
        (Tally(), End(), "void: nothing was sent"),
    ],
)
def test_a_run_is_judged_by_the_objective_or_is_void(tmp_path: Path, tally: Tally, end: End | None, told: str) -> None:
    lines = recorded(tmp_path, tally, end=end)
    assert report.verdict(HEADER, summary(lines)).startswith(told)


def test_throughput_is_what_was_answered_in_the_time_in_which_visitors_came(tmp_path: Path) -> None:
    tally = Tally()
    for number in range(200):
        at_s = number / 20
        tally.answered("page", at_s, at_s + 0.1, "HTTP 503" if number % 4 == 0 else "")
        tally.answered(VISIT, at_s, at_s + 10, "no answer: too many wait")  # by nobody who was sent
    tally.answered("post", 14.5, 14.6)  # after a page was looked at
    said = summary(recorded(tmp_path, tally))
    assert said.throughput == 151 / 10
    assert said.under_way == pytest.approx(201 * 0.1 / 10, rel=1e-3)
    stopped = Tally()
    for number in range(80):
        stopped.answered("page", number / 20, number / 20 + 0.1)
    assert summary(recorded(tmp_path, stopped, end=End(incomplete="stopped by hand"))).throughput == 20


def test_visitors_that_were_not_delivered_are_told_by_why(tmp_path: Path) -> None:
    tally = a_minute()
    for _ in range(20):
        tally.undelivered(3.0, "EMFILE")
    said = summary(recorded(tmp_path, tally, end=End(lost=tally.lost)))
    assert "did not deliver 20 visitors (EMFILE 20)" in said.void


def test_a_run_that_delivered_nobody_says_why_not_that_nothing_was_asked(tmp_path: Path) -> None:
    tally = Tally()
    tally.meant(0.5)
    tally.undelivered(0.5, "EADDRNOTAVAIL")
    assert "EADDRNOTAVAIL 1" in summary(recorded(tmp_path, tally, end=End(lost=tally.lost))).void


def test_a_record_from_before_visitors_were_counted_is_void_by_any_loss(tmp_path: Path) -> None:
    lines = recorded(tmp_path, a_minute(late=1))
    old = [line.model_copy(update={"visitors": 0}) if isinstance(line, Second) else line for line in lines]
    assert summary(old).void
    text = '{"kind":"second","at_s":0,"latencies":"","failed":0,"undelivered":0,"late":0}'
    assert LINE.validate_json(text).visitors == 0  # type: ignore[union-attr]


@pytest.mark.parametrize(
    ("error", "told"),
    [
        (OSError(errno.EMFILE, "Too many open files"), "EMFILE"),
        (OSError(errno.ENFILE, "Too many open files in system"), "ENFILE"),
        (OSError(errno.EADDRNOTAVAIL, "Cannot assign requested address"), "EADDRNOTAVAIL"),
        (ConnectionRefusedError(errno.ECONNREFUSED, "Connection refused"), ""),
        (TimeoutError("timed out"), ""),
        (None, ""),
    ],
)
def test_what_keeps_a_request_here_is_told_from_what_keeps_an_answer_there(error: object, told: str) -> None:
    assert own_fault(error) == told


def test_marks_and_samples_are_added_before_the_end(tmp_path: Path) -> None:
    recorded(tmp_path, a_minute())
    add(tmp_path, [Mark(what="rolling update", began_s=10, ended_s=20), Sample(at_s=2, machine="srv-nfs01", cpu=0.4)])
    lines = read(tmp_path)
    assert lines[-1] == End()
    assert isinstance(lines[-2], Sample)
    add(tmp_path, [], "the rolling update failed: no replica came back")
    assert summary(read(tmp_path)).void == "the run is incomplete: the rolling update failed: no replica came back"


@pytest.mark.parametrize(
    ("text", "told"), [("", "expected a header"), ('{"kind":"end"}\n', "expected a header"), ("{}\n", "line 1: ")]
)
def test_what_is_no_record_is_told_by_file_and_line(tmp_path: Path, text: str, told: str) -> None:
    (tmp_path / "record.jsonl").write_text(text)
    with pytest.raises(RecordError, match=told):
        read(tmp_path)
    done = CliRunner().invoke(app, ["report", str(tmp_path)])
    assert (done.exit_code, told in done.output) == (2, True)


# What is made of it


def test_the_report_is_one_file_with_pictures_and_the_same_as_json_and_csv(tmp_path: Path) -> None:
    mark = Mark(what="rolling update", began_s=10, ended_s=20)
    samples = [Sample(at_s=at, machine="srvk8s-worker01", cpu=0.5) for at in range(10)]
    recorded(tmp_path, a_minute(failed=3), mark, *samples)
    said = report.write(tmp_path)
    page = (tmp_path / report.PAGE).read_text()
    assert page.count("<svg") == 3
    assert "rolling update" in page
    assert re.findall(r'(?:src|href)="(?!data:|#)', page) == []
    told = json.loads((tmp_path / report.DATA).read_text())
    assert told["summary"]["requests"] == said.requests == 1200
    assert told["requests"][0]["errors"] == "HTTP 503 3"
    table = list(csv.DictReader((tmp_path / report.TABLE).open()))
    assert sum(int(row["requests"]) for row in table) == 1200


def test_an_hour_at_500_requests_a_second_is_a_page_of_two_megabytes(tmp_path: Path) -> None:
    tally = Tally()
    for second in range(3600):
        for number in range(5):  # the histogram of a second is as large, whatever its counts
            tally.answered("page", second, second + 0.01 * (1 + number) * (1 + second % 7))
    recorded(tmp_path, tally)
    report.write(tmp_path)
    assert (tmp_path / report.PAGE).stat().st_size < 2_000_000


def test_the_capacity_is_between_what_held_and_what_did_not() -> None:
    asked: list[float] = []

    def measure(rate: float) -> str:
        asked.append(rate)
        return "" if rate <= 21 else "p95 is 900 ms, of 500 ms"

    found = capacity.search(measure, 4)
    assert found.holds <= 21 < found.fails
    assert found.fails / found.holds <= capacity.NARROW
    assert found.limit.startswith("p95")
    assert all(asked.count(rate) == 2 for rate in asked)


def test_one_bad_trial_of_three_is_no_limit() -> None:
    count = 0

    def measure(rate: float) -> str:
        nonlocal count
        count += 1
        return "p95" if count == 1 or rate > 21 else ""

    assert capacity.search(measure, 4).holds > 18


@pytest.mark.parametrize(("limit", "holds", "fails"), [(0.0, 0.0, 0.5), (1e9, 8192.0, math.inf)])
def test_a_search_ends_where_nothing_holds_or_everything_does(limit: float, holds: float, fails: float) -> None:
    found = capacity.search(lambda rate: "" if rate <= limit else "p95", 4)
    assert (found.holds, found.fails) == (holds, fails)


def test_a_trial_from_before_requests_under_way_were_counted_has_them_by_littles_law() -> None:
    told = searched().trials[0].model_dump(exclude={"under_way"})
    assert Trial.model_validate(told).at_once == pytest.approx(1)
    assert Trial.model_validate({**told, "under_way": 3.0}).at_once == 3


def test_the_law_is_found_again_from_its_own_points() -> None:
    known = usl.Fit(30.0, 0.08, 0.002, 0, 0, 0)
    found = usl.fit([(n, known.throughput(n)) for n in (1, 2, 4, 8, 12, 16, 24, 32)])
    assert found is not None
    assert (found.gain, found.contention, found.coherency) == pytest.approx((30.0, 0.08, 0.002), rel=1e-3)
    assert found.peak_at == pytest.approx(math.sqrt(0.92 / 0.002), rel=1e-2)
    assert usl.fit([(1, 30), (2, 58)]) is None
    assert usl.fit([(n, 0) for n in (1, 2, 4, 8)]) is None  # a site that answers nothing has no law


LAW = usl.Fit(30.0, 0.08, 0.002, 0.5, 0.01, 0.0005)
BUSY = (
    Busy("srvk8s-worker01", "worker", 0.97, "PHP", 3.4, 6.0),
    Busy("srvdbm-sql01", "ndb-sql", 0.2, "SQL", 0.5, 2.0),
    Busy("srv-tunnel01", "tunnel", 0.01),
)


def searched(condition: str = "all is well", holds: float = 25.0, fails: float = 28.0) -> Searched:
    """Trials on the law's own curve: up to `holds` they held, from `fails` on they did not."""
    at_once = {4.0: 1.0, 8.0: 2.0, 16.0: 4.0, holds: 8.0, fails: 16.0}
    trials = [
        Trial(
            rate=rate,
            requests_rate=LAW.throughput(n),
            mean_ms=n / LAW.throughput(n) * 1000,
            p95_ms=3 * n,
            misses="p95 is 1200 ms, of 1000 ms" if rate >= fails else "",
            folder="01",
        )
        for rate, n in at_once.items()
    ]
    return Searched(condition=condition, trials=tuple(trials * 2), machines=BUSY)


def kept(folder: Path, *conditions: Searched, incomplete: str = "") -> Path:
    folder.mkdir(exist_ok=True)
    Found(header=HEADER, searched=conditions, incomplete=incomplete).keep(folder)
    return folder


def test_the_page_of_a_capacity_says_what_is_left_and_what_was_busy(tmp_path: Path) -> None:
    capacity_report.write(kept(tmp_path, searched(), searched("a worker is down", 17.0, 19.0)))
    page = (tmp_path / report.PAGE).read_text()
    assert page.count("<svg") == 2
    for told in ("a worker is down", "97 %", "PHP", "knee", "beyond it the objective is missed"):
        assert told in page


def test_machines_are_said_to_be_busy_at_the_rate_they_were_sampled_at(tmp_path: Path) -> None:
    every_held = Searched(condition="nothing gave way", trials=searched().trials[:3] * 2, machines=BUSY)
    capacity_report.write(kept(tmp_path, searched(), every_held))
    told = re.findall("What was busy, (.*)</h2>", (tmp_path / report.PAGE).read_text())
    assert told == ["all is well: at the rate that did not hold", "nothing gave way: at the highest rate, which held"]
    assert knee(every_held, None) is None


def test_a_capacity_is_told_to_programs_with_its_law_its_sizing_and_every_trial(tmp_path: Path) -> None:
    unbounded = Searched(condition="nothing gave way", trials=searched().trials[:3] * 2)
    capacity_report.write(kept(tmp_path, searched(), unbounded))
    text = (tmp_path / report.DATA).read_text()
    assert "Infinity" not in text
    told = json.loads(text)
    well, without_limit = told["conditions"]
    assert (well["holds"], well["fails"], without_limit["fails"]) == (25.0, 28.0, None)
    assert well["law"]["contention"]["low"] <= 0.08 <= well["law"]["contention"]["high"]
    assert [machine["machine"] for machine in well["machines"]] == [one.machine for one in BUSY]
    assert told["sizing"][1]["linear"] == 2
    rows = list(csv.DictReader((tmp_path / capacity_report.TABLE).open()))
    assert len(rows) == 16
    assert rows[4]["misses"] == "p95 is 1200 ms, of 1000 ms"


@pytest.mark.parametrize(
    ("conditions", "incomplete", "code", "told"),
    [
        ([searched()], "", 0, "all is well: 25.0 visitors a second hold, 28.0 do not (p95 is 1200 ms, of 1000 ms)"),
        ([searched(holds=2.0, fails=1.0)], "", 1, "0.0 visitors a second hold, 1.0 do not"),
        ([searched()], "stopped by hand", 3, "25.0 visitors a second hold"),
    ],
)
def test_the_report_of_a_capacity_is_made_again_from_what_was_kept(
    tmp_path: Path, conditions: list[Searched], incomplete: str, code: int, told: str
) -> None:
    done = CliRunner().invoke(app, ["report", str(kept(tmp_path, *conditions, incomplete=incomplete))])
    assert (done.exit_code, told in done.output) == (code, True)
    assert ("Incomplete: stopped by hand" in (tmp_path / report.PAGE).read_text()) is bool(incomplete)


def test_a_capacity_file_that_is_none_is_one_clear_message(tmp_path: Path) -> None:
    (tmp_path / "capacity.json").write_text('{"header": 3}')
    done = CliRunner().invoke(app, ["report", str(tmp_path)])
    assert (done.exit_code, "capacity.json: header: " in done.output) == (2, True)


def test_the_knee_is_the_laws_maximum_only_where_trials_went_that_far() -> None:
    known = knee(searched(), LAW)
    assert known is not None
    assert known.rate == pytest.approx(LAW.throughput(8))
    assert known.why == "beyond it the objective is missed"
    early = usl.Fit(30.0, 0.08, 0.02, 0, 0, 0)
    beyond = knee(searched(), early)
    assert beyond is not None
    assert beyond.at_once == pytest.approx(early.peak_at)
    assert knee(Searched(condition="none", trials=()), None) is None


def test_what_more_traffic_takes_counts_that_copies_wait_for_each_other() -> None:
    assert copies(0, 0, 10) == 10
    # Of 8 % that only one does at a time, 10 copies make 1/(0.08 + 0.92/10) = 5.8 (Amdahl).
    assert copies(0.08, 0, 5.8) == 10
    assert copies(0.08, 0.002, 10) is None
    rows = sizes([searched("a worker is down", 17.0, 19.0), searched()])
    assert [row.rate for row in rows] == [17.0, 34.0, 85.0, 170.0]
    assert [row.linear for row in rows] == [1, 2, 5, 10]
    assert rows[1].by_law is not None
    assert rows[1].by_law > 2
    assert sizes([]) == []
    ended_early = searched("a worker is down", 17.0, 19.0).model_copy(update={"whole": False})
    assert sizes([ended_early]) == []
    assert sizes([ended_early, searched()]) == sizes([searched()])
    assert law_of(searched()) is not None


def test_what_gave_out_is_told_by_machine_role_and_what_it_serves() -> None:
    samples = [
        Sample(at_s=1, machine="srv-nfs01", cpu=0.1, busy={"NFS": 1}),
        Sample(at_s=1, machine="srvdbm-sql01", cpu=0.95, busy={"SQL": 2}),
        Sample(at_s=3, machine="srvdbm-sql01", cpu=0.75, busy={"SQL": 6}),
    ]
    first, second = busiest(samples, LAB)
    assert first == Busy("srvdbm-sql01", "ndb-sql", 0.85, "SQL", 4.0, 6.0)
    assert saturated((first, second)) == (
        "processors of srvdbm-sql01 (ndb-sql): 85%; threads at work: SQL 4.0, NFS 1.0"
    )
    assert saturated((second,)).startswith("no machine's own processors: the busiest is srv-nfs01")
    assert saturated(()) == "no machine could be sampled"


def test_samples_count_their_time_from_the_first_second_of_the_load() -> None:
    sampler = Sampler([Sample(at_s=at_s, machine="srv-nfs01", cpu=0.1) for at_s in (99.0, 101.5)])
    assert [sample.at_s for sample in sampler.since(100.0)] == [1.5]


def test_an_objective_is_missed_by_latency_or_by_failures(tmp_path: Path) -> None:
    said = summary(recorded(tmp_path, a_minute(slow_s=0.3)))
    assert said.misses(Objective(p95_ms=500)) == ""
    assert said.misses(Objective(p95_ms=200)) == "p95 is 300 ms, of 200 ms"


def test_an_editor_needs_no_more_than_an_account() -> None:
    wanted = plan("http://127.0.0.1/", weights={Visit.PUBLISH: 1}, editor=Editor(user="editor", password="word"))
    assert wanted.editor is not None
