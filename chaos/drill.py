"""One drill: steady first, then a fault under load, healed, whole again; recorded throughout and judged at the end."""

import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from kubernetes.client.exceptions import ApiException
from pydantic import BaseModel

from chaos import probe, timers, workload
from chaos.facts import read_facts, read_timers, states
from chaos.fault import KINDS, FaultKind, Journal
from chaos.history import FILE, Aborted, Allowed, Fault, Found, Header, History, Phase, Recorder, Seen
from chaos.judgement import Judgement, judge
from chaos.target import Facts, select
from chaos.timers import Budget, Timers
from environments.model import Environment, Machine, Role
from provisioning.action import ActionFailed
from provisioning.cluster import UNAVAILABLE
from provisioning.database import PORT as SQL_PORT
from provisioning.database import Database
from provisioning.machines import in_parallel
from provisioning.poll import DeadlineExceeded, NotYet, poll
from provisioning.session import Session

STEADY_S = 10.0
WRITE_INTERVAL_S = 0.1
WHOLE_TIMEOUT_S = 420.0
LOOK_S = 1.0
END_TIMEOUT_S = 30.0
CHECKOUT = Path(__file__).resolve().parent.parent
NOTHING = Budget({})


class Refused(Exception):
    """A drill that is not begun: why, and what would have to be otherwise."""


@dataclass(frozen=True)
class Drill:
    """What is done to whom and for how long; `budgets` says what each layer may lose by it."""

    name: str
    does: str
    fault: str
    target: str
    hold_s: float
    budgets: Callable[[Timers, Facts], Mapping[str, Budget]]
    count: int = 1


def _of_announcer(live: Timers, facts: Facts) -> Mapping[str, Budget]:
    taken = timers.address_takeover(live, len(facts.with_role(Role.CONTROL_PLANE, Role.WORKER)))
    on_worker = bool((facts.replicas or {}).get(facts.announcer or ""))
    return {"vip": timers.endpoints_dropped(live) if on_worker else taken}


DRILLS: Mapping[str, Drill] = {
    drill.name: drill
    for drill in (
        Drill(
            "worker-power",
            "a worker with a replica, not the announcer, loses its power",
            "power cut",
            "worker with a replica that does not announce",
            60,
            lambda live, _: {"vip": timers.endpoints_dropped(live)},
        ),
        Drill(
            "announcer-power", "the announcer of the VIP loses its power", "power cut", "announcer", 60, _of_announcer
        ),
        Drill(
            "other-master-power",
            "the master that is not the API's endpoint loses its power",
            "power cut",
            "other master",
            30,
            lambda *_: {"vip": NOTHING},
        ),
        Drill(
            "data-node-power",
            "a data node loses its power",
            "power cut",
            "data node",
            30,
            lambda live, _: dict.fromkeys(("write/row", "sql", "vip"), timers.data_node_silent(live)),
        ),
        Drill(
            "data-node-hang",
            "a data node hangs",
            "hang",
            "data node",
            30,
            lambda live, _: dict.fromkeys(("write/row", "sql", "vip"), timers.data_node_silent(live)),
        ),
        Drill(
            "management-power",
            "the management node loses its power",
            "power cut",
            "management node",
            30,
            lambda *_: dict.fromkeys(("write/row", "sql", "vip"), NOTHING),
        ),
    )
}


def questions(environment: Environment) -> probe.Plan:
    """What the layers of an environment are asked; holds the database's password. Pure but for reading secrets."""
    site, edge = environment.wordpress, environment.edge
    sql = _sql_address(environment)
    public = probe.Page(
        layer="public",
        host=str(edge.resolve or edge.public_host),
        port=443,
        name=edge.public_host,
        ca=Path(edge.ca).read_text() if edge.ca else "",
        timeout_s=4,
    )
    return probe.Plan(
        questions=(
            # A page takes a core: it is asked for less often than the rest of the layers would bear.
            probe.Page(layer="vip", host=str(site.vip), port=80, path="/wp-includes/version.php", timeout_s=4),
            *([public.model_copy(update={"path": "/wp-includes/version.php"})] if edge.resolve else []),
            probe.Row(
                layer="sql",
                host=sql,
                port=SQL_PORT,
                user=site.database_user,
                password=site.database_password.reveal(),
                database=site.database,
                query="SELECT option_value FROM wp_options WHERE option_id = 1",
                timeout_s=4,
            ),
            probe.Port(layer="nfs", host=_address(environment, Role.NFS), port=2049),
        )
    )


