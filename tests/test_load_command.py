"""`python -m load`: what cannot be done is one clear message, and what ended early is never a result."""

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from environments.model import Objective
from load import __main__ as command
from load import campaign, condition, report
from load.condition import RollingUpdate
from load.found import Found
from load.objective import summary
from load.plan import Plan
from load.record import End, Header, Mark, Sample, read
from load.run import Incomplete, Refused
from load.samples import Sampler
from load.trials import Trials, Void
from provisioning.action import ActionFailed
from provisioning.state import State
from tests.test_load import HEADER, LAB, a_minute, recorded
from tests.test_load_generator import site, url

CAPACITY = 20.0  # visitors a second that the site of these tests bears
FREE = SimpleNamespace(locked=lambda _: nullcontext())


def session_of(**changes: Any) -> Any:
    return SimpleNamespace(environment=LAB.model_copy(update=changes), shell=None, state=FREE, cluster=None)


@pytest.fixture
def session(monkeypatch: pytest.MonkeyPatch) -> Any:
    """The lab's description, and no way to its machines."""
    found = session_of()
    monkeypatch.setattr(campaign, "open_session", lambda _: found)
    monkeypatch.setattr(campaign, "editor", lambda *_: None)
    monkeypatch.setattr(campaign, "sampling", lambda _: sampled())
    monkeypatch.setattr(campaign, "sweep", lambda _: None)
    return found


@contextmanager
def sampled() -> Iterator[Sampler]:
    yield Sampler()


def load(*words: str) -> Result:
    return CliRunner().invoke(command.app, list(words))


# What cannot be done


@pytest.mark.parametrize("words", [["run", "--rate", "0"], ["capacity", "--start", "0"], ["run", "--duration", "-1"]])
def test_no_rate_is_one_clear_message(words: list[str], session: Any, tmp_path: Path) -> None:
    done = load(*words, "--out", str(tmp_path / "run"))
    assert (done.exit_code, "expected a rate and a duration above 0" in done.output) == (2, True)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("start", ["0.4", "10001"])
def test_a_start_that_no_search_tries_is_one_clear_message(start: str, session: Any, tmp_path: Path) -> None:
    with site() as server:
        done = load("capacity", "--start", start, "--to", url(server), "--out", str(tmp_path / "run"))
    assert (done.exit_code, done.output) == (2, f"expected a --start from 0.5/s to 10000/s, found {start}/s\n")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("what", ["run", "capacity"])
def test_a_place_that_does_not_answer_is_one_clear_message(what: str, session: Any, tmp_path: Path) -> None:
    done = load(what, "--to", "http://127.0.0.1:9/", "--out", str(tmp_path / "run"))
    assert (done.exit_code, "does not answer" in done.output) == (2, True)
    assert not (tmp_path / "run").exists()


