"""Load: arrivals, what is counted, what is made of it; then the generator, against a server of this test's own."""

import csv
import json
import math
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError
from typer.testing import CliRunner

from environments.load import find, load
from environments.model import Objective, Visit
from load import capacity, report, usl
from load.__main__ import app
from load.arrivals import Segment, Shape, duration_s, segments, share, times
from load.objective import summary
from load.plan import Editor, Plan
from load.record import End, Header, Mark, RecordError, Sample, Tally, read, write
from load.report import Searched
from load.run import Incomplete, Refused, add, check, place, run
from load.samples import busiest, saturated
from load.visit import Reply, assets, links
from load.visit import read as read_pages

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


def a_minute(slow_s: float = 0.05, failed: int = 0, late: int = 0) -> Tally:
    tally = Tally()
    for number in range(1200):
        at_s = number / 20
        tally.answered(
            "page", at_s, at_s + (slow_s if number % 10 == 0 else 0.02), "HTTP 503" if number < failed else ""
        )
    for number in range(late):
        tally.late(number)
    return tally


@pytest.mark.parametrize(
    ("tally", "end", "told"),
    [
        (a_minute(), End(), "held"),
        (a_minute(slow_s=2), End(), "missed: p95 is 2001 ms, of 500 ms"),
        (a_minute(failed=60), End(), "missed: 5.0% of requests failed, of 1.0% that may"),
        (a_minute(late=13), End(), "void: the generator did not deliver 0 visitors and sent 13 too late"),
        (a_minute(), End(incomplete="stopped by hand"), "void: the run is incomplete: stopped by hand"),
        (a_minute(), None, "void: the run is incomplete: its record has no end"),
        (Tally(), End(), "void: nothing was sent"),
    ],
)
def test_a_run_is_judged_by_the_objective_or_is_void(tmp_path: Path, tally: Tally, end: End | None, told: str) -> None:
    lines = recorded(tmp_path, tally, end=end)
    assert report.verdict(HEADER, summary(lines)).startswith(told)


def test_marks_and_samples_are_added_before_the_end(tmp_path: Path) -> None:
    recorded(tmp_path, a_minute())
    add(tmp_path, [Mark(what="rolling update", began_s=10, ended_s=20), Sample(at_s=2, machine="srv-nfs01", cpu=0.4)])
    lines = read(tmp_path)
    assert isinstance(lines[-1], End)
    assert isinstance(lines[-2], Sample)


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


def test_the_law_is_found_again_from_its_own_points() -> None:
    known = usl.Fit(30.0, 0.08, 0.002, 0, 0, 0)
    found = usl.fit([(n, known.throughput(n)) for n in (1, 2, 4, 8, 12, 16, 24, 32)])
    assert found is not None
    assert (found.gain, found.contention, found.coherency) == pytest.approx((30.0, 0.08, 0.002), rel=1e-3)
    assert found.peak_at == pytest.approx(math.sqrt(0.92 / 0.002), rel=1e-2)
    assert usl.fit([(1, 30), (2, 58)]) is None


def test_the_page_of_a_capacity_says_what_is_left_and_what_more_traffic_takes() -> None:
    known = usl.Fit(30.0, 0.08, 0.002, 0, 0, 0)
    points = tuple((known.throughput(n), n / known.throughput(n) * 1000, 3 * n) for n in (1.0, 2.0, 4.0, 8.0, 16.0))
    well = Searched("all is well", 25.0, 28.0, "p95 is 600 ms", "processors of srvk8s-worker01", points)
    page = report.capacity_page(HEADER, [well, Searched("a worker is down", 17.0, 19.0, "p95", "", points)])
    assert page.count("<svg") == 2
    assert "a worker is down" in page
    assert [row[1] for row in report.sizing([well])] == [25.0, 50.0, 125.0, 250.0]


def test_what_gave_out_is_told_by_machine_and_role() -> None:
    full = [Sample(at_s=1, machine="srvdbm-sql01", cpu=0.95), Sample(at_s=1, machine="srv-nfs01", cpu=0.1)]
    assert saturated(full, LAB) == "processors of srvdbm-sql01 (ndb-sql): 95%"
    assert busiest(full)[0] == ("srvdbm-sql01", 0.95)
    assert saturated(full[1:], LAB).startswith("no machine's own processors: the busiest is srv-nfs01")
    assert saturated([], LAB) == "no machine could be sampled"


# What visitors do


PAGE = """<link rel='stylesheet' href='http://x/wp-includes/style.css?ver=6'><script src="http://x/wp.js"></script>
<img src="//elsewhere.org/a.png"><a href="http://x/?p=12">A post</a><a href='http://x/?p=13'>Another</a>"""


class Script:
    """A browser that answers what it is told, and remembers what it was asked."""

    def __init__(self) -> None:
        self.asked: list[str] = []

    def send(self, name: str, method: str, path: str, **_: Any) -> Reply:
        self.asked.append(f"{name}: {method} {path}")
        return Reply(200, PAGE)

    def cookies(self) -> dict[str, str]:
        return {}

    def think(self) -> None:
        self.asked.append("thinks")


def test_a_reader_fetches_what_belongs_to_the_page_and_goes_on_to_a_post() -> None:
    browser = Script()
    read_pages(browser, SimpleNamespace(choice=lambda paths: paths[0]))  # type: ignore[arg-type]
    assert browser.asked[0] == "front page: GET /"
    assert "asset: GET /wp-includes/style.css?ver=6" in browser.asked
    assert browser.asked[-2:] == ["thinks", "post: GET /?p=12"]
    assert links(PAGE) == ["/?p=12", "/?p=13"]
    assert assets("no page") == []


