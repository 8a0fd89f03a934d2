"""What a run works with is made whole, and what is wrong is found before anything is written."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from PIL import Image
from torch import nn

import cutmix.data.opening
import cutmix.training.setup
import cutmix.training.state
from cutmix.config.options import TrainOptions
from cutmix.config.recipe import Recipe
from cutmix.config.recipes import RECIPES
from cutmix.data import open_splits
from cutmix.errors import InputError
from cutmix.runtime.device import World
from cutmix.training.setup import open_sets, prepare, resolve

WORLD = World(0, 1, torch.device("cpu"))
DIGITS = Recipe(data="digits", crop_padding=1)


def test_everything_automatic_is_resolved(tmp_path: Path) -> None:
    run = prepare(DIGITS, TrainOptions(out=tmp_path / "run"), WORLD)
    assert run.recipe == resolve(DIGITS, run.task.train_set, WORLD.device)[0]
    assert run.recipe.precision in ("float32", "bfloat16")
    assert run.about["parameters"] == sum(p.numel() for p in run.network.parameters())
    images, labels = next(iter(run.batches.epoch()))
    assert images.shape == (125, 1, 8, 8)  # eight batches of 1,000 images
    assert labels.shape == (125,)
    assert not run.path.exists()


@pytest.mark.parametrize(
    ("recipe", "sentence"),
    [
        (replace(DIGITS, data=""), "--data is missing"),
        (replace(DIGITS, data="digit"), "did you mean 'digits'"),
        (replace(DIGITS, model="resnet21"), "there is no model"),
        (replace(DIGITS, drop_block=0.1), "larger than the feature map"),
        (replace(DIGITS, padding_mode="reflect", crop_padding=8), "padding_mode 'reflect'"),
        (replace(DIGITS, epochs=2, warmup_epochs=5), "--warmup-epochs is 5; expected at most the 2 of --epochs"),
        (replace(DIGITS, schedule="cosine", lr=5e-6, min_lr=1e-5), "--min-lr is 1e-05; expected at most the 5e-06"),
    ],
)
def test_what_is_wrong_is_found_before_anything_is_written(recipe: Recipe, sentence: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=sentence):
        prepare(recipe, TrainOptions(out=tmp_path / "run"), WORLD)
    assert not list(tmp_path.iterdir())


def test_flags_without_effect_are_noted() -> None:
    data = open_splits("digits").train
    assert resolve(replace(RECIPES["digits-resnet20"], min_lr=1e-4), data, WORLD.device)[1] == []
    given = {"interpolation": "bicubic", "crop_scale": (0.5, 1.0), "split_seed": 3, "gamma": 0.5, "weights_ema": True}
    given |= {"optimizer": "adamw", "nesterov": False}
    assert resolve(replace(DIGITS, **given), data, WORLD.device)[1] == [  # type: ignore[arg-type]
        "note: without effect with small images: --crop-scale, --interpolation, --split-seed",
        "note: without effect with AdamW: --nesterov",
        "note: without effect with a cosine schedule: --gamma",
        "note: without effect with no --weights: --weights-ema",
    ]
    given = {"mix": "smmix", "mixup_alpha": 0.8, "alpha": 0.8, "drop_block_size": 7, "depth_decay": "constant"}
    assert resolve(replace(DIGITS, **given), data, WORLD.device)[1] == [  # type: ignore[arg-type]
        "note: without effect with --mix smmix: --mixup-alpha",
        "note: without effect with no --drop-block: --drop-block-size",
        "note: without effect with no --stochastic-depth: --depth-decay",
    ]


@pytest.mark.parametrize("channels", [1, 3])
def test_pretrained_weights_get_the_normalization_that_they_know(
    channels: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    splits = open_splits("digits")
    sets: Any = (splits.train, splits.test)
    if channels == 3:
        sets = tuple(
            replace(part, images=part.images.expand(-1, 3, -1, -1), mean=(0.1,) * 3, std=(0.2,) * 3) for part in sets
        )
    splits = replace(splits, train=sets[0], test=sets[1])
    monkeypatch.setattr(cutmix.training.setup, "open_sets", lambda *_: splits)
    tiny = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, 10))
    monkeypatch.setattr(cutmix.training.state, "create_model", lambda *_, **__: tiny)
    recipe = replace(DIGITS, model="vit_tiny_patch16_224", pretrained=True)
    run = prepare(recipe, TrainOptions(out=tmp_path / "run"), WORLD)
    published = timm.get_pretrained_cfg("vit_tiny_patch16_224")
    for part, original in zip((run.task.train_set, run.task.test_set), sets, strict=True):
        expected = (published.mean, published.std) if channels == 3 else (original.mean, original.std)
        assert (part.mean, part.std) == expected


def test_smmix_refuses_a_batch_without_partners(tmp_path: Path) -> None:
    recipe = Recipe(data="digits", model="deit_tiny_patch4_8", mix="smmix", alpha=0.8, batch_size=1)
    with pytest.raises(InputError, match="--batch-size is 1; expected at least 2, as --mix smmix needs a partner"):
        prepare(recipe, TrainOptions(out=tmp_path / "run", workers=0), WORLD)


@pytest.mark.parametrize(("model", "side"), [("resnet18", 32), ("mobilenetv3_small_050", 32), ("rexnet_100", 64)])
def test_batches_of_one_are_refused_where_batch_normalization_cannot_take_them(
    model: str, side: int, tmp_path: Path
) -> None:
    recipe = replace(DIGITS, model=model, image_size=side, batch_size=1)
    with pytest.raises(InputError, match=r"--batch-size is 1; expected at least 2, as batch normalization"):
        prepare(recipe, TrainOptions(out=tmp_path / "run", workers=0), WORLD)
    assert not list(tmp_path.iterdir())


def test_batches_of_one_are_taken_without_batch_normalization(tmp_path: Path) -> None:
    recipe = replace(DIGITS, model="deit_tiny_patch4_8", batch_size=1)
    run = prepare(recipe, TrainOptions(out=tmp_path / "run", workers=0), WORLD)
    assert run.batches.steps == 1000


def test_only_one_process_searches_a_folder_for_copies(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, i in ((name, i) for name in ("ant", "bee") for i in range(4)):
        (tmp_path / name).mkdir(exist_ok=True)
        Image.new("RGB", (8, 8), (i // 2 * 40, 9, len(name) + ord(name[0]))).save(tmp_path / name / f"{i}.png")
    recipe, options = Recipe(data=str(tmp_path)), TrainOptions()
    alone = open_sets(recipe, options, WORLD)
    assert len(alone.copies.groups) == 4

    def search(*_: Any) -> None:
        raise AssertionError("searched again")

    monkeypatch.setattr(cutmix.training.setup, "from_first", lambda make, world: alone.copies)
    monkeypatch.setattr(cutmix.data.opening, "find_copies", search)
    second = open_sets(recipe, options, World(1, 2, torch.device("cpu")))
    assert [part.fingerprint() for part in (second.train, second.val)] == [  # type: ignore[union-attr]
        part.fingerprint()
        for part in (alone.train, alone.val)  # type: ignore[union-attr]
    ]


def test_depthwise_convolutions_are_trained_in_float32_on_a_cpu(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx512_bf16": True}, raising=False)
    monkeypatch.delenv("ONEDNN_MAX_CPU_ISA", raising=False)
    recipe = replace(DIGITS, model="mobilenetv3_small_050", image_size=32)
    run = prepare(recipe, TrainOptions(out=tmp_path / "run", workers=0), WORLD)
    assert run.recipe.precision == "float32"
    assert run.notes[-1] == "float32, as depthwise convolutions are slower in bfloat16 on a CPU (--precision)"
    assert prepare(DIGITS, TrainOptions(out=tmp_path / "run", workers=0), WORLD).recipe.precision == "bfloat16"


def test_what_is_chosen_is_said_before_weights_are_downloaded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for label in ("cat", "dog"):
        (tmp_path / "photos" / label).mkdir(parents=True)
        for i in range(6):
            Image.new("RGB", (8, 8), (40 * i, 0, 100 * (label == "cat"))).save(tmp_path / "photos" / label / f"{i}.png")

    def fail(*_: Any, **__: Any) -> nn.Module:
        raise InputError("no connection")

    monkeypatch.setattr(cutmix.training.state, "create_model", fail)
    with pytest.raises(InputError, match="no connection"):
        prepare(Recipe(data=str(tmp_path / "photos")), TrainOptions(out=tmp_path / "run"), WORLD)
    said = capsys.readouterr().out
    assert said.index("12 images of 2 classes") < said.index("chosen by the data") < said.index("--epochs")
