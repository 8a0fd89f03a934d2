"""Fill the tables of README.md and docs/ from the files in results/: ``python scripts/tables.py``."""

import json
import re
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path
from statistics import fmean
from types import SimpleNamespace
from typing import Any

from cells import MODELS, RESULTS, ROOT, cell, lines, table
from claims import claims
from cutmix.runs.outcomes import seed_difference
from cutmix.runs.record import Record, with_interval
from cutmix.runtime.files import read_lines
from cutmix.statistics import LEVEL, holm, in_words

METHODS = {
    "": "baseline", "-stochastic-depth": "stochastic depth", "-label-smoothing": "label smoothing", "-cutout": "Cutout",
    "-dropblock": "DropBlock", "-mixup-1.0": "Mixup, α = 1", "-manifold-mixup": "Manifold Mixup",
    "-feature-cutmix-layer-1": "Feature CutMix, layer 1", "-cutmix": "CutMix", "-shakedrop": "ShakeDrop",
    "-cutmix-shakedrop": "CutMix + ShakeDrop",
}  # fmt: skip


def short() -> str:
    """Return Table 5's kinds of rows at short scale."""
    found = {
        (line.recipe.partition("+")[0].removeprefix("cifar100-pyramidnet200"), line.metric): line
        for line in lines("table5-resnet20-short.jsonl")
        if line.which == "last"
    }
    pairs = json.loads((RESULTS / "table5-resnet20-short-pairs.json").read_text())
    tested = {pair["second"].partition("+")[0].removeprefix("cifar100-pyramidnet200"): pair for pair in pairs}
    rows = [
        [label, *(cell(found[name, m]) for m in ("top1_err", "top5_err")),
         in_words(tested[name]["p_holm"]) if name in tested else ""]
        for name, label in METHODS.items()
    ]  # fmt: skip
    return table(["after 3 epochs", "top-1 error (%)", "top-5 error (%)", "against the baseline"], rows)


def between(name: str, baseline: str, *methods: str) -> list[dict[str, Any]]:
    """Return the comparisons of a file with a baseline, of some methods or all: small models and subsets first."""
    found = [
        one for one in read_lines(RESULTS / f"{name}-comparison.log.jsonl")
        if one["baseline"] == baseline and (not methods or one["method"] in methods)
    ]  # fmt: skip
    return sorted(found, key=lambda one: (one["model"] != "resnet20", one["model"], one["per_class"], one["steps"]))


def differences(found: list[dict[str, Any]]) -> list[list[str]]:
    """Return the cells of comparisons: difference, p-value adjusted for all of them, detectable difference."""
    cells = []
    for one, p in zip(found, holm([one["difference"]["p"] for one in found]), strict=True):
        d = SimpleNamespace(**one["difference"])
        seeds = f"{d.seeds} seed" + "s" * (d.seeds > 1)
        chance = in_words(p) if d.seeds > 1 else f"images alone: {in_words(p)}"
        cells.append([f"{with_interval(d, '+.1f')}, {seeds}", chance, f"{d.detectable:.1f}"])
    return cells


CHANCE = ["difference [95 %]", "p (Holm)", "detectable (80 % power)"]
FEW = {
    ("cifar100-subsets", "resnet20"): ("CIFAR-100", "ResNet-20"),
    ("cifar100-subsets", "resnet18"): ("CIFAR-100", "ResNet-18"),
    ("cifar100-transformer", "deit_tiny_patch8_32"): ("CIFAR-100", "DeiT-T, 8×8 patches"),
    ("tiny-resnet20-subset", "resnet20"): ("Tiny-ImageNet, 32×32 pixels", "ResNet-20"),
}
"""File and model of the experiments that compare CutMix in every batch with no mixing, from random initial weights."""


