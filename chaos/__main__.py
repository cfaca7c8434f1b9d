"""`python -m chaos`: run a drill, heal what one left broken, judge what one recorded."""

import random
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from certificate.evidence import Evidence, secrets_of
from certificate.verdict import NotExercised, Verdict
from chaos.drill import Refused, Run, repeating
from chaos.drills import DRILLS, Blow, Drill
from chaos.facts import SILENT, Live
from chaos.fault import KINDS, NoSuchFault, kind_named
from chaos.glance import shown
from chaos.healer import heal_now, watched_over
from chaos.history import History, HistoryError
from chaos.journal import HealFailed
from chaos.judgement import Judgement, judge
from chaos.permission import refusal
from chaos.report import tell, write
from chaos.schedule import as_drill, holding, schedule, shrunk
from chaos.target import CANDIDATES, NoSuchTarget, nearest, select
from environments.load import EnvironmentInvalid
from provisioning.session import ProviderError, Session, open_session
from provisioning.state import Busy

# As of a shell's tools: 0 held, 1 did not, 2 could not be asked; what nobody can say is none of them.
EXIT = {Verdict.PROVEN: 0, Verdict.REFUTED: 1, Verdict.UNKNOWN: 3, Verdict.NOT_EXERCISED: 3}
CANNOT_READ = 2

app = typer.Typer(
    help="Drills that break a built target on purpose. "
    "Exit codes: 0 proven, 1 refuted, 2 not begun or unreadable, 3 not judged.",
    no_args_is_help=True,
)


@app.callback()
def main() -> None:
    """Drills that break a built target on purpose."""


@app.command(name="list")
def list_drills() -> None:
    """Every drill: its name, and what it does."""
    table = Table("drill", "what is done", "held for")
    for drill in DRILLS.values():
        table.add_row(drill.name, drill.does, f"{drill.hold_s:g} s")
    Console().print(table)


@app.command(name="faults")
def list_faults() -> None:
    """Every fault that there is, and the words for whom it may strike."""
    sys.stdout.write("".join(f"{name}\n" for name in KINDS))
    sys.stdout.write(f"\nwhom: a machine's name, or {', '.join(CANDIDATES)}\n")


Name = Annotated[str, typer.Argument(help="as `list` shows it")]
Chaos = Annotated[str, typer.Option(help="the environment's name once more: yes, that one is to be broken")]
Env = Annotated[str, typer.Option(help="name or file of the environment")]
Seed = Annotated[int | None, typer.Option(help="what is picked at random; another one each time if absent")]
Out = Annotated[Path, typer.Option(help="folder for what is recorded, a new one below it each time")]


@app.command()
def run(name: Name, chaos: Chaos, env: Env = "lab", seed: Seed = None, out: Out = Path("out")) -> None:
    """Run a drill and judge it. Ctrl-C heals and judges what was seen until then."""
    if name not in DRILLS:
        sys.stderr.write(f"there is no drill “{name}”; {nearest(name, DRILLS)}\n")
        raise typer.Exit(CANNOT_READ)
    with _permitted(env, chaos, f"the drill {name}") as (session, healer):
        chosen = _chosen(seed)
        again = repeating("run", name, env=env, chaos=chaos, seed=chosen)
        said = _run(session, healer, DRILLS[name], chosen, again, out)
    raise typer.Exit(EXIT[said.finding.verdict])


@app.command()
def strike(
    fault: Annotated[str, typer.Argument(help="as `faults` shows it")],
    whom: Annotated[str, typer.Argument(help="a machine's name, or words as `faults` shows them")],
    chaos: Chaos,
    env: Env = "lab",
    seed: Seed = None,
    hold: Annotated[float, typer.Option(min=1, help="seconds until it is taken back")] = 30,
    peers: Annotated[str, typer.Option(help="whom a partition cuts it off from, in words as `whom`")] = "",
    out: Out = Path("out"),
) -> None:
    """Break one thing, any that there is; healed, all is to be back and nothing lost."""
    with _permitted(env, chaos, f"{fault} of {whom}") as (session, healer):
        if "partition" in kind_named(fault).name and not peers:
            raise Refused("a partition cuts somebody off from others: name them by --peers")
        chosen, facts = _chosen(seed), Live(session, session.cluster).facts()
        words = ["strike", fault, whom, "--hold", f"{hold:g}", *(("--peers", peers) if peers else ())]
        again = repeating(*words, env=env, chaos=chaos, seed=chosen)
        blows = [Blow(fault, machine.name, hold, peers=peers) for machine in select(whom, facts, chosen)]
        said = _run(session, healer, as_drill(blows, chosen, holding(facts)), chosen, again, out)
    raise typer.Exit(EXIT[said.finding.verdict])