# The generator


class Site(ThreadingHTTPServer):
    """Answers at once, but stands still for three seconds when told so; its own errors where it is asked for them."""

    daemon_threads = True
    request_queue_size = 256
    stalled_s: tuple[float, float] = (0, 0)


class Pages(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Site

    def do_GET(self) -> None:
        first_s, last_s = self.server.stalled_s
        if first_s <= time.monotonic() < last_s:
            time.sleep(last_s - time.monotonic())
        self.send_response(503 if self.path == "/broken" else 200)
        self.send_header("Content-Length", "5")
        self.end_headers()
        self.wfile.write(b"hello")

    def log_message(self, format: str, *args: Any) -> None:
        """Nothing."""


@contextmanager
def site() -> Iterator[Site]:
    with Site(("127.0.0.1", 0), Pages) as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        yield server
        server.shutdown()
        thread.join()


def url(server: Site, path: str = "/") -> str:
    return f"http://127.0.0.1:{server.server_address[1]}{path}"


def test_every_visitor_is_sent_at_its_time_by_several_workers(tmp_path: Path) -> None:
    with site() as server:
        run(plan(url(server), workers=2), HEADER, tmp_path / "run", lambda _: None)
    said = summary(read(tmp_path / "run"))
    assert (said.requests, said.failed, said.visitors_lost) == (60, 0, 0)
    assert said.incomplete == ""


def test_a_stall_is_not_hidden_and_errors_are_told_by_kind(tmp_path: Path) -> None:
    """Three seconds in which nothing answers: whoever came then waited from the moment of coming."""
    with site() as server:
        wanted = plan(url(server), segments=segments(Shape.CONSTANT, 20, 8))

        def begun(line: str) -> None:
            if server.stalled_s == (0, 0) and re.search(r"[1-9]\d* requests", line):
                server.stalled_s = (time.monotonic(), time.monotonic() + 3)

        run(wanted, HEADER, tmp_path / "run", begun)
        run(plan(url(server, "/broken")), HEADER, tmp_path / "broken", lambda _: None)
    stalled = summary(read(tmp_path / "run"))
    assert stalled.requests == 160
    # 60 of 160 came in those three seconds, 20 a second: 16 of all waited longer than 3 s - 16/20 s = 2.2 s.
    assert 2000 < stalled.percentiles_ms[90.0] < 2500
    broken = summary(read(tmp_path / "broken"))
    assert broken.errors == {"HTTP 503": 60}
    assert broken.failed_share == 1


def test_visitors_that_cannot_be_sent_void_the_run(tmp_path: Path) -> None:
    with site() as server:
        server.stalled_s = (0, time.monotonic() + 60)
        run(plan(url(server), in_flight_max=5, timeout_s=1.5), HEADER, tmp_path / "run", lambda _: None)
    said = summary(read(tmp_path / "run"))
    assert said.visitors_lost > 10
    assert "did not deliver" in said.void


def test_a_run_that_is_stopped_keeps_what_it_counted_marked_incomplete(tmp_path: Path) -> None:
    """As a Ctrl-C does it: the generator is told, and ends in its order."""
    pids: list[int] = []

    def stop(line: str) -> None:
        if re.search(r"[1-9]\d* requests", line) and not pids:
            children = Path(f"/proc/self/task/{threading.get_native_id()}/children").read_text().split()
            pids.extend(pid for pid in map(int, children) if b"master" in Path(f"/proc/{pid}/cmdline").read_bytes())
            os.kill(pids[0], signal.SIGINT)

    with site() as server, pytest.raises(Incomplete, match="stopped by hand"):
        run(plan(url(server), segments=segments(Shape.CONSTANT, 20, 30)), HEADER, tmp_path / "run", stop)
    said = report.write(tmp_path / "run")
    assert 0 < said.requests < 600
    assert said.void == "the run is incomplete: stopped by hand"


def test_where_nobody_answers_no_load_is_sent() -> None:
    session = SimpleNamespace(environment=LAB)
    with pytest.raises(Refused, match="does not answer"):
        check(LAB, place(session, "http://127.0.0.1:9/"))  # type: ignore[arg-type]
    with site() as server, pytest.raises(Refused, match="answers 503 before any load"):
        check(LAB, place(session, url(server, "/broken")))  # type: ignore[arg-type]
    with pytest.raises(Refused, match="no place to send visitors to"):
        place(session, "elsewhere")  # type: ignore[arg-type]


def test_only_the_generator_imports_locust() -> None:
    """It patches the world when it is imported."""
    root = Path(__file__).parent.parent
    importing = [
        p.name
        for p in (root / "load").glob("*.py")
        if re.search(r"^(from|import) (locust|gevent)", p.read_text(), re.M)
    ]
    assert importing == ["generator.py"]
    loaded = "import load.__main__, sys; print([name for name in sys.modules if name.startswith(('locust', 'gevent'))])"
    done = subprocess.run([sys.executable, "-c", loaded], cwd=root, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_an_editor_needs_no_more_than_an_account() -> None:
    wanted = plan("http://127.0.0.1/", weights={Visit.PUBLISH: 1}, editor=Editor(user="editor", password="word"))
    assert wanted.editor is not None


def test_an_objective_is_missed_by_latency_or_by_failures(tmp_path: Path) -> None:
    said = summary(recorded(tmp_path, a_minute(slow_s=0.3)))
    assert said.misses(Objective(p95_ms=500)) == ""
    assert said.misses(Objective(p95_ms=200)) == "p95 is 300 ms, of 200 ms"
