"""`python -m load`: send visitors at their times, find how many are too many, and report it."""

import shlex
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated

import typer
from pydantic import ValidationError
from rich.console import Console

from certificate.verdict import NotExercised
from chaos.journal import HealFailed
from chaos.ledger import PREFIX
from environments.load import EnvironmentInvalid
from environments.model import Visit
from load import capacity_report, report
from load.arrivals import Segment, Shape, duration_s, segments
from load.condition import CONDITIONS, WELL, RollingUpdate, under
from load.found import FILE as FOUND
from load.found import Found, Searched
from load.leftovers import left_by, sweep
from load.objective import Summary
from load.plan import Plan
from load.record import Header, RecordError, read
from load.run import Incomplete, Refused, Where, add, check, editor, header, nothing, place, run, started
from load.samples import sampling
from load.trials import Trials, Void
from provisioning.action import ActionFailed
from provisioning.cluster import UNAVAILABLE
from provisioning.hypervisor import HypervisorError
from provisioning.session import ProviderError, Session, open_session

MISSED, REFUSED, VOID = 1, 2, 3
MARK = f"{PREFIX}load-"  # what drills sweep, load's posts and files are swept with
NAMED = ("vip", "public")
BY_HAND = "stopped by hand"
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
Chaos = Annotated[
    str,
    typer.Option(metavar="NAME", help="the environment's name once more: yes, machines and replicas are taken away"),
]
Workers = Annotated[int, typer.Option(min=1, help="worker processes on this machine")]
Visits = Annotated[str, typer.Option(help=f"sorts of visits with commas, in place of load.weights: {', '.join(Visit)}")]
Out = Annotated[Path | None, typer.Option(help="folder for the results, which must not exist (default: below out/)")]


@contextmanager
def _told() -> Iterator[None]:
    """What goes wrong is one clear message, and nothing is presented as a result."""
    try:
        yield
    except REFUSALS as error:
        typer.echo(_said_of(error), err=True)
        raise typer.Exit(REFUSED) from error
    except KeyboardInterrupt as error:
        typer.echo(BY_HAND, err=True)
        raise typer.Exit(REFUSED) from error


def _said_of(error: BaseException) -> str:
    return str(error).strip() or type(error).__name__


def _permitted(session: Session, chaos: str, what: str) -> None:
    """Only a target whose owner says so, and whose name is repeated, is touched; raises Refused."""
    environment = session.environment
    if not environment.chaos.allowed:
        raise Refused(f"{what} takes permission, and chaos.allowed is false in the environment {environment.name}")
    if chaos != environment.name:
        raise Refused(f"{what} takes the environment's name once more: --chaos {environment.name}")


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
            run(plan, described, folder, say, where, update.begin if update else nothing)
        except Incomplete as error:
            say(f"ended early: {error}")
    first = _header(folder)
    second_0_s = first.began.timestamp() + time.monotonic() - time.time()
    trouble = f"the rolling update failed: {update.trouble}" if update and update.trouble else ""
    add(folder, [*(update.marks(second_0_s) if update else ()), *sampler.since(second_0_s)], trouble)
    said = report.write(folder)
    if left_by(plan):
        _clear(session, say)
    return said


def _clear(session: Session, say: Callable[[str], None]) -> None:
    """What load left; where that fails the result stands, and the next run clears it."""
    try:
        sweep(session)
    except (ActionFailed, OSError) as error:
        say(f"what this run left on the target could not be cleared, and the next run will: {_said_of(error)}")


def _header(folder: Path) -> Header:
    first = read(folder)[0]
    assert isinstance(first, Header)
    return first


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
    rolling_update: Annotated[
        bool, typer.Option("--rolling-update", help="replace every replica meanwhile (with --chaos NAME)")
    ] = False,
    chaos: Chaos = "",
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
        if rolling_update:
            _permitted(session, chaos, "a rolling update")
        plan = _plan(session, to, parts, workers + elsewhere, seed, visits)
        folder = _folder(out, session, "load")
        console.print(f"{plan.url}: {rate:g} visitors a second ({shape}) for {duration:g} s by {plan.workers} workers")
        update = RollingUpdate(session, duration_s(parts) / 4) if rolling_update else None
        said = _generated(session, plan, folder, console.print, Where(bind, port, elsewhere), update)
        told = report.verdict(_header(folder), said)
    figures = (
        f"p95 {said.percentiles_ms[95.0]:.0f} ms, {said.failed_share:.2%} failed, {said.rate:.1f} requests a second"
    )
    console.print(f"{told}; {figures}\n{folder / report.PAGE}")
    raise typer.Exit(_code(void=bool(said.void), missed=told.startswith("missed")))


