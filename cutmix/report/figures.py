"""Figures for a page: matplotlib drawings as inline SVG that take their text colour from the page around them."""

import io
import re
from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import sha256
from typing import Any, Literal

from markupsafe import Markup
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FormatStrFormatter, MaxNLocator, NullLocator

# Each has a contrast of at least 3:1 with white and with the page's dark ground (WCAG 2.2, 1.4.11).
COLOURS = ("#2e7fd0", "#d4622a", "#1d9a70", "#b3589f", "#a8801a", "#d34a5c", "#6b7f95")
LINES = ("-", "--", "-.", ":")
MARKERS = ("o", "s", "^", "D", "v")

Axis = Literal["whole", "share", "doubling"]

_SIZE = (5.2, 3.4)  # inches of a figure
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
        x: positions, rising; of a histogram the edges of its bins, one more than there are values.
        y: values.
        style: which of the styles; the same number looks the same in every figure and in its `key`.
    """

    x: Sequence[float]
    y: Sequence[float]
    style: int


@rc_context(_STYLE)
def lines(
    curves: Sequence[Curve],
    *,
    xlabel: str,
    ylabel: str,
    alt: str,
    axis: Axis = "whole",
    from_zero: bool = False,
) -> Markup:
    """A line plot as `<svg>`, told apart by colour, dashes and markers; the legend is the page's, made of `key`.

    Args:
        curves: what to draw; empty ones are left out.
        xlabel: what the horizontal axis is.
        ylabel: what the vertical axis is, with its unit.
        alt: what a reader who does not see the figure is told.
        axis: the horizontal axis counts in whole numbers, is a share from 0 to 1, or has 0 and doublings of 1 at equal
            distances.
        from_zero: the vertical axis starts at 0.
    """
    figure, axes = _axes(xlabel, ylabel)
    if axis == "doubling":
        ticks = sorted({x for curve in curves for x in curve.x})
        axes.set_xscale("symlog", base=2, linthresh=1)
        axes.xaxis.set_major_locator(FixedLocator(ticks))
        axes.xaxis.set_minor_locator(NullLocator())
        axes.xaxis.set_major_formatter(FormatStrFormatter("%g"))
    elif axis == "share":
        axes.xaxis.set_major_locator(FixedLocator((0, 0.25, 0.5, 0.75, 1)))
    elif len(places := {x for curve in curves for x in curve.x}) == 1:  # around which there is no whole number
        axes.xaxis.set_major_locator(FixedLocator(list(places)))
    else:
        axes.xaxis.set_major_locator(MaxNLocator("auto", integer=True))
    for curve in curves:
        _draw(axes, curve)
    if from_zero:
        axes.set_ylim(bottom=0)
    return _svg(figure, alt)


@rc_context(_STYLE)
def reliability(curves: Sequence[Curve], *, alt: str) -> Markup:
    """A reliability diagram as `<svg>`: accuracy over confidence, both in per cent, with the diagonal.

    Args:
        curves: mean confidence and accuracy of the bins that hold images.
        alt: what a reader who does not see the figure is told.
    """
    figure, axes = _axes("mean confidence, %", "accuracy, %")
    axes.plot((0, 100), (0, 100), color=_FOREGROUND, alpha=0.5, linewidth=1)
    axes.set_xlim(0, 103)
    axes.set_ylim(0, 103)
    for curve in curves:
        _draw(axes, curve, marked=1)
    return _svg(figure, alt)


@rc_context(_STYLE)
def outlines(histograms: Sequence[Curve], *, xlabel: str, ylabel: str, alt: str, small: bool = False) -> Markup:
    """Histograms as `<svg>`: steps, told apart by colour and dashes.

    Args:
        histograms: the edges of the bins for x, rising, and one value fewer for y, the height of each bin.
        xlabel: what is counted.
        ylabel: what the heights are.
        alt: what a reader who does not see the figure is told.
        small: one of many figures of their kind.
    """
    figure, axes = _axes(xlabel, ylabel, (3, 2.3) if small else _SIZE)
    for each in histograms:
        colour, dashes = COLOURS[each.style % len(COLOURS)], LINES[each.style % len(LINES)]
        axes.stairs(each.y, each.x, linewidth=1.8, baseline=0, color=colour, linestyle=dashes)
    axes.set_xlim(min(each.x[0] for each in histograms), max(each.x[-1] for each in histograms))
    axes.set_ylim(bottom=0)
    axes.yaxis.set_major_locator(MaxNLocator(4))
    return _svg(figure, alt)


@rc_context(_STYLE)
def key(style: int, *, marker: bool = True) -> Markup:
    """The sample of a curve's style that stands before its name in a legend, as a small decorative `<svg>`."""
    figure = Figure(figsize=(0.6, 0.2))
    axes = figure.add_axes((0, 0, 1, 1))
    axes.axis("off")
    _draw(axes, Curve((0, 1, 2), (0, 0, 0), style), marked=[1] if marker else [])
    return _svg(figure, None)


def _axes(xlabel: str, ylabel: str, size: tuple[float, float] = _SIZE) -> tuple[Figure, Axes]:
    figure = Figure(figsize=size, layout="constrained")
    axes = figure.add_subplot()
    axes.grid(axis="y", linewidth=0.6, alpha=0.2, color=_FOREGROUND)
    axes.set_xlabel(xlabel)
    axes.set_ylabel(ylabel)
    return figure, axes


def _draw(axes: Axes, curve: Curve, marked: Sequence[int] | int | None = None) -> None:
    axes.plot(
        curve.x,
        curve.y,
        color=COLOURS[curve.style % len(COLOURS)],
        linestyle=LINES[curve.style % len(LINES)],
        marker=MARKERS[curve.style % len(MARKERS)],
        markevery=max(1, len(curve.x) // 10) if marked is None else marked,
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
