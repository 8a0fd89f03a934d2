"""The loop: that it learns, that it goes on bit for bit after any interruption, and what it refuses."""

import itertools
import json
import math
import multiprocessing
import os
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from torch import Tensor, nn

import cutmix.runs.folder
import cutmix.runs.read
import cutmix.runtime.checkpoint
import cutmix.runtime.files
import cutmix.training.classification
import cutmix.training.loop
import cutmix.training.state
from cutmix.config.options import TrainOptions
from cutmix.config.recipe import Recipe
from cutmix.config.recipes import SMALL
from cutmix.errors import InputError
from cutmix.mixing import CutMix, ScheduledCutMix
from cutmix.models import create_model
from cutmix.models.cifar import BasicBlock, CifarResNet
from cutmix.models.transformers import PyramidVisionTransformer
from cutmix.runs.record import Record, append_records
from cutmix.runtime.checkpoint import load_checkpoint
from cutmix.runtime.seeding import derive_seed
from cutmix.runtime.weights import read_weights
from cutmix.training.loop import run_training

# 8 steps an epoch, 24 in all; everything that has a state is on.
RECIPE = Recipe(
    name="all", mix="cutmix", mix_prob=0.5, epochs=3, batch_size=128, accumulate=2, label_smoothing=0.1, lr=0.05,
    clip_grad_norm=1.0, schedule="step", ema_decay=0.9, crop_padding=1, flip=False, precision="float32",
)  # fmt: skip
STEPS = 24