def settings() -> str:
    """Return CutMix beside no mixing in all settings with random initial weights."""
    found = [(key, one) for key in FEW for one in few(*key)]
    rows = []
    for (key, one), cells in zip(found, differences([one for _, one in found]), strict=True):
        errors = [f"{one[side]:.1f}" for side in ("baseline_error", "error")]
        shown = [cells[0].removesuffix(", 3 seeds"), cells[1]]
        rows.append([*FEW[key], str(one["per_class"]), f"{one['steps']:,}", *errors, *shown])
    return table(["data", "model", "images per class", "steps", "test error (%), none", "CutMix", *CHANCE[:2]], rows)


def few(name: str, model: str) -> list[dict[str, Any]]:
    """Return the comparisons of CutMix with no mixing of an experiment and a model."""
    return [one for one in between(name, "none", "cutmix") if one["model"] == model]


def headline() -> str:
    """Return what the table of all settings says, as a sentence."""
    compared = [one for key in FEW for one in few(*key)]
    sizes, found = [one["per_class"] for one in compared], [one["difference"] for one in compared]
    shown = [one["value"] for one, p in zip(found, holm([one["p"] for one in found]), strict=True) if p < LEVEL]
    gains, losses = [-value for value in shown if value < 0], [value for value in shown if value > 0]
    better, worse, rest = len(gains), len(losses), len(found) - len(shown)
    return (
        f"**Does CutMix help to train on {min(sizes)} to {max(sizes)} images per class? In {better} of {len(found)} "
        f"settings it lowers the test error,\nby {_between(gains)} points; in {worse}, trained too briefly, it raises "
        f"it, by {_between(losses)}; in {rest} chance is not excluded.**"
    )


def _between(values: list[float]) -> str:
    low, high = f"{min(values):.1f}", f"{max(values):.1f}"
    return low if low == high else f"{low} to {high}"


def subsets() -> str:
    """Return CutMix beside no mixing on few images of CIFAR-100, with the error on their training images."""
    found = between("cifar100-subsets", "none", "cutmix")
    rows = []
    for one, cells in zip(found, differences(found), strict=True):
        last = last_errors("cifar100-subsets", one)
        errors = [
            f"{fmean(last[method, seed][error] for seed in range(one['difference']['seeds'])):.1f}"
            for error in ("train_err", "top1_err") for method in ("none", "cutmix")
        ]  # fmt: skip
        rows.append([MODELS[one["model"]], str(one["per_class"]), f"{one['steps']:,}", *errors, *cells])
    errors = ["training error (%), none", "CutMix", "test error (%), none", "CutMix"]
    return table(["model", "images per class", "steps", *errors, *CHANCE], rows)


def last_errors(name: str, one: dict[str, Any]) -> dict[tuple[str, int], dict[str, float]]:
    """Return the errors after the last epoch of the runs of a comparison, by method and seed."""
    log = read_lines(RESULTS / f"{name}.log.jsonl")
    same = [line for line in log if all(line[key] == one[key] for key in ("model", "per_class", "steps"))]
    return {(line["method"], line["seed"]): line for line in same}


def arms() -> str:
    """Return all methods of ResNet-18 on CIFAR-100 with 25 images per class but the layers, against no mixing."""
    return by_method("cifar100-subsets", "resnet18", 25, 3200, ARMS)


def layers() -> str:
    """Return the layers at which the same images are mixed, against no mixing."""
    return by_method("cifar100-subsets", "resnet18", 25, 3200, LAYERS)


def transformer() -> str:
    """Return DeiT-T on CIFAR-100 with 10 images per class, a row for each method."""
    return by_method("cifar100-transformer", "deit_tiny_patch8_32", 10, 2400)


def tiny_methods() -> str:
    """Return ResNet-20 on Tiny-ImageNet with 10 images per class, a row for each method."""
    return by_method("tiny-resnet20-subset", "resnet20", 10, 3200)


def caltech() -> str:
    """Return the fine-tuning on Caltech-101, a row for each method."""
    return by_method("caltech-101", "tf_efficientnet_lite0", 10, 160, ["mixup", "cutmix"])


def caltech_variants() -> str:
    """Return the settings of CutMix in the same fine-tuning."""
    return by_method("caltech-101", "tf_efficientnet_lite0", 10, 160, VARIANTS)


