"""A search for the capacity for people and for programs: one page with pictures first, JSON and CSV."""

import csv
import io
import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from markupsafe import Markup

from load import usl
from load.busy import Busy, saturated
from load.drawing import COLOURS, FIRST, FONT_PT, INK, figure, legend, logarithmic, svg
from load.found import Found, Searched
from load.report import DATA, PAGE, rendered
from load.sizing import Knee, knee, law_of, sizes

TABLE = "trials.csv"


@dataclass(frozen=True)
class Row:
    """One condition: arrivals a second, of which `fails` is None where every one held."""

    condition: str
    whole: bool
    holds: float
    fails: float | None
    limit: str
    saturated: str
    machines: tuple[Busy, ...]
    knee: Knee | None
    law: usl.Fit | None

    @property
    def name(self) -> str:
        """The condition, and whether its search came to no end."""
        return self.condition if self.whole else f"{self.condition} (incomplete)"


def write(folder: Path) -> Found:
    """Put page, JSON and CSV beside what a search found; raises RecordError and OSError."""
    found = Found.read(folder)
    (folder / DATA).write_text(json.dumps(as_data(found), indent=2, allow_nan=False) + "\n")
    (folder / TABLE).write_text(as_table(found))
    (folder / PAGE).write_text(page(found), encoding="utf-8")
    return found


def rows(found: Found) -> list[Row]:
    """A row for each condition. Pure."""
    return [_row(one, law_of(one)) for one in found.searched]


def _row(one: Searched, law: usl.Fit | None) -> Row:
    said = one.capacity
    fails = said.fails if math.isfinite(said.fails) else None
    busy = saturated(one.machines)
    return Row(one.condition, one.whole, said.holds, fails, said.limit, busy, one.machines, knee(one, law), law)


def told(row: Row) -> str:
    """A condition in a sentence. Pure."""
    over = f"{row.fails:.1f} do not ({row.limit})" if row.fails is not None else "no rate was found that does not"
    return f"{row.name}: {row.holds:.1f} visitors a second hold, {over}"


def as_data(found: Found) -> dict[str, Any]:
    """For programs; what is not finite is null. Pure."""
    header = found.header
    conditions = [
        {**asdict(row), "law": _as_law(row.law), "trials": [trial.model_dump() for trial in one.trials]}
        for row, one in zip(rows(found), found.searched, strict=True)
    ]
    return {
        "environment": header.environment,
        "url": header.url,
        "command": header.command,
        "began": header.began.isoformat(),
        "objective": dict(header.objective),
        "incomplete": found.incomplete,
        "conditions": conditions,
        "sizing": [asdict(size) for size in sizes(found.searched)],
    }


def _as_law(law: usl.Fit | None) -> dict[str, Any] | None:
    if law is None:
        return None
    parts = {
        "gain": (law.gain, law.gain_half),
        "contention": (law.contention, law.contention_half),
        "coherency": (law.coherency, law.coherency_half),
    }
    intervals = {
        name: {"value": value, "low": value - half, "high": value + half} for name, (value, half) in parts.items()
    }
    peak_at = law.peak_at if math.isfinite(law.peak_at) else None
    return {**intervals, "confidence": usl.CONFIDENCE, "peak_at_once": peak_at}


def as_table(found: Found) -> str:
    """A line a trial, comma-separated. Pure."""
    text = io.StringIO()
    table = csv.writer(text)
    table.writerow(
        ["condition", "arrivals_per_s", "answered_per_s", "mean_ms", "p95_ms", "at_once", "misses", "record"]
    )
    for one in found.searched:
        for trial in one.trials:
            figures = (trial.rate, trial.requests_rate, trial.mean_ms, trial.p95_ms, trial.at_once)
            table.writerow([one.condition, *(round(value, 3) for value in figures), trial.misses, trial.folder])
    return text.getvalue()


def page(found: Found) -> str:
    """Of a search, under each of its conditions."""
    said = rows(found)
    so_far = f"{said[0].holds:.1f} arrivals a second" if said else "nothing was measured"
    verdict = f"Incomplete: {found.incomplete}; so far {so_far}" if found.incomplete else so_far
    pictures = {"Throughput against latency": curves(found.searched, said)} if said else {}
    if len(said) > 1:
        pictures["What is left when a machine is away"] = left_over(said)
    return rendered(
        "capacity.html.j2",
        title=f"{found.header.url}: {verdict}",
        header=found.header,
        verdict=verdict,
        incomplete=found.incomplete,
        pictures=pictures,
        rows=said,
        sizing=sizes(found.searched),
    )


def curves(searched: Sequence[Searched], said: Sequence[Row]) -> Markup:
    """Answered requests a second against how long the slowest twentieth waited, the law's curve, and the knee."""
    made, (axes,) = figure(1)
    for one, row, colour in zip(searched, said, COLOURS, strict=False):
        points = sorted((trial.requests_rate, trial.p95_ms) for trial in one.trials)
        axes.plot([x for x, _ in points], [y for _, y in points], "o", color=colour, markersize=4, label=one.condition)
        if law := row.law:
            most = max(trial.at_once for trial in one.trials)
            steps = [most * step / 60 for step in range(1, 61)]
            curve = [(law.throughput(n), n / law.throughput(n) * 1000) for n in steps]
            axes.plot([x for x, _ in curve], [y for _, y in curve], color=colour, linewidth=1, alpha=0.7)
        if row.knee:
            axes.axvline(row.knee.rate, color=colour, linestyle=":", linewidth=1.2)
            where = (row.knee.rate, 0.02)
            axes.annotate("knee", where, xycoords=("data", "axes fraction"), fontsize=FONT_PT, color=INK, rotation=90)
    axes.set_xlabel("answered requests a second (curve: mean, by the Universal Scalability Law)")
    axes.set_ylabel("p95, ms")
    logarithmic(axes)
    legend(axes)
    return svg(made)


def left_over(said: Sequence[Row]) -> Markup:
    """Capacity under each condition."""
    made, (axes,) = figure(1)
    axes.barh([row.name for row in said], [row.holds for row in said], color=FIRST, height=0.5)
    axes.set_xlabel("arrivals a second")
    axes.invert_yaxis()
    return svg(made)
