"""A run as one page that needs nothing else: verdict first, each promise's evidence one click away."""

import base64
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

from certificate.record import Record, ScenarioRecord
from certificate.trend import EARLIER_MIN
from certificate.verdict import Outcome, Verdict

LOG_MAX_CHARS = 6000
MEDIA_TYPES = {".svg": "image/svg+xml", ".png": "image/png"}
CLASSES = {
    Outcome.CERTIFIED: "proven",
    Outcome.LIMITED: "limited",
    Outcome.REFUSED: "refuted",
    Outcome.NOT_JUDGED: "unknown",
    Verdict.PROVEN: "proven",
    Verdict.REFUTED: "refuted",
    Verdict.UNKNOWN: "unknown",
    Verdict.NOT_EXERCISED: "missing",
}


@dataclass(frozen=True)
class Shown:
    """What of a scenario's evidence the page itself holds: pictures as data, figures as rows, logs as text."""

    log: str
    cut: bool
    pictures: tuple[str, ...]
    figures: tuple[tuple[str, ...], ...]
    command: str
    files: tuple[str, ...]


def of(record: Record, folder: Path) -> str:
    """The page; reads the evidence that the record names below `folder`."""
    templates = Environment(
        loader=PackageLoader("certificate"), autoescape=True, undefined=StrictUndefined, trim_blocks=True
    )
    shown = {one.name: _shown(one, folder) for one in record.scenarios}
    return templates.get_template("certificate.html.j2").render(
        record=record, shown=shown, classes=CLASSES, earlier_min=EARLIER_MIN
    )


def _shown(one: ScenarioRecord, folder: Path) -> Shown:
    log, pictures, figures, command = "", [], [], one.command
    for name in one.evidence:
        file = folder / name
        if file.suffix in MEDIA_TYPES:
            coded = base64.b64encode(file.read_bytes()).decode()
            pictures.append(f"data:{MEDIA_TYPES[file.suffix]};base64,{coded}")
        elif file.name == "verdict.json":
            told = json.loads(file.read_text())
            figures += list(_figures(told))
            command = str(told.get("command", command))
        elif file.suffix == ".txt":
            log = file.read_text(encoding="utf-8")
    return Shown(log[-LOG_MAX_CHARS:], len(log) > LOG_MAX_CHARS, tuple(pictures), tuple(figures), command, one.evidence)


def _figures(told: dict[str, Any]) -> Iterator[tuple[str, ...]]:
    """What a drill measured: a row for each layer that was away or had a budget."""
    for name, layer in told.get("layers", {}).items():
        lengths = [f"{outage['length_s']:.1f} ± {outage['error_s']:.2f} s" for outage in layer["outages"]]
        if not lengths and layer["allowed_s"] is None:
            continue
        allowed = "" if layer["allowed_s"] is None else f"{layer['allowed_s']:g} s"
        yield name, str(layer["verdict"]), allowed, ", ".join(lengths) or "never away", str(layer["formula"] or "")