def caltech_default() -> str:
    """Return the same with as many epochs as the default has."""
    return by_method("caltech-101", "tf_efficientnet_lite0", 10, 320)


def caltech_thirty() -> str:
    """Return the fine-tuning with 30 images per class."""
    return by_method("caltech-101", "tf_efficientnet_lite0", 30, 480)


LABELS = {
    "none": "none", "none:label-smoothing=0.1": "label smoothing 0.1", "cutout": "Cutout",
    "cutout:cutout-size=16": "Cutout of 16×16", "mixup": "Mixup",
    "cutmix": "CutMix", "cutmix:label-smoothing=0.1": "CutMix, label smoothing 0.1",
    "cutmix:mix-prob=0.5": "CutMix in half of the batches", "cutmix:mix-prob=1": "CutMix in every batch",
    "cutmix:mix-per-sample=true": "CutMix, a box per image",
    **{f"cutmix:alpha={alpha}": f"CutMix, α = {alpha}" for alpha in ("0.1", "0.25", "0.5", "2", "4")},
    "cutmix-3": "CutMix of three images", "cutmix-4": "CutMix of four images",
    "cutmix-center-gaussian": "centre Gaussian CutMix", "cutmix-fixed-size": "fixed-size CutMix",
    "cutmix-one-hot": "one-hot CutMix", "cutmix-scheduled": "scheduled CutMix",
    "cutmix-complete-label": "complete-label CutMix",
    **{f"feature-cutmix:mix-layers={layer}": f"feature CutMix at layer {layer}" for layer in range(1, 5)},
    "smmix:alpha=0.8,mix-prob=0.5": "SMMix in half of the batches, Mixup in the others",
}  # fmt: skip
"""Methods in the order of a table, by their names in ``cutmix compare --mix``."""
ARMS = [name for name in LABELS if not name.startswith("feature-cutmix")]
VARIANTS = [name for name in LABELS if name.startswith("cutmix")]
LAYERS = ["cutmix", *(name for name in LABELS if name.startswith("feature-cutmix"))]


CARDS = {
    "cutmix": ["cutmix"], "mixup": ["mixup"], "cutout": ["cutout"], "multi-image": ["cutmix-3", "cutmix-4"],
    "feature-cutmix": LAYERS[1:],
    **{
        name: [f"cutmix-{name}"]
        for name in ("center-gaussian", "complete-label", "fixed-size", "one-hot", "scheduled")
    },
}  # fmt: skip
"""The methods of each card in docs/methods/ that the few images were trained with."""


def card(name: str) -> str:
    """Return what the methods of a card changed on few images."""
    compared = {one["method"]: one for one in of_setting("cifar100-subsets", "none", "resnet18", 25, 3200)}
    last = last_errors("cifar100-subsets", compared["cutmix"])
    found = [
        f"{LABELS[method]} {_means(_by_seed(last, method))[0]} % ({with_interval(difference, '+.1f')})"
        for method in CARDS[name] if method in compared
        for difference in [SimpleNamespace(**compared[method]["difference"])]
    ]  # fmt: skip
    if not found:
        return "Few images: not run."
    place = "at-which-layer" if CARDS[name] == LAYERS[1:] else "other-methods"
    return (
        f"[ResNet-18, 25 images per class of CIFAR-100](../experiments/few-images.md#{place}), test error and its "
        f"difference from no mixing in points [95 %]: {', '.join(found)}."
    )


def of_setting(name: str, baseline: str, model: str, per_class: int, steps: int) -> list[dict[str, Any]]:
    """Return the comparisons of a model, subset and number of steps with a baseline."""
    setting = (model, per_class, steps)
    return [one for one in between(name, baseline) if (one["model"], one["per_class"], one["steps"]) == setting]


