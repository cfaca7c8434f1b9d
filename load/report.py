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


@dataclass(frozen=True)
class Point:
    """A second of the run, or a point of a curve with several: what came in it, a second, and PERCENTILES in ms."""

    at_s: float
    requests: float
    failed: float
    percentiles_ms: tuple[float, ...]


@dataclass(frozen=True)
class Timeline:
    """The run by the second that requests were meant to begin in, and by the points that a screen has room for."""

    seconds: tuple[tuple[Second, Point], ...]
    curve: tuple[Point, ...]


def write(folder: Path) -> Summary:
    """Judge the record in a folder, and put page, JSON and CSV beside it; raises RecordError and OSError."""
    lines = read(folder)
    said, passed = summary(lines), timeline(_of(lines, Second))
    (folder / DATA).write_text(json.dumps(as_data(lines, said), indent=2) + "\n")
    (folder / TABLE).write_text(as_table(passed))
    (folder / PAGE).write_text(page(lines, said, passed), encoding="utf-8")
    return said


def timeline(seconds: Sequence[Second]) -> Timeline:
    """Histograms are added for the curve; each is decoded once, for it is as large as a picture. Pure."""
    width = max(1, math.ceil(len(seconds) / COLUMNS_MAX))
    single, curve = [], []
    for begin in range(0, len(seconds), width):
        some = seconds[begin : begin + width]
        found = [HdrHistogram.decode(second.latencies) for second in some]
        single += [
            (second, _point(second.at_s, one, second.failed, 1)) for second, one in zip(some, found, strict=True)
        ]
        for one in found[1:]:
            found[0].add(one)
        failed = sum(second.failed for second in some)
        curve.append(_point(some[0].at_s + len(some) / 2, found[0], failed, len(some)))
    return Timeline(tuple(single), tuple(curve))


def _point(at_s: float, found: HdrHistogram, failed: int, width_s: int) -> Point:
    count = found.get_total_count()
    return Point(at_s, count / width_s, failed / width_s, tuple(values_ms(found, PERCENTILES)) if count else ())


def as_data(lines: Sequence[AnyLine], said: Summary) -> dict[str, Any]:
    """For programs. Pure."""
    header = _header(lines)
    return {
        "environment": header.environment,
        "url": header.url,
        "command": header.command,
        "began": header.began.isoformat(),
        "summary": {
            **asdict(said),
            "rate": said.rate,
            "throughput": said.throughput,
            "under_way": said.under_way,
            "failed_share": said.failed_share,
            "void": said.void,
        },
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


def as_table(passed: Timeline) -> str:
    """A line a second, comma-separated. Pure."""
    text = io.StringIO()
    table = csv.writer(text)
    counted = ["visitors", "requests", "failed", "undelivered", "late"]
    table.writerow(["at_s", *counted, *(f"p{p:g}_ms" for p in PERCENTILES)])
    for second, point in passed.seconds:
        row = [second.visitors, int(point.requests), second.failed, second.undelivered, second.late]
        table.writerow([second.at_s, *row, *(point.percentiles_ms or [""] * len(PERCENTILES))])
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


def page(lines: Sequence[AnyLine], said: Summary, passed: Timeline) -> str:
    """Of one run."""
    header = _header(lines)
    pictures = {
        "How long visitors waited": over_time(passed, _of(lines, Mark), header),
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


def over_time(passed: Timeline, marks: Sequence[Mark], header: Header) -> Markup:
    """Latency by the second it was meant to begin in, with marks and failures."""
    made, (upper, lower) = figure(2, heights=(3, 1))
    at = [point.at_s for point in passed.curve]
    for p, style in ((50.0, "-"), (95.0, "-"), (99.0, ":")):
        which = PERCENTILES.index(p)
        curve_ms = [point.percentiles_ms[which] if point.percentiles_ms else math.nan for point in passed.curve]
        upper.plot(at, curve_ms, style, color=SECOND if p > 50 else FIRST, linewidth=1.3, label=f"p{p:g}")
    if "p95_ms" in header.objective:
        upper.axhline(header.objective["p95_ms"], color=BAD, linestyle="--", linewidth=1, label="objective (p95)")
    for mark in marks:
        for axes in (upper, lower):
            axes.axvspan(mark.began_s, mark.ended_s, color=FAULT, alpha=0.25, linewidth=0)
        upper.annotate(
            mark.what, (mark.began_s, 1), xycoords=("data", "axes fraction"), va="top", fontsize=FONT_PT, color=INK
        )
    upper.set_ylabel("ms from the intended start")
    logarithmic(upper)
    legend(upper)
    lower.plot(at, [point.requests for point in passed.curve], color=FIRST, linewidth=1.2, label="requests")
    lower.plot(at, [point.failed for point in passed.curve], color=BAD, linewidth=1.2, label="failed")
    lower.set_ylabel("a second")
    lower.set_xlabel("seconds")
    legend(lower)
    return svg(made)


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
