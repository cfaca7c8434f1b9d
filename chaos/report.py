"""What a drill showed, for people and for programs: tables in a terminal, `verdict.json`, and its picture beside it."""

import json
from io import StringIO
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from certificate.verdict import Verdict
from chaos.history import History
from chaos.judgement import Judgement, LayerJudgement, held_back, judge, patience_s
from chaos.outage import Outage

VERDICT, PICTURE = "verdict.json", "timeline.svg"


def write(folder: Path) -> Judgement:
    """Judge the history in a folder, and put verdict and picture beside it; raises HistoryError.

    The verdict first: it stands whatever becomes of the picture.
    """
    from chaos.picture import draw  # noqa: PLC0415 - a second to import, which only a drill that was run needs

    history = History.read(folder)
    said = judge(history)
    (folder / VERDICT).write_text(json.dumps(as_data(history, said), indent=2) + "\n")
    draw(history, said, folder / PICTURE)
    return said


def as_data(history: History, said: Judgement) -> dict[str, Any]:
    """The judgement for programs: seconds since the drill began. Pure."""
    header, until_s = history.header, history.ended_s
    return {
        "drill": header.drill,
        "environment": header.environment,
        "seed": header.seed,
        "command": header.command,
        "began": header.began.isoformat(),
        "verdict": said.finding.verdict,
        "reason": said.finding.reason,
        "detected_s": said.detected_s,
        "redundant_s": said.redundant_s,
        "faults": [
            {
                "fault": strike.name,
                "targets": strike.targets,
                "injected_s": strike.inject_s - header.at_s,
                "healed_s": None if strike.healed_s is None else strike.healed_s - header.at_s,
            }
            for strike in said.strikes
        ],
        "layers": {
            layer.layer: {
                "verdict": layer.finding.verdict,
                "reason": layer.finding.reason,
                "restored_s": layer.restored_s,
                "allowed_s": layer.allowed.seconds if layer.allowed else None,
                "silence_allowed_s": layer.allowed.total_s if layer.allowed else None,
                "formula": layer.allowed.formula if layer.allowed else None,
                "outages": [
                    {
                        "began_s": outage.began_s - header.at_s,
                        "length_s": outage.length_s(until_s),
                        "error_s": outage.error_s,
                        "over": outage.ended_s is not None,
                        "total": outage.total,
                        "asked": outage.asked,
                        "failed": outage.failed,
                        "owed_to": owed,
                        "errors": dict(outage.errors),
                    }
                    for outage, owed in zip(layer.outages, layer.owed_to, strict=True)
                ],
            }
            for layer in said.layers
        },
        "writes": {
            account.sort: {
                "tried": account.tried,
                "acknowledged": account.acknowledged,
                "lost": account.lost,
                "unsaved": account.unsaved,
                "duplicated": account.duplicated,
                "corrupted": account.corrupted,
            }
            for account in said.writes
        },
    }


def as_text(history: History, said: Judgement, columns: int = 130) -> str:
    """A judgement as `tell` shows it, for those who print by lines. Pure."""
    text = StringIO()
    tell(history, said, Console(file=text, width=columns))
    return text.getvalue()


def tell(history: History, said: Judgement, console: Console) -> None:
    """A judgement as tables: what was done, what each layer lost, what became of writes, the verdict."""
    origin_s = history.header.at_s
    header = history.header
    console.print(f"{header.drill} on {header.environment}, seed {header.seed}, {header.began:%Y-%m-%d %H:%M} UTC")
    for strike in said.strikes:
        healed = "never healed" if strike.healed_s is None else f"healed at {strike.healed_s - origin_s:.1f} s"
        console.print(f"{strike.name} of {', '.join(strike.targets)} at {strike.inject_s - origin_s:.1f} s, {healed}")
    layers = Table("layer", "outages", "owed to", "back after", "allowed", "for", "verdict")
    for layer in said.layers:
        layers.add_row(*_row(layer, origin_s, history.ended_s))
    console.print(layers)
    if said.writes:
        writes = Table("writes", "tried", "acknowledged", "lost", "unsaved", "twice", "corrupted")
        for account in said.writes:
            broken = (account.lost, account.unsaved, account.duplicated, account.corrupted)
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
    shown = [outage for outage in layer.outages if not held_back(outage, until_s)]
    told = [_told(outage, origin_s, until_s) for outage in shown[:SHOWN]]
    if len(shown) > SHOWN:
        told.append(f"and {len(shown) - SHOWN} more")
    if held := len(layer.outages) - len(shown):
        told.append(f"{held} held back < {patience_s(layer.layer):g} s")
    verdict = str(layer.finding.verdict) if layer.allowed or layer.finding.verdict is not Verdict.PROVEN else "-"
    formula = layer.allowed.formula if layer.allowed else "-"
    outages = "\n".join(told) or "none"
    return layer.layer, outages, ", ".join(owed) or "-", f"{layer.restored_s:.1f} s", allowed, formula, verdict


SHOWN = 5


def _told(outage: Outage, origin_s: float, until_s: float) -> str:
    share = "all" if outage.total else f"{outage.failed} of {outage.asked}"
    end = "" if outage.ended_s is not None else ", not over"
    return (
        f"{outage.length_s(until_s):.2f} s ± {outage.error_s:.2f} s at {outage.began_s - origin_s:.1f} s: {share}{end}"
    )
