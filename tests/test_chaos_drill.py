"""A whole drill against a target of fakes: what it refuses, what it ends for, and that it heals whatever happens."""

import subprocess
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from certificate.verdict import NotExercised, Verdict
from chaos import drill, facts
from chaos.drill import Refused, Run
from chaos.drills import Blow, Drill, Moment
from chaos.facts import AWAY, WHOLE
from chaos.history import FILE, Allowed, Event, Fault, Found, History, HistoryError, Phase, Probe, Recorder, Seen, Write
from chaos.journal import Journal, Wound
from chaos.judgement import Judgement, judge
from chaos.outage import unsteady
from chaos.timers import Budget, Timers
from provisioning.hypervisor import HypervisorError
from provisioning.session import Session
from steps.drills import Drills
from tests.test_chaos_fault import ENVIRONMENT, FACTS, MACHINES, Powers

CONNECTOR = ENVIRONMENT.machine("srv-tunnel01")
INTERVAL_S = 0.02
TIMES = ("intended_s", "started_s", "ended_s")
DRILL = Drill(
    "connector-power",
    "the connector loses its power",
    (Blow("power cut", "connector", 0.3),),
    lambda _: {"vip": Budget({"busy machine that tests this": 30.0})},
)


class Worker:
    """A recording process or a healer, as far as a drill knows one."""

    def __init__(self, work: Callable[[], None] = lambda: None) -> None:
        self.code: int | None = None
        self.process = self
        self.over = threading.Event()
        self._thread = threading.Thread(target=work)

    def begin(self, _: object) -> None:
        self._thread.start()

    def poll(self) -> int | None:
        return self.code

    def dismiss(self) -> None:
        self.over.set()

    def wait(self) -> None:
        if self._thread.ident is not None:
            self._thread.join()


@dataclass
class World:
    """A target, and what is to happen to a drill against it."""

    folder: Path
    powers: Powers = field(default_factory=Powers)
    states: dict[str, str] = field(default_factory=lambda: {"site": WHOLE})
    owners: Callable[[], Mapping[str, str]] = dict
    workers: dict[str, Worker] = field(default_factory=dict)
    healer: Worker = field(default_factory=Worker)
    said: list[str] = field(default_factory=list)
    noted_at_their_end: list[Wound] = field(default_factory=list)
    on_strike: Callable[[], None] = lambda: None
    failing: Callable[[], str] = str
    chaos: dict[str, Any] = field(default_factory=dict)
    clock_s: Callable[[], float] = time.time

    @property
    def journal(self) -> Journal:
        return Journal(self.folder / "broken.json")

    @property
    def history(self) -> History:
        return History.read(self.folder / "drill")

    def say(self, line: str) -> None:
        self.said.append(line)
        if "held for" in line:
            self.on_strike()

    @property
    def session(self) -> Session:
        chaos = ENVIRONMENT.chaos.model_copy(update=self.chaos)
        core = SimpleNamespace(create_namespaced_config_map=ignored, delete_namespaced_config_map=ignored)
        fake = SimpleNamespace(
            environment=ENVIRONMENT.model_copy(update={"chaos": chaos}),
            state=SimpleNamespace(broken=self.journal.file),
            hypervisor=self.powers,
            cluster=SimpleNamespace(core=core),
        )
        return cast(Session, fake)

    def run(self, what: Drill = DRILL) -> Judgement:
        healer = cast("subprocess.Popen[str]", self.healer)
        Run(self.session, healer, what, 1, self.folder / "drill", "again", self.say, self.clock_s).run()
        return judge(self.history)

    def look(self) -> Mapping[str, str]:
        away = [m.name for m in MACHINES if self.powers.states[m.vmid] != "running"]
        return {"machines": f"{AWAY}{', '.join(away)}" if away else WHOLE} | self.states

    def parts(self) -> Mapping[str, str]:
        return self.owners()

    def assert_healed(self) -> None:
        """Nothing is broken, and nothing noted."""
        assert set(self.powers.states.values()) == {"running"}
        assert self.journal.held() == []


def ignored(*_: object, **__: object) -> None:
    """Taken, and nothing done."""


def written_as(probe: Probe) -> Write:
    """A write at the same time."""
    return Write(sort="row", name=f"{probe.intended_s}", digest="d", **probe.model_dump(include={*TIMES}))


