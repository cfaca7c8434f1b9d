"""`python -m load`: send visitors at their times, find how many are too many, and report it."""

import json
import shlex
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated

import typer
from pydantic import ValidationError
from rich.console import Console

from certificate.verdict import NotExercised
from chaos.journal import HealFailed
from chaos.ledger import PREFIX, sweep
from environments.load import EnvironmentInvalid
from environments.model import Objective, Visit
from load import capacity, report
from load.arrivals import Segment, Shape, duration_s, segments
from load.condition import CONDITIONS, WELL, RollingUpdate, under
from load.objective import Summary
from load.plan import Plan
from load.record import FILE, Header, RecordError, Sample, read
from load.run import Incomplete, Refused, Where, add, check, editor, header, place, run
from load.samples import sampling, saturated
from provisioning.action import ActionFailed
from provisioning.cluster import UNAVAILABLE
from provisioning.hypervisor import HypervisorError
from provisioning.session import ProviderError, Session, open_session

MISSED, REFUSED, VOID = 1, 2, 3
MARK = f"{PREFIX}load-"  # what drills sweep, load's posts and files are swept with
NAMED = ("vip", "public")
# What keeps load from being sent, or a result from being one; each message says what to do.
REFUSALS = (
    Refused,
    RecordError,
    EnvironmentInvalid,
    ProviderError,
    NotExercised,
    ActionFailed,
    HypervisorError,
    HealFailed,
    OSError,
    ValueError,
    *UNAVAILABLE,
)

app = typer.Typer(help=__doc__, no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False)
Env = Annotated[str, typer.Option(help="environment, by name or file")]
To = Annotated[str, typer.Option(help="where visitors go: vip, public, or a URL (one page of it, again and again)")]
Workers = Annotated[int, typer.Option(min=1, help="worker processes on this machine")]
Visits = Annotated[str, typer.Option(help=f"sorts of visits with commas, in place of load.weights: {', '.join(Visit)}")]
Out = Annotated[Path | None, typer.Option(help="folder for the results, which must not exist (default: below out/)")]


@contextmanager
def _told() -> Iterator[None]:
    """What goes wrong is one clear message, and nothing is presented as a result."""
    try:
        yield
    except REFUSALS as error:
        typer.echo(str(error).strip() or type(error).__name__, err=True)
        raise typer.Exit(REFUSED) from error


def _plan(session: Session, to: str, parts: Sequence[Segment], workers: int, seed: int | None, visits: str) -> Plan:
    """What is to be done, after a look whether the place answers; raises Refused."""
    at, described = place(session, to), session.environment.load
    check(session.environment, at)
    weights = dict(described.weights) if to in NAMED else {Visit.PAGE: 1.0}
    try:
        if visits:
            weights = {Visit(name.strip()): 1.0 for name in visits.split(",")}
        return Plan(
            url=at.url,  # type: ignore[arg-type]
            segments=tuple(parts),
            poisson_seed=seed,
            weights=weights,
            think_s=described.think_s,
            workers=workers,
            resolve=at.resolve,
            ca=at.ca,
            editor=editor(session.environment, at),
            mark=MARK,
        )
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        raise Refused(f"{'.'.join(map(str, first['loc']))}: {first['msg']}") from error
    except ValueError as error:
        raise Refused(f"{error}; expected some of {', '.join(Visit)}") from error


def _folder(out: Path | None, session: Session, what: str) -> Path:
    return out or Path("out") / session.environment.name / f"{what}-{datetime.now(UTC).strftime('%Y%m%dT%H%M%SZ')}"


def _command() -> str:
    return shlex.join(["python", "-m", "load", *sys.argv[1:]])


def _generated(
    session: Session,
    plan: Plan,
    folder: Path,
    say: Callable[[str], None],
    where: Where = Where(),  # noqa: B008 - frozen
    update: RollingUpdate | None = None,
) -> Summary:
    """Send it while the machines are looked at; the record is judged, however far it came. Raises Refused."""
    described = header(session, plan, _command())
    with sampling(session) as sampler, update.during() if update else nullcontext():
        try:
            run(plan, described, folder, say, where)
        except Incomplete as error:
            if not (folder / FILE).exists():
                raise Refused(str(error)) from error
            say(f"ended early: {error}")
    sweep(session)
    add(folder, [*(update.marks if update else ()), *sampler.samples])
    return report.write(folder)


@app.command("run")
def run_once(
    rate: Annotated[float, typer.Option(help="visitors a second: the shape's highest, a spike's ordinary one")] = 10.0,
    duration: Annotated[float, typer.Option(help="seconds in which visitors come")] = 60.0,
    shape: Annotated[Shape, typer.Option(help="how the rate goes meanwhile")] = Shape.CONSTANT,
    to: To = "vip",
    env: Env = "lab",
    workers: Workers = 1,
    seed: Annotated[int | None, typer.Option(help="come at random (Poisson), by this seed; else evenly")] = None,
    visits: Visits = "",
    rolling_update: Annotated[bool, typer.Option("--rolling-update", help="replace every replica meanwhile")] = False,
    bind: Annotated[str, typer.Option(help="address to listen at for workers of other machines")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="port for them (default: any)")] = 0,
    elsewhere: Annotated[int, typer.Option(min=0, help="how many of those to wait for")] = 0,
    out: Out = None,
) -> None:
    """Send visitors and report how long they waited.

    Exit code 0: the objective held, or there is none. 1: it was missed. 2: nothing was sent. 3: the run is void.
    """
    console = Console(stderr=True, highlight=False, soft_wrap=True)
    with _told():
        parts = segments(shape, rate, duration)
        session = open_session(env)
        plan = _plan(session, to, parts, workers + elsewhere, seed, visits)
        folder = _folder(out, session, "load")
        console.print(f"{plan.url}: {rate:g} visitors a second ({shape}) for {duration:g} s by {plan.workers} workers")
        update = RollingUpdate(session, duration_s(parts) / 4) if rolling_update else None
        said = _generated(session, plan, folder, console.print, Where(bind, port, elsewhere), update)
        first = read(folder)[0]
        assert isinstance(first, Header)
        told = report.verdict(first, said)
    figures = (
        f"p95 {said.percentiles_ms[95.0]:.0f} ms, {said.failed_share:.2%} failed, {said.rate:.1f} requests a second"
    )
    console.print(f"{told}; {figures}\n{folder / report.PAGE}")
    if said.void:
        raise typer.Exit(VOID)
    if told.startswith("missed"):
        raise typer.Exit(MISSED)


