"""`python -m load`: send visitors at their times, find how many are too many, and report it."""

import shlex
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from environments.model import Visit
from load import capacity_report, report
from load.arrivals import Shape, segments
from load.found import FILE as FOUND
from load.found import Found, Searched
from load.record import BY_HAND, RecordError, begun, said_of

# `load.campaign` is imported inside functions: what it needs takes seconds to import, and a report needs none of it.
MISSED, REFUSED, VOID = 1, 2, 3
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
def _told(*refusals: type[Exception]) -> Iterator[None]:
    """What goes wrong is one clear message, and nothing is presented as a result."""
    try:
        yield
    except refusals as error:
        typer.echo(said_of(error), err=True)
        raise typer.Exit(REFUSED) from error
    except KeyboardInterrupt as error:
        typer.echo(BY_HAND, err=True)
        raise typer.Exit(REFUSED) from error


def _command() -> str:
    return shlex.join(["python", "-m", "load", *sys.argv[1:]])


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
    from load import campaign  # noqa: PLC0415
    from load.run import Where  # noqa: PLC0415

    console = Console(stderr=True, highlight=False, soft_wrap=True)
    told = f"{rate:g} visitors a second ({shape}) for {duration:g} s"
    order = campaign.Order(_command(), env, to, chaos, workers + elsewhere, visits, out)
    with _told(*campaign.REFUSALS):
        parts, where = segments(shape, rate, duration), Where(bind, port, elsewhere)
        folder, said = campaign.visitors(order, parts, seed, where, told, console.print, rolling_update=rolling_update)
        told = report.verdict(begun(folder), said)
    p95_ms = said.percentiles_ms[95.0]
    figures = f"p95 {p95_ms:.0f} ms, {said.failed_share:.2%} failed, {said.throughput:.1f} answered a second"
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
    from load import campaign  # noqa: PLC0415

    console = Console(stderr=True, highlight=False, soft_wrap=True)
    order = campaign.Order(_command(), env, to, chaos, workers, visits, out)
    with _told(*campaign.REFUSALS):
        folder, found, incomplete = campaign.capacity(order, start, duration, seed, console.print)
        _tell(folder, console.print)
    if incomplete:
        typer.echo(f"incomplete: {incomplete}", err=True)
    raise typer.Exit(_code(void=bool(incomplete), missed=_nothing_holds(found)))


def _nothing_holds(searched: Sequence[Searched]) -> bool:
    return not all(one.capacity.holds for one in searched)


def _code(*, void: bool, missed: bool) -> int:
    return VOID if void else MISSED if missed else 0


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
    from load.run import started  # noqa: PLC0415

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
    with _told(RecordError, OSError, ValueError):
        if (folder / FOUND).exists():
            found = Found.read(folder)
            _tell(folder, typer.echo)
            raise typer.Exit(_code(void=bool(found.incomplete), missed=_nothing_holds(found.searched)))
        said = report.write(folder)
        told = report.verdict(begun(folder), said)
    typer.echo(f"{told}; p95 {said.percentiles_ms[95.0]:.0f} ms, {said.requests} requests; {folder / report.PAGE}")
    raise typer.Exit(_code(void=bool(said.void), missed=told.startswith("missed")))


if __name__ == "__main__":
    app()
