"""Draw the figures of README.md and docs/ from the files in results/: ``python scripts/figures.py``."""

from collections.abc import Iterable
from textwrap import fill
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from cells import MODELS, RESULTS, ROOT, lines
from claims import read_claims
from cutmix.runtime.files import read_lines
from tables import compared

COLOURS = {"none": "#6b7f95", "mixup": "#1d9a70", "cutmix": "#d4622a"}
NAMES = {"none": "no mixing", "mixup": "Mixup", "cutmix": "CutMix"}


def axes(width: float, height: float, count: int = 1, rows: int = 1) -> tuple[Figure, list[Axes]]:
    """Return a figure with axes side by side, row by row."""
    figure = Figure(figsize=(width, height), dpi=110, layout="constrained")
    made = [figure.add_subplot(rows, count, index + 1) for index in range(rows * count)]
    for each in made:
        each.spines[["top", "right"]].set_visible(False)
        each.grid(alpha=0.3)
        each.tick_params(labelsize=8)
    return figure, made


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
        axis.set_xlabel("epoch", fontsize=9)
        axis.set_title(title, fontsize=9)
    panels[-1].legend(fontsize=8)
    save(figure, "cifar100-resnet20")


def gain() -> None:
    """Draw what CutMix gains by the number of training images of a class, with intervals."""
    figure, (axis,) = axes(7, 3.2)
    found = [one for one in compared("cifar100-subsets") if (one["method"], one["baseline"]) == ("cutmix", "none")]
    _intervals(
        axis, [(-one["difference"]["value"], -one["difference"]["high"], -one["difference"]["low"]) for one in found]
    )
    labels = [
        f"{one['per_class']}\n{one['steps']:,} steps\nseeds: {one['difference']['seeds']}\n{MODELS[one['model']]}"
        for one in found
    ]
    axis.set_xticks(range(len(found)), labels)
    axis.set_xlim(-0.6, len(found) - 0.4)
    axis.set_xlabel("training images a class (CIFAR-100)", fontsize=9)
    axis.set_ylabel("accuracy gained by CutMix (points)", fontsize=9)
    save(figure, "gain")


def _intervals(axis: Axes, points: Iterable[tuple[float, float, float]]) -> None:
    axis.axhline(0, color="black", linewidth=0.8)
    for x, (value, low, high) in enumerate(points):
        axis.errorbar(
            x, value, [[value - low], [high - value]], fmt="o", color=COLOURS["cutmix"], capsize=4, linewidth=1.6
        )


def subsets() -> None:
    """Draw training and test error, and the test loss, by step of the runs on few images, a line for each seed."""
    log = read_lines(RESULTS / "cifar100-subsets.log.jsonl")
    found = [one for one in compared("cifar100-subsets") if (one["method"], one["baseline"]) == ("cutmix", "none")]
    settings = [tuple(one[key] for key in ("model", "per_class", "steps")) for one in found]
    figure, panels = axes(2.8 * len(settings), 5, len(settings), 2)
    for (model, per_class, steps), upper, lower in zip(
        settings, panels[: len(settings)], panels[len(settings) :], strict=True
    ):
        runs: dict[tuple[str, int], list[dict[str, Any]]] = {}
        for line in log:
            same = (line["model"], line["per_class"], line["steps"]) == (model, per_class, steps)
            if same and line["method"] in ("none", "cutmix"):
                runs.setdefault((line["method"], line["seed"]), []).append(line)
        for (method, seed), run in runs.items():
            for axis, field, style, name in (
                (upper, "top1_err", "-", "test"), (upper, "train_err", "--", "training"),
                (lower, "test_loss", "-", "test"),
            ):  # fmt: skip
                label = f"{NAMES[method]}, {name}" if seed == 0 else None
                points = [(line["step"], line[field]) for line in run]
                axis.plot(*zip(*points, strict=True), style, color=COLOURS[method], linewidth=1.3, label=label)
        upper.set_title(f"{MODELS[model]}, {per_class} images a class", fontsize=9)
        upper.set_ylim(0, 100)
        lower.set_ylim(2, 9)
        for axis in (upper, lower):
            axis.xaxis.set_major_locator(MaxNLocator(4))
        lower.set_xlabel("optimizer step", fontsize=9)
    panels[0].set_ylabel("top-1 error (%)", fontsize=9)
    panels[len(settings)].set_ylabel("test loss", fontsize=9)
    panels[0].legend(fontsize=7, loc="center right")
    save(figure, "subsets")


def caltech() -> None:
    """Draw the test error of each seed of the fine-tuning on Caltech-101."""
    figure, (axis,) = axes(5, 3)
    found = [line for line in lines("caltech-101.jsonl") if line.metric == "top1_err" and line.epochs == 10]
    for seed in sorted({line.seed or 0 for line in found}):
        own = {line.mix: line.value for line in found if line.seed == seed}
        points = [(x, own[mix]) for x, mix in enumerate(NAMES) if mix in own]
        axis.plot(*zip(*points, strict=True), "o-", label=f"seed {seed}", markersize=5, linewidth=1)
    axis.set_xticks(range(len(NAMES)), list(NAMES.values()))
    axis.set_xlim(-0.4, len(NAMES) - 0.6)
    axis.set_ylabel("top-1 test error (%)", fontsize=9)
    axis.legend(fontsize=8)
    save(figure, "caltech-101")


def claims() -> None:
    """Draw the differences on the page of claims that have an interval, turned so that right agrees."""
    found = [(claim, one) for claim in read_claims() for one in claim.found if one.low is not None]
    figure, (axis,) = axes(8, 0.8 + 0.5 * len(found))
    axis.axvline(0, color="black", linewidth=0.8)
    for y, (claim, one) in enumerate(reversed(found)):
        value, low, high = (claim.sign * (each or 0) for each in (one.value, one.low, one.high))
        spread = [[value - min(low, high)], [max(low, high) - value]]
        axis.errorbar(value, y, xerr=spread, fmt="o", color=COLOURS["cutmix"], capsize=4, linewidth=1.6)
    labels = [fill(f"{claim.where}: {one.setting}; {one.over}", 75) for claim, one in reversed(found)]
    axis.set_yticks(range(len(found)), labels, fontsize=7)
    axis.set_ylim(-0.6, len(found) - 0.4)
    axis.set_xlabel("points; right of 0 agrees", fontsize=9)
    save(figure, "claims")


if __name__ == "__main__":
    for draw in (pair, gain, subsets, caltech, claims):
        draw()