def test_a_capacity_without_an_objective_is_one_clear_message(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    aimless = session_of(load=LAB.load.model_copy(update={"objective": None}))
    monkeypatch.setattr(campaign, "open_session", lambda _: aimless)
    done = load("capacity", "--out", str(tmp_path / "run"))
    assert (done.exit_code, "has no load.objective" in done.output) == (2, True)


def test_visits_that_nobody_knows_are_told_with_those_that_there_are(session: Any) -> None:
    with site() as server:
        done = load("run", "--to", url(server), "--visits", "read,steal")
    assert (done.exit_code, "'steal' is not a valid Visit; expected some of " in done.output) == (2, True)


@pytest.mark.parametrize(
    ("chaos", "allowed", "told"),
    [
        ("lab", False, "chaos.allowed is false in the environment lab"),
        ("", True, "--chaos lab"),
        ("seed", True, "--chaos lab"),
    ],
)
def test_a_rolling_update_takes_permission_and_the_environments_name(
    chaos: str, *, allowed: bool, told: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = session_of(chaos=LAB.chaos.model_copy(update={"allowed": allowed}))
    monkeypatch.setattr(campaign, "open_session", lambda _: found)
    done = load("run", "--rolling-update", "--chaos", chaos)
    assert (done.exit_code, told in done.output) == (2, True)
    assert chaos == "" or load("capacity", "--chaos", chaos).exit_code == 2


@pytest.mark.parametrize("what", ["run", "capacity"])
def test_a_target_that_is_in_use_is_left_alone(what: str, session: Any, tmp_path: Path) -> None:
    """What load leaves is swept by the mark of drills: one that is under way would miss its own writes."""
    session.state = State(tmp_path)
    with site() as server, State(tmp_path).locked("a drill"):
        done = load(what, "--to", url(server), "--out", str(tmp_path / "run"))
    assert (done.exit_code, "in use by" in done.output) == (2, True)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("master", ["nowhere", "host:port", ":5557"])
def test_no_place_of_a_master_is_one_clear_message(master: str) -> None:
    done = load("work", master)
    assert (done.exit_code, "expected HOST:PORT" in done.output) == (2, True)


# A run


@dataclass
class Generator:
    """In place of Locust's processes: leaves a record, or raises."""

    leaves: Callable[[Plan], tuple[Any, End]]
    raises: Exception | None = None

    def __call__(self, plan: Plan, header: Header, folder: Path, *_: Any) -> None:
        if isinstance(self.raises, Refused):
            raise self.raises
        tally, end = self.leaves(plan)
        folder.mkdir(parents=True)
        recorded(folder, tally, end=end)
        if self.raises:
            raise self.raises


def test_a_run_is_reported_before_what_it_left_is_cleared(
    session: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def fails(_: Any) -> None:
        raise ActionFailed("the SQL node does not answer", machine="srvdbm-sql01")

    monkeypatch.setattr(campaign, "sweep", fails)
    monkeypatch.setattr(campaign, "left_by", lambda _: True)
    monkeypatch.setattr(campaign, "run", Generator(lambda _: (a_minute(), End())))
    with site() as server:
        done = load("run", "--to", url(server), "--out", str(tmp_path / "run"))
    assert (done.exit_code, "could not be cleared" in done.output) == (0, True)
    assert (tmp_path / "run" / report.PAGE).exists()


@pytest.mark.parametrize(
    ("tally", "end", "code"),
    [
        (a_minute(), End(), 0),
        (a_minute(slow_s=3), End(), 1),
        (a_minute(late=20), End(), 3),
        (a_minute(), End(incomplete="stopped by hand"), 3),
    ],
)
def test_the_exit_code_of_a_run_and_of_its_report(
    session: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, tally: Any, end: End, code: int
) -> None:
    raises = Incomplete(end.incomplete) if end.incomplete else None
    monkeypatch.setattr(campaign, "run", Generator(lambda _: (tally, end), raises))
    with site() as server:
        assert load("run", "--to", url(server), "--out", str(tmp_path / "run")).exit_code == code
    assert load("report", str(tmp_path / "run")).exit_code == code


def test_where_nobody_was_sent_there_is_no_page(session: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    refused = Refused("nobody was sent: 0 of 1 workers came within 60 s")
    monkeypatch.setattr(campaign, "run", Generator(lambda _: (a_minute(), End()), refused))
    with site() as server:
        for what in ("run", "capacity"):
            done = load(what, "--to", url(server), "--out", str(tmp_path / what))
            assert (done.exit_code, "nobody was sent: 0 of 1 workers came" in done.output) == (2, True)
            assert not (tmp_path / what).exists()


# A rolling update


def test_an_update_that_fails_is_told_and_voids_the_run(
    session: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def breaks(*_: Any) -> None:
        raise ConnectionResetError("the API does not answer")

    monkeypatch.setattr(condition, "KINDS", {"rolling restart": SimpleNamespace(inject=breaks)})

    class Visited(Generator):
        def __call__(self, plan: Plan, header: Header, folder: Path, *more: Any) -> None:
            begun = more[-1]
            begun()
            super().__call__(plan, header, folder)

    monkeypatch.setattr(campaign, "run", Visited(lambda _: (a_minute(), End())))
    with site() as server:
        words = ["--duration", "0.04", "--rolling-update", "--chaos", "lab", "--out", str(tmp_path / "run")]
        update = RollingUpdate(session, 0)
        monkeypatch.setattr(campaign, "RollingUpdate", lambda *_: update)
        monkeypatch.setattr(update, "_over", SimpleNamespace(wait=lambda _: False, set=lambda: None))
        done = load("run", "--to", url(server), *words)
    assert done.exit_code == 3
    assert "the rolling update failed: the API does not answer" in done.output
    assert (tmp_path / "run" / report.PAGE).exists()


def test_a_run_that_is_over_before_its_update_says_nothing_of_one() -> None:
    update = RollingUpdate(session_of(), after_s=60)
    with update.during():
        update.begin()
    assert update.trouble == "it had not begun when the run was over"
    assert update.marks(0.0) == []


def test_an_update_counts_its_time_from_the_first_second_of_the_load(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(condition, "KINDS", {"rolling restart": SimpleNamespace(inject=lambda *_: None)})
    monkeypatch.setattr(condition, "unready_replicas", lambda _: [])
    update = RollingUpdate(session_of(), after_s=0)
    monkeypatch.setattr(update, "_over", SimpleNamespace(wait=lambda _: False, set=lambda: None))
    with update.during():
        update.begin()
    assert update.trouble == ""
    assert update.began_s is not None
    (mark,) = update.marks(update.began_s - 7)
    assert mark.began_s == pytest.approx(7)


# A search for the capacity


def bearing(plan: Plan) -> tuple[Any, End]:
    return a_minute(slow_s=3 if plan.segments[0].first_rate > CAPACITY else 0.05), End()


def found_in(folder: Path) -> Found:
    return Found.read(folder)


def test_a_capacity_is_found_and_kept(session: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(campaign, "run", Generator(bearing))
    with site() as server:
        done = load("capacity", "--to", url(server), "--out", str(tmp_path / "run"))
    assert done.exit_code == 0
    (one,) = found_in(tmp_path / "run").searched
    assert one.capacity.holds <= CAPACITY < one.capacity.fails
    assert (tmp_path / "run" / report.PAGE).exists()


def test_a_site_that_bears_nothing_is_no_success(session: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(campaign, "run", Generator(lambda _: (a_minute(slow_s=3), End())))
    with site() as server:
        assert load("capacity", "--to", url(server), "--out", str(tmp_path / "run")).exit_code == 1


@pytest.mark.parametrize("how", ["ctrl-c in a trial", "ctrl-c between trials", "void"])
def test_a_search_that_ends_early_is_reported_as_incomplete_with_its_trials(
    how: str, session: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    ends = {"void": End(incomplete="a worker is gone"), "ctrl-c in a trial": End(incomplete="stopped by hand")}
    count = 0

    def leaves(plan: Plan) -> tuple[Any, End]:
        nonlocal count
        count += 1
        if count < 4:
            return bearing(plan)
        if how == "ctrl-c between trials":
            raise KeyboardInterrupt
        return a_minute(), ends[how]

    monkeypatch.setattr(campaign, "run", Generator(leaves))
    with site() as server:
        done = load("capacity", "--to", url(server), "--out", str(tmp_path / "run"))
    assert done.exit_code == 3
    found = found_in(tmp_path / "run")
    assert len(found.searched[0].trials) == 3
    assert not found.searched[0].whole
    assert found.searched[0].capacity.holds == 4.0
    assert "a worker is gone" in found.incomplete if how == "void" else "stopped by hand" in found.incomplete
    assert "Incomplete: " in (tmp_path / "run" / report.PAGE).read_text()
    assert "all is well (incomplete): 4.0 visitors a second hold" in done.output
    assert json.loads((tmp_path / "run" / report.DATA).read_text())["sizing"] == []


def test_a_search_whose_first_trial_is_interrupted_has_a_page_that_says_so(
    session: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(campaign, "run", Generator(lambda _: (a_minute(), End(incomplete="stopped by hand"))))
    with site() as server:
        done = load("capacity", "--to", url(server), "--out", str(tmp_path / "run"))
    assert (done.exit_code, str(tmp_path / "run" / report.PAGE) in done.output) == (3, True)
    (tmp_path / "run" / report.PAGE).unlink()
    assert load("report", str(tmp_path / "run")).exit_code == 3
    assert "stopped by hand; so far nothing was measured" in (tmp_path / "run" / report.PAGE).read_text()


def test_a_trial_with_a_machine_away_says_so_in_its_own_report(
    session: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(campaign, "under", lambda *_: nullcontext())
    monkeypatch.setattr(campaign, "run", Generator(lambda _: (a_minute(slow_s=3), End())))
    with site() as server:
        words = ["--start", "0.5", "--duration", "30", "--to", url(server), "--out", str(tmp_path / "run")]
        assert load("capacity", "--chaos", "lab", *words).exit_code == 1
    for one in found_in(tmp_path / "run").searched:
        folder = tmp_path / "run" / one.trials[0].folder
        marks = [line for line in read(folder) if isinstance(line, Mark)]
        away = one.condition != "all is well"
        assert marks == ([Mark(what=one.condition, began_s=0, ended_s=30)] if away else [])
        assert (f"{one.condition}: from 0.0 s to 30.0 s" in (folder / report.PAGE).read_text()) is away


def test_machines_are_judged_at_the_rate_that_did_not_hold_not_at_the_highest_tried(tmp_path: Path) -> None:
    def generate(condition: str, rate: float, number: int, folder: Path) -> Any:
        busy = Sample(at_s=1, machine="srvk8s-worker01", cpu=rate / 100)
        lines = recorded(folder, a_minute(slow_s=3 if rate > CAPACITY else 0.05), busy)
        return summary(lines)

    trials = Trials(LAB, Objective(p95_ms=1000), tmp_path, generate, lambda _: None)
    trials.search("all is well", 4)
    (one,) = trials.searched
    assert max(trial.rate for trial in one.trials) > one.capacity.fails
    assert one.machines[0].cpu == pytest.approx(one.capacity.fails / 100)


def test_a_trial_is_kept_with_what_was_answered_and_what_was_under_way(tmp_path: Path) -> None:
    def generate(condition: str, rate: float, number: int, folder: Path) -> Any:
        return summary(recorded(folder, a_minute(failed=600)))

    trials = Trials(LAB, Objective(p95_ms=1000), tmp_path, generate, lambda _: None)
    trials.search("all is well", 0.5)
    (one,) = trials.searched
    said = summary(read(tmp_path / "01"))
    assert (one.trials[0].requests_rate, one.trials[0].at_once) == (said.throughput, said.under_way)


def test_a_void_trial_is_none(tmp_path: Path) -> None:
    def generate(condition: str, rate: float, number: int, folder: Path) -> Any:
        return summary(recorded(folder, a_minute(late=100)))

    trials = Trials(LAB, Objective(p95_ms=1000), tmp_path, generate, lambda _: None)
    with pytest.raises(Void, match="trial 01 is void: the generator did not deliver"):
        trials.search("all is well", 4)
    assert trials.searched == []
    assert read(tmp_path / "01")[0] == HEADER
    assert (tmp_path / "03").exists()
    assert not (tmp_path / "04").exists()


def test_a_trial_that_was_void_by_accident_is_made_again(tmp_path: Path) -> None:
    def generate(condition: str, rate: float, number: int, folder: Path) -> Any:
        slow_s = 3 if rate > CAPACITY else 0.05
        return summary(recorded(folder, a_minute(late=100 if number % 3 else 0, slow_s=slow_s)))

    said: list[str] = []
    trials = Trials(LAB, Objective(p95_ms=1000), tmp_path, generate, said.append)
    trials.search("all is well", 4)
    (one,) = trials.searched
    assert one.whole
    assert [int(trial.folder) for trial in one.trials] == [3 * (n + 1) for n in range(len(one.trials))]
    assert sum("once more, for trial" in line for line in said) == 2 * len(one.trials)


def test_a_trial_that_was_ended_is_not_made_again(tmp_path: Path) -> None:
    def generate(condition: str, rate: float, number: int, folder: Path) -> Any:
        return summary(recorded(folder, a_minute(), end=End(incomplete="a worker is gone")))

    trials = Trials(LAB, Objective(p95_ms=1000), tmp_path, generate, lambda _: None)
    with pytest.raises(Void, match="trial 01 is void: the run is incomplete: a worker is gone"):
        trials.search("all is well", 4)
    assert not (tmp_path / "02").exists()
