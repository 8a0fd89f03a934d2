"""Fill the tables of README.md from the files in results/: ``python scripts/tables.py``."""

import json
from pathlib import Path
from typing import Any

from cutmix.statistics import in_words

ROOT = Path(__file__).parent.parent
RESULTS = ROOT / "results"
README = ROOT / "README.md"
METHODS = {
    "": "baseline", "-stochastic-depth": "stochastic depth", "-label-smoothing": "label smoothing", "-cutout": "Cutout",
    "-dropblock": "DropBlock", "-mixup-1.0": "Mixup, α = 1", "-manifold-mixup": "Manifold Mixup",
    "-feature-cutmix-layer-1": "Feature CutMix, layer 1", "-cutmix": "CutMix", "-shakedrop": "ShakeDrop",
    "-cutmix-shakedrop": "CutMix + ShakeDrop",
}  # fmt: skip


def lines(name: str) -> list[dict[str, Any]]:
    """Return the records of a file."""
    return [json.loads(line) for line in (RESULTS / name).read_text().splitlines()]


def cell(line: dict[str, Any], digits: int = 1) -> str:
    """Return a value with its interval."""
    return f"{line['value']:.{digits}f} [{line['low']:.{digits}f}, {line['high']:.{digits}f}]"


def table(header: list[str], rows: list[list[str]]) -> str:
    """Return a table in Markdown."""
    return "\n".join(f"| {' | '.join(row)} |" for row in [header, ["---"] * len(header), *rows])


def short() -> str:
    """Return Table 5's kinds of rows at short scale."""
    found = {
        (line["recipe"].partition("+")[0].removeprefix("cifar100-pyramidnet200"), line["measure"]): line
        for line in lines("table5-resnet20-short.jsonl")
        if line["which"] == "last"
    }
    pairs = json.loads((RESULTS / "table5-resnet20-short-pairs.json").read_text())
    tested = {pair["second"].partition("+")[0].removeprefix("cifar100-pyramidnet200"): pair for pair in pairs}
    rows = [
        [label, *(cell(found[name, m]) for m in ("top1_err", "top5_err")),
         in_words(tested[name]["p_holm"]) if name in tested else ""]
        for name, label in METHODS.items()
    ]  # fmt: skip
    return table(["after 3 epochs", "top-1 error (%)", "top-5 error (%)", "against the baseline"], rows)


def localization() -> str:
    """Return the localization of the Tiny-ImageNet runs."""
    found = {
        (line["mix"], line["measure"]): line
        for line in lines("tiny-resnet20-localization.jsonl")
        if line.get("suite") == "localization"
    }
    measures = {"top1_cls": "top-1 class", "top1_loc": "top-1 Loc", "gt_known_loc": "GT-known Loc",
                "max_box_acc_v2": "MaxBoxAccV2"}  # fmt: skip
    rows = [
        [label, *(cell(found[mix, name]) for name in measures)]
        for mix, label in {"none": "baseline", "cutout": "Cutout", "mixup": "Mixup", "cutmix": "CutMix"}.items()
    ]
    floor = cell(found["none", "center_max_box_acc_v2"])
    return table(["per cent", *measures.values()], [*rows, ["a box in the centre", "", "", "", floor]])


