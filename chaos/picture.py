"""A drill's time, drawn: what was broken, which layer answered, and how fast; understood without reading."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from matplotlib.figure import Figure
from matplotlib.patches import Patch
from matplotlib.ticker import NullFormatter

from chaos.history import History, Probe, Write
from chaos.judgement import PAGE_PATIENCE_S, PATIENCE_S, Judgement, held_back
from chaos.outage import Outage

LEAST_S = 1e-4  # a logarithmic axis has no place for an answer at once
LETTER = 0.085  # of an inch, at the size that layers are written in
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
    width, height = 11, 2.6 + 0.3 * len(layers)
    figure = Figure(figsize=(width, height))
    # To have the margins found takes as long as to draw it all.
    named = LETTER * max((len(layer.layer) for layer in layers), default=0)
    figure.subplots_adjust((0.4 + named) / width, 0.95 / height, 1 - 0.2 / width, 1 - 0.35 / height, hspace=0.1)
    bars, below = figure.subplots(2, 1, sharex=True, height_ratios=(max(2, len(layers)), 4))
    for row, layer in enumerate(reversed(layers)):
        out = [(outage.began_s - origin_s, max(outage.length_s(until_s), 0.15)) for outage in layer.outages]
        colours = [COLOURS["up"], *(COLOURS[_kind(outage, until_s)] for outage in layer.outages)]
        bars.broken_barh([(0, until_s - origin_s), *out], (row - 0.35, 0.7), color=colours)
    bars.set_yticks(range(len(layers)), [layer.layer for layer in reversed(layers)])
    for axes in (bars, below):
        for strike in said.strikes:
            end_s = strike.healed_s if strike.healed_s is not None else until_s
            axes.axvspan(strike.inject_s - origin_s, end_s - origin_s, color=COLOURS["fault"], alpha=0.15, lw=0)
    for name, (when_s, latency_s) in latencies.items():
        below.plot([at_s - origin_s for at_s in when_s], latency_s, ".", markersize=2, label=name, rasterized=True)
    below.set(xlabel="seconds", ylabel="answered after, s", yscale="log", xlim=(0, until_s - origin_s))
    below.yaxis.set(major_formatter="{x:g}", minor_formatter=NullFormatter())
    if latencies:
        below.legend(loc="upper right", markerscale=4)
    struck = "; ".join(f"{strike.name} of {', '.join(strike.targets)}" for strike in said.strikes) or "nothing broken"
    bars.set_title(f"{history.header.drill}: {struck} (grey) - {said.finding.verdict}", loc="left")
    held = f"held back, under {PATIENCE_S:g} s (pages {PAGE_PATIENCE_S:g} s)"
    keys = {"up": "answered", "held": held, "some": "failed some", "all": "failed all"}
    figure.legend([Patch(color=COLOURS[key]) for key in keys], list(keys.values()), loc="lower center", ncols=4)
    figure.savefig(file, metadata={"Date": None})


def _kind(outage: Outage, until_s: float) -> str:
    if held_back(outage, until_s):
        return "held"
    return "all" if outage.total else "some"


def _latencies(history: History, layer: str) -> tuple[Sequence[float], Sequence[float]] | None:
    events = [*history.of(Probe), *(write.as_probe for write in history.of(Write))]
    found = [
        (event.intended_s, max(event.ended_s - event.intended_s, LEAST_S))
        for event in events
        if event.layer == layer and event.ok
    ]
    return ([at_s for at_s, _ in found], [latency_s for _, latency_s in found]) if found else None