@app.command("capacity")
def find_capacity(
    start: Annotated[float, typer.Option(help="visitors a second to begin with")] = 4.0,
    duration: Annotated[float, typer.Option(help="seconds of each trial")] = 20.0,
    to: To = "vip",
    env: Env = "lab",
    chaos: Annotated[str, typer.Option(metavar="NAME", help="the environment's name: yes, take machines away")] = "",
    workers: Workers = 1,
    seed: Annotated[int, typer.Option(help="arrivals, and which machines are taken away")] = 1,
    visits: Visits = "",
    out: Out = None,
) -> None:
    """Find the highest rate at which load.objective holds; with --chaos also with a worker, and a data node, away.

    Exit code 0: found. 2: could not be looked for. 3: a trial was void.
    """
    console = Console(stderr=True, highlight=False, soft_wrap=True)
    with _told():
        session = open_session(env)
        wanted = session.environment.load.objective
        if wanted is None:
            raise Refused(f"the environment {session.environment.name} has no load.objective, which capacity is about")
        if chaos and not (session.environment.chaos.allowed and chaos == session.environment.name):
            raise Refused(
                f"machines of {session.environment.name} are not taken away: chaos.allowed, and --chaos its name"
            )
        folder = _folder(out, session, "capacity")
        folder.mkdir(parents=True)
        searches = _Searches(session, wanted, duration, to, workers, seed, visits, folder, console.print)
        found = []
        for condition in CONDITIONS if chaos else (WELL,):
            with under(session, env, condition, seed):
                found.append(searches.search(condition, start))
        first = header(session, searches.planned(start), _command())
        (folder / report.PAGE).write_text(report.capacity_page(first, found), encoding="utf-8")
        (folder / report.DATA).write_text(json.dumps([asdict(one) for one in found], indent=2) + "\n")
    for one in found:
        console.print(f"{one.condition}: {one.holds:.1f} visitors a second hold, {one.fails:.1f} do not ({one.limit})")
    console.print(f"{folder / report.PAGE}")


class _Searches:
    """Searches for the capacity of one target, each trial in a folder of its own."""

    def __init__(
        self,
        session: Session,
        wanted: Objective,
        duration: float,
        to: str,
        workers: int,
        seed: int,
        visits: str,
        folder: Path,
        say: Callable[[str], None],
    ) -> None:
        self._session, self._wanted, self._duration_s = session, wanted, duration
        self._to, self._workers, self._seed, self._visits = to, workers, seed, visits
        self._folder, self._say = folder, say
        self._count = 0

    def planned(self, rate: float) -> Plan:
        """One trial; raises Refused."""
        parts = segments(Shape.CONSTANT, rate, self._duration_s)
        return _plan(self._session, self._to, parts, self._workers, self._seed + self._count, self._visits)

    def search(self, condition: str, start: float) -> report.Searched:
        """Under one condition; raises Refused where a trial is void."""
        points: list[tuple[float, float, float]] = []
        samples: dict[float, list[Sample]] = {}

        def measure(rate: float) -> str:
            self._count += 1
            folder = self._folder / f"{self._count:02d}"
            said = _generated(self._session, self.planned(rate), folder, lambda _: None)
            if said.void:
                raise Refused(f"a trial is void: {said.void}")
            missed = said.misses(self._wanted)
            self._say(f"{condition}: {rate:6.1f} visitors a second: {missed or 'held'}")
            points.append((said.rate, said.mean_ms, said.percentiles_ms[95.0]))
            samples.setdefault(rate, []).extend(line for line in read(folder) if isinstance(line, Sample))
            return missed

        found = capacity.search(measure, start)
        highest = samples.get(max(samples), []) if samples else []
        busy = saturated(highest, self._session.environment)
        return report.Searched(condition, found.holds, found.fails, found.limit, busy, tuple(points))


@app.command()
def work(
    master: Annotated[str, typer.Argument(metavar="HOST:PORT", help="where `load run --bind --port` listens")],
    workers: Workers = 1,
) -> None:
    """Send a share of somebody's load from this machine: workers that end with that run."""
    host, _, port = master.rpartition(":")
    if not host or not port.isdigit():
        typer.echo(f"“{master}” is no place to find a master: expected HOST:PORT", err=True)
        raise typer.Exit(REFUSED)
    command = [sys.executable, "-m", "load.generator", "worker", "--host", host, "--port", port]
    processes = [subprocess.Popen(command) for _ in range(workers)]
    raise typer.Exit(max(process.wait() for process in processes))


@app.command("report")
def report_again(folder: Annotated[Path, typer.Argument(help="folder of a run, with its record")]) -> None:
    """Judge a record again, and write its page, JSON and CSV anew; needs no target."""
    with _told():
        said = report.write(folder)
    typer.echo(said.void or f"p95 {said.percentiles_ms[95.0]:.0f} ms, {said.requests} requests; {folder / report.PAGE}")
    if said.void:
        raise typer.Exit(VOID)


if __name__ == "__main__":
    app()
