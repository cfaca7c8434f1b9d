"""The probing process against servers of this test's own, on loopback."""

import http.server
import itertools
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from chaos.history import Header, History, Probe, parse
from chaos.probe import Page, Plan, Port
from provisioning.poll import poll

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
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Answers) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield server.server_port
        server.shutdown()
        thread.join()


@pytest.fixture
def closed_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return int(server.getsockname()[1])


@pytest.fixture
def silent_port() -> Iterator[int]:
    """Connections are taken, and nothing is ever said on them."""
    with socket.create_server(("127.0.0.1", 0), backlog=500) as server:
        yield int(server.getsockname()[1])


def asked(plan: Plan, folder: Path, count: int) -> dict[str, list[Probe]]:
    """What the process records of at least so many questions, by layer, in their order."""
    file = folder / "probes.jsonl"
    command = [sys.executable, "-m", "chaos.probe", str(file)]
    with subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, text=True) as process:
        assert process.stdin
        process.stdin.write(plan.model_dump_json())
        process.stdin.close()
        poll("answers", lambda: file.exists() and file.read_text().count("\n") >= count, timeout_s=30, interval_s=0.05)
        process.send_signal(signal.SIGTERM)
        assert process.wait(10) == 0
    header = Header(drill="x", environment="x", seed=0, command="x", at_s=0, interval_s=INTERVAL_S)
    found: dict[str, list[Probe]] = {}
    for probe in History([header, *parse(file.read_text())]).of(Probe):
        found.setdefault(probe.layer, []).append(probe)
    return {layer: sorted(probes, key=lambda probe: probe.intended_s) for layer, probes in found.items()}


def test_every_layer_is_asked_at_its_own_steady_times(
    port: int, closed_port: int, silent_port: int, tmp_path: Path
) -> None:
    """What waits for an answer, or gets none, delays nobody's next question."""
    plan = Plan(
        interval_s=INTERVAL_S,
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