class Small(nn.Module):
    """Batch normalization has buffers; dropout draws from the global generator."""

    def __init__(self, num_classes: int, in_chans: int) -> None:
        super().__init__()
        self.features = nn.Sequential(
            nn.Conv2d(in_chans, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.AdaptiveAvgPool2d(4), nn.Dropout(0.3)
        )
        self.fc = nn.Linear(128, num_classes)

    def forward(self, images: Tensor) -> Tensor:
        return self.fc(self.features(images).flatten(1))


def create_small(name: str, num_classes: int, *, in_chans: int = 3, pretrained: Any = False) -> nn.Module:
    return Small(num_classes, in_chans)


@pytest.fixture(autouse=True)
def small_network(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    monkeypatch.setattr(cutmix.training.state, "create_model", create_small)
    yield
    torch.set_num_threads(threads)


def options(out: Path, **changes: Any) -> TrainOptions:
    return TrainOptions(**{"out": out, "workers": 0, "log_every": 5, "checkpoint_every": 3, "device": "cpu"} | changes)


def outcome(run: Path) -> dict[str, Any]:
    """Return all that a run has computed, without what the clock decides."""
    clock = {"seconds", "images_per_second", "date", "command", "commit"}
    found: dict[str, Any] = {}
    for name in ("model.safetensors", "best.safetensors"):
        found[name] = (run / name).read_bytes()  # equal runs have equal files
    for name in ("log.jsonl", "results.jsonl"):
        records = [json.loads(line) for line in (run / name).read_text().splitlines()]
        found[name] = [{k: v for k, v in record.items() if k not in clock} for record in records]
    for which in ("last", "best"):
        with np.load(run / f"predictions/{which}.npz") as arrays:
            found[which] = {name: arrays[name].tobytes() for name in arrays.files}
    return found


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cutmix.training.state, "create_model", create_small)
        threads = torch.get_num_threads()
        torch.set_num_threads(1)
        torch.manual_seed(99)  # the state of the process before does not matter
        run = run_training(RECIPE, options(tmp_path_factory.mktemp("run") / "whole"))
        torch.set_num_threads(threads)
    return outcome(run)


class Killed(BaseException):
    """Ends a run in the middle of anything; what it had in memory is lost."""


def call_before(monkeypatch: pytest.MonkeyPatch, where: Any, name: str, number: int, act: Callable[[], None]) -> None:
    """Act right before the n-th call of a function."""
    original, calls = getattr(where, name), iter(range(1, 10**6))

    def wrapper(*arguments: Any, **named: Any) -> Any:
        if next(calls) == number:
            act()
        return original(*arguments, **named)

    monkeypatch.setattr(where, name, wrapper)


def kill() -> None:
    raise Killed


# ---- it learns ----


def test_it_overfits_eight_images(tmp_path: Path) -> None:
    pixels = np.random.default_rng(0)
    for label in range(2):
        for i in range(5):
            save_image(tmp_path / f"data/{label}/{i}.png", pixels)
    recipe = replace(
        SMALL, data=str(tmp_path / "data"), image_size=16, crop_scale=(1.0, 1.0), flip=False, epochs=20, batch_size=8,
        lr=0.2, schedule="constant", precision="float32", eval_every=20,
    )  # fmt: skip
    log = (run_training(recipe, options(tmp_path / "run")) / "log.jsonl").read_text().splitlines()
    losses = [r["train_loss"] for r in map(json.loads, log) if r["kind"] == "epoch"]
    assert len(losses) == 20
    assert losses[-1] < 0.3 * losses[0]


@pytest.mark.parametrize("mix", ["none", "cutmix", "cutmix-3"])
def test_accumulated_parts_are_the_undivided_step(mix: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Plain(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = nn.Sequential(nn.Flatten(), nn.Linear(64, 32), nn.Tanh(), nn.Linear(32, 10)).double()

        def forward(self, images: Tensor) -> Tensor:
            return self.net(images.double())

    monkeypatch.setattr(cutmix.training.state, "create_model", lambda *_, **__: Plain())
    recipe = replace(RECIPE, mix=mix, batch_size=150, epochs=1)  # the last batch has 100: parts of unequal sizes
    weights = [
        read_weights(run_training(replace(recipe, accumulate=k), options(tmp_path / str(k))) / "model.safetensors")[0]
        for k in (1, 4)
    ]
    for name, whole in weights[0].items():
        torch.testing.assert_close(weights[1][name], whole, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("changes", [{"batch_size": 4}, {"batch_size": 9, "accumulate": 5}, {"batch_size": 2}], ids=str)
def test_a_last_image_is_trained_with_others(
    changes: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Pooled(nn.Module):  # one value a channel and image
        def __init__(self) -> None:
            super().__init__()
            self.net = nn.Sequential(
                nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 3)
            )

        def forward(self, images: Tensor) -> Tensor:
            return self.net(images)

    monkeypatch.setattr(cutmix.training.state, "create_model", lambda *_, **__: Pooled())
    pixels = np.random.default_rng(0)
    for split, count in (("train", 3), ("test", 1)):
        for label, i in itertools.product(range(3), range(count)):
            save_image(tmp_path / f"data/{split}/{label}/{i}.png", pixels)
    recipe = Recipe(data=str(tmp_path / "data"), val_fraction=0, image_size=16, epochs=2, mix="none", pretrained=False)
    run = run_training(replace(recipe, **changes), options(tmp_path / "run"))
    assert (run / "results.jsonl").exists()


def test_a_run_does_not_go_on_with_other_images(tmp_path: Path) -> None:
    pixels = np.random.default_rng(0)
    for label in range(2):
        for i in range(6):
            save_image(tmp_path / f"data/{label}/{i}.png", pixels)
    recipe = Recipe(data=str(tmp_path / "data"), image_size=16, epochs=1, batch_size=4, precision="float32")
    run = run_training(recipe, options(tmp_path / "run"))
    (run / "results.jsonl").unlink()
    before = (run / "checkpoint.pt").read_bytes()
    save_image(tmp_path / "data/0/new.png", pixels)
    with pytest.raises(InputError, match="other images"):
        run_training(recipe, options(tmp_path / "run", resume=True))
    assert (run / "checkpoint.pt").read_bytes() == before


def test_the_log_says_what_the_report_reads(uninterrupted: dict[str, Any]) -> None:
    steps = [r for r in uninterrupted["log.jsonl"] if r["kind"] == "train"]
    epochs = [r for r in uninterrupted["log.jsonl"] if r["kind"] == "epoch"]
    assert [r["step"] for r in steps] == [5, 10, 15, 20]
    assert [(r["epoch"], r["step"]) for r in epochs] == [(1, 8), (2, 16), (3, 24)]
    assert [r["lr"] for r in epochs] == pytest.approx([0.05, 0.05, 0.005])  # milestones at 1.5 and 2.25 epochs
    assert all(math.isfinite(r["train_loss"]) and 0 <= r["top5_err"] <= r["top1_err"] <= 100 for r in epochs)
    results = uninterrupted["results.jsonl"]
    assert {(r["which"], r["metric"]) for r in results} == {
        (which, metric) for which in ("last", "best") for metric in ("top1_err", "top5_err")
    }
    best = min(epochs, key=lambda r: r["top1_err"])  # the first of equals
    line = next(r for r in results if (r["which"], r["metric"]) == ("best", "top1_err"))
    assert (line["epoch"], line["value"]) == (best["epoch"], best["top1_err"])
    assert line["low"] < line["value"] < line["high"]
    assert (line["n"], line["weights"], line["confidence"]) == (797, "ema", 0.95)
    assert b'"weights":"ema"' in uninterrupted["model.safetensors"]
    assert all(0 <= r["model_top1_err"] <= 100 for r in epochs)  # of the model itself, beside its average


# ---- it goes on exactly ----


@pytest.mark.parametrize(
    ("number", "step"),
    [(signal.SIGTERM, 1), (signal.SIGINT, 8), (signal.SIGHUP, 13), (signal.SIGTERM, STEPS), (signal.SIGHUP, 8)],
)
def test_a_signal_saves_and_the_run_goes_on_exactly(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, uninterrupted: dict[str, Any], number: int, step: int
) -> None:
    with monkeypatch.context() as patch:
        call_before(patch, cutmix.training.loop, "train_step", step, lambda: os.kill(os.getpid(), number))
        with pytest.raises(SystemExit) as stopped:
            run_training(RECIPE, options(tmp_path / "run"))
    assert stopped.value.code == 128 + number
    assert load_checkpoint(tmp_path / "run/checkpoint.pt")["step"] == step
    run_training(RECIPE, options(tmp_path / "run", resume=True))
    assert outcome(tmp_path / "run") == uninterrupted


def test_a_run_stopped_again_and_again_is_the_same_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, uninterrupted: dict[str, Any]
) -> None:
    for _ in range(4):
        with monkeypatch.context() as patch:
            call_before(patch, cutmix.training.loop, "train_step", 5, lambda: os.kill(os.getpid(), signal.SIGTERM))
            with pytest.raises(SystemExit):
                run_training(RECIPE, options(tmp_path / "run", resume=True))
    run_training(RECIPE, options(tmp_path / "run", resume=True))
    assert outcome(tmp_path / "run") == uninterrupted


@pytest.mark.parametrize(
    "changes",
    [
        {"mix": "feature-cutmix", "shake_drop": 0.5},
        {"mix": "cutmix-scheduled", "mix_prob": 1.0, "drop_block": 0.2, "drop_block_size": 2},
        {"mix": "manifold-mixup", "cutout": True, "cutout_size": 3, "stochastic_depth": 0.25},
        {"mix": "cutmix-3", "auto_augment": "svhn"},
        {"precision": "float16", "lr": 0.01},
    ],
    ids=str,
)
def test_every_kind_of_noise_goes_on_exactly(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, changes: dict[str, Any]
) -> None:
    def create_residual(name: str, num_classes: int, *, in_chans: int, pretrained: Any) -> nn.Module:
        return CifarResNet(BasicBlock, 1, num_classes, in_chans)

    monkeypatch.setattr(cutmix.training.state, "create_model", create_residual)
    recipe = replace(RECIPE, epochs=2, **changes)
    run_training(recipe, options(tmp_path / "whole"))
    with monkeypatch.context() as patch:
        call_before(patch, cutmix.training.loop, "train_step", 12, kill)  # the last checkpoint is of step 9
        with pytest.raises(Killed):
            run_training(recipe, options(tmp_path / "run"))
    run_training(recipe, options(tmp_path / "run", resume=True))
    assert outcome(tmp_path / "run") == outcome(tmp_path / "whole")
    scalers = [load_checkpoint(tmp_path / run / "checkpoint.pt")["scaler"] for run in ("run", "whole")]
    assert scalers[0] == scalers[1]
    assert bool(scalers[0]) == (recipe.precision == "float16")


def create_transformer(name: str, num_classes: int, *, in_chans: int, pretrained: Any) -> nn.Module:
    if name == "pvt":
        return PyramidVisionTransformer((1, 1, 1, 1), num_classes, in_chans, img_size=16, patch_size=1)
    shape = {"img_size": 16, "patch_size": 4, "embed_dim": 12, "num_heads": 2, "depth": 2}
    return timm.create_model(name, num_classes=num_classes, in_chans=in_chans, **shape)


@pytest.mark.parametrize(
    ("name", "precision"),
    [
        ("vit_tiny_patch16_224", "float32"),
        pytest.param("vit_tiny_patch16_224", "bfloat16", marks=pytest.mark.slow),
        pytest.param("cait_xxs24_224", "bfloat16", marks=pytest.mark.slow),
        pytest.param("pvt", "float32", marks=pytest.mark.slow),
    ],
)  # fmt: skip
def test_smmix_goes_on_exactly_and_shows_where_the_network_looks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, precision: Any
) -> None:
    monkeypatch.setattr(cutmix.training.state, "create_model", create_transformer)
    recipe = replace(
        RECIPE, model=name, mix="smmix", alpha=0.8, accumulate=1, epochs=2, batch_size=127, image_size=16, lr=1e-3,
        optimizer="adamw", stochastic_depth=0.1, precision=precision,
    )  # fmt: skip
    whole = run_training(recipe, options(tmp_path / "whole"))
    with monkeypatch.context() as patch:
        call_before(patch, cutmix.training.loop, "train_step", 12, kill)  # the last checkpoint is of step 9
        with pytest.raises(Killed):
            run_training(recipe, options(tmp_path / "run"))
    run_training(recipe, options(tmp_path / "run", resume=True))
    assert outcome(tmp_path / "run") == outcome(whole)
    assert not any("token_head" in name for name in read_weights(whole / "model.safetensors").tensors)
    figures = [(run / "figures/attention.png").read_bytes() for run in (whole, tmp_path / "run")]
    assert figures[0] == figures[1] != (whole / "samples.png").read_bytes()


def test_a_schedule_of_mixing_follows_the_step(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []

    def remember(mix: ScheduledCutMix, images: Tensor, labels: Tensor) -> Any:
        seen.append(mix.prob)
        return CutMix.__call__(mix, images, labels)

    monkeypatch.setattr(ScheduledCutMix, "__call__", remember)
    run_training(replace(RECIPE, mix="cutmix-scheduled", mix_prob=1.0, accumulate=1), options(tmp_path / "run"))
    assert seen[0] == 1.0  # the figure of samples
    assert seen[1:] == pytest.approx([step / STEPS for step in range(STEPS)])


def test_steps_in_bfloat16_leave_out_the_fused_attention_and_evaluations_do_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    flags: dict[bool, set[bool]] = {True: set(), False: set()}
    forward = Small.forward

    def noted(self: Small, x: Tensor) -> Tensor:
        flags[self.training].add(torch.backends.cuda.flash_sdp_enabled())
        return forward(self, x)

    monkeypatch.setattr(Small, "forward", noted)
    run_training(replace(RECIPE, epochs=1, precision="bfloat16"), TrainOptions(out=tmp_path / "run", device="cpu"))
    assert flags == {True: {False}, False: {True}}


def test_a_second_interruption_does_not_wait(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def twice() -> None:
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGINT)

    call_before(monkeypatch, cutmix.training.loop, "train_step", 8, twice)
    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt):
        run_training(RECIPE, options(tmp_path / "run"))
    assert load_checkpoint(tmp_path / "run/checkpoint.pt")["step"] == 6
    assert signal.getsignal(signal.SIGINT) is before


LOST = [
    # what is about to be called, which call: at the start, in an epoch, between the pieces of its end, at the end
    ("write_json", 2), ("write_bytes", 1), ("train_step", 1), ("train_step", 7), ("log_step", 1), ("save", 1),
    ("save", 2), ("evaluate_epoch", 2), ("evaluate", 3), ("keep", 1), ("keep", 2), ("save_weights", 2),
    ("log", 2), ("save", 3), ("save", 9), ("finish", 1), ("write_results", 1),
]  # fmt: skip


@pytest.mark.parametrize(("name", "call"), LOST)
def test_a_lost_process_is_made_up_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, uninterrupted: dict[str, Any], name: str, call: int
) -> None:
    places = (
        cutmix.training.loop,
        cutmix.runs.folder,
        cutmix.runs.folder.RunFolder,
        cutmix.training.classification.Classification,
    )
    where = next(place for place in places if hasattr(place, name))
    with monkeypatch.context() as patch:
        call_before(patch, where, name, call, kill)
        with pytest.raises(Killed):
            run_training(RECIPE, options(tmp_path / "run"))
    run_training(RECIPE, options(tmp_path / "run", resume=True))
    assert outcome(tmp_path / "run") == uninterrupted


@pytest.mark.parametrize("call", [1, 3])
def test_an_epoch_is_saved_before_it_is_evaluated(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, uninterrupted: dict[str, Any], call: int
) -> None:
    def count_steps(*arguments: Any) -> Tensor:
        steps.append(1)
        return train_step(*arguments)

    train_step, steps = cutmix.training.loop.train_step, []
    with monkeypatch.context() as patch:
        call_before(patch, cutmix.training.loop, "evaluate", call, kill)
        with pytest.raises(Killed):
            run_training(RECIPE, options(tmp_path / "run", checkpoint_every=0))
    monkeypatch.setattr(cutmix.training.loop, "train_step", count_steps)
    run_training(RECIPE, options(tmp_path / "run", resume=True))
    assert len(steps) == STEPS - 8 * call  # of 8 steps an epoch, none is taken again
    assert outcome(tmp_path / "run") == uninterrupted


def test_a_finished_run_without_its_checkpoint_is_finished(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], uninterrupted: dict[str, Any]
) -> None:
    run = run_training(RECIPE, options(tmp_path / "run"))
    (run / "checkpoint.pt").unlink()
    capsys.readouterr()
    run_training(RECIPE, options(run, resume=True))
    assert f"{run} is finished" in capsys.readouterr().out.replace("\n", "")
    assert outcome(run) == uninterrupted
    (run / "results.jsonl").unlink()  # now there are finished epochs that nothing can continue
    before = (run / "log.jsonl").read_bytes()
    with pytest.raises(InputError, match=r"has finished 3 epochs, but its checkpoint.pt is missing"):
        run_training(RECIPE, options(run, resume=True))
    assert (run / "log.jsonl").read_bytes() == before


