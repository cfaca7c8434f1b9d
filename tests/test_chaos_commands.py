"""`python -m chaos`: what it refuses, what its exit codes say, and what is left when something fails at the end."""

import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import pytest
from typer.testing import CliRunner

from chaos import __main__ as commands
from chaos import healer, report
from chaos.history import FILE, History, Recorder
from chaos.journal import Journal, Wound
from chaos.judgement import judge
from chaos.lifeline import Lost, helper
from chaos.priority import session_served_first
from chaos.probe import Plan, Port
from chaos.workload import Login, Rows
from chaos.workload import Plan as Writing
from provisioning.poll import DeadlineExceeded, NotYet, poll
from provisioning.session import Session
from provisioning.state import State
from tests.test_chaos_fault import ENVIRONMENT, FACTS
from tests.test_chaos_judgement import budget, history, life, probes, there, writes


def told(*words: str) -> tuple[int, str]:
    done = CliRunner().invoke(commands.app, words)
    return done.exit_code, re.sub(r"\s+", " ", done.output)


def permitting(monkeypatch: pytest.MonkeyPatch, *, allowed: bool) -> None:
    """An environment that says so; whoever goes further than asking it fails."""
    environment = ENVIRONMENT.model_copy(update={"chaos": ENVIRONMENT.chaos.model_copy(update={"allowed": allowed})})
    monkeypatch.setattr(commands, "open_session", lambda _: SimpleNamespace(environment=environment))


RUN = ("run", "worker-power")


