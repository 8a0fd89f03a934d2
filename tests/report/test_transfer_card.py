"""The sections of detectors and captioners: every number of the files, pairs, figures, and the paper's beside."""

import html
import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from cutmix.config.tasks import Transfer, find_transfer, small_transfer
from cutmix.errors import InputError
from cutmix.report.suites import captioning, detection, paper_of_transfer
from cutmix.report.summary import write_report
from cutmix.runs.read import read_runs
from cutmix.runs.record import Record, append_records
from cutmix.transfer.average_precision import RIGHT, WRONG, Judged
from cutmix.transfer.caption_scores import caption_records, image_scores

IMAGES = 30
CLASSES = ("cat", "dog")
DETECTION = {"map": 41.25, "map_all_point": 43.5, "coco_map": None}


def make_transfer(
    folder: Path,
    task: str,
    lines: list[Record],
    arrays: dict[str, np.ndarray],
    *,
    logged: int = 4,
    **changes: Any,
) -> Path:
    """Write the folder of a finished run of transfer, or of an unfinished one."""
    base: Transfer = small_transfer(find_transfer(task))
    recipe = base.to_dict() | {"name": folder.name, "data": f"data/{task}-set", "epochs": 4} | changes
    (folder / "predictions").mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps({"recipe": recipe, "command": f"cutmix transfer {task}"}))
    main = {"detection": "map", "captioning": "cider_d"}[task]
    log: list[dict[str, Any]] = [
        {"kind": "epoch", "epoch": epoch, "train_loss": 9 / epoch, "seconds": 5.0 * epoch}
        | ({main: 10.0 * epoch} if epoch % 2 == 0 else {})
        for epoch in range(1, logged + 1)
    ]
    (folder / "log.jsonl").write_text("".join(json.dumps(line) + "\n" for line in log))
    arch = recipe.get("arch", "show-and-tell")
    shared = {"source": "training", "task": task, "recipe": folder.name, "recipe_changes": {}, "data": f"{task}-set",
              "split": "test", "model": recipe["model"], "arch": arch, "epochs": 4, "seed": 0,
              "backbone": recipe["backbone"], "suite": task, "parameters": 12_345, "epoch": 4}  # fmt: skip
    if logged == 4:
        every = [replace(one, **shared, which=which) for which in ("last", "best") for one in lines]
        append_records(folder / "results.jsonl", every)
        np.savez(folder / "predictions" / "last.npz", **arrays)  # type: ignore[arg-type]
        (folder / "figures").mkdir()
        name = {"detection": "detections", "captioning": "captions"}[task]
        Image.new("RGB", (40, 30)).save(folder / "figures" / f"{name}.png")
    return folder


def make_detector(folder: Path, right: float = 0.5, shift: float = 0.0, **changes: Any) -> Path:
    """Write a detector's run, of which a share of the detections is right."""
    random = np.random.default_rng(0)
    verdicts = np.where(random.random(IMAGES) < right, RIGHT, WRONG).astype(np.int8)
    number = np.arange(IMAGES)
    judged = Judged(number, number % 2, random.random(IMAGES), verdicts, number, number % 2)
    lines = [
        Record(metric=name, value=None if value is None else value + shift, n=IMAGES)
        for name, value in DETECTION.items()
    ]
    lines[0] = replace(lines[0], low=30.0, high=52.0)
    lines[2] = replace(lines[2], note="not run: it needs a program")
    lines += [Record(metric="ap", of=of, value=40.0 + i, n=15 + i) for i, of in enumerate(CLASSES)]
    return make_transfer(folder, "detection", lines, judged._asdict(), **changes)


def make_captioner(folder: Path, good: int, **changes: Any) -> tuple[Path, list[Record]]:
    """Write a captioner's run that gives back a reference for every ``good``-th image."""
    references = {f"{i:02}": [f"a dog number {i} runs on the grass", f"dog {i} is running"] for i in range(IMAGES)}
    captions = {
        name: several[0] if i % good == 0 else "a cat sits on a red chair"
        for i, (name, several) in enumerate(references.items())
    }
    lines = caption_records(captions, references, resamples=50)
    scores = image_scores(captions, references)
    arrays = {"bleu": scores.bleu, "rouge_l": scores.rouge_l, "cider_d": scores.cider_d,
              "references": np.frombuffer(b"the same", np.uint8)}  # fmt: skip
    return make_transfer(folder, "captioning", lines, arrays, **changes), lines


