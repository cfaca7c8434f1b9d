"""A run, or a search for the capacity, for people and for programs: one page with pictures first, JSON and CSV."""

import csv
import io
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TypeVar

import matplotlib
from hdrh.histogram import HdrHistogram
from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from environments.model import Objective
from load import usl
from load.objective import PERCENTILES, Summary, summary
from load.record import AnyLine, Header, Mark, Request, Sample, Second, read

matplotlib.use("Agg")
import matplotlib.pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullFormatter, StrMethodFormatter

PAGE, DATA, TABLE = "report.html", "report.json", "seconds.csv"
COLUMNS_MAX = 600  # points of a curve: more than a screen has
INK, FIRST, SECOND, BAD, FAULT = "#010203", "#2f7ebc", "#d9822b", "#c0392b", "#8a94a0"
SIZES = (1, 2, 5, 10)
Kind = TypeVar("Kind")


@dataclass(frozen=True)
class Searched:
    """What a search for the capacity found, under one condition (“all is well”, “a worker is down”)."""

    condition: str
    holds: float
    fails: float
    limit: str
    saturated: str
    points: tuple[tuple[float, float, float], ...]
    """Each trial that was not void: requests a second, mean milliseconds, p95 milliseconds."""


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
    table.writerow(["at_s", "requests", "failed", "undelivered", "late", *(f"p{p:g}_ms" for p in PERCENTILES)])
    for second in _of(lines, Second):
        found = HdrHistogram.decode(second.latencies)
        count = found.get_total_count()
        values = [round(found.get_value_at_percentile(p) / 1000, 3) if count else "" for p in PERCENTILES]
        table.writerow([second.at_s, count, second.failed, second.undelivered, second.late, *values])
    return text.getvalue()


def rows(lines: Sequence[AnyLine]) -> list[Row]:
    """Each sort of request, most frequent first. Pure."""
    found = []
    for request in _of(lines, Request):
        decoded = HdrHistogram.decode(request.latencies)
        count = decoded.get_total_count()
        percentiles = tuple(decoded.get_value_at_percentile(p) / 1000 if count else 0.0 for p in PERCENTILES)
        errors = ", ".join(f"{kind} {number}" for kind, number in sorted(request.errors.items()))
        found.append(Row(request.name, count, sum(request.errors.values()), percentiles, errors))
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
    return _rendered(
        title=f"{header.url}: {verdict(header, said)}",
        header=header,
        verdict=verdict(header, said),
        said=said,
        pictures=pictures,
        rows=rows(lines),
        marks=_of(lines, Mark),
        searched=(),
        sizing=(),
    )


def capacity_page(header: Header, found: Sequence[Searched]) -> str:
    """Of a search for the capacity, under each of its conditions."""
    told = f"{found[0].holds:.1f} arrivals a second" if found else "nothing was measured"
    pictures = {"Throughput against latency": knee(found)}
    if len(found) > 1:
        pictures["What is left when a machine is away"] = left_over(found)
    return _rendered(
        title=f"{header.url}: {told}",
        header=header,
        verdict=told,
        said=None,
        pictures=pictures,
        rows=(),
        marks=(),
        searched=[(one, usl.fit([(usl.at_once(rate, mean), rate) for rate, mean, _ in one.points])) for one in found],
        sizing=sizing(found),
    )


def sizing(found: Sequence[Searched]) -> list[tuple[int, float, str]]:
    """For N times the traffic that holds now: arrivals a second, and what it takes. Pure.

    Every part grows with it, and what keeps copies in step is left out: a lower bound, to be measured when it is built.
    """
    least = min((one.holds for one in found), default=0.0)
    return [
        (times, least * times, "as it is" if times == 1 else f"at least {times} times what gave out first")
        for times in SIZES
        if least
    ]


def over_time(lines: Sequence[AnyLine], header: Header) -> Markup:
    """Latency by the second it was meant to begin in, with marks and failures."""
    figure, (upper, lower) = _figure(2, heights=(3, 1))
    at, curves, counted, failed = [], {p: [] for p in (50.0, 95.0, 99.0)}, [], []  # type: ignore[var-annotated]
    for moment, found, fell, width in _columns(_of(lines, Second)):
        at.append(moment)
        counted.append(found.get_total_count() / width)
        failed.append(fell / width)
        for p, curve in curves.items():
            curve.append(found.get_value_at_percentile(p) / 1000 if found.get_total_count() else math.nan)
    for (p, curve), style in zip(curves.items(), ("-", "-", ":"), strict=True):
        upper.plot(at, curve, style, color=SECOND if p > 50 else FIRST, linewidth=1.3, label=f"p{p:g}")
    if "p95_ms" in header.objective:
        upper.axhline(header.objective["p95_ms"], color=BAD, linestyle="--", linewidth=1, label="objective (p95)")
    for mark in _of(lines, Mark):
        for axes in (upper, lower):
            axes.axvspan(mark.began_s, mark.ended_s, color=FAULT, alpha=0.25, linewidth=0)
        upper.annotate(
            mark.what, (mark.began_s, 1), xycoords=("data", "axes fraction"), va="top", fontsize=8, color=INK
        )
    upper.set_ylabel("ms from the intended start")
    _logarithmic(upper)
    _legend(upper)
    lower.plot(at, counted, color=FIRST, linewidth=1.2, label="requests")
    lower.plot(at, failed, color=BAD, linewidth=1.2, label="failed")
    lower.set_ylabel("a second")
    lower.set_xlabel("seconds")
    _legend(lower)
    return _svg(figure)


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
    figure, (axes,) = _figure(1)
    ticks = [0, 50, 90, 99, 99.9, 99.99]
    for request in _of(lines, Request):
        found = HdrHistogram.decode(request.latencies)
        shares = [*range(99), *(99 + i / 10 for i in range(10)), 99.95, 99.99]
        values = [found.get_value_at_percentile(share) / 1000 for share in shares]
        axes.plot([_drawn_out(share) for share in shares], values, linewidth=1.3, label=request.name)
    if "p95_ms" in header.objective:
        axes.axhline(header.objective["p95_ms"], color=BAD, linestyle="--", linewidth=1)
    axes.set_xticks([_drawn_out(tick) for tick in ticks], [f"{tick:g} %" for tick in ticks])
    _logarithmic(axes)
    axes.set_ylabel("ms at most")
    _legend(axes)
    return _svg(figure)


