"""One drill: steady first, then blows under load, healed, whole again; recorded throughout, to be judged afterwards."""

import shlex
import subprocess
import threading
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

from kubernetes.client.exceptions import ApiException

from certificate.verdict import NotExercised
from chaos.drills import DRILLS, Blow, Drill, Moment
from chaos.facts import AWAY, SILENT, Live
from chaos.fault import FaultKind, Struck, kind_named
from chaos.history import (
    FILE,
    SILENCE,
    Aborted,
    Allowed,
    Event,
    Fault,
    Header,
    HistoryError,
    Phase,
    Probe,
    Recorder,
    Seen,
    Write,
)
from chaos.journal import HealFailed, Journal, Wound
from chaos.layers import NOTE, questions, writers
from chaos.ledger import Ledger, sweep
from chaos.lifeline import Helper, helper
from chaos.outage import unsteady
from chaos.tail import Tail
from chaos.target import Facts, NobodyNow, nearest, select
from chaos.timers import Budget, Timers
from environments.model import Machine
from provisioning.cluster import REQUEST_TIMEOUT_S
from provisioning.machines import in_parallel
from provisioning.poll import NotYet, poll
from provisioning.session import Session

STEADY_S, STEADY_TIMEOUT_S = 6.0, 180.0  # the rarest question is asked every two seconds
STEADY_LOOK_S = 0.5
WRITTEN_WITHIN_S = 0.2  # an answer is in its file so long after it came, on a busy machine too
AFTERWARDS_S = 3.0
WHOLE_TIMEOUT_S = 420.0
HEALTHY_TIMEOUT_S = 60.0
LOOK_S, LOOK_AROUND_S = 2.0, 5.0  # the target is busy enough
SILENT_LOOKS = 3  # a hypervisor that is busy may leave out one
CLOCK_STEP_S = 1.0
BEGIN_TIMEOUT_S, END_TIMEOUT_S = 120.0, 30.0
# By then the runner has healed, or is no more: what is on the target heals itself.
EXPIRES_AFTER_S = 60.0


def repeating(*words: str, env: str, chaos: str, seed: int) -> str:
    """The command line of `words` that does the same again. Pure."""
    return shlex.join(["python", "-m", "chaos", *words, "--env", env, "--chaos", chaos, "--seed", str(seed)])


class Refused(Exception):
    """A drill that is not begun: why, and what would have to be otherwise."""


class Ended(Exception):
    """A drill that must not go on: why."""


@dataclass(frozen=True)
class Planned:
    """A blow and whom it strikes."""

    blow: Blow
    kind: FaultKind
    struck: tuple[Struck, ...]

    @property
    def touched(self) -> tuple[Machine, ...]:
        """Where something is done: on whom it strikes, and on those that they are cut off from."""
        marked = [machine for struck in self.struck for machine in self.kind.marks(struck)]
        return tuple(dict.fromkeys((*self.machines, *marked)))

    @property
    def machines(self) -> tuple[Machine, ...]:
        """Whom it strikes."""
        return tuple(struck.machine for struck in self.struck)

    @property
    def wounds(self) -> list[Wound]:
        """What will have to be healed."""
        return [Wound(self.kind.name, machine.vmid) for struck in self.struck for machine in self.kind.marks(struck)]


def planned(drill: Drill, facts: Facts, seed: int, turn: int = 0) -> tuple[Planned, ...]:
    """Whom the blows of a drill strike. Pure; raises NoSuchTarget and NoSuchFault."""
    found = []
    for blow in drill.blows:
        machines = select(blow.target, facts, seed, blow.count, turn)
        peers = tuple(m for m in select(blow.peers, facts, seed, -1) if m not in machines) if blow.peers else ()
        if blow.peers and not peers:
            raise NobodyNow(f"{machines[0].name} is the only “{blow.peers}”: there is nobody to cut it off from")
        expires_s = blow.hold_s + EXPIRES_AFTER_S
        found.append(
            Planned(blow, kind_named(blow.fault), tuple(Struck(machine, peers, expires_s) for machine in machines))
        )
    return tuple(found)


