"""Beside the paper's numbers stands only what was measured as the paper did; the rest is apart, and says why."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from scipy import stats

from cutmix.config.recipes import RECIPES, recipe_changes
from cutmix.config.tasks import SSD300
from cutmix.paper.compare import Found, Sheet, find, merged, sheets
from cutmix.paper.tables import Table, find_tables
from cutmix.runs.record import Record, append_records

LOCALIZATION, TRANSFER, FGSM, OOD, CAPTIONING = (
    find_tables(name)[0] for name in ("table9", "table10", "table11", "table12", "tablea2")
)
METHODS = ("Baseline", "Mixup", "Cutout", "CutMix")
NOT_RUN = ("not run",) * 4


def detector(**changes: Any) -> Record:
    """A detector trained as the paper says, on the CutMix backbone."""
    its = {"source": "training", "task": "detection", "recipe": "ssd300-x", "recipe_changes": {"val_fraction": 0.3},
           "data": "VOCdevkit", "split": "test", "arch": "ssd300", "model": "resnet50", "epochs": 232, "seed": 0,
           "backbone": "runs/x/model.safetensors", "backbone_recipe": "imagenet-resnet50-cutmix",
           "training_images": 16_551, "n": 4_952, "metric": "map", "value": 77.41, "low": 76.2,
           "high": 78.6}  # fmt: skip
    return Record(**its | changes)


def classifier(recipe: str, metric: str, **changes: Any) -> Record:
    """A result of a suite, of a classifier trained as its recipe says."""
    own = RECIPES[recipe]
    its = {"source": "evaluation", "recipe": recipe, "recipe_changes": {}, "data": own.data, "split": "test",
           "model": own.model, "epochs": own.epochs, "seed": 0, "metric": metric, "value": 50.0, "low": 49.0,
           "high": 52.0, "n": 50_000, "file": "model.safetensors"}  # fmt: skip
    return Record(**its | changes)


def made(table: Table, *found: Record) -> tuple[list[Sheet], list[str]]:
    return sheets(table, merged([Found(found)]))


def row(table: Table, label: str, *found: Record) -> tuple[str, ...]:
    (sheet, *_), _ = made(table, *found)
    assert sheet.header == ("Row", *METHODS)
    return next(cells[1:] for cells in sheet.rows if cells[0] == f"{label}: here")


@pytest.mark.parametrize("table", [LOCALIZATION, TRANSFER, FGSM, OOD, CAPTIONING])
def test_without_results_everything_is_not_run(table: Table) -> None:
    (sheet,), how = made(table)
    assert how == []
    assert [cells[0] for cells in sheet.rows] == [f"{x}: {y}" for x in table.lines for y in ("paper", "here")]
    assert all(cells[1:] == NOT_RUN for cells in sheet.rows[1::2])
    printed = [f"{x:.{table.digits}f}" for x in table.rows[3].numbers]
    assert sheet.rows[0][4] == "; ".join(printed)


def test_a_detector_of_the_papers_protocol_stands_beside_its_number() -> None:
    assert row(TRANSFER, "SSD300, mAP", detector()) == ("not run", "not run", "not run", "77.4 [76.2, 78.6]")
    baseline = detector(backbone="runs/y/model.safetensors", backbone_recipe="imagenet-resnet50", value=76.0)
    assert row(TRANSFER, "SSD300, mAP", baseline, detector())[0] == "76.0 [76.2, 78.6]"
    assert row(TRANSFER, "Faster R-CNN, mAP", detector()) == NOT_RUN


def test_seeds_are_pooled() -> None:
    values = (77.1, 77.5, 77.9)
    found = [detector(seed=seed, value=value) for seed, value in enumerate(values)]
    interval = stats.ttest_1samp(values, 0).confidence_interval()
    assert row(TRANSFER, "SSD300, mAP", *found)[3] == f"77.5 [{interval.low:.1f}, {interval.high:.1f}]"


@pytest.mark.parametrize(
    ("changes", "how"),
    [
        ({"model": "resnet18"}, "network resnet18"),
        ({"epochs": 40}, "40 of 232 epochs"),
        ({"data": "voc-100", "n": 20}, "data voc-100, 20 test images"),
        ({"training_images": 5_011}, "5,011 training images"),
        ({"training_images": None}, "unknown number of training images"),
        ({"weights": "ema"}, "averaged weights"),
        ({"recipe": "ssd300-none", "backbone": "none", "backbone_recipe": None}, "a backbone of random weights"),
        (
            {"recipe": "ssd300-pretrained", "backbone": "pretrained", "backbone_recipe": None},
            "a backbone of timm’s weights",
        ),
        ({"recipe": "ssd300-w.pth", "backbone": "w.pth", "backbone_recipe": None}, "a backbone of w.pth"),
        ({"backbone_recipe": "photos"}, "a backbone of photos"),
    ],
)
def test_every_departure_is_named_and_keeps_a_result_apart(changes: dict[str, Any], how: str) -> None:
    found = detector(**changes)
    made_of, said = made(TRANSFER, found)
    assert all(cells[1:] == NOT_RUN for cells in made_of[0].rows[1::2])
    assert made_of[1] == Sheet(
        "Table 10, not comparable with the paper’s numbers", ("Run", "SSD300, mAP"),
        [(found.recipe, "77.4 [76.2, 78.6]")],
    )  # fmt: skip
    assert said == [f"{found.recipe} is not the paper’s protocol: {how}."]


def test_runs_on_other_backbones_are_never_averaged() -> None:
    methods = {"": 10.0, "-mixup": 20.0, "-cutout": 30.0, "-cutmix": 80.0}
    found = [
        detector(epochs=40, backbone=f"runs/b{name}/model.safetensors", backbone_recipe=f"imagenet-resnet50{name}",
                 value=value)
        for name, value in methods.items()
    ]  # fmt: skip
    found.append(detector(epochs=40, backbone="others/b/model.safetensors", backbone_recipe="imagenet-resnet50"))
    found.append(detector(epochs=40, backbone="runs/b/best.safetensors", backbone_recipe="imagenet-resnet50"))
    (_, sheet), said = made(TRANSFER, *found)
    assert sheet.rows == [
        *((f"ssd300-x on b{name}", f"{value:.1f} [76.2, 78.6]") for name, value in methods.items()),
        ("ssd300-x on b", "77.4 [76.2, 78.6]"),
        ("ssd300-x on b-best", "77.4 [76.2, 78.6]"),
    ]
    assert said == [
        f"{cells[0]} is not the paper’s protocol: 40 of 232 epochs." for cells in (*sheet.rows[:4], sheet.rows[5])
    ]


SMALLER = [
    ("fgsm_err", {"drawn": 100, "n": 100}, "100 of the images"),
    ("fgsm_err", {"drawn": 20_000, "n": 20_000, "image_size": 64}, "20,000 of the images, images of 64×64"),
    ("fgsm_err", {"image_size": 64}, "images of 64×64"),
    ("fgsm_err", {"n": 1_000}, "1,000 test images"),
    ("ood_auroc", {"drawn": 100, "n": 9_025}, "100 of the images"),
    ("ood_auroc", {"n": 10_925}, "10,925 test images"),
    ("ood_auroc", {"image_size": 64}, "images of 64×64"),
]


@pytest.mark.parametrize(("measure", "changes", "how"), SMALLER)
def test_a_part_of_the_images_and_another_size_are_departures(measure: str, changes: dict[str, Any], how: str) -> None:
    if measure == "fgsm_err":
        table, name, its = FGSM, "imagenet-resnet50-cutmix", {"at": 8 / 255, "image_size": 224}
    else:
        table, name, its = OOD, "cifar100-pyramidnet200-cutmix", {"of": "isun", "n": 18_925, "image_size": 32}
    whole, part = (classifier(name, measure, **its | {"drawn": None} | more) for more in ({}, changes))
    label = table.rows[-9].label if table is OOD else table.rows[0].label
    assert made(table, whole)[1] == []
    assert "50.0 [" in row(table, label, whole)[3]
    assert row(table, label, part) == NOT_RUN
    assert made(table, part)[1] == [f"{name} is not the paper’s protocol: {how}."]


def test_a_run_that_was_evaluated_twice_is_one(tmp_path: Path) -> None:
    name, how = "imagenet-resnet50-cutmix", {"at": 8 / 255, "file": "runs/x/model.safetensors", "n": 50_000}
    dates = [
        {"date": f"2026-01-0{day}", "command": f"cutmix evaluate x --seed {day}", "commit": str(day)} for day in (1, 2)
    ]
    found = [classifier(name, "fgsm_err", **how, **date, value=60.0 + 20 * i) for i, date in enumerate(dates)]
    file = tmp_path / "results.jsonl"
    append_records(file, found)
    ((read,),) = (one.records for one in find([], [file]))
    assert read.value == 80.0
    assert row(FGSM, "Top-1 accuracy under FGSM", *found)[3] == "20.0 [48.0, 51.0]"
    drawn = classifier(name, "fgsm_err", **how | {"drawn": 100, "n": 100, "file": "runs/x/model.safetensors"})
    assert row(FGSM, "Top-1 accuracy under FGSM", *found, drawn)[3] == "20.0 [48.0, 51.0]"
    other = classifier(name, "fgsm_err", **how | {"file": "runs/y/model.safetensors", "seed": 1, "value": 60.0})
    assert row(FGSM, "Top-1 accuracy under FGSM", *found, other)[3].startswith("30.0 [")  # two seeds: their mean


def test_a_changed_recipe_is_named_by_its_fields() -> None:
    recipe = replace(SSD300, lr=0.01, batch_size=8, seed=3, data="d", backbone="runs/x")
    changed = detector(recipe_changes=recipe_changes(recipe))
    assert made(TRANSFER, changed)[1] == ["ssd300-x is not the paper’s protocol: batch_size and lr changed."]
    same = detector(recipe_changes=recipe_changes(replace(SSD300, data="d", backbone="runs/x")))
    assert made(TRANSFER, same)[1] == []


def test_captions_are_in_both_tables() -> None:
    shared = {"recipe": "captioning-x", "arch": "show-and-tell", "epochs": 100, "n": 40_504, "beam": 20,
              "training_images": 82_783, "backbone_recipe": "imagenet-resnet50-mixup"}  # fmt: skip
    found = [detector(**shared, metric=f"bleu_{n}", value=60.0 / n) for n in range(1, 5)]
    found.append(detector(**shared, metric="meteor", value=None))
    assert row(TRANSFER, "Captions, BLEU-4", *found)[1].startswith("15.0 [")
    assert row(CAPTIONING, "BLEU-3", *found)[1].startswith("20.0 [")
    assert row(CAPTIONING, "METEOR", *found) == NOT_RUN


def test_an_error_is_turned_into_the_papers_accuracy() -> None:
    found = classifier("imagenet-resnet50-cutmix", "fgsm_err", at=8 / 255, value=70.0, low=69.0, high=71.5)
    other = classifier("imagenet-resnet50-cutmix", "fgsm_err", at=4 / 255, value=1.0)
    assert row(FGSM, "Top-1 accuracy under FGSM", found, other)[3] == "30.0 [28.5, 31.0]"
    few = classifier("imagenet-resnet50-cutmix", "fgsm_err", at=8 / 255, n=1_000)
    assert "1,000 test images" in made(FGSM, few)[1][0]


def test_localization_needs_the_test_images_of_its_data() -> None:
    name = "cub-resnet50-wsol-cutout"
    assert row(LOCALIZATION, "ResNet-50, CUB-200-2011", classifier(name, "top1_loc", n=5_794, data="birds"))[2] != (
        "not run"
    )
    assert row(LOCALIZATION, "ResNet-50, CUB-200-2011", classifier(name, "top1_loc", n=5_000)) == NOT_RUN
    bare = classifier(name, "top1_loc", n=5_794, recipe_changes=None)
    assert made(LOCALIZATION, bare)[1] == [f"{name} is not the paper’s protocol: how it was trained is not known."]


def test_other_data_that_are_not_the_papers_are_apart() -> None:
    name, of = "cifar100-pyramidnet200-mixup-1.0", "tiny-imagenet-crop"
    found = [
        classifier(name, metric, of=of, n=20_000, value=value)
        for metric, value in (("ood_tnr95", 10.0), ("ood_auroc", 20.0), ("ood_detection_acc", 30.0))
    ]
    assert row(OOD, of, *found)[1] == "10.0 [49.0, 52.0]; 20.0 [49.0, 52.0]; 30.0 [49.0, 52.0]"
    energy = classifier(name, "ood_auroc", of=of, n=20_000, score="energy")
    assert row(OOD, of, energy) == NOT_RUN
    noted = [replace(one, note="cropped here") for one in found]
    assert row(OOD, of, *noted) == NOT_RUN
    assert made(OOD, *noted)[1] == [f"{name} is not the paper’s protocol: cropped here."]


def test_results_are_read_once_from_folders_and_files(tmp_path: Path) -> None:
    found = detector()
    folder = tmp_path / "runs" / "a"
    folder.mkdir(parents=True)
    records = [replace(found, epoch=232), replace(found, epoch=230, which="best", value=78.0)]
    append_records(folder / "results.jsonl", records)
    (folder / "config.json").write_text(json.dumps({"recipe": SSD300.to_dict() | {"data": "d", "backbone": "x"}}))
    copy = tmp_path / "copy.jsonl"
    copy.write_text((folder / "results.jsonl").read_text())
    read = [one for run in find([tmp_path / "runs"], [copy]) for one in run.records if one.which == "last"]
    assert [one.value for one in read] == [77.41]
    assert row(TRANSFER, "SSD300, mAP", *read)[3] == "77.4 [76.2, 78.6]"
