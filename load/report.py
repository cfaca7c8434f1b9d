"""A run for people and for programs: one page with pictures first, JSON and CSV."""

import csv
import io
import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TypeVar

from hdrh.histogram import HdrHistogram
from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from environments.model import Objective
from load.drawing import BAD, FAULT, FIRST, FONT_PT, INK, SECOND, figure, legend, logarithmic, svg
from load.objective import PERCENTILES, Summary, summary
from load.percentile import values_ms
from load.record import AnyLine, Header, Mark, Request, Sample, Second, read

PAGE, DATA, TABLE = "report.html", "report.json", "seconds.csv"
COLUMNS_MAX = 600  # points of a curve: more than a screen has
Kind = TypeVar("Kind")


@dataclass(frozen=True)
class Row:
    """One sort of request."""

    name: str
    count: int
    failed: int
    percentiles_ms: tuple[float, ...]
    errors: str


def write(folder: Path) -> Summary:
    """Judge the record in a folder, and put page, JSON and CSV beside it; raises RecordError and OSError."""
    lines = read(folder)
    said = summary(lines)
    (folder / DATA).write_text(json.dumps(as_data(lines, said), indent=2) + "\n")
    (folder / TABLE).write_text(as_table(lines))
    (folder / PAGE).write_text(page(lines, said), encoding="utf-8")
    return said


def as_data(lines: Sequence[AnyLine], said: Summary) -> dict[str, Any]:
    """For programs. Pure."""
    header = _header(lines)
    return {
        "environment": header.environment,
        "url": header.url,
        "command": header.command,
        "began": header.began.isoformat(),
        "summary": {**asdict(said), "rate": said.rate, "failed_share": said.failed_share, "void": said.void},
        "objective": dict(header.objective),
        "verdict": verdict(header, said),
        "requests": [asdict(row) for row in rows(lines)],
    }


def verdict(header: Header, said: Summary) -> str:
    """In a sentence. Pure."""
    if said.void:
        return f"void: {said.void}"
    if not header.objective:
        return "not judged: the environment has no load.objective"
    return f"missed: {told}" if (told := said.misses(Objective.model_validate(header.objective))) else "held"


def as_table(lines: Sequence[AnyLine]) -> str:
    """A line a second, comma-separated. Pure."""
    text = io.StringIO()
    table = csv.writer(text)
    counted = ["visitors", "requests", "failed", "undelivered", "late"]
    table.writerow(["at_s", *counted, *(f"p{p:g}_ms" for p in PERCENTILES)])
    for second in _of(lines, Second):
        found = HdrHistogram.decode(second.latencies)
        count = found.get_total_count()
        values = [value_ms if count else "" for value_ms in values_ms(found, PERCENTILES)]
        row = [second.visitors, count, second.failed, second.undelivered, second.late]
        table.writerow([second.at_s, *row, *values])
    return text.getvalue()


def rows(lines: Sequence[AnyLine]) -> list[Row]:
    """Each sort of request, most frequent first. Pure."""
    found = []
    for request in _of(lines, Request):
        decoded = HdrHistogram.decode(request.latencies)
        count = decoded.get_total_count()
        errors = ", ".join(f"{kind} {number}" for kind, number in sorted(request.errors.items()))
        found.append(
            Row(request.name, count, sum(request.errors.values()), tuple(values_ms(decoded, PERCENTILES)), errors)
        )
    return sorted(found, key=lambda row: -row.count)


def page(lines: Sequence[AnyLine], said: Summary) -> str:
    """Of one run."""
    header = _header(lines)
    pictures = {
        "How long visitors waited": over_time(lines, header),
        "Shares of all requests": percentiles(lines, header),
    }
    if samples := _of(lines, Sample):
        pictures["How busy the machines were"] = processors(samples)
    return rendered(
        "report.html.j2",
        title=f"{header.url}: {verdict(header, said)}",
        header=header,
        verdict=verdict(header, said),
        said=said,
        pictures=pictures,
        rows=rows(lines),
        marks=_of(lines, Mark),
    )