@pytest.mark.parametrize(
    ("words", "allowed", "reason"),
    [
        (RUN, True, "Missing option '--chaos'"),
        ((*RUN, "--chaos", "seed"), True, "--chaos says “seed”, and the environment is lab"),
        ((*RUN, "--chaos", "lab"), False, "chaos.allowed is false in the environment lab"),
        (("storm", "--chaos", "seed"), True, "--chaos says “seed”, and the environment is lab"),
        (("storm", "--chaos", "lab"), False, "chaos.allowed is false in the environment lab"),
        (("run", "worker-powr", "--chaos", "lab"), True, "no drill “worker-powr”; did you mean worker-power"),
    ],
)
def test_nothing_is_broken_without_permission(
    words: Sequence[str], allowed: bool, reason: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    permitting(monkeypatch, allowed=allowed)
    code, output = told(*words)
    assert code == commands.CANNOT_READ
    assert reason in output


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        (("kublet stopped", "worker"), "did you mean kubelet stopped"),
        (("kubelet stopped", "workr"), "nothing is called “workr”; did you mean worker"),
        (("partition", "data node"), "name them by --peers"),
        (("kubelet stopped", "srvk8s-worker04"), "did you mean srvk8s-worker0"),
    ],
)
def test_a_misspelt_fault_or_target_is_told_the_nearest(
    words: Sequence[str], reason: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    @contextmanager
    def watched(_: str) -> Iterator[None]:
        yield

    permitting(monkeypatch, allowed=True)
    state = SimpleNamespace(locked=watched)
    session = SimpleNamespace(environment=ENVIRONMENT, state=state, cluster=None)
    monkeypatch.setattr(commands, "open_session", lambda _: session)
    monkeypatch.setattr(commands, "watched_over", watched)
    monkeypatch.setattr(commands, "Live", lambda *_: SimpleNamespace(facts=lambda: FACTS))
    code, output = told("strike", *words, "--chaos", ENVIRONMENT.name)
    assert (code, reason in output) == (commands.CANNOT_READ, True), output


def test_every_fault_and_whom_it_may_strike_is_listed() -> None:
    code, output = told("faults")
    assert (code, "etcd frozen" in output, "worker with a replica" in output) == (0, True, True)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A history whose verdict is proven."""
    recorder = Recorder.into(tmp_path / FILE)
    for event in history(life(), probes("vip"), budget(7, held_s=0), writes("a"), there("a")).events:
        recorder.record(event)
    recorder.close()
    return tmp_path


def broken(*_: object) -> None:
    raise KeyError("no such layer")


@pytest.mark.parametrize("part", ["chaos.judgement.of_history", "chaos.__main__.tell"])
def test_a_judge_that_fails_is_no_verdict_and_says_why(
    part: str, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert told("judge", str(folder))[0] == 0
    monkeypatch.setattr(part, broken)
    code, output = told("judge", str(folder))
    assert code == 3
    assert "not judged: " in output
    assert "KeyError: 'no such layer'" in output


def test_the_verdict_is_written_before_the_picture_that_may_fail(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """And a drill whose picture fails is not called proven."""

    @contextmanager
    def permitted(*_: object) -> Iterator[object]:
        yield SimpleNamespace(environment=ENVIRONMENT), None

    monkeypatch.setattr("chaos.picture.draw", broken)
    monkeypatch.setattr(commands, "_permitted", permitted)
    monkeypatch.setattr(commands, "Run", lambda *_: SimpleNamespace(run=lambda: None))
    monkeypatch.setattr(commands, "write", lambda _: report.write(folder))
    code, output = told(*RUN, "--chaos", "lab")
    assert (code, "not judged: KeyError" in output) == (3, True)
    assert json.loads((folder / report.VERDICT).read_text())["verdict"] == "proven"


def test_a_table_tells_the_formula_beside_the_figure(folder: Path) -> None:
    whole = History.read(folder)
    line = next(line for line in report.as_text(whole, judge(whole)).splitlines() if "vip" in line)
    assert re.search(r"6\.1 s +│ 7\.0 s +│ 4 x 1\.5 s +│ proven", line), line


# The processes beside a drill


def test_a_recording_process_that_cannot_record_ends_as_a_failure(tmp_path: Path) -> None:
    (tmp_path / "probes.jsonl").touch()

    def to_its_end() -> None:
        with helper("chaos.probe", tmp_path / "probes.jsonl") as at_work:
            at_work.begin(Plan(questions=(Port(layer="x", host="127.0.0.1", port=1),)))
            at_work.process.wait(30)

    with pytest.raises(Lost, match=r"chaos.probe ended with exit code 1"):
        to_its_end()


def test_a_recording_process_that_cannot_load_is_told_when_it_is_set_to_work(tmp_path: Path) -> None:
    def begun_too_late() -> None:
        with helper("chaos.no_such", tmp_path / "f.jsonl") as loading:
            loading.process.wait(30)
            loading.begin(Plan(questions=(Port(layer="x", host="127.0.0.1", port=1),)))

    with pytest.raises(Lost, match=r"chaos.no_such ended before it was set to work"):
        begun_too_late()


@pytest.mark.parametrize("module", ["chaos.probe", "chaos.workload"])
def test_a_recording_process_that_is_told_nothing_ends_in_good_order(module: str, tmp_path: Path) -> None:
    """As where the drill that it was started for is not begun."""
    with helper(module, tmp_path / "f.jsonl") as loading:
        assert os.getpgid(loading.process.pid) != os.getpgid(0), "a Ctrl-C would break off what it loads"
    assert not (tmp_path / "f.jsonl").exists()


@pytest.mark.skipif(
    sys.platform != "linux" or os.geteuid() != 0 or not Path("/proc/self/autogroup").exists(),
    reason="sessions are not groups here, or may not be put first",
)
@pytest.mark.parametrize("module", ["chaos.probe", "chaos.workload"])
def test_who_records_comes_before_other_sessions(module: str, tmp_path: Path) -> None:
    """And of a session that is another's, as a test's, nothing is changed."""
    own = Path("/proc/self/autogroup").read_text()
    with helper(module, tmp_path / "f.jsonl") as loading:
        group = Path(f"/proc/{loading.process.pid}/autogroup")

        def before_others() -> bool:
            if not (read := group.read_text()).endswith(" nice -10\n"):
                raise NotYet(read)
            return True

        poll("its session's niceness", before_others, timeout_s=30, interval_s=0.05)
    session_served_first()
    assert Path("/proc/self/autogroup").read_text() == own


PLANS = {
    "chaos.probe": Plan(questions=(Port(layer="x", host="127.0.0.1", port=1),)),
    "chaos.workload": Writing(
        editor=Login(url="http://127.0.0.1:1", user="u", password="p"),
        writers=(
            Rows(host="127.0.0.1", port=1, user="u", password="p", database="d", table="t", interval_s=0.05),
            Rows(host="127.0.0.1", port=1, user="u", password="p", database="d", table="t", interval_s=600),
        ),
    ),
}


@pytest.mark.parametrize("module", PLANS)
def test_an_answer_that_cannot_be_recorded_ends_the_process_at_once(module: str, tmp_path: Path) -> None:
    """The disk is full when so many kilobytes are written; nobody closes the pipe."""
    script = f"ulimit -f 4; exec {sys.executable} -m {module} {tmp_path / 'f.jsonl'}"
    with subprocess.Popen(["bash", "-c", script], stdin=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdin
        assert process.stderr
        process.stdin.write(PLANS[module].model_dump_json() + "\n")
        process.stdin.flush()
        assert process.wait(60) == 1
        assert "what was written before is kept" in process.stderr.read()
    assert (tmp_path / "f.jsonl").stat().st_size >= 4000


@pytest.mark.parametrize(("wounds", "heard"), [([], "done\n"), ([Wound("power cut", 111)], "heal\n")])
def test_a_healer_is_dismissed_only_where_nothing_is_broken(
    wounds: list[Wound], heard: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    listener = tmp_path / "listener"
    listener.write_text(f"#!/bin/sh\ncat > {tmp_path}/heard\n")
    listener.chmod(0o755)
    monkeypatch.setattr(healer, "sys", SimpleNamespace(executable=str(listener), stderr=sys.stderr))
    with healer.watched_over("lab"):
        Journal(State.of("lab").broken).note(wounds)
    assert (tmp_path / "heard").read_text() == heard


def test_a_healer_whose_drill_died_keeps_off_whoever_came_next(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The next drill healed before it began: what is noted now is its own."""
    state, swept = State(tmp_path), list[str]()
    monkeypatch.setattr(healer, "HEAL_TIMEOUT_S", 0.2)
    monkeypatch.setattr(healer, "sweep", lambda _: swept.append("swept"))
    monkeypatch.setattr(Journal, "heal", lambda *_: ["power cut of a machine"])
    session = cast(Session, SimpleNamespace(state=state))
    with state.locked("the next drill"), pytest.raises(DeadlineExceeded, match=r"in use by .*the next drill"):
        healer.heal_all(session, partial(State(tmp_path).locked, "healing"))
    assert swept == []
    assert healer.heal_all(session, partial(state.locked, "healing")) == ["power cut of a machine"]
    assert swept == ["swept"]
