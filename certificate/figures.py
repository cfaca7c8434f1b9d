"""The figures of a run that are compared from one run to the next: smaller is better, all of them."""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from certificate.record import Record
from certificate.verdict import Verdict


def of_run(record: Record, folder: Path) -> dict[str, float]:
    """Seconds by name: how long each layer was away in each drill, and how long until all was whole again.

    Of a scenario that was not judged there is none: what ended early is no measure.
    """
    found: dict[str, float] = {}
    for one in record.scenarios:
        if one.verdict in (Verdict.PROVEN, Verdict.REFUTED):
            for name in one.evidence:
                if Path(name).name == "verdict.json":
                    found |= dict(of_drill(json.loads((folder / name).read_text())))
    return found


def of_drill(told: Mapping[str, Any]) -> Iterator[tuple[str, float]]:
    """What a drill's verdict has to compare. Pure."""
    drill = told["drill"]
    for name, layer in told["layers"].items():
        if layer["allowed_s"] is not None:
            lengths = [outage["length_s"] for outage in layer["outages"]]
            yield f"{drill}: {name} away, s", max(lengths, default=0.0)
    if told["redundant_s"] is not None:
        yield f"{drill}: whole again, s", told["redundant_s"]
