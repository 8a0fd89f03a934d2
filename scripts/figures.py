"""Draw the figures of README.md and docs/ from the files in results/: ``python scripts/figures.py``."""

import re
from collections.abc import Iterable
from statistics import fmean
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from cells import MODELS, RESULTS, ROOT
from claims import Evidence, read_claims
from cutmix.runtime.files import read_lines
from cutmix.statistics import LEVEL, holm
from tables import ARMS, CHANCE, FEW, LABELS, LAYERS, TABLES, VARIANTS, between, few, of_setting

SMMIX = "smmix:alpha=0.8,mix-prob=0.5"
COLOURS = {"none": "#6b7f95", "mixup": "#1d9a70", "cutmix": "#d4622a", SMMIX: "#7a52b3"}
MARKERS = {2400: "^", 3200: "o", 6400: "s", 12800: "D"}  # of optimizer steps
NAMES = {"none": "no mixing", "mixup": "Mixup", "cutmix": "CutMix", SMMIX: "SMMix"}


def axes(width: float, height: float, count: int = 1, rows: int = 1) -> tuple[Figure, list[Axes]]:
    """Return a figure with axes side by side, row by row."""
    figure = Figure(figsize=(width, height), dpi=110, layout="constrained")
    made = [figure.add_subplot(rows, count, index + 1) for index in range(rows * count)]
    for each in made:
        _plain(each)
    return figure, made


def _plain(axis: Axes) -> None:
    axis.spines[["top", "right"]].set_visible(False)
    axis.grid(alpha=0.3)
    axis.tick_params(labelsize=8)


def save(figure: Figure, name: str) -> None:
    """Write a figure to docs/images/."""
    figure.savefig(ROOT / "docs" / "images" / f"{name}.png", metadata={"Software": None})


def pair() -> None:
    """Draw test error and training loss by epoch of the CIFAR-100 pair."""
    records = read_lines(RESULTS / "cifar100-resnet20.log.jsonl")
    figure, panels = axes(8, 3, 2)
    titles = {"top1_err": "top-1 test error (%)", "train_loss": "training loss (of mixed labels under CutMix)"}
    for axis, (field, title) in zip(panels, titles.items(), strict=True):
        for recipe, style in zip(dict.fromkeys(r["recipe"] for r in records), ("o-", "s--"), strict=True):
            points = [(r["epoch"], r[field]) for r in records if r["recipe"] == recipe]
            axis.plot(*zip(*points, strict=True), style, label=recipe, markersize=3, linewidth=1.2)
        axis.xaxis.set_major_locator(MaxNLocator(integer=True))
        axis.set_xlabel("epoch", fontsize=9)
        axis.set_title(title, fontsize=9)
    panels[-1].legend(fontsize=8)
    save(figure, "cifar100-resnet20")


def gain() -> None:
    """Draw what CutMix gains by the number of training images of a class, with intervals, a line for each setting."""
    figure, (axis,) = axes(7.5, 4.6)
    axis.axhline(0, color="black", linewidth=0.8)
    found = [(key, one) for key in FEW for one in few(*key)]
    adjusted = holm([one["difference"]["p"] for _, one in found])
    lines: dict[tuple[tuple[str, str], int], list[tuple[dict[str, Any], bool]]] = {}
    for (key, one), p in zip(found, adjusted, strict=True):
        asked = min(MARKERS, key=lambda steps: abs(steps - one["steps"]))  # training ends with a whole epoch
        lines.setdefault((key, asked), []).append((one, p < LEVEL))
    for index, ((key, steps), line) in enumerate(lines.items()):
        line.sort(key=lambda each: each[0]["per_class"])
        beside = 1.04 ** (index - (len(lines) - 1) / 2)
        points = [(one["per_class"] * beside, one["difference"], shown) for one, shown in line]
        data, model = FEW[key]
        label = f"{model}, {steps:,} steps" + ("" if data == "CIFAR-100" else f", {data.partition(',')[0]}")
        _intervals(axis, points, label, f"C{list(FEW).index(key)}", MARKERS[steps])
    sizes = sorted({one["per_class"] for _, one in found})
    axis.set_xscale("log")
    axis.set_xticks(sizes, [f"{size}" for size in sizes])
    axis.minorticks_off()
    axis.set_xlabel("training images per class (CIFAR-100 if no other); filled: p < 0.05, adjusted", fontsize=9)
    axis.set_ylabel("accuracy gained by CutMix (points)", fontsize=9)
    figure.legend(fontsize=8, loc="outside lower center", ncols=3)
    save(figure, "gain")