def suites() -> str:
    """Return the suites of the CIFAR-100 pair."""
    wanted: dict[tuple[str, str | None, int | None], str] = {
        ("top1_err", None, None): "top-1 error", ("ece", None, None): "ECE", ("signed_gap", None, None): "signed gap",
        ("noise_err", None, 8): "error, random ±8/255", ("fgsm_err", None, 8): "error, FGSM 8/255",
        ("pgd_err", None, 8): "error, PGD 8/255 (1,000 images)",
        ("occlusion_center_err", "black", 16): "error, black 16×16 in the centre",
        ("between_cutmix_neither", None, 16): "neither of two classes, 16×16 of another image in the centre",
        **{("ood_auroc", of, None): f"AUROC, {of}" for of in
           ("tiny-imagenet-crop", "tiny-imagenet-resize", "uniform", "gaussian", "mean of 4 sets")},
    }  # fmt: skip
    found = {}
    for line in lines("cifar100-resnet20-suites.jsonl"):
        usual = line.get("convention", "exact") == "exact" and line.get("score", "max-softmax") == "max-softmax"
        at = line.get("at")
        place = None if at is None else round(255 * at) if at < 1 and "err" in line["measure"] else round(at)
        if line.get("suite") and usual:
            found[line["mix"], line["measure"], line.get("of"), place] = line
    rows = [[label, *(cell(found[(mix, *key)]) for mix in ("none", "cutmix"))] for key, label in wanted.items()]
    return table(["per cent", "without mixing", "CutMix"], rows)


def transformers() -> str:
    """Return the vision transformers of Tiny-ImageNet, with CutMix and with SMMix."""
    found = {(line["recipe"], line["measure"]): line for line in lines("tiny-smmix-short.jsonl")}
    rows = []
    for network, label in {"deit-tiny": "DeiT-T", "pvt-tiny": "PVT-T", "cait-xxs24": "CaiT-XXS-24"}.items():
        pair = [f"tiny-{network}-{mix}" for mix in ("cutmix", "smmix")]
        cells = [cell(found[name, measure]) for measure in ("top1_err", "top5_err") for name in pair]
        rows.append([label, str(found[pair[0], "top1_err"]["epochs"]), *cells])
    header = ["", "epochs", "top-1 error (%), CutMix", "SMMix", "top-5 error (%), CutMix", "SMMix"]
    return table(header, rows)


def transfer() -> str:
    """Return detection and captioning on three backbones."""
    found = {(line["arch"], line["backbone_recipe"], line["measure"]): line for line in lines("transfer-small.jsonl")}
    backbones = {
        None: "random weights",
        "tiny-resnet18": "trained on Tiny-ImageNet",
        "tiny-resnet18-cutmix": "with CutMix",
    }
    measures = {("ssd300", "map"): "SSD, mAP (%)", ("show-and-tell", "bleu_4"): "Show and Tell, BLEU-4",
                ("show-and-tell", "cider_d"): "CIDEr-D"}  # fmt: skip
    rows = [[label, *(cell(found[arch, name, what]) for arch, what in measures)] for name, label in backbones.items()]
    return table(["ResNet-18", *measures.values()], rows)


def benchmark(**titles: str) -> str:
    """Return the rows of benchmarks, each with what it is about before its rows."""
    rows = []
    for name, title in titles.items():
        for row in json.loads((RESULTS / f"benchmark-{name.replace('_', '-')}.json").read_text())["rows"]:
            unit = f" ({row['unit']})" if row["unit"] else ""
            ours, theirs = (
                f"{row[side]:,.{1 if row[side] >= 10 else 3}f}" if row["unit"] else "" for side in ("ours", "theirs")
            )
            ratio = f"{row['ratio']:.{3 if row['ratio'] > 0.01 else 5}f}"
            rows.append([title + row["what"] + unit, row["at"], ours, row["beside"], theirs, ratio])
    return table(["what", "at", "ours", "beside", "theirs", "ratio"], rows)


def fill(text: str, name: str, content: str) -> str:
    """Replace what stands between the comments of a name."""
    start, end = f"<!-- {name} -->", f"<!-- /{name} -->"
    return text[: text.index(start) + len(start)] + "\n" + content + "\n" + text[text.index(end) :]


if __name__ == "__main__":
    text = README.read_text(encoding="utf-8")
    for make in (short, localization, suites, transformers, transfer):
        text = fill(text, make.__name__, make())
    for name in ("mixing", "training", "smmix"):
        text = fill(text, name, benchmark(**{name: ""}))
    measures = benchmark(captioning="", average_precision="VOC: ", localization="", ood="OOD: ")
    text = fill(text, "measures", measures)
    README.write_text(text, encoding="utf-8")