def test_a_step_schedule_says_when_the_learning_rate_falls(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run_training(replace(RECIPE, epochs=1, eval_every=1), options(tmp_path / "run"))
    said = " ".join(capsys.readouterr().out.split())
    assert "note: the learning rate is multiplied by 0.1 after these of 1 epochs: 0.5, 0.75" in said


def test_steps_run_while_a_checkpoint_is_written_and_it_holds_what_was_saved(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, uninterrupted: dict[str, Any]
) -> None:
    stepped, steps = threading.Event(), itertools.count()
    save, step = cutmix.training.loop.save_checkpoint, cutmix.training.loop.train_step

    def save_late(path: Path, state: dict[str, Any]) -> None:
        stepped.clear()
        if threading.current_thread() is not threading.main_thread() and state["step_in_epoch"] < 7:
            assert stepped.wait(60)  # a step after the one that asked for it
        save(path, state)

    def counted(*given: Any) -> Any:
        if next(steps) == 14:
            raise Killed
        result = step(*given)
        stepped.set()
        return result

    with monkeypatch.context() as patch:
        patch.setattr(cutmix.training.loop, "save_checkpoint", save_late)
        patch.setattr(cutmix.training.loop, "train_step", counted)
        with pytest.raises(Killed):
            run_training(RECIPE, options(tmp_path / "run", checkpoint_every=3))
    assert load_checkpoint(tmp_path / "run/checkpoint.pt")["step"] == 12
    run_training(RECIPE, options(tmp_path / "run", resume=True))
    assert outcome(tmp_path / "run") == uninterrupted


def test_a_process_lost_before_the_first_checkpoint_starts_its_log_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, uninterrupted: dict[str, Any]
) -> None:
    with monkeypatch.context() as patch:
        call_before(patch, cutmix.training.loop, "train_step", 7, kill)
        with pytest.raises(Killed):
            run_training(RECIPE, options(tmp_path / "run", checkpoint_every=0))
    assert (tmp_path / "run/log.jsonl").read_text().count("\n") == 1
    run_training(RECIPE, options(tmp_path / "run", resume=True))
    assert outcome(tmp_path / "run") == uninterrupted