def by_method(name: str, model: str, per_class: int, steps: int, methods: Iterable[str] = LABELS) -> str:
    """Return the methods that were compared with no mixing, a row for each, of a model, subset and number of steps."""
    found = [one for one in of_setting(name, "none", model, per_class, steps) if one["method"] in methods]
    found.sort(key=lambda one: list(LABELS).index(one["method"]))
    last = last_errors(name, found[0])
    fitted = all("train_err" in line for line in last.values())

    def errors(method: str) -> list[str]:
        fit = [f"{fmean(_by_seed(last, method, 'train_err')):.1f}"] if fitted else []
        return [LABELS[method], *fit, *_means(_by_seed(last, method))]

    rows = [[*errors("none"), "", "", ""]]
    rows += [[*errors(one["method"]), *cells] for one, cells in zip(found, differences(found), strict=True)]
    return table(["mixing", *["training error (%)"] * fitted, "test error (%)", "by seed", *CHANCE], rows)


def _by_seed(last: dict[tuple[str, int], dict[str, float]], method: str, error: str = "top1_err") -> list[float]:
    return [last[key][error] for key in sorted(last) if key[0] == method]


def _means(errors: list[float]) -> list[str]:
    return [f"{fmean(errors):.1f}", ", ".join(f"{each:.1f}" for each in errors)]


def defaults() -> str:
    """Return the recipe for a folder, with CutMix and without mixing, beside a plain AdamW loop."""
    sides = {"none": "recipe, no mixing", "cutmix": "recipe, CutMix at 0.5", "plain, lr 0.001": "AdamW, lr 1e-3",
             "plain, lr 0.0003": "AdamW, lr 3e-4"}  # fmt: skip
    errors: dict[tuple[int, str, int], dict[str, float]] = {}
    for text in (RESULTS / "defaults.log.jsonl").read_text().splitlines():
        line = json.loads(text)
        side = line["side"] if line["side"].startswith("plain") else line["chosen"]["mix"]
        errors.setdefault((line["images"], line["start"], line["seed"]), {})[side] = line["top1_err"]
    rows = [
        [f"{images:,}", start, str(seed), *(f"{found[side]:.1f}" if side in found else "not run" for side in sides)]
        for (images, start, seed), found in sorted(errors.items())
    ]
    return table(["training images", "start", "seed", *sides.values()], rows)


def rates() -> str:
    """Return the errors of the recipe for a folder at several learning rates in few steps, beside a plain loop's."""
    errors: dict[tuple[str, int, int, str], dict[int, float]] = {}
    for text in (RESULTS / "defaults-brief.log.jsonl").read_text().splitlines():
        line = json.loads(text)
        key = line["data"], line["images"], line["steps"], line["side"]
        errors.setdefault(key, {})[line["seed"]] = line["top1_err"]
    rows = [
        [data, f"{images:,}", str(steps), side.replace("plain", "AdamW"),
         *(f"{found[seed]:.1f}" if seed in found else "" for seed in range(2))]
        for (data, images, steps, side), found in sorted(errors.items())
    ]  # fmt: skip
    return table(["data", "training images", "steps", "recipe or plain loop", "error (%), seed 0", "seed 1"], rows)


def localization() -> str:
    """Return the localization of the Tiny-ImageNet runs."""
    found = {
        (line.mix, line.metric): line
        for line in lines("tiny-resnet20-localization.jsonl")
        if line.suite == "localization"
    }
    rows = [
        [label, *(cell(found[mix, name]) for name, *_ in LOCALIZED)]
        for mix, label in {"none": "baseline", "cutout": "Cutout", "mixup": "Mixup", "cutmix": "CutMix"}.items()
    ]
    floor = cell(found["none", "center_max_box_acc_v2"])
    return table(["per cent", *LOCALIZED.values()], [*rows, ["a box in the centre", "", "", "", floor]])


Key = tuple[str, str | None, float | None]
"""A metric, what it is of, and where: ε in 255ths, a side in pixels, λ, or a threshold."""
LOCALIZED: dict[Key, str] = {
    ("top1_cls", None, None): "top-1 class", ("top1_loc", None, 0.15): "top-1 Loc",
    ("gt_known_loc", None, 0.15): "GT-known Loc", ("max_box_acc_v2", None, None): "MaxBoxAccV2",
}  # fmt: skip


ATTACKS = ("noise", "fgsm", "pgd")


