"""A drill's time, drawn: what was broken, which layer answered, and how fast; understood without reading."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from matplotlib.figure import Figure
from matplotlib.patches import Patch

from chaos.history import History, Probe, Write
from chaos.judgement import PAGE_PATIENCE_S, PATIENCE_S, Judgement, held_back
from chaos.outage import Outage

COLOURS: Mapping[str, str] = {
    "up": "#8fc7a0",
    "all": "#c0392b",
    "some": "#e59866",
    "held": "#f4d03f",
    "fault": "#34495e",
}


def draw(history: History, said: Judgement, file: Path) -> None:
    """The drill's time from left to right: when something was broken, when each layer answered, and how fast."""
    origin_s, until_s = history.header.at_s, history.ended_s
    layers = said.layers
    latencies = {name: found for name in ("vip", "write/row") if (found := _latencies(history, name))}
    figure = Figure(figsize=(11, 2.6 + 0.3 * len(layers)))
    bars, below = figure.subplots(2, 1, sharex=True, height_ratios=(max(2, len(layers)), 4))
    for row, layer in enumerate(reversed(layers)):
        bars.broken_barh([(0, until_s - origin_s)], (row - 0.35, 0.7), color=COLOURS["up"])
        for outage in layer.outages:
            span = (outage.began_s - origin_s, max(outage.length_s(until_s), 0.15))
            bars.broken_barh([span], (row - 0.35, 0.7), color=COLOURS[_kind(outage, until_s)])
    bars.set_yticks(range(len(layers)), [layer.layer for layer in reversed(layers)])
    for axes in (bars, below):
        for strike in said.strikes:
            end_s = strike.healed_s if strike.healed_s is not None else until_s
            axes.axvspan(strike.inject_s - origin_s, end_s - origin_s, color=COLOURS["fault"], alpha=0.15, lw=0)
    for name, (when_s, latency_s) in latencies.items():
        below.plot([at_s - origin_s for at_s in when_s], latency_s, ".", markersize=2, label=name, rasterized=True)
    below.set(xlabel="seconds", ylabel="answered after, s", yscale="log", xlim=(0, until_s - origin_s))
    if latencies:
        below.legend(loc="upper right", markerscale=4)
    struck = "; ".join(f"{strike.name} of {', '.join(strike.targets)}" for strike in said.strikes) or "nothing broken"
    bars.set_title(f"{history.header.drill}: {struck} (grey) - {said.finding.verdict}", loc="left")
    held = f"held back, under {PATIENCE_S:g} s (pages {PAGE_PATIENCE_S:g} s)"
    keys = {"up": "answered", "held": held, "some": "failed some", "all": "failed all"}
    figure.legend([Patch(color=COLOURS[key]) for key in keys], list(keys.values()), loc="lower center", ncols=4)
    figure.tight_layout(rect=(0, 0.05, 1, 1))
    figure.savefig(file, metadata={"Date": None})


def _kind(outage: Outage, until_s: float) -> str:
    if held_back(outage, until_s):
        return "held"
    return "all" if outage.total else "some"


def _latencies(history: History, layer: str) -> tuple[Sequence[float], Sequence[float]] | None:
    events = [*history.of(Probe), *(write.as_probe for write in history.of(Write))]
    found = [
        (event.intended_s, event.ended_s - event.intended_s) for event in events if event.layer == layer and event.ok
    ]
    return ([at_s for at_s, _ in found], [latency_s for _, latency_s in found]) if found else None
