"""Figures for a page: matplotlib drawings as inline SVG that take their text colour from the page around them."""

import io
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from hashlib import sha256
from typing import Any, Literal

import numpy as np
from markupsafe import Markup
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FormatStrFormatter, MaxNLocator, NullLocator

from cutmix.report.metrics import metric_of
from cutmix.report.page import HTML, Card, Key, anchor, figure, link, notes
from cutmix.runs.read import Run, groups
from cutmix.runtime.files import read_arrays, regular

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
    """One line of a plot."""

    x: Sequence[float]  # ascending positions; the edges of a histogram's bins, one more than there are values
    y: Sequence[float]  # values
    style: int  # number of the style, the same in every figure and in its ``key``


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
    """Return a line plot as ``<svg>``; lines differ in colour, dashes and markers, and ``key`` makes the legend.

    ``alt`` describes the figure for a screen reader. The ticks of the horizontal axis are whole numbers, a share from 0
    to 1, or 0 and doublings of 1 at equal distances.
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
    elif len(places := {x for curve in curves for x in curve.x}) == 1:  # with no whole numbers around it
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
    """Return a reliability diagram as ``<svg>``: accuracy over mean confidence, both in per cent, with the diagonal."""
    figure, axes = _axes("mean confidence, %", "accuracy, %")
    axes.plot((0, 100), (0, 100), color=_FOREGROUND, alpha=0.5, linewidth=1)
    axes.set_xlim(0, 103)
    axes.set_ylim(0, 103)
    for curve in curves:
        _draw(axes, curve, marked=1)
    return _svg(figure, alt)


@rc_context(_STYLE)
def outlines(histograms: Sequence[Curve], *, xlabel: str, ylabel: str, alt: str, small: bool = False) -> Markup:
    """Return histograms as ``<svg>``: steps that differ in colour and dashes; ``small`` for one of many figures."""
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
    """Return a sample of a style for a legend, as a small decorative ``<svg>``."""
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


# ---- curves ----
# Metrics and losses by epoch, all runs of a task in the same plots.


def learning_curves(
    runs: Sequence[Run], styles: Mapping[str, int], figures: Sequence[tuple[str, str, str]], caption: str
) -> Markup:
    """Return a plot for each title, field of the log and name of the axis, with one style for the seeds of a recipe.

    Runs of evaluated files have no curve; the result is empty if no run has logged an epoch.
    """
    runs = [run for run in runs if run.epochs and not run.evaluated]
    if not runs:
        return Markup("")
    by_recipe = groups(runs)
    legend = [
        (key(styles[name]), name + (f" ({len(members)} runs)" if len(members) > 1 else ""))
        for name, members in by_recipe.items()
    ]
    plots = []
    for title, field, unit in figures:
        curves = [_curve(run, field, styles[run.group]) for members in by_recipe.values() for run in members]
        alt = f"{title} by epoch. " + " ".join(_spoken(run, field) for run in runs)
        plots.append((title, lines(curves, xlabel="epoch", ylabel=unit, alt=alt)))
    return Markup(HTML.curves(legend, plots, caption))


def _curve(run: Run, field: str, style: int) -> Curve:
    logged = [entry for entry in run.epochs if entry.get(field) is not None]
    return Curve([entry["epoch"] for entry in logged], [entry[field] for entry in logged], style)


def _spoken(run: Run, field: str) -> str:
    """Return the first and the last value of a curve in words."""
    curve = _curve(run, field, 0)
    if not curve.x:
        return f"{run.label}: not run."
    return f"{run.label}: {curve.y[0]:.3g} at epoch {curve.x[0]}, {curve.y[-1]:.3g} at epoch {curve.x[-1]}."


# ---- card figures ----
# Sweeps, reliability diagrams, histograms of scores, and the images that a suite has drawn.


def curves(card: Card, sweeps: dict[tuple[str, str], list[Key]], *, small: bool = False) -> Markup:
    """Return a plot for each sweep, all runs in it; nothing without sweeps."""
    if not sweeps:
        return Markup("")
    plots, widest = [], 0.0
    for (name, of), rows in sweeps.items():
        metric, scale = metric_of(name), 255 if metric_of(name).at == "ε" else 1
        title = metric.label + (f", {of}" if of else "")
        drawn, descriptions = [], []
        for run in card.runs:
            found = [card.rows[row][run.label] for row in rows if run.label in card.rows[row]]
            points = [(line.at * scale, line.value) for line in found if line.at is not None and line.value is not None]
            if not points:
                continue
            xs, ys = zip(*points, strict=True)
            drawn.append(Curve(xs, ys, card.styles[run.group]))
            descriptions.append(f"{run.label}: " + ", ".join(f"{y:.{metric.digits}f} at {x:g}" for x, y in points))
            widest = max([widest, *((x.high - x.low) / 2 for x in found if x.low is not None and x.high is not None)])
        axis, xlabel = _AXES[metric.at]
        ylabel = "error, %" if name.endswith("_err") else "share of pairs, %"
        alt = f"{title}, by {xlabel}. {'; '.join(descriptions)}."
        plots.append((title, lines(drawn, xlabel=xlabel, ylabel=ylabel, alt=alt, axis=axis, from_zero=True)))
    caption = Markup("{}. The 95 % intervals of the points are at most ±{:.1f} points wide.").format(
        Markup(", ").join(link(anchor(name), metric_of(name).label) for name in dict.fromkeys(n for n, _ in sweeps)),
        widest,
    )
    figure = HTML.curves(_legend(card), plots, caption, small)
    return Markup(figure) + notes(card, [row for rows in sweeps.values() for row in rows if row.name != "fgsm_err"])


_AXES: dict[str, tuple[Axis, str]] = {
    "ε": ("doubling", "ε, in 1/255 of the pixels’ range"),
    "side": ("whole", "side of the square, pixels"),
    "side kept": ("whole", "side of the square that is kept, pixels"),
    "λ": ("share", "λ, share of the first image"),
    "severity": ("whole", "severity"),
    "threshold": ("share", "threshold"),
}


def reliability_of(card: Card) -> Markup:
    """Return the reliability diagram and the histogram of confidences of all runs."""
    drawn, sure, descriptions, counted = [], [], [], []
    for run in card.runs:
        path = run.arrays(card.suite)
        table = read_arrays(path).get("reliability") if path.is_file() else None
        if table is None:
            continue
        style = card.styles[run.group]
        full = table[table[:, 2] > 0]
        drawn.append(Curve((100 * full[:, 3]).tolist(), (100 * full[:, 4]).tolist(), style))
        edges = (100 * np.append(table[:, 0], table[-1, 1])).tolist()
        sure.append(Curve(edges, (100 * table[:, 2] / table[:, 2].sum()).tolist(), style))
        descriptions.append(f"{run.label}: " + ", ".join(f"{100 * b:.0f} at {100 * a:.0f}" for a, b in full[:, 3:]))
        counted.append(f"{run.label}: {sure[-1].y[-1]:.0f} % of the images above {edges[-2]:.0f} %.")
    if not drawn:
        return Markup("")
    alt = f"Accuracy by mean confidence of the bins, in per cent. {'; '.join(descriptions)}."
    plots = [
        ("Reliability diagram", reliability(drawn, alt=alt)),
        (
            "Confidence of the predictions",
            outlines(sure, xlabel="confidence, %", ylabel="images, %", alt=f"Confidences. {' '.join(counted)}"),
        ),
    ]
    caption = (
        "Accuracy against mean confidence of the images in each bin; on the thin diagonal both are the same, below it "
        "the model is overconfident. Bins with few images are noisy; the histogram shows their sizes."
    )
    return Markup(HTML.curves(_legend(card), plots, caption))


def histograms(card: Card) -> Markup:
    """Return the scores of the test images and of each other set, a figure for each run."""
    body = Markup("")
    edges = np.linspace(0, 1, 26)
    for run in card.runs:
        path = run.arrays(card.suite)
        arrays = read_arrays(path) if path.is_file() else {}
        sets = {name.partition("/")[2]: name for name in arrays if name.startswith("max-softmax/")}
        scores = {of: np.exp(arrays[name]) for of, name in sets.items()}
        own = scores.pop("id", None)
        if own is None or not scores:
            continue
        plots = []
        for of, other in scores.items():
            both = [
                Curve(edges.tolist(), (100 * np.histogram(each, edges)[0] / len(each)).tolist(), style)
                for style, each in enumerate((own, other))
            ]
            alt = (
                f"Largest softmax probabilities of {run.label}. Test images: median {np.median(own):.2f}; {of}: median "
                f"{np.median(other):.2f}."
            )
            axes = {"xlabel": "largest softmax probability", "ylabel": "images, %"}
            plots.append((of, outlines(both, **axes, alt=alt, small=True)))
        legend = [(key(0, marker=False), f"test images of {run.data}"), (key(1, marker=False), "the other set")]
        caption = f"{run.label}: confidence for the run’s own test images and for other images; less overlap is better."
        body += Markup(HTML.curves(legend, plots, caption, True))
    return body


def _legend(card: Card) -> list[tuple[Markup, str]]:
    return [
        (key(card.styles[name]), name + (f" ({len(members)} runs)" if len(members) > 1 else ""))
        for name, members in groups(card.runs).items()
    ]


def suite_figures(card: Card) -> Markup:
    """Return the images that the suite drew for each run."""
    items = []
    for run in card.runs:
        prefix = run.arrays(card.suite).stem
        for path in sorted((run.folder / "figures").glob(f"{prefix}-*.png")):
            caption = f"{run.label}: {path.stem.removeprefix(f'{prefix}-').replace('-', ' ')}"
            items.append(figure(regular(path).read_bytes(), path, alt=f"Images of {caption}", caption=caption))
    return Markup(HTML.images(items)) if items else Markup("")
