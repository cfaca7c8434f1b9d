"""`python -m chaos`: judge what a drill recorded, with or without its target."""

import sys
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from chaos.history import History, HistoryError
from chaos.judgement import Judgement, LayerJudgement, judge
from chaos.outage import Outage
from steps.verdict import Verdict

# As of a shell's tools: 0 held, 1 did not, 2 could not be asked; and what nobody can say is none of them.
EXIT = {Verdict.PROVEN: 0, Verdict.REFUTED: 1, Verdict.UNKNOWN: 3, Verdict.NOT_EXERCISED: 3}
CANNOT_READ = 2

app = typer.Typer(
    help="Drills that break a built target on purpose. Exit codes: 0 proven, 1 refuted, 2 unreadable, 3 not judged.",
    no_args_is_help=True,
)


@app.callback()
def main() -> None:
    """Drills that break a built target on purpose."""


@app.command(name="judge")
def judge_folder(folder: Annotated[Path, typer.Argument(help="where a drill wrote its history")]) -> None:
    """Judge a saved history again; needs no target."""
    try:
        history = History.read(folder)
    except HistoryError as error:
        sys.stderr.write(f"{error}\n")
        raise typer.Exit(CANNOT_READ) from error
    said = judge(history)
    tell(history, said, Console())
    raise typer.Exit(EXIT[said.finding.verdict])


def tell(history: History, said: Judgement, console: Console) -> None:
    """A judgement as tables: what was done, what each layer lost, what became of writes, the verdict."""
    origin_s = history.header.at_s
    header = history.header
    console.print(f"{header.drill} on {header.environment}, seed {header.seed}, {header.began:%Y-%m-%d %H:%M} UTC")
    for strike in said.strikes:
        healed = "never healed" if strike.healed_s is None else f"healed at {strike.healed_s - origin_s:.1f} s"
        console.print(f"{strike.name} of {', '.join(strike.targets)} at {strike.injected_s - origin_s:.1f} s, {healed}")
    layers = Table("layer", "outages", "owed to", "back after", "allowed", "verdict")
    for layer in said.layers:
        layers.add_row(*_row(layer, origin_s, history.ended_s))
    console.print(layers)
    if said.writes:
        writes = Table("writes", "tried", "acknowledged", "lost", "twice", "corrupted")
        for account in said.writes:
            broken = (account.lost, account.duplicated, account.corrupted)
            writes.add_row(
                account.sort, str(account.tried), str(account.acknowledged), *(str(len(names)) for names in broken)
            )
        console.print(writes)
    for name, seconds in (("detected", said.detected_s), ("redundant again", said.redundant_s)):
        if seconds is not None:
            console.print(f"{name} after {seconds:.1f} s")
    reason = f": {said.finding.reason}" if said.finding.reason else ""
    console.print(f"{said.finding.verdict}{reason}", style="bold", highlight=False)
    console.print(f"to repeat it: {header.command}", highlight=False)


def _row(layer: LayerJudgement, origin_s: float, until_s: float) -> tuple[str, ...]:
    allowed = f"{layer.allowed.seconds:.1f} s" if layer.allowed else "-"
    owed = sorted({name for names in layer.owed_to for name in names} - {layer.layer})
    return (
        layer.layer,
        "\n".join(_told(outage, origin_s, until_s) for outage in layer.outages) or "none",
        ", ".join(owed) or "-",
        f"{layer.restored_s:.1f} s",
        allowed,
        str(layer.finding.verdict),
    )


def _told(outage: Outage, origin_s: float, until_s: float) -> str:
    share = "all" if outage.total else f"{outage.failed} of {outage.asked}"
    end = "" if outage.ended_s is not None else ", not over"
    return (
        f"{outage.length_s(until_s):.2f} s ± {outage.error_s:.2f} s at {outage.began_s - origin_s:.1f} s: {share}{end}"
    )


if __name__ == "__main__":
    app()