def make_classifier(folder: Path) -> Path:
    """Write the folder of a classifier's run."""
    folder.mkdir()
    recipe = {"name": folder.name, "data": "cifar-100", "model": "resnet20", "mix": "none", "epochs": 2, "seed": 0}
    (folder / "config.json").write_text(json.dumps({"recipe": recipe, "command": "cutmix train"}))
    record = Record(source="training", metric="top1_err", epoch=2, value=31.0, low=30.0, high=32.0, n=10_000,
                    data="cifar-100", split="test")  # fmt: skip
    append_records(folder / "results.jsonl", [record])
    return folder


class Page:
    """The text of a page, its tables by their captions, and attributes of its tags."""

    def __init__(self, tmp_path: Path, *runs: Path) -> None:
        self.source = write_report(runs, tmp_path / "page.html").read_text(encoding="utf-8").partition("</style>")[2]
        self.text = plain(self.source)
        self.tables = {}
        for table in re.findall(r"<table>.*?</table>", self.source, flags=re.DOTALL):
            rows = [re.findall(r"<t[hd].*?</t[hd]>", row, flags=re.DOTALL) for row in table.split("<tr")[2:]]
            caption = plain(re.findall(r"<caption>.*?</caption>", table, flags=re.DOTALL)[0])
            self.tables[caption] = {plain(first): [plain(cell) for cell in cells] for first, *cells in rows}

    def table(self, caption: str) -> dict[str, list[str]]:
        """Return the rows, by their headings, of the table whose caption starts so."""
        return next(rows for name, rows in self.tables.items() if name.startswith(caption))

    def attributes(self, name: str) -> list[str]:
        """Return every value of an attribute."""
        return [html.unescape(value) for value in re.findall(rf'\b{name}="([^"]*)"', self.source)]


def plain(marked: str) -> str:
    return html.unescape(re.sub(r"<[^>]*>", "", marked)).strip()


def test_a_page_of_detectors_has_no_section_of_errors(tmp_path: Path) -> None:
    page = Page(tmp_path, make_detector(tmp_path / "a"), make_detector(tmp_path / "b", shift=3, backbone="runs/x"))
    titles = [target for target in page.attributes("href") if target.startswith("#")]
    assert titles[:5] == ["#content", "#summary", "#detection", "#definitions", "#provenance"]
    for word in ("op-1 error", "McNemar", "Error curves", "Wilson", "mixed labels"):
        assert word not in page.text
    assert {target.removeprefix("#") for target in titles} <= set(page.attributes("id"))


def test_the_measures_and_classes_are_those_of_the_files(tmp_path: Path) -> None:
    page = Page(tmp_path, make_detector(tmp_path / "a"), make_detector(tmp_path / "b", shift=3, backbone="runs/x"))
    table = page.table("Average precision after the last epoch")
    assert table["mAP, 11 recalls, %"] == ["41.25 [30.00, 52.00]", "44.25 [30.00, 52.00]", "higher", "30"]
    assert table["mAP, all recalls, %"][:2] == ["43.50", "46.50"]
    assert table["mAP, COCO, %"][:2] == ["not run", "not run"]
    assert "it needs a program" in page.text
    classes = page.table("Average precision of each class")
    assert classes == {"cat": ["40.00", "40.00", "15"], "dog": ["41.00", "41.00", "16"]}
    assert "a: mAP 41.2 % [30.0, 52.0] on 30 test images of detection-set" in page.text
    assert "3.0 points above a" in page.text


