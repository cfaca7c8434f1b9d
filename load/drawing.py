"""What pictures of a page have in common: one style, and the page's own ink."""

import io
from collections.abc import Mapping, Sequence
from typing import Any

from markupsafe import Markup
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullFormatter, StrMethodFormatter

INK, FIRST, SECOND, BAD, FAULT = "#010203", "#2f7ebc", "#d9822b", "#c0392b", "#8a94a0"
COLOURS = (FIRST, SECOND, BAD, FAULT)
FONT_PT = 9  # 12 px where a picture is as wide as it was drawn; the page makes it no narrower


def figure(count: int, heights: Sequence[float] | None = None) -> tuple[Figure, Sequence[Axes]]:
    """One of `count` axes above each other, in the page's style."""
    inked = ("text.color", "axes.labelcolor", "xtick.color", "ytick.color", "axes.edgecolor")
    style: Mapping[str, Any] = {"font.family": "sans-serif", "font.size": FONT_PT} | dict.fromkeys(inked, INK)
    with rc_context(dict(style)):  # type: ignore[arg-type]
        made = Figure(figsize=(8, 3.2 if count == 1 else 4.6))
        axes = made.subplots(count, 1, sharex=True, squeeze=False, height_ratios=heights)
    for each in axes[:, 0]:
        each.spines[["top", "right"]].set_visible(False)
        each.grid(color=FAULT, alpha=0.25, linewidth=0.6)
    return made, list(axes[:, 0])


def legend(axes: Axes) -> None:
    """Above, where it covers nothing, and at the left, where a narrow screen begins."""
    axes.legend(loc="lower left", bbox_to_anchor=(0, 1), frameon=False, fontsize=FONT_PT, ncols=6, labelcolor=INK)


def logarithmic(axes: Axes) -> None:
    """With ticks that people read: 50, 100, 200, 500."""
    axes.set_yscale("log")
    axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.yaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
    axes.yaxis.set_minor_formatter(NullFormatter())


def svg(made: Figure) -> Markup:
    """As a part of the page: as wide as that, and its ink the page's own, in the dark as well."""
    text = io.StringIO()
    with rc_context({"svg.fonttype": "none", "svg.hashsalt": "haproof"}):
        made.savefig(text, format="svg", transparent=True, bbox_inches="tight", metadata={"Date": None})
    drawn = text.getvalue()
    return Markup(drawn[drawn.index("<svg") :].replace(INK, "currentColor"))