@app.command("capacity")
def find_capacity(
    start: Annotated[float, typer.Option(help="visitors a second to begin with")] = 4.0,
    duration: Annotated[float, typer.Option(help="seconds of each trial")] = 20.0,
    to: To = "vip",
    env: Env = "lab",
    chaos: Chaos = "",
    workers: Workers = 1,
    seed: Annotated[int, typer.Option(help="arrivals, and which machines are taken away")] = 1,
    visits: Visits = "",
    out: Out = None,
) -> None:
    """Find the highest rate at which load.objective holds; with --chaos also with a worker, and a data node, away.

    Exit code 0: found. 1: not even the lowest rate holds. 2: nothing was sent. 3: ended early, or a trial was void;
    what was found until then is in the report, marked incomplete.
    """
    console = Console(stderr=True, highlight=False, soft_wrap=True)
    with _told():
        segments(Shape.CONSTANT, start, duration)
        session = open_session(env)
        wanted = session.environment.load.objective
        if wanted is None:
            raise Refused(f"the environment {session.environment.name} has no load.objective, which capacity is about")
        if chaos:
            _permitted(session, chaos, "to take machines away")

        def planned(rate: float, number: int) -> Plan:
            return _plan(session, to, segments(Shape.CONSTANT, rate, duration), workers, seed + number, visits)

        first = header(session, planned(start, 0), _command())
        folder = _folder(out, session, "capacity")
        folder.mkdir(parents=True)

        def generate(rate: float, number: int, place: Path) -> Summary:
            return _generated(session, planned(rate, number), place, lambda _: None)

        trials = Trials(session.environment, wanted, folder, generate, console.print)
        incomplete = _ended_early(lambda: _searched(session, env, trials, start, seed, taking_away=bool(chaos)))
        if not any(folder.iterdir()):
            folder.rmdir()
            raise Refused(incomplete)
        if trials.searched:
            Found(header=first, searched=tuple(trials.searched), incomplete=incomplete).keep(folder)
            _tell(folder, console.print)
    if incomplete:
        typer.echo(f"incomplete: {incomplete}", err=True)
    raise typer.Exit(_code(void=bool(incomplete), missed=_nothing_holds(trials.searched)))


def _nothing_holds(searched: Sequence[Searched]) -> bool:
    return not all(one.capacity.holds for one in searched)


def _code(*, void: bool, missed: bool) -> int:
    return VOID if void else MISSED if missed else 0


def _searched(session: Session, env: str, trials: Trials, start: float, seed: int, *, taking_away: bool) -> None:
    for condition in CONDITIONS if taking_away else (WELL,):
        with under(session, env, condition, seed):
            trials.search(condition, start)


def _ended_early(work: Callable[[], None]) -> str:
    """Why it did; empty where it came to its end."""
    try:
        work()
    except (Void, *REFUSALS) as error:
        return _said_of(error)
    except KeyboardInterrupt:
        return BY_HAND
    return ""


def _tell(folder: Path, say: Callable[[str], None]) -> None:
    """Write the report of a search, and say what it says."""
    for row in capacity_report.rows(capacity_report.write(folder)):
        say(capacity_report.told(row))
    say(str(folder / report.PAGE))


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
    try:
        with ExitStack() as ending:
            processes = [ending.enter_context(started(command)) for _ in range(workers)]
            codes = [process.wait() for process in processes]
    except KeyboardInterrupt as error:
        raise typer.Exit(REFUSED) from error
    if any(codes):
        typer.echo(f"a worker ended with code {max(codes)}: is there a `load run --bind` at {master}?", err=True)
        raise typer.Exit(REFUSED)


@app.command("report")
def report_again(folder: Annotated[Path, typer.Argument(help="of a run, or of a search for the capacity")]) -> None:
    """Judge a record again, and write its page, JSON and CSV anew; needs no target. Exit codes are those of `run`."""
    with _told():
        if (folder / FOUND).exists():
            found = Found.read(folder)
            _tell(folder, typer.echo)
            raise typer.Exit(_code(void=bool(found.incomplete), missed=_nothing_holds(found.searched)))
        said = report.write(folder)
        told = report.verdict(_header(folder), said)
    typer.echo(f"{told}; p95 {said.percentiles_ms[95.0]:.0f} ms, {said.requests} requests; {folder / report.PAGE}")
    raise typer.Exit(_code(void=bool(said.void), missed=told.startswith("missed")))


if __name__ == "__main__":
    app()