def down_at_most(plan: Sequence[Planned]) -> int:
    """How many machines are away at once, at worst. Pure."""
    return max(
        (
            sum(len(p.struck) for p in plan if p.kind.takes_down and p.blow.after_s <= at.blow.after_s < _end_s(p))
            for at in plan
        ),
        default=0,
    )


def _end_s(plan: Planned) -> float:
    return plan.blow.after_s + plan.blow.hold_s


@dataclass
class Run:
    """One run of one drill against one target; `healer` is who heals if this process dies.

    `interrupted` says afterwards that somebody pressed Ctrl-C: no other drill is to begin.
    """

    session: Session
    healer: "subprocess.Popen[str]"
    drill: Drill
    seed: int
    folder: Path
    command: str
    say: Callable[[str], None]
    clock_s: Callable[[], float] = time.time
    interrupted: bool = field(default=False, init=False)
    _stop: threading.Event = field(default_factory=threading.Event, init=False)
    _why: str = field(default="", init=False)
    _unhealed: list[Planned] = field(default_factory=list, init=False)

    def __post_init__(self) -> None:
        self._began_s = time.monotonic()
        self._clock_offset_s = self.clock_s() - time.monotonic()
        self._journal = Journal(self.session.state.broken)
        self._live = Live(self.session, self.session.cluster)
        self._tails = [Tail(self.folder / name) for name in ("probes.jsonl", "writes.jsonl")]
        self._heard: list[Event] = []

    def run(self) -> None:
        """Do all of it; whatever happens, what was broken is healed and what was seen is recorded, to be judged.

        Raises Refused and NotExercised before anything is touched, and HistoryError and HealFailed.
        """
        with ExitStack() as during:
            recording = {
                "writes": during.enter_context(helper("chaos.workload", self.folder / "writes.jsonl")),
                "asks": during.enter_context(helper("chaos.probe", self.folder / "probes.jsonl")),
            }
            self._run(recording, during)  # they load what they need while the target is asked

    def _run(self, recording: Mapping[str, Helper], during: ExitStack) -> None:
        """All of it, with what goes on `during` it; who records is set to work, and ends with that."""
        facts, live = self._ready()
        try:
            plans = [planned(self.drill, facts, self.seed, turn) for turn in range(self.drill.turns)]
        except NobodyNow as error:
            raise NotExercised(str(error)) from error
        self._permitted(plans)
        everyone = tuple({m: None for plan in plans for one in plan for m in one.machines})
        ledger = Ledger(self.session, f"{int(time.time()) % 10**8:08d}")
        asked = questions(self._live, facts, everyone)
        written = writers(self.session.environment, ledger)
        intervals_s = {question.layer: question.interval_s for question in asked.questions} | {
            f"write/{writer.kind}": writer.interval_s for writer in written.writers
        }
        promised = self._promised(intervals_s)
        recorder = Recorder.into(self.folder / FILE)
        recorder.record(
            Header(
                drill=self.drill.name,
                environment=self.session.environment.name,
                seed=self.seed,
                command=self.command,
                at_s=self._began_s,
                loss_window_s=self.drill.loss_window_s,
                intervals_s=intervals_s,
            )
        )
        self._allow(recorder, Moment(live, facts, everyone, self.drill.hold_s), promised)
        try:
            self._made(ledger)
            with during.pop_all() as working:
                recording["writes"].begin(written)
                recording["asks"].begin(asked)
                working.enter_context(self._observed(recorder, recording))
                working.callback(self._heal, recorder)  # before anybody is waited for
                self._begun({question.layer for question in asked.questions}, len(written.writers))
                self._struck(recorder, plans[0], self._await_steady(recorder, intervals_s))
                for plan in plans[1:]:
                    self._struck(recorder, plan)
                self._phase(recorder, "verification")
            for found in ledger.read():
                recorder.record(found)
            self._phase(recorder, "end")
        except (Exception, KeyboardInterrupt) as error:  # noqa: BLE001 - told in the history, which is judged anyway
            self.interrupted = isinstance(error, KeyboardInterrupt)
            self._abort(recorder, f"{type(error).__name__}: {error}")
        finally:
            self._heal(recorder)
            recorder.close()
        self._cleared(ledger)

    def _ready(self) -> tuple[Facts, Timers]:
        """Heal what an earlier run left, and make sure that nothing is broken; raises Refused."""
        for line in self._journal.heal(self.session):
            self.say(f"healed what an earlier run left: {line}")

        def known() -> tuple[Facts, Timers]:
            """All at once, as none of them asks what another does; what is not whole yet tells nothing by the rest."""
            with ThreadPoolExecutor() as pool:
                facts, timers = pool.submit(self._live.facts), pool.submit(self._live.timers)
                swept = pool.submit(sweep, self.session)
                self._live.whole()
            swept.result()
            return facts.result(), timers.result()

        try:
            return poll("a whole target", known, timeout_s=HEALTHY_TIMEOUT_S, interval_s=LOOK_S)
        except SILENT as error:
            raise Refused(f"the target is not healthy, so nothing is broken on top of it: {error}") from error

    def _heal(self, recorder: Recorder) -> None:
        """Whatever is still broken; what cannot be healed is told to the one who can do it by hand."""
        began_s = time.monotonic()
        try:
            self._journal.heal(self.session)
        except (HealFailed, OSError, ValueError) as error:
            self._abort(recorder, f"healing failed: {error}")
            return
        # Told afterwards, as a full disk is no reason to leave anything broken.
        with suppress(HistoryError):
            while self._unhealed:
                one = self._unhealed.pop()
                for step, at_s in (("heal", began_s), ("healed", time.monotonic())):
                    recorder.record(stepping(one, step, at_s), durable=True)

    def _abort(self, recorder: Recorder, why: str) -> None:
        self.say(f"ending early: {why}")
        # On a full disk what was measured before stands, and says itself that it did not come to its end.
        with suppress(HistoryError):
            recorder.record(Aborted(reason=why, at_s=time.monotonic()), durable=True)

    def _permitted(self, plans: Sequence[Sequence[Planned]]) -> None:
        for one in (one for plan in plans for one in plan):
            for machine in one.touched:
                if told := one.kind.blocked(self.session, machine):
                    raise NotExercised(f"{one.kind.name} of {machine.name}: {told}")
        most = self.session.environment.chaos.machines_down_max
        down = max(map(down_at_most, plans))
        if down > most:
            raise Refused(f"{down} machines would be down at once; chaos.machines_down_max is {most}")

    def _promised(self, layers: Collection[str]) -> Mapping[str, float]:
        """What the environment promises of this drill, seconds by layer; raises Refused for names that there are not.

        A promise by a misspelt name would be kept by whatever happens.
        """
        promises = self.session.environment.chaos.promises_s
        for name in promises:
            if name not in DRILLS:
                raise Refused(f"chaos.promises_s names no drill “{name}”; {nearest(name, DRILLS)}")
        promised = promises.get(self.drill.name, {})
        for layer in promised:
            if layer not in layers:
                raise Refused(f"chaos.promises_s names no layer “{layer}”; {nearest(layer, layers)}")
        return promised

    def _allow(self, recorder: Recorder, moment: Moment, promised: Mapping[str, float]) -> None:
        recorder.record(Seen(subject="timers", state=str(moment.live), at_s=time.monotonic()))
        found = {layer: allowed(layer, budget) for layer, budget in self.drill.budgets(moment).items()}
        for layer, seconds in promised.items():
            if layer not in found or seconds < found[layer].seconds:
                found[layer] = tightened(found.get(layer), layer, seconds)
        for one in found.values():
            recorder.record(one)

    def _made(self, ledger: Ledger) -> None:
        """What is written to."""
        ledger.make()
        body = {"metadata": {"name": NOTE}}
        try:
            self._live.cluster.core.create_namespaced_config_map("default", body, _request_timeout=REQUEST_TIMEOUT_S)
        except ApiException as error:
            if error.status != 409:  # it is there already
                raise

    def _cleared(self, ledger: Ledger) -> None:
        """Nothing of the drill stays on the target, if that can be reached."""
        try:
            ledger.clear()
            self._live.cluster.core.delete_namespaced_config_map(NOTE, "default", _request_timeout=REQUEST_TIMEOUT_S)
        except SILENT as error:
            self.say(f"what the drill wrote is left on the target, for the next one to clear: {error}")

    def _begun(self, layers: Collection[str], sorts: int) -> None:
        """Wait until each layer was asked and each sort of thing written; raises DeadlineExceeded."""

        def heard() -> bool:
            self._go_on()
            heard = self._listened()
            asked = {event.layer for event in heard if isinstance(event, Probe)}
            written = {event.sort for event in heard if isinstance(event, Write)}
            if missing := {*layers} - asked:
                raise NotYet(f"not asked yet: {', '.join(sorted(missing))}")
            return len(written) == sorts

        poll("probes and workload at work", heard, timeout_s=BEGIN_TIMEOUT_S, interval_s=0.2)

    def _await_steady(self, recorder: Recorder, intervals_s: Mapping[str, float]) -> float:
        """Until all were answered for a while on end, which is the steady phase: the moment that it ended.

        What the judge measures by is what was found steady, and nothing that came after. Raises DeadlineExceeded with
        who was not answered.
        """
        first_s, told = self._phase(recorder, "steady"), ""
        self._pass(STEADY_S + WRITTEN_WITHIN_S)

        def steady() -> tuple[float, float]:
            nonlocal told
            self._go_on()
            ended_s = time.monotonic() - WRITTEN_WITHIN_S
            began_s = ended_s - STEADY_S if told else first_s
            if why := unsteady(self._listened(), (began_s, ended_s), intervals_s):
                if why != told:
                    self.say(f"not steady yet: {why}")
                told = why
                raise NotYet(why)
            return began_s, ended_s

        began_s, ended_s = poll("a steady target", steady, timeout_s=STEADY_TIMEOUT_S, interval_s=STEADY_LOOK_S)
        if told:
            self._phase(recorder, "steady", began_s)
        return ended_s

    def _listened(self) -> Sequence[Event]:
        """All that was recorded until now by who asks and who writes."""
        for tail in self._tails:
            self._heard += tail.read()
        return self._heard

    def _struck(self, recorder: Recorder, plan: Sequence[Planned], steady_until_s: float | None = None) -> None:
        """Blow after blow at its time, each healed at its own; then until all is whole again."""
        self._phase(recorder, "fault", steady_until_s)
        began_s = time.monotonic()
        moments = [
            *((one.blow.after_s, False, at) for at, one in enumerate(plan)),
            *((_end_s(one), True, at) for at, one in enumerate(plan)),
        ]
        for due_s, healing, at in sorted(moments):
            self._pass(began_s + due_s - time.monotonic())
            one = plan[at]
            names = ", ".join(machine.name for machine in one.machines)
            if healing:
                with stepped(recorder, one, ("heal", "healed")):
                    self._journal.heal(self.session, one.wounds)
                self._unhealed.remove(one)
                continue
            self._journal.note(one.wounds)
            with stepped(recorder, one, ("inject", "injected")):
                self._unhealed.append(one)
                in_parallel(one.struck, lambda struck, kind=one.kind: kind.inject(self.session, struck))  # type: ignore[misc]
            self.say(f"{one.kind.name} of {names}, held for {one.blow.hold_s:g} s")
        self._phase(recorder, "redundancy")
        self._await_whole()
        self._phase(recorder, "afterwards")
        self._pass(AFTERWARDS_S)

    def _await_whole(self) -> None:
        def whole() -> bool:
            self._go_on()
            return self._live.whole()

        poll("a whole target", whole, timeout_s=WHOLE_TIMEOUT_S, interval_s=LOOK_S)

    def _pass(self, seconds: float) -> None:
        """Let time pass: what is waited for is time itself, or a reason to end."""
        self._stop.wait(max(0.0, seconds))
        self._go_on()

    def _go_on(self) -> None:
        if self._stop.is_set():
            raise Ended(self._why)

    def _phase(self, recorder: Recorder, name: str, at_s: float | None = None) -> float:
        """Begin a phase, now or at a moment that has just passed; the moment, as the history has it."""
        self._clock(recorder)
        told = {"name": name, "at_s": at_s or time.monotonic(), "clock_offset_s": self._clock_offset_s}
        phase = Phase.model_validate(told)
        recorder.record(phase, durable=True)
        self.say(f"{phase.at_s - self._began_s:6.1f} s  {name}")
        return phase.at_s

    def _clock(self, recorder: Recorder) -> None:
        """Tell of a wall clock that was stepped: what is measured goes by the monotonic one, logs elsewhere do not."""
        now_s = time.monotonic()
        offset_s = self.clock_s() - now_s
        if abs(step_s := offset_s - self._clock_offset_s) > CLOCK_STEP_S:
            recorder.record(Seen(subject="clock", state=f"stepped by {step_s:+.1f} s", at_s=now_s))
            self._clock_offset_s = offset_s

    @contextmanager
    def _observed(self, recorder: Recorder, recording: Mapping[str, Helper]) -> Iterator[None]:
        """Record what the target's own parts say of themselves, whenever that changes; end what must not go on.

        At the end nobody waits for another: who asks and writes is let go while the last look is still under way.
        """
        over, last, silent_looks = threading.Event(), dict[str, str](), 0

        def note(states: Mapping[str, str]) -> None:
            for name, state in states.items():
                if last.get(name) != state:
                    last[name] = state
                    recorder.record(Seen(subject=name, state=state, at_s=time.monotonic()))

        def look() -> None:
            nonlocal silent_looks
            note(self._live.states())
            self._clock(recorder)
            for does, one in recording.items():
                if (code := one.process.poll()) is not None and not over.is_set():
                    self._end(f"the process that {does} has ended (exit code {code}), so what happens is not recorded")
            if (code := self.healer.poll()) is not None:
                self._end(f"the healer has ended (exit code {code}), so nobody would heal if this process died")
            away = last["machines"]
            silent_looks = silent_looks + 1 if away.startswith(SILENCE) else 0
            if silent_looks == SILENT_LOOKS:
                self._end(f"how many machines are down cannot be told any more: {away}")
            down = len(away.split(",")) if away.startswith(AWAY) else 0
            if down > self.session.environment.chaos.machines_down_max:
                self._end(f"more machines are down than chaos.machines_down_max allows ({away})")

        def watch(every_s: float, work: Callable[[], None]) -> None:
            try:
                while not over.wait(every_s):
                    work()
            except Exception as error:  # noqa: BLE001 - whatever it was, nobody looks after the target any more
                self._end(f"the target is watched no more: {type(error).__name__}: {error}")

        watches = ((LOOK_S, look), (LOOK_AROUND_S, lambda: note(self._live.owners())))
        threads = [threading.Thread(target=watch, args=each, daemon=True) for each in watches]
        for thread in threads:
            thread.start()
        try:
            yield
        finally:
            over.set()
            for one in recording.values():
                one.dismiss()
            for thread in threads:
                thread.join(END_TIMEOUT_S)

    def _end(self, why: str) -> None:
        self._why = self._why or why
        self._stop.set()


