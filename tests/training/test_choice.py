"""Which split chooses the best epoch, and which one the results are of."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

import cutmix.training.loop
import cutmix.training.state
from cutmix.config.options import CompareOptions, EvaluateOptions, TrainOptions
from cutmix.config.recipe import Recipe
from cutmix.data import FileSet, open_splits
from cutmix.errors import InputError
from cutmix.evaluation.command import run_evaluate
from cutmix.report.summary import results as page_of_results
from cutmix.report.summary import write_report
from cutmix.runs.read import read_arrays, read_log, read_runs
from cutmix.runs.record import Record, read_records
from cutmix.training.campaign import run_methods
from cutmix.training.loop import run_training

RECIPE = Recipe(
    name="tiny", model="tiny", pretrained=False, mix="none", image_size=8, crop_scale=(1.0, 1.0), epochs=4,
    batch_size=16, optimizer="sgd", lr=0.5, label_smoothing=0.0, ema_decay=0.0, precision="float32",
)  # fmt: skip


class Tiny(nn.Module):
    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Flatten(), nn.Linear(192, 16), nn.BatchNorm1d(16), nn.ReLU())
        self.fc = nn.Linear(16, num_classes)

    def forward(self, images: Tensor) -> Tensor:
        return self.fc(self.net(images))


@pytest.fixture(autouse=True)
def tiny_model(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (cutmix.training.state, cutmix.evaluation.load):
        monkeypatch.setattr(module, "create_model", lambda name, num_classes, **_: Tiny(num_classes))


def write(folder: Path, counts: dict[str, int]) -> Path:
    """Write images of noise, so that no split says anything of another one."""
    random = np.random.default_rng(0)
    for part, count in counts.items():
        for label in ("cat", "dog"):
            (folder / part / label).mkdir(parents=True)
            for i in range(count):
                pixels = random.integers(0, 256, (8, 8, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(folder / part / label / f"{i}.png")
    return folder


def options(out: Path, **changes: Any) -> TrainOptions:
    return TrainOptions(**{"out": out, "workers": 0, "device": "cpu"} | changes)


def entries(run: Path) -> list[dict[str, Any]]:
    return [entry for entry in read_log(run / "log.jsonl") if entry["kind"] == "epoch"]


def top1(run: Path) -> dict[str, Record]:
    return {record.which: record for record in read_records(run / "results.jsonl") if record.metric == "top1_err"}


def error_of(weights: Path, data: FileSet) -> float:
    """Compute the error of some weights as the model is defined, without any code of training or evaluation."""
    from safetensors.torch import load_file

    model = Tiny(2).eval()
    model.load_state_dict(load_file(weights))
    pixels = torch.stack([torch.from_numpy(np.array(Image.open(path))).permute(2, 0, 1) / 255 for path in data.paths])
    mean, std = (torch.tensor(values).reshape(3, 1, 1) for values in (data.mean, data.std))
    with torch.no_grad():
        return 100 * float((model((pixels - mean) / std).argmax(1) != data.labels).float().mean())


def test_val_chooses_and_test_is_reported(tmp_path: Path) -> None:
    data = write(tmp_path / "data", {"train": 40, "val": 15, "test": 13})
    run = run_training(replace(RECIPE, data=str(data), crop_fraction=1.0), options(tmp_path / "run"))
    log = entries(run)
    assert [(entry["epoch"], entry["split"]) for entry in log] == [(e, "val") for e in range(1, 5)]
    assert all("val_loss" in entry and "test_loss" not in entry for entry in log)
    best = min(log, key=lambda entry: entry["top1_err"])
    splits, found = open_splits(str(data)), top1(run)
    assert isinstance(splits.test, FileSet)
    assert isinstance(splits.val, FileSet)
    assert {which: (r.split, r.epoch, r.chosen_on, r.n) for which, r in found.items()} == {
        "last": ("test", 4, None, 26), "best": ("test", best["epoch"], "val", 26)
    }  # fmt: skip
    for which, name in (("last", "model"), ("best", "best")):
        assert found[which].value == pytest.approx(error_of(run / f"{name}.safetensors", splits.test), abs=1e-4)
    assert best["top1_err"] == pytest.approx(error_of(run / "best.safetensors", splits.val), abs=1e-4)
    (again, *_) = run_evaluate(EvaluateOptions(run, which="best", device="cpu", workers=0))
    assert (again.split, again.value) == ("test", found["best"].value)
    page = str(page_of_results(read_runs([run])).body)  # type: ignore[union-attr]
    assert "Best epoch: chosen on the validation images, evaluated on the test images" in page
    assert f"{best['epoch']} (chosen on val)" in page
    assert "optimistic" not in page


def test_a_run_killed_before_its_report_reports_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = replace(RECIPE, data=str(write(tmp_path / "data", {"train": 40, "val": 15, "test": 13})))
    whole = run_training(recipe, options(tmp_path / "whole"))

    def kill(*_: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(cutmix.training.loop, "evaluate_best", kill)
        with pytest.raises(KeyboardInterrupt):
            run_training(recipe, options(tmp_path / "run"))
    assert not (tmp_path / "run/predictions/best.npz").exists()
    run = run_training(recipe, options(tmp_path / "run", resume=True))
    for which in ("last", "best"):
        ours, theirs = (read_arrays(folder / f"predictions/{which}.npz") for folder in (run, whole))
        assert all(np.array_equal(ours[name], theirs[name]) for name in theirs)
    assert {w: (r.value, r.epoch) for w, r in top1(run).items()} == {
        w: (r.value, r.epoch) for w, r in top1(whole).items()
    }


@pytest.mark.parametrize("train_error", [False, True])
def test_without_validation_images_the_last_epoch_alone_is_evaluated(
    train_error: bool, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = write(tmp_path / "data", {"train": 20, "test": 13})  # too few to hold any out
    run = run_training(replace(RECIPE, data=str(data), train_error=train_error), options(tmp_path / "run"))
    log = entries(run)
    assert ["top1_err" in entry for entry in log] == [False, False, False, True]
    assert (log[-1]["split"], log[-1]["top1_err"]) == ("test", top1(run)["last"].value)
    assert [(r.which, r.split) for r in top1(run).values()] == [("last", "test")]
    assert not (run / "best.safetensors").exists()
    out = capsys.readouterr().out
    assert "so none validate" in out
    assert "no best epoch is chosen" in out
    assert "Best epoch" not in str(page_of_results(read_runs([run])).body)  # type: ignore[union-attr]


def test_one_split_for_both_says_that_the_best_is_optimistic(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = write(tmp_path / "data", {"train": 20, "val": 12})
    run = run_training(replace(RECIPE, data=str(data)), options(tmp_path / "run"))
    assert {(r.which, r.split, r.chosen_on) for r in top1(run).values()} == {
        ("last", "val", None), ("best", "val", "val")
    }  # fmt: skip
    assert "chosen and reported on the same validation images, so its error is optimistic" in capsys.readouterr().out
    assert "Best epoch: optimistic where" in str(page_of_results(read_runs([run])).body)  # type: ignore[union-attr]


def test_the_test_images_of_a_known_set_choose_as_in_the_paper(tmp_path: Path) -> None:
    recipe = Recipe(name="digits", epochs=2, crop_padding=1, precision="float32")

    class Flat(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = nn.Sequential(nn.Flatten(), nn.Linear(64, 10))

        def forward(self, images: Tensor) -> Tensor:
            return self.net(images)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cutmix.training.state, "create_model", lambda *_, **__: Flat())
        run = run_training(recipe, options(tmp_path / "run"))
    log, found = entries(run), top1(run)
    assert [entry["split"] for entry in log] == ["test", "test"]
    assert (found["best"].split, found["best"].chosen_on) == ("test", "test")
    assert found["best"].value == min(entry["top1_err"] for entry in log)
    assert "Best epoch: chosen on the test set, hence optimistic" in str(page_of_results(read_runs([run])).body)  # type: ignore[union-attr]


def test_the_log_names_the_split(tmp_path: Path) -> None:
    (tmp_path / "log.jsonl").write_text(
        json.dumps({"kind": "epoch", "epoch": 1, "split": "val", "top1_err": 3.0}) + "\n"
    )
    assert read_log(tmp_path / "log.jsonl")[0]["split"] == "val"


def test_without_any_image_to_evaluate_the_last_epoch_is_kept_and_nothing_claimed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = write(tmp_path / "data", {"": 12})
    recipe = replace(RECIPE, data=str(data), val_fraction=0.0, ema_decay=0.9, crop_fraction=1.0)
    run = run_training(recipe, options(tmp_path / "run"))
    said = " ".join(capsys.readouterr().out.split())
    assert "24 images to train on, none to evaluate on" in said
    assert "no images to evaluate on: the weights after the last epoch are kept, and there is no test result" in said
    assert "no test result; cutmix evaluate" in said
    assert [entry["epoch"] for entry in entries(run)] == [1, 2, 3, 4]
    assert not (run / "results.jsonl").exists()
    assert not (run / "best.safetensors").exists()
    run_training(recipe, options(run, resume=True))
    assert "is finished" in capsys.readouterr().out
    page = write_report([run], tmp_path / "page.html")
    assert "none of which are left to evaluate: no test result" in page.read_text(encoding="utf-8")
    with pytest.raises(InputError, match=r"trained on all images of .*; give others with --data"):
        run_evaluate(EvaluateOptions(run, device="cpu", workers=0))
    other = open_splits(str(write(tmp_path / "other", {"test": 9, "train": 9})), val_fraction=0).test
    assert isinstance(other, FileSet)
    (found, *_) = run_evaluate(EvaluateOptions(run, data=str(tmp_path / "other"), device="cpu", workers=0))
    assert (found.n, found.value) == (18, pytest.approx(error_of(run / "model.safetensors", other), abs=1e-4))


def test_what_needs_images_to_evaluate_is_refused_before_it_trains(tmp_path: Path) -> None:
    data = str(write(tmp_path / "data", {"": 12}))
    nothing = replace(RECIPE, data=data, val_fraction=0.0)
    with pytest.raises(InputError, match="leaves no images to compare the runs on"):
        run_methods(nothing, CompareOptions(out=tmp_path / "compare"))
    with pytest.raises(InputError, match="--train-error is compared with"):
        run_training(replace(nothing, train_error=True), options(tmp_path / "run"))
    with pytest.raises(InputError, match="--patience needs"):
        run_training(replace(nothing, patience=2), options(tmp_path / "run"))
    one = write(tmp_path / "one", {"": 1})
    with pytest.raises(InputError, match="expected two of some class, or --val-fraction 0"):
        run_training(replace(nothing, data=str(one), val_fraction=0.2), options(tmp_path / "run"))