def test_detectors_are_compared_in_pairs_where_both_keep_verdicts(tmp_path: Path) -> None:
    first, second = make_detector(tmp_path / "a", right=0.2), make_detector(tmp_path / "b", right=0.9, backbone="x")
    page = Page(tmp_path, first, second)
    (cell,) = page.table("Difference to a on the same images")["mAP, 11 recalls, %"]
    assert cell.startswith("+")
    assert cell.endswith("p < 0.001")
    assert "a. The section Detection compares them in pairs if both keep the results of each image." in page.text
    assert "resamples of the test images, 2,000 for detectors" in page.text
    arrays = dict(np.load(second / "predictions" / "last.npz"))
    fewer = {name: arrays[name][:-1] for name in ("images", "labels", "scores", "verdicts")}
    np.savez(second / "predictions" / "last.npz", **(arrays | fewer))
    assert "Difference to a" in Page(tmp_path, first, second).text  # no two detectors find equally many
    np.savez(second / "predictions" / "last.npz", **(arrays | {"object_labels": 1 - arrays["object_labels"]}))
    assert "Difference to a" not in Page(tmp_path, first, second).text  # other objects
    np.savez(second / "predictions" / "last.npz", images=arrays["images"])
    assert "Difference to a" not in Page(tmp_path, first, second).text  # a run of before


def test_captioners_side_by_side(tmp_path: Path) -> None:
    pytest.importorskip("nltk")
    (first, lines), (second, _) = make_captioner(tmp_path / "a", 5), make_captioner(tmp_path / "b", 2, backbone="x")
    page = Page(tmp_path, first, second)
    table = page.table("Scores against the reference captions")
    by_metric = {record.metric: record for record in lines}
    bleu = by_metric["bleu_4"]
    assert table["BLEU-4, ×\u00a0100"][0] == f"{bleu.value:.2f} [{bleu.low:.2f}, {bleu.high:.2f}]"
    assert list(table) == [
        f"{x}, ×\u00a0100" for x in ("BLEU-1", "BLEU-2", "BLEU-3", "BLEU-4", "METEOR", "ROUGE-L", "CIDEr-D")
    ]
    if by_metric["meteor"].value is None:
        assert table["METEOR, ×\u00a0100"][0] == "not run"
        assert "METEOR: needs " in page.text
    differences = page.table("Difference to a on the same images")
    assert len(differences) == 6
    assert all(cells[0].startswith("+") for cells in differences.values())


def test_curves_figures_and_the_papers_tables(tmp_path: Path) -> None:
    pytest.importorskip("nltk")
    detector, (captioner, _) = make_detector(tmp_path / "a"), make_captioner(tmp_path / "c", 3)
    assert "76.7" not in Page(tmp_path, detector, captioner).text  # the paper's numbers are for its own images
    for run, images in ((detector, 4_952), (captioner, 40_504)):
        lines = (run / "results.jsonl").read_text().replace(f'"n": {IMAGES}', f'"n": {images}')
        (run / "results.jsonl").write_text(lines)
    page = Page(tmp_path, detector, captioner)
    said = page.attributes("aria-label")
    assert "mAP on the test images by epoch. a: 20 at epoch 2, 40 at epoch 4." in said
    assert "Training loss by epoch. c: 9 at epoch 1, 2.25 at epoch 4." in said
    assert page.attributes("alt") == ["Test images with the detections of a", "Test images with the captions of c"]
    table10 = page.table("Table 10: ")
    assert table10["SSD300, mAP: paper"] == ["76.7", "76.6", "76.8", "77.6"]
    assert table10["SSD300, mAP: here"] == ["not run"] * 4
    assert page.table("Table 10, not comparable")["a on random weights"] == ["41.2 [30.0, 52.0]", "–", "–"]
    assert "a on random weights is not the paper’s protocol: network resnet10t, 4 of 232 epochs" in page.text
    assert page.table("Table A2")["CIDEr: paper"] == ["71.2", "72.2", "74.1", "77.6"]


