"""Images with several labels, from the file of labels to the exported model."""

import csv
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.metrics import average_precision_score

import cutmix
from cutmix.cli import main
from cutmix.data import open_splits
from cutmix.errors import InputError
from cutmix.inference.model import load
from cutmix.report.summary import write_report
from cutmix.runs.read import read_arrays, read_run
from cutmix.runtime.checkpoint import read_header

CLASSES = ("blue", "green", "red")
CHANNEL = {"red": 0, "green": 1, "blue": 2}
FEW = ["--model", "resnet10t", "--no-pretrained", "--image-size", "32", "--batch-size", "16", "--precision", "float32"]
FEW += ["--workers", "0", "--device", "cpu"]


def labels_of(i: int) -> list[str]:
    return [name for bit, name in enumerate(CLASSES) if i >> bit & 1]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder of images in which each label is a bright channel, every combination of them, with a CSV file."""
    root, rng = tmp_path_factory.mktemp("colours"), np.random.default_rng(0)
    lines = ["path,labels,split"]
    for split, count in (("train", 64), ("val", 24), ("test", 24)):
        for i in range(count):
            pixels = rng.integers(0, 90, (36, 40, 3), dtype=np.uint8)
            for name in labels_of(i):
                pixels[..., CHANNEL[name]] += 140
            Image.fromarray(pixels).save(root / f"{split}-{i}.png")
            lines.append(f"{split}-{i}.png,{'|'.join(labels_of(i))},{split}")
    (root / "labels.csv").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return root


@pytest.fixture(scope="module")
def run(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("runs") / "colours"
    main(
        ["train", "--labels", str(folder / "labels.csv"), "--mix", "cutmix", "--epochs", "12", *FEW, "--out", str(out)]
    )
    return out


def test_training_records_map_and_f1_and_learns_the_colours(run: Path) -> None:
    found = {(r.metric, r.of, r.which): r for r in read_run(run).results}
    arrays = read_arrays(run / "predictions/last.npz")
    assert arrays["labels"].shape == arrays["logits"].shape == (24, 3)
    own = found["label_map", None, "last"]
    assert own.value == pytest.approx(100 * average_precision_score(arrays["labels"], arrays["logits"]))
    assert own.value > 90
    assert (own.split, own.n, own.task) == ("test", 24, "multilabel")
    assert found["label_map", None, "best"].chosen_on == "val"
    header = read_header(run / "model.safetensors")
    assert header.multi_label
    assert header.classes == CLASSES
    assert header.thresholds == tuple(arrays["thresholds"].tolist())
    assert len({*header.thresholds}) > 1
    assert json.loads((run / "config.json").read_text())["recipe"]["label_smoothing"] == 0.0


def test_evaluate_repeats_the_training_and_refuses_what_needs_one_label(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "again"
    main(["evaluate", str(run), "--suite", "all", "--workers", "0", "--device", "cpu", "--out", str(out)])
    again = {(r.metric, r.of): r for r in read_run(out).results}
    for record in read_run(run).results:
        if record.which == "last" and record.source == "training":
            assert again[record.metric, record.of].value == pytest.approx(record.value), record.metric
    assert again["robustness", None].note == "not run: --suite robustness needs one label an image; images of " + (
        "labels.csv have several"
    )
    assert again["temperature", None].value > 0
    assert read_run(out).task == "multilabel"
    with pytest.raises(SystemExit):
        main(["evaluate", str(run), "--suite", "ood", "--device", "cpu"])
    assert "--suite ood needs one label an image" in capsys.readouterr().err


def test_predict_prints_every_label_above_its_threshold(
    run: Path, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    files = [str(folder / f"test-{i}.png") for i in range(24)]
    capsys.readouterr()
    main(["predict", str(run), *files, "--temperature", "1", "--device", "cpu"])
    rows = list(csv.DictReader(capsys.readouterr().out.splitlines()))
    arrays = read_arrays(run / "predictions/last.npz")
    order = [str(name) for name in arrays["files"]]
    for row in rows:
        z = arrays["logits"][order.index(Path(row["file"]).name)]
        expected = {CLASSES[k] for k in np.flatnonzero(1 / (1 + np.exp(-z)) >= arrays["thresholds"])}
        assert {*filter(None, row["labels"].split("|"))} == expected
    right = sum({*filter(None, row["labels"].split("|"))} == {*labels_of(i)} for i, row in enumerate(rows))
    assert right > 16
    model = load(run, device="cpu")
    hot = list(model.predict(files, temperature=5.0))
    assert [each.classes for each in hot] == [each.classes for each in model.predict(files)]
    assert [len(each.classes) for each in model.predict(files, threshold=1e-9)] == [3] * 24
    with pytest.raises(InputError, match="top is 2; expected 1, as every label"):
        model.predict(files, top=2)


def test_explain_draws_a_map_for_each_predicted_label(run: Path, folder: Path) -> None:
    model = load(run, device="cpu")
    found = model.explain(folder / "test-7.png", neighbours=2)
    (predicted,) = model.predict(folder / "test-7.png")
    assert tuple(model.classes[i] for i in found.class_ids) == predicted.classes
    assert len(found.maps) == len(predicted.classes)


@pytest.mark.parametrize("kind", ["onnx", "torch"])
def test_the_exported_model_has_sigmoids_and_thresholds(
    kind: str, run: Path, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / kind
    main(["export", str(run), "--format", kind, "--out", str(out)])
    text = (out / "README.md").read_text(encoding="utf-8")
    code = text.split("```python\n")[1].split("```")[0]
    monkeypatch.chdir(out)
    Image.open(folder / "test-6.png").save(out / "photo.jpg", quality=95)
    names: dict[str, object] = {}
    exec(code, names)
    (expected,) = load(run, device="cpu").predict(out / "photo.jpg")
    shown = {name for name, p, t in zip(names["classes"], names["probabilities"][0], names["thresholds"], strict=True)
             if p >= t}  # type: ignore[call-overload, index]  # fmt: skip
    assert shown == {*expected.classes}


def test_the_report_shows_the_labels(run: Path, tmp_path: Path) -> None:
    main(["report", str(run), "--out", str(tmp_path / "page.html")])
    page = (tmp_path / "page.html").read_text(encoding="utf-8")
    assert "F1, mean of the labels" in page
    assert "<caption><span>Threshold: each label</span></caption>" in page
    t = read_header(run / "model.safetensors").thresholds
    assert t is not None
    assert all(f"{value:.3f}</td>" in page for value in t)
    assert "top-1" not in page.lower()


def test_the_page_shows_the_images_with_the_surest_wrong_labels(folder: Path, tmp_path: Path) -> None:
    run, out, wrong = tmp_path / "short", tmp_path / "again", {f"test-{i}.png" for i in (3, 8, 18)}
    labels = folder / "wrong.csv"
    lines = (folder / "labels.csv").read_text(encoding="utf-8").splitlines()
    labels.write_text("\n".join(f"{i},red,test" if (i := line.split(",")[0]) in wrong else line for line in lines))
    main(["train", "--labels", str(labels), "--mix", "none", "--epochs", "2", *FEW, "--out", str(run)])
    main(["evaluate", str(run), "--workers", "0", "--device", "cpu", "--out", str(out)])
    for place in (run, out):
        page = write_report([place], tmp_path / "page.html").read_text(encoding="utf-8")
        alts = re.findall(r'alt="Test image (test-\d+\.png): (.*?); labelled (.*?)"', page)
        assert {name for name, _, _ in alts[:3]} == wrong
        for name, predicted, labelled in alts:
            truth = ["red"] if name in wrong else labels_of(int(name[5:-4]))
            assert {*re.findall(r"[a-z]+", labelled)} - {"no", "label"} == {*truth}
            assert {*re.findall(r"[a-z]+", predicted)} - {"no", "label"} != {*truth}


def test_the_model_card_has_the_labels(run: Path, tmp_path: Path) -> None:
    main(["push", str(run), "--to", str(tmp_path / "hub")])
    card = (tmp_path / "hub/README.md").read_text(encoding="utf-8")
    assert "| label_map |" in card
    assert "gets one of them" not in card
    config = json.loads((tmp_path / "hub/config.json").read_text(encoding="utf-8"))
    assert config["cutmix"]["thresholds"] == list(read_header(run / "model.safetensors").thresholds or ())


def test_two_processes_record_what_one_evaluates(folder: Path, tmp_path: Path) -> None:
    run, out = tmp_path / "run", tmp_path / "again"
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", "cutmix"]
    words = ["train", "--labels", str(folder / "labels.csv"), "--mix", "cutmix", "--epochs", "1", *FEW]
    done = subprocess.run(
        [*launcher, *words, "--out", str(run)], env=os.environ | {"OMP_NUM_THREADS": "1"}, capture_output=True,
        text=True, timeout=240, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    main(["evaluate", str(run), "--workers", "0", "--device", "cpu", "--out", str(out)])
    both = [read_arrays(path / "predictions/last.npz") for path in (run, out)]
    for name in ("labels", "thresholds", "files"):
        np.testing.assert_array_equal(both[0][name], both[1][name])
    trained = {(r.metric, r.of): (r.value, r.low, r.high) for r in read_run(run).results if r.which == "last"}
    assert trained == {(r.metric, r.of): (r.value, r.low, r.high) for r in read_run(out).results}
    assert {"label_map", "f1_macro", "label_threshold"} <= {metric for metric, _ in trained}


def test_compare_says_by_how_much_f1_differs(folder: Path, tmp_path: Path) -> None:
    small = {"model": "resnet10t", "pretrained": False, "image_size": 32, "batch_size": 32, "epochs": 2}
    found = cutmix.compare(
        folder / "labels.csv", ["none", "mixup"], seeds=2, out=tmp_path, workers=0, device="cpu", **small
    )
    assert str(found).startswith("mixup: F1 of the labels of an image ")
    assert {each.name for each in found[0].classes} == {*CLASSES}
    means = [
        np.mean([r.value for path in sorted(tmp_path.glob(f"*-{mix}-seed*")) for r in read_run(path).results
                 if r.metric == "f1_images" and r.which == "last"])
        for mix in ("mixup", "none")
    ]  # fmt: skip
    assert found[0].difference.value == pytest.approx(means[1] - means[0])


@pytest.mark.parametrize(
    "words", [["--class-weights", "balanced"], ["--sampler", "balanced"], ["--train-per-class", "2"]]
)
def test_what_needs_one_label_is_refused(
    words: list[str], folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        main(["train", "--labels", str(folder / "labels.csv"), *FEW, *words, "--out", str(tmp_path / "run")])
    assert f"{words[0]} " in (said := capsys.readouterr().err)
    assert "needs one label an image" in said


def test_the_three_kinds_of_files_hold_the_same_labels(folder: Path, tmp_path: Path) -> None:
    import pyarrow
    import pyarrow.parquet

    with open(folder / "labels.csv", encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    table = [row | {"labels": [*filter(None, row["labels"].split("|"))]} for row in rows]
    (folder / "labels.jsonl").write_text("".join(json.dumps(row) + "\n" for row in table), encoding="utf-8")
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(table), folder / "labels.parquet")
    splits = [open_splits(str(folder / f"labels.{kind}")) for kind in ("csv", "jsonl", "parquet")]
    for part in ("train", "val", "test"):
        sets = [getattr(each, part) for each in splits]
        assert all(torch.equal(one.labels, sets[0].labels) for one in sets)
        assert sets[0].labels.dtype == torch.uint8
        for path, row in zip(sets[0].paths, sets[0].labels, strict=True):
            assert [CLASSES[k] for k in row.nonzero().flatten().tolist()] == labels_of(int(path.stem.split("-")[1]))


def test_the_division_is_stratified_by_the_rarest_label(folder: Path, tmp_path: Path) -> None:
    lines = [f"{folder / f'train-{i}.png'},{'|'.join(labels_of(i)) if i % 8 else 'blue|rare'}" for i in range(64)]
    (tmp_path / "all.csv").write_text("path,labels\n" + "\n".join(lines) + "\n", encoding="utf-8")
    splits = open_splits(str(tmp_path / "all.csv"), val_fraction=0.25)
    assert splits.train.classes == ("blue", "green", "rare", "red")
    assert splits.val is not None
    assert splits.val.counts()[2] == 2
    assert len(splits.train) + len(splits.val) == 64