def _drawn_out(share: float) -> float:
    """Each further nine as wide as the one before."""
    return -math.log10(1 - share / 100)


def processors(samples: Sequence[Sample]) -> Markup:
    """Each machine's processors in use."""
    figure, (axes,) = _figure(1)
    for machine in sorted({sample.machine for sample in samples}):
        own = [sample for sample in samples if sample.machine == machine]
        axes.plot([s.at_s for s in own], [s.cpu * 100 for s in own], linewidth=1.2, label=machine)
    axes.set_ylabel("% of its processors")
    axes.set_xlabel("seconds")
    axes.set_ylim(bottom=0)
    _legend(axes)
    return _svg(figure)


def knee(found: Sequence[Searched]) -> Markup:
    """Requests a second against how long the slowest twentieth waited; the law's curve where it could be fitted."""
    figure, (axes,) = _figure(1)
    for one, colour in zip(found, (FIRST, SECOND, BAD, FAULT), strict=False):
        points = sorted(one.points)
        axes.plot([p[0] for p in points], [p[2] for p in points], "o", color=colour, markersize=4, label=one.condition)
        if law := usl.fit([(usl.at_once(rate, mean), rate) for rate, mean, _ in points]):
            most = max(usl.at_once(rate, mean) for rate, mean, _ in points)
            steps = [most * step / 60 for step in range(1, 61)]
            curve = [(law.throughput(n), n / law.throughput(n) * 1000) for n in steps]
            axes.plot([x for x, _ in curve], [y for _, y in curve], color=colour, linewidth=1, alpha=0.7)
    axes.set_xlabel("requests a second (curve: mean, by the Universal Scalability Law)")
    axes.set_ylabel("p95, ms")
    _logarithmic(axes)
    _legend(axes)
    return _svg(figure)


def left_over(found: Sequence[Searched]) -> Markup:
    """Capacity under each condition."""
    figure, (axes,) = _figure(1)
    axes.barh([one.condition for one in found], [one.holds for one in found], color=FIRST, height=0.5)
    axes.set_xlabel("arrivals a second")
    axes.invert_yaxis()
    return _svg(figure)


def _figure(count: int, heights: Sequence[float] | None = None) -> tuple[Figure, Sequence[Axes]]:
    style: Mapping[str, Any] = {"svg.fonttype": "none", "font.family": "sans-serif", "font.size": 9} | dict.fromkeys(
        ("text.color", "axes.labelcolor", "xtick.color", "ytick.color", "axes.edgecolor"), INK
    )
    with plt.rc_context(dict(style)):  # type: ignore[arg-type]
        figure, axes = plt.subplots(
            count, 1, figsize=(8, 3.2 if count == 1 else 4.6), sharex=True, squeeze=False, height_ratios=heights
        )
    for each in axes[:, 0]:
        each.spines[["top", "right"]].set_visible(False)
        each.grid(color=FAULT, alpha=0.25, linewidth=0.6)
    return figure, list(axes[:, 0])


def _legend(axes: Axes) -> None:
    """Above, where it covers nothing."""
    axes.legend(loc="lower right", bbox_to_anchor=(1, 1), frameon=False, fontsize=8, ncols=6, labelcolor=INK)


def _logarithmic(axes: Axes) -> None:
    """With ticks that people read: 50, 100, 200, 500."""
    axes.set_yscale("log")
    axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.yaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
    axes.yaxis.set_minor_formatter(NullFormatter())


def _svg(figure: Figure) -> Markup:
    """As a part of the page: as wide as that, and its ink the page's own, in the dark as well."""
    text = io.StringIO()
    with plt.rc_context({"svg.fonttype": "none", "svg.hashsalt": "haproof"}):
        figure.savefig(text, format="svg", transparent=True, bbox_inches="tight", metadata={"Date": None})
    plt.close(figure)
    drawn = text.getvalue()
    return Markup(drawn[drawn.index("<svg") :].replace(INK, "currentColor"))


def _rendered(**values: Any) -> str:
    templates = Environment(loader=PackageLoader("load"), autoescape=True, undefined=StrictUndefined, trim_blocks=True)
    return templates.get_template("report.html.j2").render(percentiles=PERCENTILES, **values)


def _header(lines: Sequence[AnyLine]) -> Header:
    assert isinstance(lines[0], Header)
    return lines[0]


def _of(lines: Sequence[AnyLine], kind: type[Kind]) -> list[Kind]:
    return [line for line in lines if isinstance(line, kind)]