def kill_hard() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def kill_in_half_a_checkpoint(patch: pytest.MonkeyPatch) -> None:
    def save_half(state: Any, file: Any) -> None:
        file.write(b"PK\x03\x04" + bytes(10_000))
        file.flush()
        kill_hard()

    call_before(patch, cutmix.training.loop, "save_checkpoint", 3, lambda: patch.setattr(torch, "save", save_half))


def kill_in_half_a_line(patch: pytest.MonkeyPatch) -> None:
    def append_half(path: Path, record: dict[str, Any]) -> None:
        with open(path, "ab") as file:
            file.write(json.dumps(record).encode()[:20])
        kill_hard()

    call_before(
        patch,
        cutmix.training.loop,
        "log_step",
        2,
        lambda: patch.setattr(cutmix.runs.folder, "append_line", append_half),
    )


def kill_before(where: Any, name: str, call: int) -> Callable[[pytest.MonkeyPatch], None]:
    return lambda patch: call_before(patch, where, name, call, kill_hard)


@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
@pytest.mark.parametrize(
    "prepare",
    [
        kill_in_half_a_checkpoint,
        kill_in_half_a_line,
        kill_before(os, "replace", 1),  # of the very first file
        kill_before(os, "replace", 2),  # of the configuration
        kill_before(os, "replace", 6),  # of a checkpoint that is complete
        kill_before(os, "fsync", 11),
        kill_before(cutmix.training.loop, "keep", 4),  # between the best epoch's and the last one's files
    ],
)
def test_kill_9_at_any_moment(
    tmp_path: Path, uninterrupted: dict[str, Any], prepare: Callable[[pytest.MonkeyPatch], None]
) -> None:
    def child() -> None:
        prepare(pytest.MonkeyPatch())
        run_training(RECIPE, options(tmp_path / "run"))

    process = multiprocessing.get_context("fork").Process(target=child)
    process.start()
    process.join()
    assert process.exitcode == -signal.SIGKILL
    run_training(RECIPE, options(tmp_path / "run", resume=True))
    assert outcome(tmp_path / "run") == uninterrupted
    assert not list(tmp_path.glob("run/.*.tmp"))