def over_time(lines: Sequence[AnyLine], header: Header) -> Markup:
    """Latency by the second it was meant to begin in, with marks and failures."""
    made, (upper, lower) = figure(2, heights=(3, 1))
    drawn = (50.0, 95.0, 99.0)
    at, counted, failed, latencies_ms = [], [], [], []
    for moment, found, fell, width in _columns(_of(lines, Second)):
        at.append(moment)
        counted.append(found.get_total_count() / width)
        failed.append(fell / width)
        latencies_ms.append(values_ms(found, drawn) if found.get_total_count() else [math.nan] * len(drawn))
    for p, curve_ms, style in zip(drawn, zip(*latencies_ms, strict=True), ("-", "-", ":"), strict=True):
        upper.plot(at, curve_ms, style, color=SECOND if p > 50 else FIRST, linewidth=1.3, label=f"p{p:g}")
    if "p95_ms" in header.objective:
        upper.axhline(header.objective["p95_ms"], color=BAD, linestyle="--", linewidth=1, label="objective (p95)")
    for mark in _of(lines, Mark):
        for axes in (upper, lower):
            axes.axvspan(mark.began_s, mark.ended_s, color=FAULT, alpha=0.25, linewidth=0)
        upper.annotate(
            mark.what, (mark.began_s, 1), xycoords=("data", "axes fraction"), va="top", fontsize=FONT_PT, color=INK
        )
    upper.set_ylabel("ms from the intended start")
    logarithmic(upper)
    legend(upper)
    lower.plot(at, counted, color=FIRST, linewidth=1.2, label="requests")
    lower.plot(at, failed, color=BAD, linewidth=1.2, label="failed")
    lower.set_ylabel("a second")
    lower.set_xlabel("seconds")
    legend(lower)
    return svg(made)


def _columns(seconds: Sequence[Second]) -> Sequence[tuple[float, Any, int, int]]:
    """Seconds, several taken together where there are more than a screen shows: histograms added."""
    width = max(1, math.ceil(len(seconds) / COLUMNS_MAX))
    found = []
    for begin in range(0, len(seconds), width):
        some = seconds[begin : begin + width]
        merged = HdrHistogram.decode(some[0].latencies)
        for one in some[1:]:
            merged.decode_and_add(one.latencies)
        found.append((some[0].at_s + len(some) / 2, merged, sum(one.failed for one in some), len(some)))
    return found


def percentiles(lines: Sequence[AnyLine], header: Header) -> Markup:
    """Each sort of request: how many waited at most how long; the far end drawn out."""
    made, (axes,) = figure(1)
    ticks = [0, 50, 90, 99, 99.9, 99.99]
    for request in _of(lines, Request):
        found = HdrHistogram.decode(request.latencies)
        shares = [*range(99), *(99 + i / 10 for i in range(10)), 99.95, 99.99]
        axes.plot([_drawn_out(share) for share in shares], values_ms(found, shares), linewidth=1.3, label=request.name)
    if "p95_ms" in header.objective:
        axes.axhline(header.objective["p95_ms"], color=BAD, linestyle="--", linewidth=1)
    axes.set_xticks([_drawn_out(tick) for tick in ticks], [f"{tick:g} %" for tick in ticks])
    logarithmic(axes)
    axes.set_ylabel("ms at most")
    legend(axes)
    return svg(made)


def _drawn_out(share: float) -> float:
    """Each further nine as wide as the one before."""
    return -math.log10(1 - share / 100)


def processors(samples: Sequence[Sample]) -> Markup:
    """Each machine's processors in use."""
    made, (axes,) = figure(1)
    for machine in sorted({sample.machine for sample in samples}):
        own = [sample for sample in samples if sample.machine == machine]
        axes.plot([s.at_s for s in own], [s.cpu * 100 for s in own], linewidth=1.2, label=machine)
    axes.set_ylabel("% of its processors")
    axes.set_xlabel("seconds")
    axes.set_ylim(bottom=0)
    legend(axes)
    return svg(made)


def rendered(template: str, **values: Any) -> str:
    """One of the pages of `templates/`."""
    templates = Environment(loader=PackageLoader("load"), autoescape=True, undefined=StrictUndefined, trim_blocks=True)
    return templates.get_template(template).render(percentiles=PERCENTILES, **values)


def _header(lines: Sequence[AnyLine]) -> Header:
    assert isinstance(lines[0], Header)
    return lines[0]


def _of(lines: Sequence[AnyLine], kind: type[Kind]) -> list[Kind]:
    return [line for line in lines if isinstance(line, kind)]