def _address(environment: Environment, role: Role) -> str:
    worker = environment.with_role(Role.WORKER)[0]
    return str(environment.reached_from(worker, environment.with_role(role)[0]))


def _sql_address(environment: Environment) -> str:
    return _address(environment, Role.NDB_SQL)


@contextmanager
def helper(module: str, plan: BaseModel, file: Path) -> Iterator["subprocess.Popen[str]"]:
    """A recording process at work, ended in good order afterwards. Its plan, which may hold secrets, goes by a pipe."""
    command = [sys.executable, "-m", module, str(file)]
    with subprocess.Popen(command, cwd=CHECKOUT, stdin=subprocess.PIPE, text=True) as process:
        assert process.stdin is not None
        process.stdin.write(plan.model_dump_json())
        process.stdin.close()
        try:
            yield process
        finally:
            process.terminate()
            process.wait(END_TIMEOUT_S)


class Ledger:
    """The workload's table: made before a drill, read and dropped after it."""

    def __init__(self, database: Database, token: int) -> None:
        self._database = database
        self.table = f"haproof_drill_{token % 10**8:08d}"

    def make(self) -> None:
        """An empty table in the server's own engine, as a plugin's would be; raises ActionFailed."""
        self._database.query(
            f"CREATE TABLE {self._name} (name CHAR(16) PRIMARY KEY, digest CHAR(64) NOT NULL, payload TEXT NOT NULL)"
        )

    def read(self) -> list[Found]:
        """What is there, with the digest of what is there, not of what was said to be; raises ActionFailed."""
        rows = self._database.query(f"SELECT name, SHA2(payload, 256) FROM {self._name}")
        return [Found(sort="row", name=name, digest=digest) for name, digest in rows]

    def drop(self) -> None:
        """Leave nothing behind; raises ActionFailed."""
        self._database.query(f"DROP TABLE IF EXISTS {self._name}")

    @property
    def _name(self) -> str:
        return f"{self._database.site.database}.{self.table}"