def save_image(path: Path, pixels: np.random.Generator) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels.integers(0, 256, (20, 24, 3), dtype=np.uint8)).save(path)


def terminate_all() -> None:
    """Do what a scheduler does: the signal goes to the process and to its workers, and comes from outside."""
    workers = [str(process.pid) for process in multiprocessing.active_children()]
    subprocess.run(["kill", "-TERM", *workers, str(os.getpid())], check=True)
    time.sleep(0.3)  # a worker that ends would be noticed


@pytest.mark.parametrize("workers", [0, 1])
def test_photographs_go_on_in_the_middle_of_an_epoch(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, workers: int
) -> None:
    pixels = np.random.default_rng(0)
    for label in ("cat", "dog"):
        for i in range(8):
            save_image(tmp_path / f"data/{label}/{i}.png", pixels)
    recipe = replace(RECIPE, data=str(tmp_path / "data"), image_size=16, batch_size=4, epochs=2)  # 3 steps an epoch
    run_training(recipe, options(tmp_path / "whole"))
    with monkeypatch.context() as patch:
        call_before(patch, cutmix.training.loop, "train_step", 2, terminate_all)
        with pytest.raises(SystemExit):
            run_training(recipe, options(tmp_path / "run", workers=workers))
    assert load_checkpoint(tmp_path / "run/checkpoint.pt")["step"] == 2
    run_training(recipe, options(tmp_path / "run", workers=workers, resume=True))
    assert outcome(tmp_path / "run") == outcome(tmp_path / "whole")


