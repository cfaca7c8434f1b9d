"""The figures of a run that are compared from one run to the next: smaller is better, all of them."""

import json
import statistics
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import requests

from certificate.record import ScenarioRecord
from certificate.verdict import Verdict

FRONT_PAGE = "front page at the virtual address, median, ms"
FRONT_PAGES = 20
VISIT_TIMEOUT_S = 10
LASTED = "{name}: took, s"


def of_scenarios(scenarios: Iterable[ScenarioRecord], folder: Path) -> dict[str, float]:
    """By name: how long each scenario took, and of drills how long each layer was away and until all was whole again.

    Of proven scenarios only: any other may have ended early, at what failed or at a timeout, which is no measure.
    """
    found: dict[str, float] = {}
    for one in scenarios:
        if one.verdict is Verdict.PROVEN:
            drills = [folder / name for name in one.evidence if Path(name).name == "verdict.json"]
            for file in drills:
                found |= dict(of_drill(json.loads(file.read_text())))
            if not drills:
                found[LASTED.format(name=one.name)] = one.duration_s
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


def of_front_page(url: str) -> dict[str, float]:
    """How long a page takes with nobody else there; nothing where one of them does not come."""
    took_ms = []
    for _ in range(FRONT_PAGES):
        with requests.Session() as visitor:  # one of its own each: no page comes over a connection that is closing
            visitor.trust_env = False
            try:
                reply = visitor.get(url, timeout=VISIT_TIMEOUT_S)
            except requests.RequestException:
                return {}
        if not reply.ok:
            return {}
        took_ms.append(reply.elapsed.total_seconds() * 1000)
    return {FRONT_PAGE: statistics.median(took_ms)}
