"""The generator, at a server of this test's own: everybody is sent at their time, and whatever fails is counted."""

import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from environments.model import Objective, Visit
from load import report
from load.arrivals import Shape, segments
from load.objective import Summary, summary
from load.plan import Plan
from load.record import LINE, Header, read
from load.run import Incomplete, Refused, Where, check, free_port, place, run
from provisioning.poll import poll
from tests.processes import children
from tests.served import served
from tests.test_load import HEADER, LAB, plan

ROOT = Path(__file__).parent.parent
SLOW_S, BUSY_S = 0.8, 1.5


class Site(ThreadingHTTPServer):
    """Answers at once, but stands still for three seconds when told so; its own errors where it is asked for them."""

    daemon_threads = True
    request_queue_size = 256
    stalled_s: tuple[float, float] = (0, 0)
    connections = 0

    def get_request(self) -> tuple[Any, Any]:
        """One more connection."""
        self.connections += 1
        return super().get_request()


class Pages(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Site

    def do_GET(self) -> None:
        first_s, last_s = self.server.stalled_s
        if first_s <= time.monotonic() < last_s:
            time.sleep(last_s - time.monotonic())
        # Neither says beforehand that the connection ends with it.
        self.close_connection = self.path in ("/mute", "/once")
        if self.path == "/mute":
            return
        self.send_response({"/broken": 503, "/moved": 301, "/empty": 204}.get(self.path, 200))
        if self.path == "/moved":
            self.send_header("Location", "/wp/")
        if self.path == "/drip":
            self._drip()
            return
        self.send_header("Content-Length", "5")
        self.end_headers()
        body = b"hello"
        if self.path == "/slowly":
            self.wfile.write(body[:2])
            time.sleep(SLOW_S)
            body = body[2:]
        self.wfile.write(body)

    def _drip(self) -> None:
        self.send_header("Content-Length", "1000")
        self.end_headers()
        with suppress(OSError):
            for _ in range(1000):
                self.wfile.write(b".")
                time.sleep(0.2)

    def log_message(self, format: str, *args: Any) -> None:
        """Nothing."""


@contextmanager
def site() -> Iterator[Site]:
    with served(Site(("127.0.0.1", 0), Pages)) as server:
        yield server


def url(server: Site, path: str = "/") -> str:
    return f"http://127.0.0.1:{server.server_address[1]}{path}"


def test_every_visitor_is_sent_at_its_time_by_several_workers(tmp_path: Path) -> None:
    with site() as server:
        run(plan(url(server), workers=2), HEADER, tmp_path / "run", lambda _: None)
    said = summary(read(tmp_path / "run"))
    assert (said.requests, said.failed, said.visitors_lost) == (60, 0, 0)
    assert said.incomplete == ""


@pytest.mark.skipif(sys.platform != "linux" or os.geteuid() != 0, reason="may not ask to be served first")
def test_who_sends_is_served_first_by_the_processor_and_who_writes_down_is_not(tmp_path: Path) -> None:
    policies: list[int] = []

    def at_work(line: str) -> None:
        if "requests" in line and not policies:
            policies.extend(os.sched_getscheduler(pid) & ~os.SCHED_RESET_ON_FORK for pid in children(os.getpid()))

    with site() as server:
        run(plan(url(server), segments=segments(Shape.CONSTANT, 20, 3), workers=2), HEADER, tmp_path / "run", at_work)
    assert (policies.count(os.SCHED_RR), policies.count(os.SCHED_OTHER)) == (2, 1)


@pytest.mark.alone
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


@pytest.mark.alone
def test_a_site_that_lets_everybody_wait_is_overloaded_and_the_run_is_not_void(tmp_path: Path) -> None:
    """Nobody more is sent while so many wait; whoever is turned away would have waited in vain."""
    with site() as server:
        server.stalled_s = (0, time.monotonic() + 60)
        run(plan(url(server), in_flight_max=5, timeout_s=1.5), HEADER, tmp_path / "run", lambda _: None)
    said = summary(read(tmp_path / "run"))
    assert (said.requests, said.visitors_lost, said.void) == (60, 0, "")
    assert said.errors["no answer: too many wait"] > 10
    assert said.misses(Objective(p95_ms=1000)) == "100.0% of requests failed, of 1.0% that may"


@pytest.mark.alone
def test_visitors_for_whom_the_plan_has_no_room_void_the_run(tmp_path: Path) -> None:
    """They look at pages that came at once: the site has no part in it."""
    with site() as server:
        readers = {"weights": {Visit.COMMENT: 1}, "think_s": 30, "timeout_s": 0.5}
        run(plan(url(server, "/"), in_flight_max=5, **readers), HEADER, tmp_path / "run", lambda _: None)
    said = summary(read(tmp_path / "run"))
    assert said.visitors == 60
    assert said.lost["too many under way"] > 40
    assert "did not deliver" in said.void


def test_a_visit_that_does_not_end_is_cut_off_and_counted(tmp_path: Path) -> None:
    """An answer that drips on is never silent for as long as a timeout."""
    with site() as server:
        parts = segments(Shape.CONSTANT, 5, 1)
        run(plan(url(server, "/drip"), segments=parts, timeout_s=1), HEADER, tmp_path / "run", lambda _: None)
    said = summary(read(tmp_path / "run"))
    assert said.errors == {"no answer until the end of the run": 5}
    assert said.percentiles_ms[50.0] > 5000


def test_a_visitor_who_looks_at_a_page_as_the_run_ends_was_delivered() -> None:
    """Whatever it asked for was sent and answered; who asks no more is not held back by the generator."""
    with site() as server:
        readers = {"weights": {Visit.COMMENT: 1}, "think_s": 1000, "timeout_s": 0.5}
        said = alone(plan(url(server), segments=segments(Shape.CONSTANT, 5, 1), **readers), "0")
    assert (said.visitors, said.requests, said.failed) == (5, 5, 0)
    assert (said.lost, said.void) == ({}, "")


# A worker alone, in a process of its own; so few files that some visitors find none.
ALONE = """
import resource, sys, os
from load.generator import Worker
from load.plan import Plan
import load.generator, time
plan = Plan.model_validate_json(sys.stdin.readline())
load.generator.LATE_S = 5.0  # other tests beside this one hold visitors back
worker = Worker(plan, 0)
spare = int(sys.argv[1])
if spare:
    probe = os.open("/dev/null", os.O_RDONLY)
    resource.setrlimit(resource.RLIMIT_NOFILE, (probe + spare, probe + spare))
if sys.argv[2:]:
    worker._acts = [lambda tab: {}[sys.argv[2]]]
worker.begin_at(time.time() + 0.2)
worker.send_all()
for line in worker.tally.lines():
    print(line.model_dump_json())
print(load.generator.End(lost=worker.tally.lost).model_dump_json())
"""


def alone(wanted: Plan, *arguments: str) -> Summary:
    done = subprocess.run(
        [sys.executable, "-c", ALONE, *arguments],
        input=f"{wanted.model_dump_json()}\n",
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    return summary([LINE.validate_json(line) for line in done.stdout.splitlines()])


# Waits three times for a moment to come and once for one that has passed, while another greenlet counts.
WAITING = """
import time, gevent
from load.alarm import Alarm
others = []
gevent.spawn(lambda: [others.append(gevent.sleep(0.001)) for _ in range(20)])
alarm = Alarm()
early = []
for ahead_s in (0.03, 0.0004, 0.03, -1):
    at_s = time.monotonic() + ahead_s
    alarm.wait_until(at_s)
    early.append(time.monotonic() < at_s)
alarm.close()
print(any(early), len(others))
"""


def test_nobody_is_sent_before_the_time_and_others_go_on_meanwhile() -> None:
    done = subprocess.run([sys.executable, "-c", WAITING], cwd=ROOT, capture_output=True, text=True, check=True)
    early, others = done.stdout.split()
    assert early == "False"
    assert int(others) > 5


# Finds some hosts, and tells which of them a thread was asked for.
NAMED = """
from gevent.resolver.thread import Resolver
from load.generator import Names
by_thread = []
Resolver.getaddrinfo = lambda self, host, *rest: by_thread.append(host) or [(2, 1, 6, "", ("192.0.2.9", 80))]
names = Names({"site.invalid": "192.0.2.1"})
print(*(names.getaddrinfo(host, 80)[0][4][0] for host in ("192.0.2.7", b"site.invalid", "::1", "other.invalid")))
print(*by_thread)
"""


def test_an_address_and_a_name_with_a_known_one_are_found_without_a_thread() -> None:
    done = subprocess.run([sys.executable, "-c", NAMED], cwd=ROOT, capture_output=True, text=True, check=True)
    found, by_thread = done.stdout.splitlines()
    assert found.split() == ["192.0.2.7", "192.0.2.1", "::1", "192.0.2.9"]
    assert by_thread == "other.invalid"


# Asks, and is busy with something else for a while before it reads: when the answer had arrived, and when it was read.
BUSY = """
import ssl, sys, time, gevent
from load.client import Client
client = Client(sys.argv[1], 5, ssl.create_default_context(), {})
asked_s = time.monotonic()
asking = gevent.spawn(client.request, "GET", "/slowly", "", {})
gevent.sleep(0.1)
time.sleep(float(sys.argv[2]))
answer = asking.get()
print(answer.arrived_s - asked_s, time.monotonic() - asked_s)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="whose kernel notes when something arrives")
def test_an_answer_has_arrived_when_its_last_part_has_however_long_a_busy_generator_leaves_it_unread() -> None:
    with site() as server:
        asked = [sys.executable, "-c", BUSY, url(server, ""), str(BUSY_S)]
        told = subprocess.run(asked, cwd=ROOT, capture_output=True, text=True, check=True).stdout.split()
    arrived_s, read_s = map(float, told)
    assert SLOW_S < arrived_s < SLOW_S + 0.4 < BUSY_S < read_s


def test_a_machine_out_of_files_is_the_generators_failure_not_the_sites() -> None:
    with site() as server:
        server.stalled_s = (0, time.monotonic() + 600)
        said = alone(plan(url(server), timeout_s=2), "8")
    # The few who had a file waited in vain, which is the site's doing.
    assert said.lost["EMFILE"] > 10
    assert said.errors == {"TimeoutError": 60 - said.lost["EMFILE"]}
    assert "EMFILE" in said.void


@pytest.mark.parametrize("keep", [False, True])
def test_a_request_that_is_lost_is_sent_once_and_counted(*, keep: bool) -> None:
    with site() as server:
        said = alone(plan(url(server, "/mute"), keep_connections=keep), "0")
    assert server.connections == 60
    assert said.errors == {"HTTPConnectionClosed": 60}


def test_a_kept_connection_that_the_site_has_ended_is_replaced_before_the_next_request() -> None:
    with site() as server:
        said = alone(plan(url(server, "/once"), keep_connections=True), "0")
    assert server.connections == 60
    assert (said.requests, said.failed) == (60, 0)


def test_a_visit_that_breaks_off_by_itself_is_counted_by_kind() -> None:
    with site() as server:
        said = alone(plan(url(server)), "0", "no such key")
    assert said.errors == {"KeyError": 60}


def test_a_worker_with_too_few_files_ends_the_run_before_anybody_is_sent(tmp_path: Path) -> None:
    limited = f"ulimit -n 500; exec {sys.executable} -m load.generator worker --host 127.0.0.1 --port $0"
    here, where = plan("http://127.0.0.1:9/", workers=1), Where(port=free_port(), elsewhere=1)
    with subprocess.Popen(["sh", "-c", limited, str(where.port)], cwd=ROOT, stdin=subprocess.PIPE) as worker:
        with pytest.raises(Refused, match="nobody was sent: a worker: 1100 open files may be needed at once and 500"):
            run(here, HEADER, tmp_path / "run", lambda _: None, where)
        worker.kill()
    assert not (tmp_path / "run").exists()


def test_where_no_worker_comes_nobody_is_sent_and_nothing_is_left(tmp_path: Path) -> None:
    waited: list[str] = []
    where = Where(port=free_port(), elsewhere=1, ready_timeout_s=1)
    with pytest.raises(Refused, match="nobody was sent: 0 of 1 workers came within 1 s"):
        run(plan("http://127.0.0.1:9/"), HEADER, tmp_path / "run", waited.append, where)
    assert not (tmp_path / "run").exists()


# Workers elsewhere


def test_workers_elsewhere_send_their_share_and_end_with_the_run(tmp_path: Path) -> None:
    where = Where(port=free_port(), elsewhere=2)
    command = [sys.executable, "-m", "load", "work", f"127.0.0.1:{where.port}", "--workers", "2"]
    with site() as server, subprocess.Popen(command, cwd=ROOT) as work:
        run(plan(url(server), workers=2), HEADER, tmp_path / "run", lambda _: None, where)
        assert work.wait(30) == 0
    lines = read(tmp_path / "run")
    said = summary(lines)
    assert (said.visitors, said.requests, said.failed, said.void) == (60, 60, 0, "")
    # Second 0 is when the first visitor came, and not when somebody asked for it.
    assert isinstance(lines[0], Header)
    assert lines[0].began > HEADER.began


def test_more_workers_than_the_plan_has_shares_for_end_the_run(tmp_path: Path) -> None:
    """Before anybody is sent, or as soon as one too many comes."""
    where = Where(port=free_port(), elsewhere=1)
    command = [sys.executable, "-m", "load", "work", f"127.0.0.1:{where.port}", "--workers", "2"]
    with site() as server, subprocess.Popen(command, cwd=ROOT) as work:
        wanted = plan(url(server), segments=segments(Shape.CONSTANT, 20, 30))
        with pytest.raises((Refused, Incomplete), match="2 workers came, expected 1: start as many as"):
            run(wanted, HEADER, tmp_path / "run", lambda _: None, where)
        assert work.wait(60) == 0


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL], ids=["ctrl-c", "kill -9"])
def test_no_worker_outlives_the_command_that_started_it(number: signal.Signals) -> None:
    command = [sys.executable, "-m", "load", "work", f"127.0.0.1:{free_port()}", "--workers", "2"]
    # What is started in the background by a shell may have been told to ignore Ctrl-C.
    with subprocess.Popen(["env", "--default-signal=INT", *command], cwd=ROOT) as work:
        pids = poll("two workers", lambda: both if len(both := children(work.pid)) == 2 else None, timeout_s=60)
        poll("workers at work", lambda: all(b"generator" in cmdline(pid) for pid in pids), timeout_s=60)
        work.send_signal(number)
        work.wait(60)
    poll("no worker", lambda: not any(b"generator" in cmdline(pid) for pid in pids), timeout_s=60)


def test_a_run_whose_command_is_killed_ends_and_keeps_what_was_counted(tmp_path: Path) -> None:
    started = (
        "import sys; from pathlib import Path; from load.plan import Plan; from load.run import run;"
        "from tests.test_load import HEADER;"
        "plan, folder = Plan.model_validate_json(sys.argv[1]), Path(sys.argv[2]);"
        "run(plan, HEADER, folder, lambda _: None, begun=lambda: print(1, flush=True))"
    )
    with site() as server:
        wanted = plan(url(server), segments=segments(Shape.CONSTANT, 20, 300)).model_dump_json()
        command = [sys.executable, "-c", started, wanted, str(tmp_path / "run")]
        with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE) as process:
            assert process.stdout is not None
            process.stdout.readline()
            pids = children(process.pid)
            process.kill()
    assert len(pids) == 2
    poll("no generator", lambda: not any(b"generator" in cmdline(pid) for pid in pids), timeout_s=60)
    assert summary(read(tmp_path / "run")).incomplete == "whoever started it is gone"


def cmdline(pid: int) -> bytes:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    except (FileNotFoundError, ProcessLookupError):
        return b""


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


def test_where_visitors_would_not_get_what_they_want_no_load_is_sent() -> None:
    at = partial(place, SimpleNamespace(environment=LAB))  # type: ignore[arg-type]
    with site() as server:
        with pytest.raises(Refused, match=f"answers 301 and leads to {url(server, '/wp/')}, .* give that as --to"):
            check(LAB, at(url(server, "/moved")))
        with pytest.raises(Refused, match="answers 204 before any load is sent, and visitors want 200"):
            check(LAB, at(url(server, "/empty")))
        check(LAB, at(url(server)))


def test_only_the_generator_imports_locust() -> None:
    """It patches the world when it is imported; its HTTP client, the sockets of that and its alarm belong there."""
    root = Path(__file__).parent.parent
    importing = [
        p.name
        for p in (root / "load").glob("*.py")
        if re.search(r"^(from|import) (locust|gevent)", p.read_text(), re.M)
    ]
    assert sorted(importing) == ["alarm.py", "client.py", "generator.py", "stamp.py"]
    assert not imported_with("load.__main__, load.campaign", "locust", "gevent")


def test_a_report_waits_for_nothing_that_only_a_target_needs() -> None:
    assert not imported_with("load.__main__", "kubernetes", "cloudflare", "provisioning", "pytest", "scipy")


def imported_with(modules: str, *names: str) -> list[str]:
    """Which of those are imported with the modules, as a process of its own sees it."""
    program = f"import {modules}, sys; print(*({set(names)} & {{name.partition('.')[0] for name in sys.modules}}))"
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=Path(__file__).parent.parent, capture_output=True, text=True, check=True
    )
    return done.stdout.split()