def test_a_finished_run_is_left_as_it_is(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = run_training(replace(RECIPE, epochs=1), options(tmp_path / "run"))
    before = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    run_training(replace(RECIPE, epochs=1), options(run, resume=True))
    assert {path: path.read_bytes() for path in run.rglob("*") if path.is_file()} == before
    assert "is finished" in capsys.readouterr().out


def test_an_evaluation_of_the_best_epoch_so_far_does_not_finish_a_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, uninterrupted: dict[str, Any]
) -> None:
    with monkeypatch.context() as patch:
        call_before(patch, cutmix.training.loop, "train_step", 12, kill)
        with pytest.raises(Killed):
            run_training(RECIPE, options(tmp_path / "run"))
    other = Record(metric="top1_err", which="best", value=50.0, file="best.safetensors")
    append_records(tmp_path / "run/results.jsonl", [other])
    run_training(RECIPE, options(tmp_path / "run", resume=True))
    found = outcome(tmp_path / "run")
    assert found["results.jsonl"].pop() == other.to_json()
    assert found == uninterrupted


# ---- what goes wrong ----


@pytest.mark.parametrize(("poisoned", "message"), [(11, "the loss is nan"), (12, "the weights are not finite")])
def test_a_loss_that_is_not_finite_stops_before_it_is_saved(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, uninterrupted: dict[str, Any], poisoned: int, message: str
) -> None:
    original, steps = cutmix.training.loop.train_step, iter(range(1, 100))

    def poison(run: Any, images: Tensor, labels: Tensor) -> Tensor:
        loss = original(run, images, labels)
        if next(steps) == poisoned:
            with torch.no_grad():
                run.state.model.fc.weight.fill_(math.inf)
        return loss

    with monkeypatch.context() as patch:
        patch.setattr(cutmix.training.loop, "train_step", poison)
        with pytest.raises(
            InputError, match=rf"{message} at step 12, with learning rate 0\.05; the last good .*checkpoint\.pt"
        ):
            run_training(RECIPE, options(tmp_path / "run"))
    snapshot = load_checkpoint(tmp_path / "run/checkpoint.pt")
    assert snapshot["step"] == 9
    assert all(tensor.isfinite().all() for tensor in snapshot["model"].values())
    run_training(RECIPE, options(tmp_path / "run", resume=True))
    assert outcome(tmp_path / "run") == uninterrupted


