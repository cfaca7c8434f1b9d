"""The probing process against servers of this test's own, on loopback."""

import http.server
import itertools
import os
import signal
import socket
import struct
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from chaos.history import Header, History, Probe, parse
from chaos.probe import PORTS_PER_S, SOURCE_PORTS, Member, Page, Plan, Port, Row, Spoken, ask_one, source_ports
from provisioning.poll import NotYet, poll
from tests.served import served

ROOT = Path(__file__).parent.parent
INTERVAL_S = 0.05


class Answers(http.server.BaseHTTPRequestHandler):
    """200 for the front page, 404 for others."""

    def do_GET(self) -> None:
        self.send_response(200 if self.path == "/" else 404)
        self.send_header("Content-Length", "2")
        self.end_headers()
        self.wfile.write(b"ok")

    def log_message(self, format: str, *args: object) -> None:
        """Say nothing."""


@pytest.fixture
def port() -> Iterator[int]:
    with served(http.server.ThreadingHTTPServer(("127.0.0.1", 0), Answers)) as server:
        yield server.server_port


@pytest.fixture
def closed_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return int(server.getsockname()[1])


@pytest.fixture
def silent_port() -> Iterator[int]:
    """Connections are taken, and nothing is ever said on them."""
    with socket.create_server(("127.0.0.1", 0), backlog=500) as server:
        yield int(server.getsockname()[1])


@pytest.fixture
def struck_port() -> Iterator[int]:
    """A MySQL server that offers TLS, and loses its power before it shakes hands (protocol's HandshakeV10)."""
    said = b"\x0a8.4.0\0" + struct.pack("<I", 1) + b"12345678\0"
    said += struct.pack("<HBHHB", 0x8A00, 255, 2, 0x0008, 21) + bytes(10) + b"123456789012\0caching_sha2_password\0"
    taken = []
    with socket.create_server(("127.0.0.1", 0)) as server:

        def greet() -> None:
            with suppress(OSError):
                connection, _ = server.accept()
                taken.append(connection)
                connection.sendall(struct.pack("<I", len(said)) + said)

        threading.Thread(target=greet, daemon=True).start()
        yield int(server.getsockname()[1])
        for connection in taken:
            connection.close()


def test_a_server_that_falls_silent_while_it_shakes_hands_holds_nobody_up(struck_port: int) -> None:
    """One asker that waits for ever keeps the whole process from its end."""
    asked = []
    question = Row(
        layer="sql", host="127.0.0.1", port=struck_port, timeout_s=0.3, user="u", password="p", database="d", query="q"
    )
    asker = threading.Thread(target=lambda: asked.append(ask_one(question, 0.0)), daemon=True)
    asker.start()
    asker.join(5)
    assert [probe.error.partition(":")[0] for probe in asked] == ["OperationalError"]
    assert "timed out" in asked[0].error


@contextmanager
def asking(plan: Plan, folder: Path) -> Iterator["subprocess.Popen[str]"]:
    """The process at work."""
    command = [sys.executable, "-m", "chaos.probe", str(folder / "probes.jsonl")]
    with subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, text=True) as process:
        assert process.stdin
        process.stdin.write(plan.model_dump_json() + "\n")
        process.stdin.flush()
        yield process


def asked(plan: Plan, folder: Path, count: int) -> dict[str, list[Probe]]:
    """What the process records of at least so many questions, by layer, in their order."""
    file = folder / "probes.jsonl"
    with asking(plan, folder) as process:
        poll("answers", lambda: file.exists() and file.read_text().count("\n") >= count, timeout_s=30, interval_s=0.05)
        process.send_signal(signal.SIGTERM)
        assert process.wait(10) == 0
    header = Header(drill="x", environment="x", seed=0, command="x", at_s=0, intervals_s={})
    found: dict[str, list[Probe]] = {}
    for probe in History([header, *parse(file.read_text())]).of(Probe):
        found.setdefault(probe.layer, []).append(probe)
    return {layer: sorted(probes, key=lambda probe: probe.intended_s) for layer, probes in found.items()}


def test_every_layer_is_asked_at_its_own_steady_times(
    port: int, closed_port: int, silent_port: int, tmp_path: Path
) -> None:
    """What waits for an answer, or gets none, delays nobody's next question."""
    plan = Plan(
        questions=(
            Page(layer="page", host="127.0.0.1", port=port),
            Page(layer="missing", host="127.0.0.1", port=port, path="/missing"),
            Port(layer="closed", host="127.0.0.1", port=closed_port),
            Page(layer="silent", host="127.0.0.1", port=silent_port, timeout_s=0.5),
        ),
    )
    found = asked(plan, tmp_path, 160)
    assert set(found) == {"page", "missing", "closed", "silent"}
    for probes in found.values():
        spaces = [two.intended_s - one.intended_s for one, two in itertools.pairwise(probes)]
        assert spaces == pytest.approx([INTERVAL_S] * len(spaces), abs=1e-6)
    assert all(probe.ok for probe in found["page"])
    assert {probe.error for probe in found["missing"]} == {"OSError: HTTP 404"}
    assert {probe.error.partition(":")[0] for probe in found["closed"]} == {"ConnectionRefusedError"}
    assert {probe.error.partition(":")[0] for probe in found["silent"]} == {"TimeoutError"}
    assert all(probe.ended_s - probe.intended_s >= 0.5 for probe in found["silent"])


def policies(pid: int) -> list[int]:
    """How each thread of a process is scheduled."""
    return [os.sched_getscheduler(int(task.name)) for task in Path(f"/proc/{pid}/task").iterdir()]


