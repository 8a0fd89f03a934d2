"""The figures of the report card: sweeps, reliability, histograms of scores, and the suites' own pictures. No torch."""

import numpy as np
from markupsafe import Markup

from cutmix.report.figures import Axis, Curve, key, lines, outlines, reliability
from cutmix.report.metrics import measure_of
from cutmix.report.page import HTML, link, picture
from cutmix.report.paired import read_arrays
from cutmix.report.tables import Card, Key, anchor, notes
from cutmix.runs.read import groups


def curves(card: Card, sweeps: dict[tuple[str, str], list[Key]], *, small: bool = False) -> Markup:
    """Return a plot for each sweep, all runs in it; nothing without sweeps."""
    if not sweeps:
        return Markup("")
    plots, widest = [], 0.0
    for (name, of), rows in sweeps.items():
        measure, scale = measure_of(name), 255 if measure_of(name).at == "ε" else 1
        title = measure.label + (f", {of}" if of else "")
        drawn, said = [], []
        for run in card.runs:
            found = [card.rows[row][run.label] for row in rows if run.label in card.rows[row]]
            points = [(line["at"] * scale, line["value"]) for line in found if line["value"] is not None]
            if not points:
                continue
            xs, ys = zip(*points, strict=True)
            drawn.append(Curve(xs, ys, card.styles[run.group]))
            said.append(f"{run.label}: " + ", ".join(f"{y:.{measure.digits}f} at {x:g}" for x, y in points))
            widest = max([widest, *((line["high"] - line["low"]) / 2 for line in found if line.get("low") is not None)])
        axis, xlabel = _AXES[measure.at]
        ylabel = "error, %" if name.endswith("_err") else "share of pairs, %"
        alt = f"{title}, by {xlabel}. {'; '.join(said)}."
        plots.append((title, lines(drawn, xlabel=xlabel, ylabel=ylabel, alt=alt, axis=axis, from_zero=True)))
    caption = Markup("{}. The 95 % intervals of the points are at most ±{:.1f} points wide.").format(
        Markup(", ").join(link(anchor(name), measure_of(name).label) for name in dict.fromkeys(n for n, _ in sweeps)),
        widest,
    )
    figure = HTML.curves(_legend(card), plots, caption, small)
    return Markup(figure) + notes(card, [row for rows in sweeps.values() for row in rows if row.name != "fgsm_err"])


_AXES: dict[str, tuple[Axis, str]] = {
    "ε": ("doubling", "ε, in 1/255 of the pixels’ range"),
    "side": ("whole", "side of the square, pixels"),
    "λ": ("share", "λ, share of the first image"),
    "severity": ("whole", "severity"),
    "threshold": ("share", "threshold"),
}


def reliability_of(card: Card) -> Markup:
    """Return the reliability diagram of all runs, and how many images are how sure."""
    drawn, sure, said, counted = [], [], [], []
    for run in card.runs:
        table = read_arrays(run.arrays(card.suite)).get("reliability")
        if table is None:
            continue
        style = card.styles[run.group]
        full = table[table[:, 2] > 0]
        drawn.append(Curve((100 * full[:, 3]).tolist(), (100 * full[:, 4]).tolist(), style))
        edges = (100 * np.append(table[:, 0], table[-1, 1])).tolist()
        sure.append(Curve(edges, (100 * table[:, 2] / table[:, 2].sum()).tolist(), style))
        said.append(f"{run.label}: " + ", ".join(f"{100 * b:.0f} at {100 * a:.0f}" for a, b in full[:, 3:]))
        counted.append(f"{run.label}: {sure[-1].y[-1]:.0f} % of the images above {edges[-2]:.0f} %.")
    if not drawn:
        return Markup("")
    alt = f"Accuracy by mean confidence of the bins, in per cent. {'; '.join(said)}."
    plots = [
        ("Reliability diagram", reliability(drawn, alt=alt)),
        (
            "How sure the network is",
            outlines(sure, xlabel="confidence, %", ylabel="images, %", alt=f"Confidences. {' '.join(counted)}"),
        ),
    ]
    caption = (
        "Accuracy against mean confidence of the images in each bin; on the thin diagonal both are the same, below it "
        "the network is over-confident. Bins that hold few images are noise: how many each holds is shown beside."
    )
    return Markup(HTML.curves(_legend(card), plots, caption))


def histograms(card: Card) -> Markup:
    """Return the scores of the test images and of each other set, a figure for each run."""
    body = Markup("")
    edges = np.linspace(0, 1, 26)
    for run in card.runs:
        arrays = read_arrays(run.arrays(card.suite))
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
        caption = f"{run.label}: how sure the network is of its own test images and of others; apart is better."
        body += Markup(HTML.curves(legend, plots, caption, True))
    return body


def _legend(card: Card) -> list[tuple[Markup, str]]:
    return [
        (key(card.styles[name]), name + (f" ({len(members)} runs)" if len(members) > 1 else ""))
        for name, members in groups(card.runs).items()
    ]


def pictures(card: Card) -> Markup:
    """Return the pictures that the suite drew for each run."""
    items = []
    for run in card.runs:
        prefix = run.arrays(card.suite).stem
        for path in sorted((run.folder / "pictures").glob(f"{prefix}-*.png")):
            said = f"{run.label}: {path.stem.removeprefix(f'{prefix}-').replace('-', ' ')}"
            items.append(picture(path.read_bytes(), path, alt=f"Pictures of {said}", caption=said))
    return Markup(HTML.images(items)) if items else Markup("")