@pytest.fixture
def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> World:
    """Everything that a drill asks of a target, answered by `World`; its times are a tenth of what they are."""
    world = World(tmp_path)

    class Live(facts.Live):
        facts = staticmethod(lambda: FACTS)
        timers = staticmethod(Timers)
        states = staticmethod(world.look)
        owners = staticmethod(world.parts)

    class Ledger:
        def __init__(self, *_: object) -> None: ...

        make = clear = ignored

        def read(self) -> list[Found]:
            return [Found(sort=w.sort, name=w.name, digest=w.digest) for w in world.history.of(Write)]

    @contextmanager
    def helper(module: str, file: Path) -> Iterator[Worker]:
        def work() -> None:
            due_s, recorder = time.monotonic(), Recorder.into(file)
            while not worker.over.wait(INTERVAL_S) and worker.code is None:
                while time.monotonic() >= due_s:
                    # As if never late: a busy machine would move the ends of what fails.
                    event = Probe(layer="vip", intended_s=due_s, started_s=due_s, ended_s=due_s, error=world.failing())
                    recorder.record(written_as(event) if module == "chaos.workload" else event)
                    due_s += INTERVAL_S
            recorder.close()

        worker = world.workers[module] = Worker(work)
        try:
            yield worker
        finally:
            world.noted_at_their_end += world.journal.held()
            worker.dismiss()
            worker.wait()

    asked = SimpleNamespace(questions=[SimpleNamespace(layer="vip", interval_s=INTERVAL_S)])
    written = SimpleNamespace(writers=[SimpleNamespace(kind="row", interval_s=INTERVAL_S)])
    fakes = {"Live": Live, "Ledger": Ledger, "helper": helper, "sweep": ignored}
    fakes |= {"questions": lambda *_: asked, "writers": lambda *_: written}
    times = {"STEADY_S": 0.6, "STEADY_LOOK_S": 0.05, "WRITTEN_WITHIN_S": 0.1, "AFTERWARDS_S": 0.3}
    times |= {"LOOK_S": 0.05, "LOOK_AROUND_S": 0.05}
    times |= {"WHOLE_TIMEOUT_S": 2.0, "HEALTHY_TIMEOUT_S": 0.2, "STEADY_TIMEOUT_S": 2.0}
    for name, fake in {**fakes, **times}.items():
        monkeypatch.setattr(drill, name, fake)
    return world


def test_a_drill_breaks_heals_and_judges(world: World) -> None:
    said = world.run()
    assert said.finding.verdict is Verdict.PROVEN, said.finding.reason
    assert [fault.step for fault in world.history.of(Fault)] == ["inject", "injected", "heal", "healed"]
    assert [phase.name for phase in world.history.of(Phase)] == [
        "steady", "fault", "redundancy", "afterwards", "verification", "end",
    ]  # fmt: skip
    assert all(phase.clock_offset_s for phase in world.history.of(Phase))
    world.assert_healed()


def test_nothing_is_broken_on_top_of_a_target_that_is_not_healthy(world: World) -> None:
    world.states["site"] = "HTTP 500"
    with pytest.raises(Refused, match=r"not healthy.*site: HTTP 500"):
        world.run()
    assert not (world.folder / "drill").exists()
    world.assert_healed()


def test_nothing_is_broken_until_all_were_answered_for_a_whole_phase(world: World) -> None:
    world.failing = lambda: "" if len(world.said) > 1 else "OSError: HTTP 530"
    said = world.run()
    assert said.finding.verdict is Verdict.PROVEN, said.finding.reason
    phases = [phase.name for phase in world.history.of(Phase)]
    assert phases[:3] == ["steady", "steady", "fault"]
    steady = world.history.phase("steady")
    assert steady
    assert steady[0] > max(probe.ended_s for probe in world.history.of(Probe) if not probe.ok)
    assert world.said[1].endswith("not steady yet: vip failed before anything was done to it: OSError: HTTP 530")