def test_a_run_that_never_was_finite_says_that_nothing_was_saved(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"the loss is (nan|inf) at step \d, with learning rate 1e\+37; no checkpoint"):
        run_training(replace(RECIPE, lr=1e37, clip_grad_norm=0), options(tmp_path / "run", checkpoint_every=0))


@pytest.mark.parametrize("call", [1, 3])
def test_a_full_disk_keeps_the_last_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, uninterrupted: dict[str, Any], call: int
) -> None:
    def fill(state: Any, file: Any) -> None:
        file.write(bytes(1000))
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        call_before(patch, cutmix.training.loop, "save_checkpoint", call, lambda: patch.setattr(torch, "save", fill))
        with pytest.raises(InputError, match=r"checkpoint\.pt could not be written: No space left on device"):
            run_training(RECIPE, options(tmp_path / "run"))
    assert (tmp_path / "run/checkpoint.pt").exists() == (call > 1)
    assert not list(tmp_path.glob("run/.*.tmp"))
    run_training(RECIPE, options(tmp_path / "run", resume=True))
    assert outcome(tmp_path / "run") == uninterrupted


def test_a_network_that_takes_no_such_images_is_refused_before_a_folder_is_made(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.undo()
    with pytest.raises(InputError, match=r"test_vit takes no images of 8×8 pixels .*--image-size"):
        run_training(replace(RECIPE, model="test_vit"), options(tmp_path / "run"))
    assert not (tmp_path / "run").exists()


def test_tensorboard_gets_every_figure_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    with monkeypatch.context() as patch:
        call_before(patch, cutmix.training.loop, "train_step", 12, kill)
        with pytest.raises(Killed):
            run_training(RECIPE, options(tmp_path / "run", log="tensorboard"))
    run = run_training(RECIPE, options(tmp_path / "run", log="tensorboard", resume=True))
    events = accumulator.EventAccumulator(str(run / "tensorboard"))
    events.Reload()
    assert [event.step for event in events.Scalars("epoch/top1_err")] == [8, 16, 24]
    assert [event.step for event in events.Scalars("train/loss")] == [5, 10, 15, 20]


def test_freeze_trains_the_head_first_and_resumes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cutmix.training.state, "create_model", create_model)
    recipe = replace(RECIPE, freeze=2, random_erasing=0.5, auto_augment="trivial", train_per_class=20, batch_size=32)
    start = run_training(replace(recipe, epochs=1, freeze=1), options(tmp_path / "probe"))
    frozen = read_weights(start / "model.safetensors").tensors
    torch.manual_seed(derive_seed(recipe.seed, "model"))
    model = create_model("resnet20", 10, in_chans=1)
    changed = {name for name, value in model.state_dict().items() if not torch.equal(value, frozen[name])}
    assert changed == {"fc.weight", "fc.bias"}
    whole = run_training(recipe, options(tmp_path / "whole"))
    with monkeypatch.context() as patch:
        call_before(patch, cutmix.training.loop, "train_step", 12, kill)
        with pytest.raises(Killed):
            run_training(recipe, options(tmp_path / "run", checkpoint_every=3))
    run = run_training(recipe, options(tmp_path / "run", resume=True))
    assert (run / "model.safetensors").read_bytes() == (whole / "model.safetensors").read_bytes()