def usual_lines(name: str, model: str) -> dict[int, dict[tuple[str | None, Key], Record]]:
    """Return a model's records of the suites with the usual score and convention, by seed, and by mixing and key."""
    found: dict[int, dict[tuple[str | None, Key], Record]] = {}
    for line in lines(name):
        at = line.at
        place = round(255 * at) if at is not None and at < 1 and line.metric.startswith(ATTACKS) else at
        if line.suite and line.usual and line.model == model:
            found.setdefault(line.seed or 0, {})[line.mix, (line.metric, line.of, place)] = line
    return found


ERRORS: dict[Key, str] = {
    ("top1_err", None, None): "top-1 error", ("ece", None, None): "ECE", ("signed_gap", None, None): "signed gap",
    ("noise_err", None, 8): "error, random ±8/255", ("fgsm_err", None, 8): "error, FGSM 8/255",
    ("pgd_err", None, 8): "error, PGD 8/255 (1,000 images)",
}  # fmt: skip


SETS = ("tiny-imagenet-crop", "tiny-imagenet-resize", "uniform", "gaussian", "mean of 4 sets")
SUITES: dict[Key, str] = {
    **ERRORS,
    ("occlusion_center_err", "black", 16): "error, black 16×16 in the centre",
    ("occlusion_boundary_err", "black", 16): "error, all but 16×16 in the centre black",
    ("between_cutmix_neither", None, 16): "class of neither image, 16×16 of another image in the centre",
    ("between_mixup_neither", None, 0.5): "class of neither image, mean of two images",
    **{("ood_auroc", name, None): f"AUROC, {name}" for name in SETS},
}  # fmt: skip


def suites() -> str:
    """Return the suites of the CIFAR-100 pair."""
    found = usual_lines("cifar100-resnet20-suites.jsonl", "resnet20")[0]
    rows = [[label, *(cell(found[mix, key]) for mix in ("none", "cutmix"))] for key, label in SUITES.items()]
    return table(["per cent", "without mixing", "CutMix"], rows)


def over_seeds(name: str, model: str, labels: dict[Key, str], others: tuple[str, ...] = ("none",)) -> str:
    """Return metrics of a model's runs with CutMix and with each other method over seeds, paired by seed."""
    found = usual_lines(name, model)
    values = {
        (key, other): tuple([_value(found[seed][mix, key]) for seed in sorted(found)] for mix in (other, "cutmix"))
        for key in labels if ("none", key) in found[0] for other in others
    }  # fmt: skip
    compared = {key: seed_difference(cutmix, other) for key, (other, cutmix) in values.items()}
    adjusted = iter(holm([d.p for d in compared.values()]))
    rows = [
        [labels[key], *[AGAINST[other]] * (len(others) > 1), *(f"{fmean(each):.1f}" for each in values[key, other]),
         with_interval(d, "+.1f"), in_words(next(adjusted)), f"{d.detectable:.1f}"]
        for (key, other), d in compared.items()
    ]  # fmt: skip
    beside = ["against", "theirs"] if len(others) > 1 else ["without mixing"]
    return table([f"per cent, {len(found)} seeds", *beside, "CutMix", *CHANCE], rows)


AGAINST = {"none": "no mixing", "mixup": "Mixup", "cutout": "Cutout"}


def _value(line: Record) -> float:
    assert line.value is not None, line
    return line.value


def outside() -> str:
    """Return the suites of a classifier that was trained elsewhere."""
    wanted: dict[Key, str] = {
        **ERRORS,
        ("occlusion_center_err", "black", 112): "error, black 112×112 in the centre",
        ("occlusion_center_err", "mean", 112): "error, mean colour 112×112 in the centre",
        ("ood_auroc", "uniform", None): "AUROC, uniform", ("ood_auroc", "gaussian", None): "AUROC, gaussian",
    }  # fmt: skip
    found = usual_lines("efficientnet-lite0.jsonl", "tf_efficientnet_lite0")[0]
    return table(["per cent", "EfficientNet-Lite0"], [[label, cell(found[None, key])] for key, label in wanted.items()])