def _intervals(
    axis: Axes, points: list[tuple[float, dict[str, float], bool]], label: str, colour: str, marker: str
) -> None:
    """Draw a line of gains, which are falls of the error, with their intervals; a significant one is filled."""
    axis.plot([x for x, *_ in points], [-one["value"] for _, one, _ in points], "-", color=colour, linewidth=1.2)
    for x, one, shown in points:
        spread = [[one["high"] - one["value"]], [one["value"] - one["low"]]]
        filling = colour if shown else "white"
        axis.errorbar(x, -one["value"], spread, fmt=marker, color=colour, capsize=4, linewidth=1.4, markersize=6,
                      markerfacecolor=filling)  # fmt: skip
    axis.plot([], [], f"{marker}-", color=colour, markersize=6, label=label)


def methods(name: str, drawn: Iterable[str], *setting: Any) -> None:
    """Draw what each of some methods gains against no mixing.

    The setting is the name of the experiment, its baseline, the model, the images per class and the steps.
    """
    compared = of_setting(*setting)
    found = [one for one in compared if one["method"] in drawn]
    found.sort(key=lambda one: -list(LABELS).index(one["method"]))
    figure, (axis,) = axes(7, 0.8 + 0.3 * len(found))
    axis.axvline(0, color="black", linewidth=0.8)
    adjusted = holm([one["difference"]["p"] for one in found])
    for y, (one, p) in enumerate(zip(found, adjusted, strict=True)):
        d = one["difference"]
        spread = [[d["high"] - d["value"]], [d["value"] - d["low"]]]
        kind = one["method"].removeprefix("feature-").partition(":")[0].partition("-")[0]
        colour = COLOURS.get(kind, COLOURS["none"])
        axis.errorbar(-d["value"], y, xerr=spread, fmt="o", color=colour, capsize=4, linewidth=1.6,
                      markerfacecolor=colour if p < LEVEL else "white")  # fmt: skip
    axis.set_yticks(range(len(found)), [LABELS[one["method"]] for one in found], fontsize=8)
    axis.set_ylim(-0.6, len(found) - 0.4)
    axis.set_xlabel("accuracy gained (points); filled: p < 0.05, adjusted for the table", fontsize=9)
    save(figure, name)


