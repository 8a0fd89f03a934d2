"""``cutmix evaluate``: the same numbers as the run's own, and a clear sentence where things do not fit."""

import json
import os
import shutil
import subprocess
import sys
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import cutmix.evaluation.command
import cutmix.evaluation.load
from cutmix.cli import main
from cutmix.config.options import EvaluateOptions
from cutmix.data import open_data, open_splits
from cutmix.errors import InputError
from cutmix.evaluation.classification import LabelledLogits
from cutmix.evaluation.command import run_evaluate
from cutmix.evaluation.ood import ood_metrics
from cutmix.models import create_model
from cutmix.runs.read import read_arrays, read_run
from cutmix.runs.record import read_records


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("runs") / "digits"
    words = ["--epochs", "2", "--ema-decay", "0.9", "--device", "cpu", "--out", str(out)]
    main(["train", "digits-resnet20-cutmix", *words])
    return out


@pytest.fixture
def run(trained: Path, tmp_path: Path) -> Path:
    return shutil.copytree(trained, tmp_path / "run")


def options(source: Path, **changes: object) -> EvaluateOptions:
    return EvaluateOptions(source, **{"device": "cpu", "workers": 0} | changes)  # type: ignore[arg-type]


@pytest.mark.parametrize("which", ["last", "best"])
def test_saved_weights_give_the_saved_predictions(run: Path, monkeypatch: pytest.MonkeyPatch, which: str) -> None:
    seen: list[LabelledLogits] = []
    original = cutmix.evaluation.command.predict
    monkeypatch.setattr(
        cutmix.evaluation.command, "predict", lambda *a, **k: seen.append(original(*a, **k)) or seen[-1]
    )
    batch = json.loads((run / "config.json").read_text())["recipe"]["batch_size"]
    records = run_evaluate(options(run, which=which, batch_size=batch))
    saved = read_arrays(run / f"predictions/{which}.npz")
    assert np.array_equal(seen[0].logits, saved["logits"])
    assert np.array_equal(seen[0].labels, saved["labels"])
    own = {r.metric: r for r in read_records(run / "results.jsonl") if r.which == which and r.source == "training"}
    for record in records:
        shared = (
            "value",
            "low",
            "high",
            "n",
            "epoch",
            "model",
            "mix",
            "seed",
            "weights",
            "parameters",
            "recipe",
            "data",
        )
        assert [getattr(record, name) for name in shared] == [getattr(own[record.metric], name) for name in shared]