def test_a_page_of_several_kinds(tmp_path: Path) -> None:
    classifier = make_classifier(tmp_path / "plain")
    page = Page(tmp_path, make_detector(tmp_path / "a"), classifier)
    assert page.table("Last epoch").keys() == {"plain"}
    assert page.table("Average precision after")["mAP, 11 recalls, %"][0] == "41.25 [30.00, 52.00]"
    assert "The runs have different test images" not in page.text
    assert "top-1 error not run" not in page.text
    other = make_detector(tmp_path / "b", data="data/others", backbone="x")
    (other / "results.jsonl").write_text((other / "results.jsonl").read_text().replace("detection-set", "others"))
    assert "The runs have different test images" in Page(tmp_path, tmp_path / "a", other).text


def test_an_unfinished_run_shows_how_far_it_got(tmp_path: Path) -> None:
    page = Page(tmp_path, make_detector(tmp_path / "a", logged=3))
    assert "a: unfinished, epoch 3 of 4, so it does not enter the comparison (mAP after epoch 2: 20.0 %)" in page.text
    assert "Average precision after" not in page.text
    assert any("Training loss by epoch" in said for said in page.attributes("aria-label"))
    assert not any("mAP on the test" in said for said in page.attributes("aria-label"))  # one point is no curve
    assert Page(tmp_path, make_detector(tmp_path / "b", logged=0)).text.count("no epoch logged") == 2


def test_runs_of_classification_have_no_such_section(tmp_path: Path) -> None:
    runs = read_runs([make_classifier(tmp_path / "plain")])
    assert [section(runs) for section in (detection, captioning, paper_of_transfer)] == [None] * 3


def test_a_figure_that_is_none_is_named(tmp_path: Path) -> None:
    folder = make_detector(tmp_path / "a")
    (folder / "figures" / "detections.png").write_bytes(b"nothing")
    with pytest.raises(InputError, match=r"detections\.png is not a PNG image"):
        write_report([folder], tmp_path / "page.html")


def test_a_detector_shows_its_own_fields(tmp_path: Path) -> None:
    page = Page(tmp_path, make_detector(tmp_path / "a"), make_detector(tmp_path / "b", backbone="w.pth", seed=1))
    rows = page.table("Every detector and captioner")
    assert rows["a"] == ["finished", "detection-set", "SSD300", "resnet10t, random weights", "12,345", "4", "0"]
    assert rows["b"][3:] == ["resnet10t, w.pth", "12,345", "4", "1"]
    assert page.table("Fields in which the recipes of the detectors differ") == {"backbone": ["none", "w.pth"]}
    assert "Every classifier" not in page.text


def test_a_captioner_says_whether_its_encoder_learns(tmp_path: Path) -> None:
    run, _ = make_captioner(tmp_path / "c", 2, tune_encoder=True, backbone="pretrained", logged=2)
    row = Page(tmp_path, run).table("Every detector and captioner")["c"]
    assert row[:4] == ["unfinished, epoch 2 of 4", "captioning-set", "Show and Tell, tuned", "resnet20, timm’s weights"]


def test_a_backbone_is_called_by_its_run_and_its_recipe(tmp_path: Path) -> None:
    run = make_detector(tmp_path / "a", backbone="/far/runs/net-seed0/model.safetensors")
    assert Page(tmp_path, run).table("Every detector and captioner")["a"][3] == "resnet10t, net-seed0"
    lines = (run / "results.jsonl").read_text().replace('"arch"', '"backbone_recipe": "net", "arch"')
    (run / "results.jsonl").write_text(lines)
    assert Page(tmp_path, run).table("Every detector and captioner")["a"][3] == "resnet10t, net-seed0 (net)"


def test_kinds_have_tables_of_their_own(tmp_path: Path) -> None:
    page = Page(tmp_path, make_classifier(tmp_path / "plain"), make_detector(tmp_path / "a"))
    assert page.table("Every classifier")["plain"][3] == "resnet20"
    assert page.table("Every detector and captioner").keys() == {"a"}
    assert page.table("Circumstances of each run").keys() == {"plain", "a"}
    assert "Fields in which" not in page.text  # one recipe of each kind
    alone = Page(tmp_path, tmp_path / "plain")
    assert alone.table("Every run").keys() == {"plain"}