def read_benchmark(name: str) -> dict[str, Any]:
    """Return the circumstances and the rows of a benchmark."""
    record: dict[str, Any] = json.loads((RESULTS / f"benchmark-{name}.json").read_text())
    return record


def benchmark(name: str) -> str:
    """Return the rows of a benchmark with its circumstances."""
    record = read_benchmark(name)
    rows = []
    for row in record["rows"]:
        unit = f" ({row['unit']})" if row["unit"] else ""
        ours, theirs = (
            f"{row[side]:,.{1 if row[side] >= 10 else 3}f}" if row["unit"] else "" for side in ("ours", "theirs")
        )
        rows.append([row["what"] + unit, row.get("at", ""), ours, row["beside"], theirs, _ratio(row), _target(row)])
    about = record["circumstances"]
    versions = ", ".join(f"{name} {about[name]}" for name in _LIBRARIES if name in about)
    return (
        table(["what", "at", "cutmix", "beside", "theirs", "ratio", "target"], rows)
        + f"\n\n`results/benchmark-{name}.json`: {about['device']}, {about['cores']} cores, {versions}, commit "
        f"{about['commit']}."
    )


_LIBRARIES = ("torch", "torchvision", "timm", "kornia", "scikit-learn", "opencv-python-headless", "nltk",
              "faster-coco-eval")  # fmt: skip


def _ratio(row: dict[str, Any]) -> str:
    return f"{row['ratio']:.{3 if row['ratio'] > 0.01 else 5}f}"


def _target(row: dict[str, Any]) -> str:
    if row.get("target") is None:
        return ""
    return f"{'≥' if row['unit'].endswith('/s') else '≤'} {row['target']:.3g}"


def speed() -> str:
    """Return the time of CutMix in place beside four other implementations."""
    rows = [
        [row["beside"], f"{row['ours']:.1f}", f"{row['theirs']:,.1f}", _ratio(row)]
        for row in read_benchmark("mixing")["rows"]
        if (row["what"], row["at"]) == ("CutMix in place, one box", "256×3×224×224")
    ]
    return table(["beside", "cutmix (ms)", "theirs (ms)", "ratio"], rows)


BENCHMARKS = (
    "mixing", "input", "waiting", "predict", "describe", "training", "small-bfloat16", "small-avx2", "pair", "network",
    "network-1-thread", "smmix", "attention", "captioning", "average-precision", "localization", "ood", "shards",
)  # fmt: skip
EXPERIMENTS = (
    claims, headline, settings, caltech, caltech_variants, caltech_default, caltech_thirty, subsets, transformer, arms,
    tiny_methods,     layers, short, defaults, rates, localization, suites, outside, speed,
)  # fmt: skip
TABLES: dict[str, Callable[[], str]] = {
    **{make.__name__: make for make in EXPERIMENTS},
    "subset_suites": partial(over_seeds, "cifar100-subsets-suites.jsonl", "resnet20", SUITES),
    "subset_suites_resnet18": partial(over_seeds, "cifar100-subsets-suites.jsonl", "resnet18", SUITES),
    "localization_few": partial(over_seeds, "tiny-resnet20-subset-suites.jsonl", "resnet20", LOCALIZED, tuple(AGAINST)),
    **{f"benchmark-{name}": partial(benchmark, name) for name in BENCHMARKS},
    **{f"card-{name}": partial(card, name) for name in CARDS},
}
MARKED = re.compile(r"<!-- ([\w-]+) -->\n.*?<!-- /\1 -->", flags=re.DOTALL)


def fill(text: str) -> str:
    """Replace what stands between the comments of each table's name."""
    return MARKED.sub(lambda found: f"<!-- {found[1]} -->\n{TABLES[found[1]]()}\n<!-- /{found[1]} -->", text)


def pages() -> list[Path]:
    """Return the pages that may hold tables."""
    return [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]


if __name__ == "__main__":
    for page in pages():
        page.write_text(fill(page.read_text(encoding="utf-8")), encoding="utf-8")
