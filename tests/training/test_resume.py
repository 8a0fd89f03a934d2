"""What may change between a run and its resumption: where the data lie, whether weights are there, more epochs."""

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from torch import Tensor, nn

import cutmix.data.sources
import cutmix.training.loop
import cutmix.training.state
from cutmix.cli import parse_train
from cutmix.config.options import TrainOptions
from cutmix.config.recipe import Recipe
from cutmix.data import open_data
from cutmix.errors import InputError
from cutmix.runs.folder import find_weights
from cutmix.runs.read import read_log
from cutmix.runs.record import read_records
from cutmix.runtime.weights import read_weights
from cutmix.training.loop import run_training
from cutmix.training.state import learning_rate

RECIPE = Recipe(
    name="tiny", model="tiny", pretrained=False, mix="none", image_size=8, epochs=3, batch_size=8, optimizer="sgd",
    lr=0.05, warmup_epochs=0.5, label_smoothing=0.0, ema_decay=0.9, precision="float32",
)  # fmt: skip


class Tiny(nn.Module):
    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Flatten(), nn.Linear(192, 8), nn.ReLU())
        self.fc = nn.Linear(8, num_classes)

    def forward(self, images: Tensor) -> Tensor:
        return self.fc(self.net(images))

    def get_classifier(self) -> nn.Module:
        return self.fc


@pytest.fixture(autouse=True)
def tiny_model(monkeypatch: pytest.MonkeyPatch) -> None:
    def create(name: str, num_classes: int, *, in_chans: int = 3, pretrained: Any = False) -> nn.Module:
        model = Tiny(num_classes)
        if not isinstance(pretrained, bool):
            model.load_state_dict(pretrained.tensors)
        return model

    monkeypatch.setattr(cutmix.training.state, "create_model", create)


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    return write(tmp_path / "photos", 0)