def test_shake_drop_keeps_its_expectation(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    words = ["--epochs", "1", "--shake-drop", "0.5", "--depth-decay", "constant", "--device", "cpu"]
    main(["train", "digits-resnet20", *words, "--out", str(tmp_path / "run")])
    seen: list[LabelledLogits] = []
    original = cutmix.evaluation.command.predict
    monkeypatch.setattr(
        cutmix.evaluation.command, "predict", lambda *a, **k: seen.append(original(*a, **k)) or seen[-1]
    )
    run_evaluate(options(tmp_path / "run", batch_size=64))
    assert np.array_equal(seen[0].logits, read_arrays(tmp_path / "run/predictions/last.npz")["logits"])


def test_results_are_appended_or_go_where_they_are_wanted(run: Path, tmp_path: Path) -> None:
    before = read_records(run / "results.jsonl")
    records = run_evaluate(options(run))
    assert read_records(run / "results.jsonl") == [*before, *records]
    run_evaluate(options(run, out=tmp_path / "else.jsonl"))
    assert len(read_records(run / "results.jsonl")) == len(before) + 2
    assert len(read_records(tmp_path / "else.jsonl")) == 2


def test_folders_of_one_name_are_told_apart(run: Path, tmp_path: Path) -> None:
    """The results of the second folder took the place of those of the first, in the report and among the files."""
    for site, count in (("a", 1), ("b", 2)):
        for digit, i in ((digit, i) for digit in range(2) for i in range(count)):
            (tmp_path / site / "test" / str(digit)).mkdir(parents=True, exist_ok=True)
            Image.new("L", (8, 8), 10 * digit + i).save(tmp_path / site / "test" / str(digit) / f"{i}.png")
    for site, name, n in (("a", "test", 2), ("b", "b/test", 4), ("a", "test", 2), ("b", "b/test", 4)):
        records = run_evaluate(options(run, data=str(tmp_path / site / "test")))
        assert {(record.data, record.n) for record in records} == {(name, n)}
    out = tmp_path / "out"
    run_evaluate(options(run, data=str(tmp_path / "a" / "test"), out=out))
    run_evaluate(options(run, data=str(tmp_path / "a" / "test"), out=out))
    with pytest.raises(InputError, match=r"out holds an evaluation of .* on .*a.test; give another --out"):
        run_evaluate(options(run, data=str(tmp_path / "b" / "test"), out=out))
    assert len(read_arrays(out / "predictions" / "last.npz")["labels"]) == 2
    for stem, n in (("evaluated-last-test", 2), ("evaluated-last-b-test", 4)):
        assert len(read_arrays(run / "predictions" / f"{stem}.npz")["labels"]) == n
    shown = {(record.data, record.n) for record in read_run(run).results if record.metric == "top1_err"}
    assert {("test", 2), ("b/test", 4)} <= shown


def test_a_file_of_weights_says_what_it_is(run: Path) -> None:
    from_run = run_evaluate(options(run, out=run / "other.jsonl"))
    alone = shutil.copy(run / "model.safetensors", run.parent / "alone.safetensors")
    from_file = run_evaluate(options(Path(alone)))
    assert [r.value for r in from_file] == [r.value for r in from_run]
    assert {r.which for r in from_file} == {"file"}


def test_a_plain_state_dict_needs_model_and_data(tmp_path: Path) -> None:
    path = tmp_path / "plain.pth"
    torch.save({f"module.{k}": v for k, v in create_model("resnet20", 10, in_chans=1).state_dict().items()}, path)
    with pytest.raises(InputError, match="does not say what it was trained on; give --data"):
        run_evaluate(options(path))
    with pytest.raises(InputError, match="does not say which model it is; give --model"):
        run_evaluate(options(path, data="digits"))
    (record, _) = run_evaluate(options(path, data="digits", model="resnet20"))
    assert (record.n, record.mix, record.epoch, record.recipe) == (797, None, None, "plain")
    with pytest.raises(InputError, match="is a checkpoint of another model"):
        run_evaluate(options(path, data="digits", model="resnet32"))


def test_another_count_of_classes_is_refused(run: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    digits = open_data("digits", "test")
    hundred = replace(digits, name="hundred", classes=tuple(map(str, range(100))))
    splits = open_splits("digits")
    monkeypatch.setattr(cutmix.evaluation.load, "open_splits", lambda *_, **__: replace(splits, test=hundred))
    whole = replace(splits, train=hundred)
    monkeypatch.setattr(cutmix.evaluation.load, "open_whole", lambda *_, **__: whole)
    with pytest.raises(InputError, match=r"hundred has the class '10', which is not among the 10 of .*"):
        run_evaluate(options(run))
    path = tmp_path / "plain.pth"  # says nothing of its classes
    torch.save(create_model("resnet20", 10, in_chans=1).state_dict(), path)
    with pytest.raises(InputError, match="has 10 classes and does not name them, hundred has 100"):
        run_evaluate(options(path, data="digits", model="resnet20"))


def test_classes_in_another_order_are_matched_by_name(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = run_evaluate(options(run))[0].value
    digits = open_data("digits", "test")
    turned = replace(digits, name="turned", classes=digits.classes[::-1], labels=9 - digits.labels)
    splits = replace(open_splits("digits"), test=turned)
    monkeypatch.setattr(cutmix.evaluation.load, "open_splits", lambda *_, **__: splits)
    assert run_evaluate(options(run))[0].value == expected


def test_an_unfinished_run_says_so(run: Path) -> None:
    (run / "model.safetensors").unlink()
    with pytest.raises(InputError, match="the run is not finished; continue it with --resume"):
        run_evaluate(options(run))
    run_evaluate(options(run, which="best"))


def test_a_batch_of_none_is_refused(run: Path) -> None:
    with pytest.raises(InputError, match="--batch-size is 0; expected at least 1"):
        run_evaluate(options(run, batch_size=0))


def test_the_table_names_the_file_as_it_is(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    odd = run.rename(run.parent / "a [red]b[blue")
    run_evaluate(options(odd))
    said = capsys.readouterr().out.replace("\n", "")
    assert "[red]b[blue" in said
    assert "95 % interval" in said
    assert np.isfinite([r.value for r in read_records(odd / "results.jsonl")]).all()


# ---- some of the images ----


def test_some_images_are_the_same_for_every_suite(run: Path) -> None:
    words = {"images": 30, "suite": "classification,calibration,robustness,ood", "outliers": ("uniform",)}
    records = run_evaluate(options(run, **words))
    assert {(r.drawn, r.draw_seed, r.image_size) for r in records} == {(30, 0, 8)}
    assert {(r.test_images, r.classes) for r in records} == {(797, 10)}
    assert {(r.test_images, r.classes) for r in read_records(run / "results.jsonl")} == {(797, 10)}
    shown = read_arrays(run / "predictions/evaluated-last.npz")
    for suite in ("calibration", "robustness", "ood"):
        arrays = read_arrays(run / f"predictions/{suite}-last.npz")
        assert np.array_equal(arrays["labels"], shown["labels"])
        assert arrays["images"] == open_data("digits", "test").fingerprint()
    own = read_arrays(run / "predictions/last.npz")
    found = [int(np.abs(own["logits"] - row).sum(1).argmin()) for row in shown["logits"]]
    assert len(set(found)) == 30
    assert found == sorted(found)
    by = {r.metric: r.n for r in records}
    assert (by["top1_err"], by["ece"], by["pgd_err"], by["between_mixup_err"], by["ood_auroc"]) == (30, 30, 30, 150, 60)
    again = run_evaluate(options(run, images=30, seed=1, suite="calibration"))
    assert again[0].draw_seed == 1
    assert not np.array_equal(read_arrays(run / "predictions/calibration-last.npz")["labels"], shown["labels"])


def test_more_images_than_there_are_is_all(run: Path) -> None:
    records = run_evaluate(options(run, images=5000))
    assert {(r.drawn, r.n) for r in records} == {(None, 797)}
    with pytest.raises(InputError, match="--images is 1; expected at least 2"):
        options(run, images=1)


def test_the_expected_duration_is_printed_first(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run_evaluate(options(run, suite="robustness", images=10))
    said = capsys.readouterr().out
    assert "robustness of 10 images: about " in said
    assert said.index("about") < said.index("fgsm_err")


# ---- what is interrupted ----

KILLED = """
import os, resource, signal, sys
import numpy as np
import cutmix.evaluation.command as command
from cutmix.cli import main
from cutmix.data import open_data
from cutmix.evaluation.classifier import SuiteResult
from cutmix.runs.record import Record
from cutmix.runtime.files import to_json

open_data("digits", "test")  # what it imports, it imports once for all
found = [Record(metric=f"m{i}", value=1.0, n=1, suite="robustness") for i in range(60)]
command.robustness_suite = lambda *_, **__: SuiteResult(found, {"right": np.arange(1000)})
words = ["evaluate", sys.argv[1], "--suite", "classification,robustness", "--images", "20", "--device", "cpu"]
replace, append = os.replace, command.append_records
sys.stdout = open(os.devnull, "w")

def die(*_):
    os.kill(os.getpid(), signal.SIGKILL)

def at(number, function, last):
    calls = []
    def counted(*given):
        calls.append(given)
        return last(*given) if len(calls) == number else function(*given)
    return counted

def half(path, records):
    with open(path, "ab") as file:
        file.write(b"".join(to_json(record.to_json()) for record in records)[:3000])
    die()

def full(path, records):
    limit = os.stat(path).st_size + 3000
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
    append(path, records)

for ending, patch in (
    (-9, lambda: setattr(os, "replace", at(2, replace, die))),  # the arrays of robustness are not in place yet
    (-9, lambda: setattr(command, "append_records", at(2, append, die))),  # they are, its lines are not
    (-9, lambda: setattr(command, "append_records", at(2, append, half))),
    (2, lambda: setattr(command, "append_records", at(2, append, full))),
):
    if not (child := os.fork()):
        patch()
        main(words)
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == ending
    with open(sys.argv[1] + "/results.jsonl", "rb") as file:
        ended = file.read().endswith(b"\\n")
    print(ended, file=sys.stderr)
"""


def test_killed_at_any_point_nothing_finished_is_lost(run: Path) -> None:
    before = len(read_records(run / "results.jsonl"))
    command = [sys.executable, "-W", "ignore", "-c", KILLED, str(run)]
    done = subprocess.run(command, capture_output=True, text=True, env=os.environ | {"OMP_NUM_THREADS": "1"})
    assert done.returncode == 0, done.stderr
    assert "results.jsonl could not be written: File too large; nothing was changed" in done.stderr
    assert [line for line in done.stderr.splitlines() if line in ("True", "False")] == ["True", "True", "False", "True"]
    kept = Counter(record.suite for record in read_records(run / "results.jsonl")[before:])
    assert kept["classification"] == 4 * 2
    assert 0 < kept["robustness"] < 60  # those before the line that was cut
    assert read_arrays(run / "predictions/robustness-last.npz")["right"].tolist() == list(range(1000))
    again = run_evaluate(options(run, suite="robustness", images=20))
    assert [r.metric for r in read_records(run / "results.jsonl")[-len(again) :]] == [r.metric for r in again]
    assert not [path for path in (run / "predictions").iterdir() if path.suffix == ".tmp"]


def test_ctrl_c_names_the_finished_suites(
    run: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def stop(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    before = len(read_records(run / "results.jsonl"))
    monkeypatch.setattr(cutmix.evaluation.command, "robustness_suite", stop)
    with pytest.raises(SystemExit) as stopped:
        main(["evaluate", str(run), "--suite", "classification,robustness", "--device", "cpu", "--workers", "0"])
    assert stopped.value.code == 130
    said = " ".join(capsys.readouterr().out.split())
    assert "stopped; classification finished, in" in said
    assert len(read_records(run / "results.jsonl")) == before + 2


def test_results_that_cannot_be_saved_are_printed(
    run: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def full(*_: object) -> None:
        raise InputError("the disk is full")

    monkeypatch.setattr(cutmix.evaluation.command, "append_records", full)
    with pytest.raises(InputError, match="the disk is full"):
        run_evaluate(options(run))
    assert "top1_err" in capsys.readouterr().out


@pytest.mark.parametrize(("device", "code"), [("pipe", 141), ("/dev/full", 2)])
def test_results_are_saved_before_they_are_printed(
    run: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], device: str, code: int
) -> None:
    if device == "pipe":
        reader, writer = os.pipe()
        os.close(reader)
        stdout = os.fdopen(writer, "w")
    elif Path(device).exists():
        stdout = open(device, "w")  # noqa: SIM115
    else:
        pytest.skip(f"no {device} here")
    before = len(read_records(run / "results.jsonl"))
    with stdout:
        monkeypatch.setattr(sys, "stdout", stdout)
        with pytest.raises(SystemExit) as ended:
            main(["evaluate", str(run), "--device", "cpu", "--workers", "0", "--images", "50"])
        monkeypatch.undo()
    assert ended.value.code == code
    assert [r.metric for r in read_records(run / "results.jsonl")[before:]] == ["top1_err", "top5_err"]
    assert read_arrays(run / "predictions/evaluated-last.npz")["labels"].shape == (50,)
    assert ("No space left on device" in capsys.readouterr().err) == (code == 2)


# ---- what the flags of a suite do ----


def test_further_conventions_are_recorded(run: Path) -> None:
    words = {"suite": "ood", "outliers": ("uniform",), "images": 40}
    plain = run_evaluate(options(run, **words))
    more = run_evaluate(options(run, **words, convention=("odin", "openood", "mahalanobis")))
    by = {(r.metric, r.score, r.convention): r.value for r in more}
    of = {convention: {metric for metric, _, c in by if c == convention} for _, _, convention in by}
    five = {"ood_tnr95", "ood_auroc", "ood_detection_acc", "ood_aupr_in", "ood_aupr_out"}
    assert of == {"exact": five | {"ood_ties"}, "odin": five, "openood": five, "mahalanobis": five}
    assert all(by[r.metric, r.score, r.convention] == pytest.approx(r.value) for r in plain)
    arrays = read_arrays(run / "predictions/ood-last.npz")
    scores = [np.exp(arrays[f"max-softmax/{side}"]) for side in ("id", "uniform")]
    for name in ("odin", "openood"):
        expected = ood_metrics(*scores, name, num_classes=10)
        assert by["ood_auroc", "max-softmax", name] == pytest.approx(expected.auroc)
        assert by["ood_detection_acc", "max-softmax", name] == pytest.approx(expected.detection_acc)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ({"crop_fraction": 0.0}, "--crop-fraction is 0.0; expected a share above 0, at most 1"),
        ({"crop_fraction": float("nan")}, "--crop-fraction is nan"),
        ({"outliers": ("x",)}, "--outliers is given, but --suite is classification; expected --suite ood"),
        ({"boxes": Path("x"), "suite": "ood"}, "--boxes is given, but --suite is ood; expected --suite localization"),
        ({"workers": 10**9}, "--workers is 1000000000; expected 0 to 1,024"),
        ({"suite": "calibration,rubbish"}, '--suite is "rubbish"; expected classification, calibration'),
    ],
)
def test_flags_out_of_their_range_are_refused(run: Path, flags: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        options(run, **flags)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ({"image_size": 100_000, "suite": "calibration"}, r"takes [\d,.]+ GiB; expected at most this machine's"),
        ({"batch_size": 10**9}, r"takes [\d,.]+ GiB; expected at most this machine's"),
        ({"image_size": 100_000}, r"takes [\d,.]+ GiB; expected at most this machine's"),
        ({"pairs": 10**13, "suite": "robustness"}, r"--pairs is 10000000000000: .* takes [\d,.]+ GiB"),
        ({"crop_fraction": 0.5}, r"--crop-fraction is 0.5; expected 0.875, with which .* was trained"),
        ({"squash": True}, r"--squash is given, but .* was trained without it"),
    ],
)
def test_sizes_beyond_the_memory_and_another_crop_are_refused_before_anything_is_evaluated(
    run: Path, flags: dict[str, Any], message: str
) -> None:
    before = len(read_records(run / "results.jsonl"))
    with pytest.raises(InputError, match=message):
        run_evaluate(options(run, **flags))
    assert len(read_records(run / "results.jsonl")) == before


def test_boxes_of_squashed_images_are_those_of_the_benchmark(tmp_path: Path) -> None:
    """A box of 294 to 343 in an image of 343 pixels is at 192 to 224 of 224 pixels, by wsolevaluation's arithmetic."""
    metadata, lines = tmp_path / "metadata", {"localization": [], "image_sizes": []}
    for name in ("cat/a", "cat/b", "dog/a", "dog/b"):
        (tmp_path / "photos" / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.random.default_rng(0).integers(0, 256, (343, 343, 3), dtype=np.uint8)).save(
            tmp_path / "photos" / f"{name}.png"
        )
        lines["localization"].append(f"{name}.png,294,7,342,200")
        lines["image_sizes"].append(f"{name}.png,343,343")
    metadata.mkdir()
    for name, rows in lines.items():
        (metadata / f"{name}.txt").write_text("\n".join(rows))
    torch.save(create_model("resnet20", 2).state_dict(), tmp_path / "plain.pth")
    words = {"data": str(tmp_path / "photos"), "model": "resnet20", "suite": "localization", "boxes": metadata}
    for squash, expected in ((True, [192, 4, 224, 131]), (False, [192, 4.57, 224, 131.27])):
        out = tmp_path / f"out-{squash}"
        run_evaluate(options(tmp_path / "plain.pth", **words, crop_fraction=1.0, squash=squash, out=out))
        boxes = read_arrays(out / "predictions/localization-last.npz")["true_boxes"]
        assert boxes.shape == (4, 1, 4)
        assert boxes[0, 0].tolist() == pytest.approx(expected, abs=0.01)