def allowed(layer: str, budget: Budget) -> Allowed:
    """A budget as the history has it. Pure."""
    return Allowed(
        layer=layer,
        seconds=budget.total_s,
        formula=str(budget),
        total_s=budget.silence.total_s if budget.silence else None,
        held_s=budget.held_s,
        back_s=budget.back.total_s if budget.back else 0.0,
    )


def tightened(found: Allowed | None, layer: str, seconds: float) -> Allowed:
    """What the environment promises, in place of what the timers would allow: all of it together. Pure."""
    silent_s = seconds if found is None or found.total_s is None else min(found.total_s, seconds)
    held_s = min(found.held_s, seconds) if found else 0.0
    formula = f"promised by the environment: {seconds:g} s"
    return Allowed(layer=layer, seconds=seconds, formula=formula, total_s=silent_s, held_s=held_s)


@contextmanager
def stepped(recorder: Recorder, plan: Planned, steps: tuple[str, str]) -> Iterator[None]:
    """Record the beginning and the end of what is done to machines."""
    for at, step in enumerate(steps):
        recorder.record(stepping(plan, step, time.monotonic()), durable=True)
        if at == 0:
            yield


def stepping(plan: Planned, step: str, at_s: float) -> Fault:
    """The event that a step was made of what is done to machines. Pure."""
    names = tuple(machine.name for machine in plan.machines)
    told = {"step": step, "name": plan.kind.name, "targets": names, "at_s": at_s, "takes_data": plan.blow.takes_data}
    return Fault.model_validate(told)