def test_who_asks_waits_for_no_processor_and_what_asks_for_it_is_ordinary(port: int, tmp_path: Path) -> None:
    """On a machine where nobody may be served first, all of it is ordinary, and is asked as well."""
    loop = ("sh", "-c", "while read line; do echo ok; done")
    plan = Plan(
        questions=(
            Page(layer="page", host="127.0.0.1", port=port, timeout_s=0.5),
            Spoken(layer="spoken", interval_s=0.2, command=loop),
        )
    )
    permitted = subprocess.run(["chrt", "--rr", "1", "true"], capture_output=True, check=False).returncode == 0
    first = os.SCHED_RR | os.SCHED_RESET_ON_FORK if permitted else os.SCHED_OTHER
    askers = sum(question.at_once for question in plan.questions)
    with asking(plan, tmp_path) as process:

        def all_asking() -> bool:
            if (found := policies(process.pid).count(first)) < askers:
                raise NotYet(f"{found} of {askers} askers")
            return True

        poll("askers", all_asking, timeout_s=30, interval_s=0.05)
        children = Path(f"/proc/{process.pid}/task")
        spoken = [int(pid) for task in children.iterdir() for pid in (task / "children").read_text().split()]
        assert [policy for pid in spoken for policy in policies(pid)] == [os.SCHED_OTHER]


def test_the_process_ends_with_the_drill_that_started_it(port: int, tmp_path: Path) -> None:
    """Also with one that was killed: its end of the pipe closes."""
    with asking(Plan(questions=(Page(layer="page", host="127.0.0.1", port=port),)), tmp_path) as process:
        assert process.stdin
        process.stdin.close()
        assert process.wait(10) == 0


def test_what_a_program_on_a_machine_owes_is_waited_for_not_asked_again(tmp_path: Path) -> None:
    """Each line that it reads is a question; the third is answered late, the fourth with what is wrong."""
    program = (
        "n=0; while read -r _; do n=$((n + 1)); "
        "[ $n != 3 ] || sleep 1; [ $n = 4 ] && echo 'no such file' || echo ok; done"
    )
    question = Spoken(layer="files", command=("bash", "-c", program), interval_s=0.1, timeout_s=0.3)
    found = asked(Plan(questions=(question,)), tmp_path, 12)["files"]
    errors = [probe.error for probe in found]
    assert errors[:2] == ["", ""]
    assert set(errors[2:4]) == {"TimeoutError: no answer yet"}
    assert errors.count("OSError: no such file") == 1
    assert errors[-1] == ""
    assert max(two.ended_s - one.ended_s for one, two in itertools.pairwise(p for p in found if p.ok)) > 0.8


def test_a_program_that_ends_is_started_anew(tmp_path: Path) -> None:
    question = Spoken(layer="files", command=("bash", "-c", "read -r _ && echo ok"), interval_s=0.1, timeout_s=1)
    errors = [probe.error for probe in asked(Plan(questions=(question,)), tmp_path, 8)["files"]]
    assert errors.count("") >= 4


@pytest.mark.parametrize(("state", "error"), [("STARTED", ""), ("NO_CONTACT", "OSError: NO_CONTACT")])
def test_a_data_node_is_up_when_the_management_server_has_it_as_started(state: str, error: str) -> None:
    reply = f"node status\nnodes: 1\nnode.2.type: NDB\nnode.2.status: {state}\n\n"
    with socket.create_server(("127.0.0.1", 0)) as server:

        def serve() -> None:
            connection, _ = server.accept()
            with connection:
                connection.recv(100)
                connection.sendall(reply.encode())

        thread = threading.Thread(target=serve)
        thread.start()
        port = int(server.getsockname()[1])
        assert ask_one(Member(layer="ndb/a", host="127.0.0.1", port=port, node_id=2), 0.0).error == error
        thread.join()


def test_a_plan_without_questions_is_refused(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "chaos.probe", str(tmp_path / "f")],
        cwd=ROOT,
        input='{"questions": []}',
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode != 0
    assert not (tmp_path / "f").exists()


def test_no_question_comes_from_a_port_that_was_used_just_before() -> None:
    """Two minutes of questions: a node remembers for so long where a port's last connection went."""
    seen: list[int] = []
    with socket.create_server(("127.0.0.1", 0), backlog=64) as server:
        page = Page(layer="vip", host="127.0.0.1", port=server.getsockname()[1])
        for _ in range(50):
            asked = threading.Thread(target=page.ask)
            asked.start()
            connection, (_, port) = server.accept()
            with connection:
                connection.recv(1024)
                connection.sendall(b"HTTP/1.0 200 OK\r\n\r\n")
            asked.join()
            seen.append(port)
    assert len(set(seen)) == 50
    assert set(seen) <= set(SOURCE_PORTS)
    assert len(SOURCE_PORTS) > 120 / page.interval_s


def test_a_process_asks_from_no_port_that_an_earlier_one_had_in_the_last_four_minutes() -> None:
    for began_s in (0.0, 1_000_000.3, 1_764_000_123.9):
        first = {*itertools.islice(source_ports(began_s), 100 * PORTS_PER_S)}
        for later_s in (100, 150, 240):
            assert first.isdisjoint(itertools.islice(source_ports(began_s + later_s), 100 * PORTS_PER_S))


def test_a_port_that_somebody_else_has_is_passed_over(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server, socket.socket() as other:
        page = Page(layer="vip", host="127.0.0.1", port=server.getsockname()[1])
        other.bind(("", next(page._ports)))
        monkeypatch.setattr(Page, "_ports", itertools.chain([other.getsockname()[1]], page._ports))

        def refuse() -> None:
            server.accept()[0].close()

        asked = threading.Thread(target=refuse, daemon=True)
        asked.start()
        with pytest.raises(OSError, match=r"closed without an answer|reset"):
            page.ask()
        asked.join()