@dataclass
class Run:
    """One run of one drill against one target."""

    session: Session
    drill: Drill
    seed: int
    folder: Path
    command: str
    say: Callable[[str], None]

    def __post_init__(self) -> None:
        self._began_s = time.monotonic()
        self._journal = Journal(self.session.state.broken)

    def run(self) -> Judgement:
        """Do all of it; whatever happens, what was broken is healed and what was seen is judged.

        Raises Refused before anything is touched, and HistoryError.
        """
        facts, live = self._ready()
        machines = select(self.drill.target, facts, self.seed, self.drill.count)
        self._permitted(machines)
        recorder = Recorder.into(self.folder / FILE)
        plan = questions(self.session.environment)
        recorder.record(
            Header(
                drill=self.drill.name,
                environment=self.session.environment.name,
                seed=self.seed,
                command=self.command,
                at_s=self._began_s,
                interval_s=plan.interval_s,
                write_interval_s=WRITE_INTERVAL_S,
            )
        )
        for layer, budget in self.drill.budgets(live, facts).items():
            recorder.record(Allowed(layer=layer, seconds=budget.total_s, formula=str(budget) or "nothing is allowed"))
        ledger = Ledger(self.session.database, int(time.time()))
        try:
            ledger.make()
            with ExitStack() as during:
                self._watched(recorder, during, plan, ledger)
                self._broken(recorder, machines)
            self._phase(recorder, "verification")
            for found in ledger.read():
                recorder.record(found)
            self._phase(recorder, "end")
        except (Exception, KeyboardInterrupt) as error:  # noqa: BLE001 - told in the history, which is judged anyway
            recorder.record(Aborted(reason=f"{type(error).__name__}: {error}", at_s=time.monotonic()), durable=True)
            self.say(f"ending early: {type(error).__name__}: {error}")
        finally:
            self._heal()
            recorder.close()
        ledger.drop()
        return judge(History.read(self.folder))

    def _ready(self) -> tuple[Facts, Timers]:
        """Heal what an earlier run left, and make sure that nothing is broken; raises Refused."""
        for line in self._heal():
            self.say(f"healed what an earlier run left: {line}")
        try:
            self._await_whole(60.0)
            return read_facts(self.session), read_timers(self.session)
        except (DeadlineExceeded, ActionFailed, ApiException, *UNAVAILABLE) as error:
            raise Refused(f"the target is not healthy, so nothing is broken on top of it: {error}") from error

    def _permitted(self, machines: Sequence[Machine]) -> None:
        chaos = self.session.environment.chaos
        if len(machines) > chaos.machines_down_max:
            raise Refused(
                f"{len(machines)} machines would be down; chaos.machines_down_max is {chaos.machines_down_max}"
            )

    def _watched(self, recorder: Recorder, during: ExitStack, plan: probe.Plan, ledger: Ledger) -> None:
        """Start probes, workload and observer, which go on until `during` ends."""
        site = self.session.environment.wordpress
        rows = workload.Plan(
            host=_sql_address(self.session.environment),
            port=SQL_PORT,
            user=site.database_user,
            password=site.database_password.reveal(),
            database=site.database,
            table=ledger.table,
            interval_s=WRITE_INTERVAL_S,
        )
        during.enter_context(helper("chaos.workload", rows, self.folder / "writes.jsonl"))
        during.enter_context(helper("chaos.probe", plan, self.folder / "probes.jsonl"))
        during.enter_context(observed(self.session, recorder))

    def _broken(self, recorder: Recorder, machines: Sequence[Machine]) -> None:
        """From steady to whole again."""
        kind, names = KINDS[self.drill.fault], tuple(machine.name for machine in machines)
        await_lines(self.folder / "probes.jsonl")
        self._phase(recorder, "steady")
        passed(STEADY_S)
        self._phase(recorder, "fault")
        self._journal.note(kind, machines)
        with stepped(recorder, kind, names, ("inject", "injected")):
            in_parallel(machines, lambda machine: kind.inject(self.session.hypervisor, machine))
        self.say(f"{kind.name} of {', '.join(names)}, held for {self.drill.hold_s:g} s")
        passed(self.drill.hold_s)
        self._phase(recorder, "recovery")
        with stepped(recorder, kind, names, ("heal", "healed")):
            self._heal()
        self._phase(recorder, "redundancy")
        self._await_whole(WHOLE_TIMEOUT_S)
        passed(STEADY_S)

    def _heal(self) -> list[str]:
        return self._journal.heal(self.session.hypervisor, self.session.environment.machines)

    def _await_whole(self, timeout_s: float) -> None:
        def whole() -> bool:
            if found := {name: state for name, state in states(self.session).items() if state != "whole"}:
                raise NotYet("; ".join(f"{name}: {state}" for name, state in found.items()))
            return True

        poll("a whole target", whole, timeout_s=timeout_s, interval_s=LOOK_S)

    def _phase(self, recorder: Recorder, name: str) -> None:
        phase = Phase.model_validate({"name": name, "at_s": time.monotonic()})
        recorder.record(phase, durable=True)
        self.say(f"{phase.at_s - self._began_s:6.1f} s  {name}")


def passed(seconds: float) -> None:
    """Let time pass: what is waited for is time itself."""
    threading.Event().wait(seconds)


def await_lines(file: Path) -> None:
    """Wait until a helper has written something; raises DeadlineExceeded."""
    poll("the first answer of a probe", lambda: file.exists() and file.stat().st_size > 0, timeout_s=30, interval_s=0.1)


@contextmanager
def stepped(recorder: Recorder, kind: FaultKind, names: tuple[str, ...], steps: tuple[str, str]) -> Iterator[None]:
    """Record the beginning and the end of what is done to machines."""
    for at, step in enumerate(steps):
        event = Fault.model_validate({"step": step, "name": kind.name, "targets": names, "at_s": time.monotonic()})
        recorder.record(event, durable=True)
        if at == 0:
            yield


@contextmanager
def observed(session: Session, recorder: Recorder) -> Iterator[None]:
    """Record what the target's own parts say of themselves, whenever that changes."""
    stop, last = threading.Event(), dict[str, str]()

    def look() -> None:
        while not stop.wait(LOOK_S):
            for name, state in states(session).items():
                if last.get(name) != state:
                    last[name] = state
                    recorder.record(Seen(subject=name, state=state, at_s=time.monotonic()))

    watching = threading.Thread(target=look, name="observer", daemon=True)
    watching.start()
    try:
        yield
    finally:
        stop.set()
        watching.join(END_TIMEOUT_S)
