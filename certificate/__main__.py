"""`python -m certificate`: check, judge again and look back on what pytest certified."""

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from certificate.archive import Archive, Run
from certificate.attestation import NotSigned, default_key
from certificate.attestation import verify as verified
from certificate.record import Record, Unreadable
from certificate.trend import EARLIER_MIN, effects

CHANGED, UNREADABLE = 1, 2
LETTERS = {"proven": "+", "refuted": "-", "not judged": "?", "not exercised": "n"}

app = typer.Typer(help=__doc__, no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False)
Folder = Annotated[Path, typer.Argument(help="a run's folder: out/ENVIRONMENT/TIME, or out/ENVIRONMENT/latest")]
Key = Annotated[list[Path] | None, typer.Option("--key", help="a key to trust, public or private; may be repeated")]


@app.command()
def verify(folder: Folder, key: Key = None) -> None:
    """Whether every file is as it was signed; offline. Exit code 1 names what changed, 2 means no signature to read."""
    console = Console(highlight=False, soft_wrap=True)
    trusted = key or [file for file in [default_key()] if file.exists()]
    try:
        found = verified(folder, trusted)
    except NotSigned as error:
        typer.echo(str(error), err=True)
        raise typer.Exit(UNREADABLE) from error
    for complaint in found.complaints:
        typer.echo(complaint, err=True)
    if found.complaints or (key and not found.known):
        if key and not found.known:
            typer.echo("signed by none of the keys that you named", err=True)
        raise typer.Exit(CHANGED)
    whose = "a key that you trust" if found.known else "the key beside it"
    console.print(f"{found.outcome}; every file is as it was signed by {whose}, {found.key_id[:16]}")
    if not found.known:
        console.print(
            "whose key that is, is not known here: nothing changed since it was signed, but anybody may have signed "
            "it; name a key that you trust with --key"
        )


@app.command()
def judge(folder: Folder) -> None:
    """Draw the verdicts anew from what the scenarios found; needs no target. Exit code 1: they are not what it says."""
    try:
        record = Record.read(folder)
    except Unreadable as error:
        typer.echo(str(error), err=True)
        raise typer.Exit(UNREADABLE) from error
    again = record.judged_again()
    typer.echo("\n".join([str(again.outcome), *(f"  {reason}" for reason in again.reasons)]))
    for said, drawn in zip(record.promises, again.promises, strict=True):
        if said != drawn:
            typer.echo(f"{said.promise.id} is {drawn.verdict}, and the certificate says {said.verdict}", err=True)
    raise typer.Exit(CHANGED if again != record else 0)


@app.command()
def history(
    env: Annotated[str, typer.Option(help="environment, by the name in its file")] = "lab",
    last: Annotated[int, typer.Option(min=1, help="how many runs")] = 10,
) -> None:
    """Past runs: verdicts by promise, then each figure from the earliest to the latest, and whether it got worse.

    Figures are those of the latest run's description: another file is another target.
    """
    try:
        with Archive.of_user() as archive:
            runs = archive.runs(env, last)
    except OSError as error:
        typer.echo(str(error), err=True)
        raise typer.Exit(UNREADABLE) from error
    if not runs:
        typer.echo(f"no run of {env} is kept yet; pytest --env {env} makes one")
        return
    console = Console(highlight=False)
    console.print(_verdicts(runs))
    console.print("    ".join(f"{letter} {word}" for word, letter in LETTERS.items()))
    same = [run for run in runs if run.sha256 == runs[-1].sha256]
    if any(run.figures for run in same):
        console.print(_figures(same))
    if others := len(runs) - len(same):
        console.print(f"figures without {others} runs of earlier descriptions: another file is another target")


def _verdicts(runs: list[Run]) -> Table:
    ids = list(dict.fromkeys(name for run in runs for name in run.promises))
    table = Table("began", "verdict", *ids, box=None, pad_edge=False)
    for run in runs:
        table.add_row(run.began[:16], run.outcome, *(LETTERS.get(run.promises.get(name, ""), "") for name in ids))
    return table


def _figures(runs: list[Run]) -> Table:
    table = Table("figure", "from the earliest to the latest", "latest against earlier", box=None, pad_edge=False)
    *before, latest = runs
    names = list(dict.fromkeys(name for run in runs for name in run.figures))
    earlier = {name: [run.figures[name] for run in before if name in run.figures] for name in names}
    found = effects(latest.figures, earlier)
    for name in names:
        values = [*earlier[name], *([latest.figures[name]] if name in latest.figures else [])]
        told = f"needs {EARLIER_MIN} earlier runs" if name in latest.figures else "not in the latest"
        if one := found.get(name):
            told = f"{one.difference:+.1f} ({one.low:+.1f} to {one.high:+.1f}){', worse' if one.is_worse else ''}"
        table.add_row(name, " ".join(f"{value:.1f}" for value in values), told)
    return table


if __name__ == "__main__":
    app()