def test_what_fails_while_it_is_found_out_whether_all_was_steady_is_not_measured_by(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    looked, failed = threading.Event(), threading.Event()

    def failing() -> str:
        if looked.is_set() and not failed.is_set():
            failed.set()
            return "OSError: HTTP 530"
        return ""

    def slowly(*asked: Any) -> str:
        told = unsteady(*asked)
        looked.set()
        assert failed.wait(5)
        return told

    world.failing = failing
    monkeypatch.setattr(drill, "unsteady", slowly)
    said = world.run()
    assert said.finding.verdict is Verdict.PROVEN, said.finding.reason


def test_nothing_is_broken_where_that_never_comes(world: World) -> None:
    world.failing = lambda: "OSError: HTTP 530"
    told = world.run().finding
    assert told.verdict is Verdict.UNKNOWN
    assert "a steady target: not so after 2 s; last seen: vip failed" in told.reason
    assert world.history.of(Fault) == ()
    world.assert_healed()


def test_what_an_earlier_run_left_is_healed_first(world: World) -> None:
    world.journal.note([Wound("power cut", MACHINES[0].vmid)])
    world.powers.stop(MACHINES[0].vmid)
    assert world.run().finding.verdict is Verdict.PROVEN
    assert f"healed what an earlier run left: power cut of {MACHINES[0].name}" in world.said


def test_no_more_machines_are_down_than_may_be(world: World) -> None:
    world.chaos = {"machines_down_max": 0}
    with pytest.raises(Refused, match=r"1 machines would be down at once; chaos.machines_down_max is 0"):
        world.run()
    world.assert_healed()


def test_a_drill_that_takes_down_more_than_it_meant_to_ends_and_heals(world: World) -> None:
    world.chaos = {"machines_down_max": 1}
    world.on_strike = lambda: world.states.update(machines=f"{AWAY}srv-tunnel01, srv-nfs01")
    told = world.run().finding
    assert told.verdict is Verdict.UNKNOWN
    assert "more machines are down than chaos.machines_down_max allows (away: srv-tunnel01, srv-nfs01)" in told.reason
    world.assert_healed()


def test_a_hypervisor_that_says_nothing_has_not_said_that_none_is_down(world: World) -> None:
    world.on_strike = lambda: world.states.update(machines="no answer: HypervisorError")
    told = world.run().finding
    assert told.verdict is Verdict.UNKNOWN
    assert "how many machines are down cannot be told any more: no answer: HypervisorError" in told.reason
    world.assert_healed()


def test_a_watch_that_fails_ends_the_drill(world: World) -> None:
    def garbled() -> Mapping[str, str]:
        raise RuntimeError("no such pod")

    world.on_strike = lambda: setattr(world, "owners", garbled)
    told = world.run().finding
    assert (told.verdict, "is watched no more: RuntimeError: no such pod" in told.reason) == (Verdict.UNKNOWN, True)
    world.assert_healed()


def test_ctrl_c_heals_and_judges(world: World) -> None:
    def interrupted() -> None:
        raise KeyboardInterrupt

    world.on_strike = interrupted
    told = world.run().finding
    assert told.verdict is Verdict.UNKNOWN
    assert "the drill ended early: KeyboardInterrupt" in told.reason
    assert "never healed" not in told.reason
    assert [fault.step for fault in world.history.of(Fault)] == ["inject", "injected", "heal", "healed"]
    assert world.noted_at_their_end == [], "healed only after everybody had been waited for"
    world.assert_healed()


def test_after_ctrl_c_no_other_drill_begins(world: World) -> None:
    def interrupted() -> None:
        raise KeyboardInterrupt

    world.on_strike = interrupted
    healer = cast("subprocess.Popen[str]", world.healer)
    drills = Drills(world.session, healer, "lab", 1, world.folder, ignored, world.say)
    with pytest.raises(KeyboardInterrupt, match="connector-power"):
        drills.run(DRILL)
    assert any("not judged: the drill ended early" in line for line in world.said), "it was not judged before"
    world.assert_healed()


@pytest.mark.parametrize(("module", "does"), [("chaos.probe", "asks"), ("chaos.workload", "writes")])
def test_a_recording_process_that_is_killed_ends_the_drill_and_all_is_healed(
    world: World, module: str, does: str
) -> None:
    world.on_strike = lambda: setattr(world.workers[module], "code", -9)
    told = world.run().finding
    assert told.verdict is Verdict.UNKNOWN
    assert f"the process that {does} has ended (exit code -9)" in told.reason
    world.assert_healed()


def test_a_healer_that_is_gone_ends_the_drill_and_all_is_healed(world: World) -> None:
    """Or a drill that is killed from then on would leave things broken."""
    world.on_strike = lambda: setattr(world.healer, "code", -9)
    told = world.run().finding
    assert (told.verdict, "the healer has ended (exit code -9)" in told.reason) == (Verdict.UNKNOWN, True)
    world.assert_healed()


def test_healing_that_fails_is_loud_and_stays_noted(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object) -> None:
        raise HypervisorError("the storage is locked")

    monkeypatch.setattr(world.powers, "start", broken)
    assert world.run().finding.verdict is Verdict.UNKNOWN
    told = "\n".join(world.said)
    assert f"power cut of {CONNECTOR.name} is NOT healed: the storage is locked" in told
    assert f"by hand: qm start {CONNECTOR.vmid}" in told
    assert world.journal.held() == [Wound("power cut", CONNECTOR.vmid)]


def test_a_journal_that_cannot_be_written_is_told(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    world.on_strike = lambda: monkeypatch.setattr(Journal, "_write", full)
    told = world.run().finding
    assert told.verdict is Verdict.UNKNOWN
    assert "No space left on device" in told.reason
    assert set(world.powers.states.values()) == {"running"}


def test_a_full_disk_keeps_what_was_measured(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    record = Recorder.record

    def full(recorder: Recorder, event: Event, *, durable: bool = False) -> None:
        if not isinstance(event, Probe | Write):
            raise HistoryError("history.jsonl: No space left on device")
        record(recorder, event, durable=durable)

    world.on_strike = lambda: monkeypatch.setattr(Recorder, "record", full)
    told = world.run().finding
    assert told.verdict is Verdict.UNKNOWN
    assert any("No space left on device" in line for line in world.said)
    assert [fault.step for fault in world.history.of(Fault)] == ["inject", "injected"]
    assert len(world.history.of(Probe)) > 20
    world.assert_healed()


def test_a_clock_that_is_stepped_is_told_and_changes_nothing(world: World) -> None:
    stepped = [0.0]
    world.clock_s = lambda: time.time() + stepped[0]
    world.on_strike = lambda: stepped.__setitem__(0, -3600.0)
    said = world.run()
    assert said.finding.verdict is Verdict.PROVEN, said.finding.reason
    assert [seen.state for seen in world.history.of(Seen) if seen.subject == "clock"] == ["stepped by -3600.0 s"]
    offsets = [phase.clock_offset_s or 0.0 for phase in world.history.of(Phase)]
    assert offsets[-1] - offsets[0] == pytest.approx(-3600, abs=1)
    assert said.detected_s is None


@pytest.mark.parametrize(
    ("promises_s", "told"),
    [
        ({"connector-power": {"vipp": 3}}, "names no layer “vipp”; did you mean vip"),
        ({"connector-pwer": {"vip": 3}}, "names no drill “connector-pwer”; did you mean connector-power"),
    ],
)
def test_a_promise_by_a_name_that_there_is_not_is_refused(
    world: World, promises_s: dict[str, dict[str, float]], told: str
) -> None:
    world.chaos = {"promises_s": promises_s}
    with pytest.raises(Refused, match=told):
        world.run()
    assert not (world.folder / "drill" / FILE).exists()


def test_a_promise_is_kept_to_where_it_is_tighter(world: World) -> None:
    world.chaos = {"promises_s": {"connector-power": {"vip": 3, "write/row": 5}}}

    def budgets(_: Moment) -> Mapping[str, Budget]:
        silence = Budget({"takeover": 9.0})
        return {"vip": Budget({"held for": 4.0, "boot": 6.0}, silence), "write/row": Budget({"takeover": 2.0}, silence)}

    world.run(Drill("connector-power", DRILL.does, DRILL.blows, budgets))
    allowed = {one.layer: one for one in world.history.of(Allowed)}
    assert allowed["vip"].formula == "promised by the environment: 3 s"
    assert (allowed["vip"].seconds, allowed["vip"].total_s, allowed["vip"].held_s) == (3, 3, 3)
    assert allowed["write/row"].formula == "takeover 2 s; of silence, takeover 9 s"


def test_a_part_that_nobody_has_is_not_exercised(world: World) -> None:
    words = "API endpoint that announces"
    with pytest.raises(NotExercised, match=rf"“{words}” are wanted, and there is none"):
        world.run(Drill("x", "x", (Blow("power cut", words),), DRILL.budgets))
    world.assert_healed()


def test_a_fault_that_a_machine_cannot_bear_out_is_not_exercised(world: World) -> None:
    with pytest.raises(NotExercised, match=r"hypervisor lost of srv\S+: the target has one hypervisor"):
        world.run(Drill("x", "x", (Blow("hypervisor lost", "everything"),), DRILL.budgets))
    world.assert_healed()