@app.command()
def storm(
    chaos: Chaos,
    env: Env = "lab",
    seed: Seed = None,
    drills: Annotated[int, typer.Option(min=1, help="how many faults")] = 4,
    duration: Annotated[float, typer.Option(min=10, help="seconds that they are spread over")] = 90,
    shrink: Annotated[bool, typer.Option(help="make a schedule that is refuted as short as it still is")] = False,
    out: Out = Path("out"),
) -> None:
    """Break several things one over another, picked by a seed; healed, all is to be back and nothing lost."""
    with _permitted(env, chaos, "a schedule of faults") as (session, healer):
        chosen = _chosen(seed)
        words = ["storm", "--drills", str(drills), "--duration", f"{duration:g}"]
        again = repeating(*words, env=env, chaos=chaos, seed=chosen)
        facts = Live(session, session.cluster).facts()
        down_max = session.environment.chaos.machines_down_max
        planned = schedule(facts, chosen, drills, duration, down_max)
        _say(planned.does)
        said = _run(session, healer, planned, chosen, again, out)
        if shrink and said.finding.verdict is Verdict.REFUTED:

            def fails(blows: Sequence[Blow]) -> bool:
                part = as_drill(blows, chosen, holding(facts))
                _say(f"trying: {part.does}")
                return _run(session, healer, part, chosen, again, out).finding.verdict is Verdict.REFUTED

            _say(f"the shortest that is refuted: {as_drill(shrunk(planned.blows, fails), chosen).does}")
    raise typer.Exit(EXIT[said.finding.verdict])


def _chosen(seed: int | None) -> int:
    return random.SystemRandom().randrange(10**6) if seed is None else seed


@contextmanager
def _permitted(env: str, chaos: str, doing: str) -> Iterator[tuple[Session, "subprocess.Popen[str]"]]:
    """A target that may be broken, held, and its healer; refusals are one message and an exit code."""
    session = _session(env)
    try:
        if why := refusal(session.environment, chaos):
            raise Refused(why)
        with session.state.locked(doing), watched_over(env) as healer:
            yield session, healer
    except NotExercised as error:
        sys.stderr.write(f"not exercised: {error}\n")
        raise typer.Exit(EXIT[Verdict.NOT_EXERCISED]) from error
    except (Refused, NoSuchFault, NoSuchTarget, HealFailed, HistoryError, Busy, *SILENT) as error:
        sys.stderr.write(f"{error}\n")
        raise typer.Exit(CANNOT_READ) from error


def _run(
    session: Session, healer: "subprocess.Popen[str]", drill: Drill, seed: int, again: str, out: Path
) -> Judgement:
    folder = out / session.environment.name / f"{datetime.now(UTC):%Y%m%dT%H%M%SZ}-{drill.name}"
    console = Console(stderr=True)
    with shown(console, folder):
        running = Run(session, healer, drill, seed, folder, again, lambda line: console.print(line, highlight=False))
        running.run()
    Evidence(folder).blot(secrets_of(session.environment))
    with _judging():
        said = write(folder)
        tell(History.read(folder), said, Console())
    sys.stdout.write(f"everything that was recorded is in {folder}\n")
    if running.interrupted:
        raise typer.Exit(EXIT[said.finding.verdict])  # nothing else begins, as to find a shorter schedule
    return said


@contextmanager
def _judging() -> Iterator[None]:
    """Whatever keeps a judgement from being made or told: what was recorded stays, and nothing is known by it."""
    try:
        yield
    except Exception as error:
        sys.stderr.write(f"{Verdict.UNKNOWN}: {type(error).__name__}: {error}\n")
        raise typer.Exit(EXIT[Verdict.UNKNOWN]) from error


@app.command()
def heal(env: Env = "lab") -> None:
    """Take back what a drill broke and did not live to heal; nothing is no error."""
    session = _session(env)
    try:
        sys.stdout.write(heal_now(session))
    except (Busy, HealFailed) as error:
        sys.stderr.write(f"{error}\n")
        raise typer.Exit(CANNOT_READ) from error


def _session(env: str) -> Session:
    try:
        return open_session(env)
    except (EnvironmentInvalid, ProviderError) as error:
        sys.stderr.write(f"{error}\n")
        raise typer.Exit(CANNOT_READ) from error


def _say(line: str) -> None:
    sys.stderr.write(f"{line}\n")


@app.command(name="judge")
def judge_folder(folder: Annotated[Path, typer.Argument(help="where a drill wrote its history")]) -> None:
    """Judge a saved history again; needs no target."""
    try:
        history = History.read(folder)
    except HistoryError as error:
        sys.stderr.write(f"{error}\n")
        raise typer.Exit(CANNOT_READ) from error
    with _judging():
        said = judge(history)
        tell(history, said, Console())
    raise typer.Exit(EXIT[said.finding.verdict])


if __name__ == "__main__":
    app()