def subsets() -> None:
    """Draw training and test error, and the test loss, by step of the runs on few images, a figure for each model."""
    for model in MODELS:
        found = [one for one in between("cifar100-subsets", "none", "cutmix") if one["model"] == model]
        columns = min(len(found), 4)
        pairs = -(-len(found) // columns)  # of rows: errors above losses
        figure, panels = axes(0.6 + 2.8 * columns, 5 * pairs, columns, 2 * pairs)
        for index in range(pairs * columns):
            upper = 2 * columns * (index // columns) + index % columns
            if index < len(found):
                _by_step(found[index], panels[upper], panels[upper + columns])
            else:
                panels[upper].set_visible(False)
                panels[upper + columns].set_visible(False)
        for row in range(0, len(panels), 2 * columns):
            panels[row].set_ylabel(f"{MODELS[model]}: top-1 error (%)", fontsize=9)
            panels[row + columns].set_ylabel("test loss", fontsize=9)
        panels[0].legend(fontsize=7, loc="center right")
        save(figure, f"subsets-{model}")


def _by_step(one: dict[str, Any], upper: Axes, lower: Axes) -> None:
    """Draw the errors and the test loss of the runs of a comparison, a line for each seed."""
    runs: dict[tuple[str, int], list[dict[str, Any]]] = {}
    for line in read_lines(RESULTS / "cifar100-subsets.log.jsonl"):
        same = all(line[key] == one[key] for key in ("model", "per_class", "steps"))
        if same and line["method"] in ("none", "cutmix"):
            runs.setdefault((line["method"], line["seed"]), []).append(line)
    for (method, seed), run in runs.items():
        for axis, field, style, name in (
            (upper, "top1_err", "-", "test"), (upper, "train_err", "--", "training"), (lower, "test_loss", "-", "test"),
        ):  # fmt: skip
            label = f"{NAMES[method]}, {name}" if seed == 0 else None
            points = [(line["step"], line[field]) for line in run]
            axis.plot(*zip(*points, strict=True), style, color=COLOURS[method], linewidth=1.3, label=label)
    upper.set_title(f"{one['per_class']} images per class, {one['steps']:,} steps", fontsize=9)
    upper.set_ylim(0, 100)
    lower.set_ylim(1.5, 9)
    for axis in (upper, lower):
        axis.xaxis.set_major_locator(MaxNLocator(4))
    lower.set_xlabel("optimizer step", fontsize=9)


def by_seed(experiment: str) -> None:
    """Draw the test errors of an experiment's methods: a point for each seed, a bar for their mean."""
    log = read_lines(RESULTS / f"{experiment}.log.jsonl")
    settings = sorted({(line["per_class"], line["steps"]) for line in log})
    figure, panels = axes(1 + 2.6 * len(settings), 3, len(settings))
    for axis, setting in zip(panels, settings, strict=True):
        ended = [line for line in log if line["step"] == line["steps"]]
        last = [line for line in ended if (line["per_class"], line["steps"]) == setting]
        found = [name for name in NAMES if any(line["method"] == name for line in last)]
        for x, name in enumerate(found):
            errors = {line["seed"]: line["top1_err"] for line in last if line["method"] == name}
            axis.hlines(fmean(errors.values()), x - 0.25, x + 0.25, color=COLOURS[name], linewidth=1.4)
            for seed, error in errors.items():
                axis.plot(x + 0.12 * (seed - 1), error, "os^"[seed], color=COLOURS[name], markersize=5)
        axis.set_xticks(range(len(found)), [NAMES[name] for name in found])
        axis.set_xlim(-0.6, len(found) - 0.4)
        axis.set_title(f"{setting[0]} images per class, {last[0]['epoch']} epochs", fontsize=9)
        axis.sharey(panels[0])
    for seed, marker in enumerate("os^"):
        panels[0].plot([], [], marker, color="black", markersize=5, label=f"seed {seed}")
    panels[0].plot([], [], "-", color="black", linewidth=1.4, label="mean")
    panels[0].set_ylabel("top-1 test error (%)", fontsize=9)
    panels[0].legend(fontsize=7)
    save(figure, experiment)


CLAIMS_DRAWN = (
    ("Table 5", "Table 8", "Not in the paper: photographs"),
    ("Figure 3, α", "Figure 3, layer", "Talk", "Not in the paper: transformer"),
)
"""Tables and figures of the paper whose errors on unchanged images are drawn, in two columns."""


def claims() -> None:
    """Draw the differences of errors on the page of claims, turned so that right agrees."""
    found: dict[str, list[tuple[int, Evidence]]] = {}
    for claim in read_claims():
        found.setdefault(claim.where, []).extend((claim.sign or 1, one) for one in claim.found if one.low is not None)
    figure, columns = axes(13, 6.5, len(CLAIMS_DRAWN))
    for axis, column in zip(columns, CLAIMS_DRAWN, strict=True):
        axis.axvline(0, color="black", linewidth=0.8)
        places, labels, y = [], [], 0.0
        for where in column:
            parts = [re.split(r", |: ", one.setting) for _, one in found[where]]
            shared = [part for part in parts[0] if all(part in other for other in parts)]
            named = ", ".join(part for part in shared if part != "error").replace(" images per", " per")
            heading = f"{where.partition(':')[0]}: {named}"
            axis.text(-12.4, y, heading, fontsize=6, fontweight="bold", va="center", in_layout=False)
            for (sign, one), own in zip(found[where], parts, strict=True):
                y -= 1
                places.append(y)
                label = ", ".join(part for part in own if part not in shared)
                labels.append(label.replace(" images per", " per"))
                _claim(axis, y, sign, one)
            y -= 1.4
        axis.set_yticks(places, labels, fontsize=7)
        axis.set_ylim(y + 0.8, 0.8)
        axis.set_xlim(-12.5, 8.5)
        axis.set_xlabel("points towards the claim; right of 0 agrees", fontsize=9)
    save(figure, "claims")


def _claim(axis: Axes, y: float, sign: int, one: Evidence) -> None:
    """Draw a difference with its interval; in grey where chance is not excluded."""
    value, low, high = (sign * (each or 0) for each in (one.value, one.low, one.high))
    spread = [[value - min(low, high)], [max(low, high) - value]]
    colour = COLOURS["cutmix"] if one.p is not None and one.p < LEVEL else COLOURS["none"]
    axis.errorbar(value, y, xerr=spread, fmt="o", color=colour, capsize=3, linewidth=1.4, markersize=4)


TABLES_DRAWN = {
    "subset_suites": 1, "subset_suites_resnet18": 1, "suites": 1, "localization": 1, "localization_few": 2,
    "short": 1, "outside": 1, "defaults": 3,
}  # fmt: skip
"""Tables whose columns of numbers are drawn beside each other, with how many columns name a row."""
_NUMBER = re.compile(r"([-+]?[\d.]+)(?: \[([-+]?[\d.]+), ([-+]?[\d.]+)\])?")


def of_table(name: str) -> None:
    """Draw the differences of a table, or else all of its numbers, with their intervals: a row for each of its own."""
    lines = TABLES[name]().replace("−", "-").splitlines()
    header, _, *rows = ([cell.strip() for cell in line.strip("|").split("|")] for line in lines)
    names = TABLES_DRAWN[name]
    differs = CHANCE[0] in header
    columns = [header.index(CHANCE[0])] if differs else range(names, len(header))
    drawn = [column for column in columns if any(_NUMBER.fullmatch(row[column]) for row in rows)]
    areas = [row for row in rows if differs and row[0].startswith("AUROC")]  # of another scale: higher is better
    parts = [part for part in ([row for row in rows if row not in areas], areas) if part]
    figure = Figure(figsize=(8, 0.9 * len(parts) + 0.3 * len(rows)), dpi=110, layout="constrained")
    panels = figure.subplots(len(parts), squeeze=False, height_ratios=[len(part) + 1 for part in parts])[:, 0]
    for axis, part in zip(panels, parts, strict=True):
        _plain(axis)
        _rows(axis, part, header, drawn, names)
        other = "none" if names == 1 else "the other"
        better = "" if len(parts) == 1 else f"; better: {'right' if part is areas else 'left'}"
        axis.set_xlabel(f"CutMix less {other} (points){better}" if differs else "per cent", fontsize=9)
        if differs:
            axis.axvline(0, color="black", linewidth=0.8)
        elif len(drawn) > 1:
            axis.legend(fontsize=7)
    panels[0].set_ylabel(", ".join(header[:names]) if names > 1 and not differs else "", fontsize=9)
    save(figure, name.replace("_", "-"))


def _rows(axis: Axes, rows: list[list[str]], header: list[str], drawn: list[int], names: int) -> None:
    """Draw the numbers of some columns with their intervals, a row below the other."""
    for index, column in enumerate(drawn):
        cells = ((-y, _NUMBER.fullmatch(row[column])) for y, row in enumerate(rows))
        found = [(y, [float(end or cell[1]) for end in cell.groups()]) for y, cell in cells if cell]
        at = [y + 0.12 * ((len(drawn) - 1) / 2 - index) for y, _ in found]
        spread = [[value - low for _, (value, low, _) in found], [high - value for _, (value, _, high) in found]]
        values = [value for _, (value, *_) in found]
        axis.errorbar(values, at, xerr=spread, fmt="osD^"[index], capsize=2, markersize=4, label=header[column])
    axis.set_yticks([-y for y in range(len(rows))], [", ".join(row[:names]) for row in rows])


if __name__ == "__main__":
    for draw in (pair, gain, subsets, claims):
        draw()
    for name in ("caltech-101", "cifar100-transformer"):
        by_seed(name)
    main = ("cifar100-subsets", "none", "resnet18", 25, 3200)
    methods("methods", ARMS, *main)
    methods("layers", LAYERS, *main)
    methods("caltech-101-variants", VARIANTS, "caltech-101", "none", "tf_efficientnet_lite0", 10, 160)
    for name in TABLES_DRAWN:
        of_table(name)