def test_patience_ends_a_run_that_gets_no_better(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    generator = np.random.default_rng(0)
    for split, name, number in itertools.product(("train", "val", "test"), "ab", range(4)):
        path = tmp_path / f"data/{split}/{name}/{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(generator.integers(0, 255, (8, 8, 3), np.uint8)).save(path)
    data = str(tmp_path / "data")
    recipe = replace(RECIPE, data=data, image_size=8, epochs=9, patience=2, batch_size=8, pretrained=False)
    monkeypatch.setattr(cutmix.training.loop, "is_best", lambda run, _: not run.state.best)
    run = run_training(recipe, options(tmp_path / "run"))
    found = cutmix.runs.read.read_run(run)
    assert [entry["epoch"] for entry in found.epochs] == [1, 2, 3]
    assert found.finished
    assert {record.epoch for record in found.results if record.which == "last"} == {3}
    run_training(recipe, options(tmp_path / "run", resume=True))
    assert len(cutmix.runs.read.read_run(run).epochs) == 3
    rarely = run_training(replace(recipe, eval_every=4), options(tmp_path / "rarely"))
    ends = [(entry["epoch"], entry.get("split")) for entry in cutmix.runs.read.read_run(rarely).epochs]
    assert ends[3:] == [(4, "val"), (5, None), (6, None), (7, None), (8, "val")]  # the next evaluation, not epoch 6
    with pytest.raises(InputError, match="--patience needs images to choose an epoch by"):
        run_training(replace(RECIPE, patience=1), options(tmp_path / "other"))


def test_gradient_checkpointing_changes_no_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cutmix.training.state, "create_model", create_model)
    recipe = replace(RECIPE, model="test_vit", image_size=160, epochs=1, train_per_class=2, batch_size=10, lr=0.001)
    runs = [
        run_training(replace(recipe, grad_checkpointing=on), options(tmp_path / str(on))) / "model.safetensors"
        for on in (False, True)
    ]
    first, second = (read_weights(run).tensors for run in runs)
    for name, value in first.items():
        torch.testing.assert_close(value, second[name], msg=name)
    with pytest.raises(InputError, match="resnet20 has no gradient checkpointing"):
        run_training(replace(RECIPE, model="resnet20", grad_checkpointing=True), options(tmp_path / "none"))