def write(folder: Path, seed: int) -> Path:
    random = np.random.default_rng(seed)
    for label in ("cat", "dog"):
        (folder / label).mkdir(parents=True)
        for i in range(20):
            pixels = random.integers(0, 256, (8, 8, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(folder / label / f"{i}.png")
    return folder


def options(out: Path, **changes: Any) -> TrainOptions:
    return TrainOptions(**{"out": out, "workers": 0, "device": "cpu", "log_every": 1, "checkpoint_every": 2} | changes)


def interrupt(recipe: Recipe, given: TrainOptions, step: int) -> None:
    """Train until before a step, and lose what was not saved."""
    original, calls = cutmix.training.loop.train_step, iter(range(1, 1000))

    def train_step(*arguments: Any) -> Tensor:
        if next(calls) == step:
            raise KeyboardInterrupt
        return original(*arguments)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cutmix.training.loop, "train_step", train_step)
        with pytest.raises(KeyboardInterrupt):
            run_training(recipe, given)


def same_weights(one: Path, other: Path) -> bool:
    ours, theirs = (read_weights(run / "model.safetensors").tensors for run in (one, other))
    return all(torch.equal(ours[name], theirs[name]) for name in theirs)


@pytest.mark.parametrize("how", ["spelling", "absolute", "moved", "copied elsewhere"])
def test_the_data_may_move(how: str, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    before = replace(RECIPE, data="photos")
    whole = run_training(before, options(tmp_path / "whole"))
    interrupt(before, options(tmp_path / "run"), 7)
    after = {"spelling": "./photos/", "absolute": str(photos), "moved": "insects", "copied elsewhere": "a/b"}[how]
    if how in ("moved", "copied elsewhere"):
        shutil.copytree(photos, tmp_path / after, copy_function=shutil.copyfile)
        shutil.rmtree(photos)
    run = run_training(replace(before, data=after), options(tmp_path / "run", resume=True))
    assert same_weights(run, whole)
    config = json.loads((run / "config.json").read_text())
    assert config["recipe"]["data"] == after
    results = [[r.value for r in read_records(folder / "results.jsonl")] for folder in (run, whole)]
    assert results[0] == results[1]


def test_other_images_of_the_same_names_are_refused(photos: Path, tmp_path: Path) -> None:
    interrupt(replace(RECIPE, data=str(photos)), options(tmp_path / "run"), 7)
    other = write(tmp_path / "other", 1)
    for path in other.rglob("*.png"):
        path.write_bytes(path.read_bytes() + b" ")
    before = {path: path.read_bytes() for path in (tmp_path / "run").iterdir() if path.is_file()}
    with pytest.raises(InputError, match=r"other has other images than when the run in .* was started"):
        run_training(replace(RECIPE, data=str(other)), options(tmp_path / "run", resume=True))
    assert {path: path.read_bytes() for path in before} == before


def test_weights_to_start_from_may_be_gone(photos: Path, tmp_path: Path) -> None:
    weights = tmp_path / "weights.safetensors"
    mean, std = (0.1, 1 / 3, 0.7), (0.3, 0.2, 2 / 7)
    save_file(Tiny(2).state_dict(), weights, {"mean": json.dumps(mean), "std": json.dumps(std)})
    recipe = replace(RECIPE, data=str(photos), pretrained=None, weights=str(weights))
    whole = run_training(recipe, options(tmp_path / "whole"))
    interrupt(recipe, options(tmp_path / "run"), 7)
    weights.unlink()
    run = run_training(recipe, options(tmp_path / "run", resume=True))
    assert same_weights(run, whole)
    assert (run / "log.jsonl").read_text().count("\n") == (whole / "log.jsonl").read_text().count("\n")
    losses = [[e["loss"] for e in read_log(folder / "log.jsonl") if e["kind"] == "train"] for folder in (run, whole)]
    assert losses[0] == losses[1]  # with the normalization of the weights, to the last bit
    with pytest.raises(InputError, match=r"weights\.safetensors"):
        run_training(recipe, options(tmp_path / "new", resume=True))


@pytest.mark.parametrize("schedule", ["cosine", "step", "constant"])
def test_a_finished_run_is_extended_by_the_rule_of_its_schedule(
    schedule: Any, photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe = replace(RECIPE, data=str(photos), schedule=schedule)
    run = run_training(recipe, options(tmp_path / "run"))
    before = read_records(run / "results.jsonl")
    capsys.readouterr()
    longer = replace(recipe, epochs=5)
    run_training(longer, options(tmp_path / "run", resume=True))
    out = capsys.readouterr().out
    assert f"extended from 3 to 5 epochs: from here on, the learning rate follows the {schedule} schedule of 5" in out
    epochs = [entry for entry in read_log(run / "log.jsonl") if entry["kind"] == "epoch"]
    assert [entry["epoch"] for entry in epochs] == [1, 2, 3, 4, 5]
    steps = epochs[0]["step"]
    expected = [learning_rate(recipe if e < 3 else longer, (e + 1) * steps - 1, steps) for e in range(5)]
    assert [entry["lr"] for entry in epochs] == pytest.approx(expected)
    assert {record.epoch for record in read_records(run / "results.jsonl") if record.which == "last"} == {5}
    assert read_records(run / "results-3-epochs.jsonl") == before
    assert json.loads((run / "config.json").read_text())["recipe"]["epochs"] == 5


def test_an_extended_run_goes_on_exactly_when_it_is_interrupted(photos: Path, tmp_path: Path) -> None:
    recipe = replace(RECIPE, data=str(photos))
    longer = replace(recipe, epochs=5)
    for name in ("whole", "run"):
        run_training(recipe, options(tmp_path / name))
    run_training(longer, options(tmp_path / "whole", resume=True))
    interrupt(longer, options(tmp_path / "run", resume=True), 3)
    again, given = parse_train(["--resume", "--out", str(tmp_path / "run"), "--workers", "0", "--device", "cpu"])
    assert again.epochs == 5
    assert same_weights(run_training(again, given), tmp_path / "whole")


def test_a_constant_schedule_that_is_extended_is_one_long_run(photos: Path, tmp_path: Path) -> None:
    recipe = replace(RECIPE, data=str(photos), schedule="constant")
    long = run_training(replace(recipe, epochs=5), options(tmp_path / "long"))
    run_training(recipe, options(tmp_path / "run"))
    assert same_weights(run_training(replace(recipe, epochs=5), options(tmp_path / "run", resume=True)), long)


def test_fewer_epochs_are_another_run(photos: Path, tmp_path: Path) -> None:
    recipe = replace(RECIPE, data=str(photos))
    run_training(recipe, options(tmp_path / "run"))
    with pytest.raises(InputError, match=r"holds another run: --epochs 2 \(there 3\)"):
        run_training(replace(recipe, epochs=2), options(tmp_path / "run", resume=True))


def test_more_epochs_leave_what_followed_from_them(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    words = ["--data", str(photos), "--model", "tiny", "--no-pretrained", "--image-size", "8", "--workers", "0"]
    words += ["--device", "cpu", "--precision", "float32", "--warmup-epochs", "None"]
    first = run_training(*parse_train([*words, "--epochs", "10"]))
    saved = json.loads((first / "config.json").read_text())["recipe"]
    assert saved["warmup_epochs"] == 1.0  # a tenth
    longer = run_training(*parse_train([*words, "--epochs", "12", "--resume"]))
    assert longer == first
    recipe = json.loads((first / "config.json").read_text())["recipe"]
    assert recipe == saved | {"epochs": 12}


def test_what_was_removed_from_a_finished_run_is_restored_from_its_checkpoint(photos: Path, tmp_path: Path) -> None:
    """Without its weights, predict asked to resume the run, and --resume replied that it is finished."""
    recipe = replace(RECIPE, data=str(photos))
    run = run_training(recipe, options(tmp_path / "run"))
    shutil.copytree(run, tmp_path / "before")
    for names in (["model.safetensors"], ["predictions/last.npz"], ["model.safetensors", "predictions/last.npz"]):
        for name in names:
            (run / name).unlink()
        run_training(recipe, options(run, resume=True))
        for name in ("model.safetensors", "predictions/last.npz", "log.jsonl"):
            assert (run / name).read_bytes() == (tmp_path / "before" / name).read_bytes(), name
        found, known = (read_records(folder / "results.jsonl") for folder in (run, tmp_path / "before"))
        assert [(r.metric, r.which, r.value) for r in found] == [(r.metric, r.which, r.value) for r in known]
    for name in ("model.safetensors", "checkpoint.pt"):
        (run / name).unlink()
    with pytest.raises(InputError, match=r"model\.safetensors was removed, .* train it again with --overwrite"):
        find_weights(run, "last")


@pytest.mark.parametrize("epochs", [1, 3])
def test_a_run_whose_first_checkpoint_met_a_full_disk_starts_again(
    epochs: int, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its log has the first epoch; --resume asked for --overwrite, which compare and --folds refuse."""

    def full(path: Path, snapshot: object) -> None:
        raise InputError(f"{path} could not be written: No space left on device")

    recipe = replace(RECIPE, data=str(photos), epochs=epochs)
    with monkeypatch.context() as patch:
        patch.setattr(cutmix.training.loop, "save_checkpoint", full)
        with pytest.raises(InputError, match="No space left on device"):
            run_training(recipe, options(tmp_path / "run", checkpoint_every=0))
    assert [entry["epoch"] for entry in read_log(tmp_path / "run/log.jsonl") if entry["kind"] == "epoch"] == [1]
    run = run_training(recipe, options(tmp_path / "run", checkpoint_every=0, resume=True))
    assert same_weights(run, run_training(recipe, options(tmp_path / "whole")))
    logged = [entry["epoch"] for entry in read_log(run / "log.jsonl") if entry["kind"] == "epoch"]
    assert logged == list(range(1, epochs + 1))


def test_the_digest_is_computed_once(photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    counted: list[Path] = []
    original = cutmix.data.sources._size
    monkeypatch.setattr(cutmix.data.sources, "_size", lambda path: counted.append(path) or original(path))
    run_training(replace(RECIPE, data=str(photos)), options(tmp_path / "run"))
    assert len(counted) == len(set(counted)) == 40
    assert open_data(str(photos), "train").fingerprint() == open_data(f"{photos}/", "train").fingerprint()
