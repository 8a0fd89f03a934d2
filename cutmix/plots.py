"""Figures for a page: matplotlib drawings as inline SVG that take their text colour from the page around them."""

import io
import re
from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import sha256
from typing import Any

from markupsafe import Markup
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

# Each has a contrast of at least 3:1 with white and with the page's dark ground (WCAG 2.2, 1.4.11).
COLOURS = ("#2e7fd0", "#d4622a", "#1d9a70", "#b3589f", "#a8801a", "#d34a5c", "#6b7f95")
LINES = ("-", "--", "-.", ":")
MARKERS = ("o", "s", "^", "D", "v")

_FOREGROUND = "#010203"  # replaced by currentColor; no drawing uses it otherwise
_STYLE: Any = {
    "svg.fonttype": "none",  # text stays text: it can be selected, and takes the page's font
    "svg.hashsalt": "cutmix",  # the same figure gives the same bytes
    "font.size": 11,
    "lines.linewidth": 1.8,
    "lines.markersize": 4.5,
    **dict.fromkeys(("text.color", "axes.labelcolor", "axes.edgecolor", "xtick.color", "ytick.color"), _FOREGROUND),
    **dict.fromkeys(("axes.spines.top", "axes.spines.right"), False),
}


@dataclass(frozen=True)
class Curve:
    """One line of a plot.

    Attributes:
        x: positions, rising.
        y: values.
        style: which of the styles; the same number looks the same in every figure and in its `key`.
    """

    x: Sequence[float]
    y: Sequence[float]
    style: int


@rc_context(_STYLE)
def lines(curves: Sequence[Curve], *, xlabel: str, ylabel: str, alt: str) -> Markup:
    """A line plot as `<svg>`, told apart by colour, dashes and markers; the legend is the page's, made of `key`.

    Args:
        curves: what to draw; empty ones are left out.
        xlabel: what the horizontal axis counts in whole numbers.
        ylabel: what the vertical axis is, with its unit.
        alt: what a reader who does not see the figure is told.
    """
    figure = Figure(figsize=(5.2, 3.4), layout="constrained")
    axes = figure.add_subplot()
    axes.grid(axis="y", linewidth=0.6, alpha=0.2, color=_FOREGROUND)
    axes.xaxis.set_major_locator(MaxNLocator("auto", integer=True))
    axes.set_xlabel(xlabel)
    axes.set_ylabel(ylabel)
    for curve in curves:
        _draw(axes, curve)
    return _svg(figure, alt)


@rc_context(_STYLE)
def key(style: int) -> Markup:
    """The sample of a curve's style that stands before its name in a legend, as a small decorative `<svg>`."""
    figure = Figure(figsize=(0.6, 0.2))
    axes = figure.add_axes((0, 0, 1, 1))
    axes.axis("off")
    _draw(axes, Curve((0, 1, 2), (0, 0, 0), style), marked=[1])
    return _svg(figure, None)


def _draw(axes: Axes, curve: Curve, marked: Sequence[int] | int | None = None) -> None:
    axes.plot(
        curve.x,
        curve.y,
        color=COLOURS[curve.style % len(COLOURS)],
        linestyle=LINES[curve.style % len(LINES)],
        marker=MARKERS[curve.style % len(MARKERS)],
        markevery=marked or max(1, len(curve.x) // 10),
    )


def _svg(figure: Figure, alt: str | None) -> Markup:
    buffer = io.StringIO()
    metadata = dict.fromkeys(("Creator", "Date", "Format", "Type"))
    figure.savefig(buffer, format="svg", transparent=True, metadata=metadata)
    svg = buffer.getvalue().replace(_FOREGROUND, "currentColor")
    width, height = figure.get_size_inches() * 72
    content = svg[svg.index("</defs>") + len("</defs>") :]  # without the prologue and a style that is for all of a page
    content = re.sub(r' style="fill: none"/>', ' fill="none"/>', content)
    content = re.sub(r"font-family: [^;\"]*;? ?", "", content)
    content = re.sub(r'<g id="[^"]*"', "<g", content)
    prefix = "f" + sha256(svg.encode()).hexdigest()[:8]  # two figures in a page must not share an id
    content = re.sub(r'(\bid="|xlink:href="#|url\(#)', rf"\g<1>{prefix}-", content).replace("xlink:href", "href")
    meaning = Markup('role="img" aria-label="{}"').format(alt) if alt else Markup('aria-hidden="true"')
    opening = Markup('<svg viewBox="0 0 {:g} {:g}" width="{:g}" height="{:g}" stroke-linejoin="round" {}>')
    return opening.format(width, height, width, height, meaning) + Markup(content)
