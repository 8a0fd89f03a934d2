"""What a run works with is made whole, and what is wrong is found before anything is written."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from torch import nn

import cutmix.training.setup
import cutmix.training.state
from cutmix.config.options import TrainOptions
from cutmix.config.recipe import Recipe
from cutmix.data import open_splits
from cutmix.errors import InputError
from cutmix.runtime.distributed import World
from cutmix.training.setup import prepare, resolve

WORLD = World(0, 1, torch.device("cpu"))
DIGITS = Recipe(data="digits", crop_padding=1)


def test_everything_automatic_is_resolved(tmp_path: Path) -> None:
    run = prepare(DIGITS, TrainOptions(out=tmp_path / "run"), WORLD)
    assert run.recipe == resolve(DIGITS, run.task.train_set, WORLD.device)[0]
    assert run.recipe.precision in ("float32", "bfloat16")
    assert run.about["parameters"] == sum(p.numel() for p in run.network.parameters())
    images, labels = next(iter(run.batches.epoch()))
    assert images.shape == (128, 1, 8, 8)
    assert labels.shape == (128,)
    assert not run.path.exists()


@pytest.mark.parametrize(
    ("recipe", "sentence"),
    [
        (replace(DIGITS, data=""), "there is no data"),
        (replace(DIGITS, data="digit"), "did you mean 'digits'"),
        (replace(DIGITS, model="resnet21"), "there is no model"),
        (replace(DIGITS, drop_block=0.1), "larger than the feature map"),
        (replace(DIGITS, padding_mode="reflect", crop_padding=8), "padding_mode 'reflect'"),
    ],
)
def test_what_is_wrong_is_found_before_anything_is_written(recipe: Recipe, sentence: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=sentence):
        prepare(recipe, TrainOptions(out=tmp_path / "run"), WORLD)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("channels", [1, 3])
def test_pretrained_weights_get_the_normalisation_that_they_know(
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
def test_batches_of_one_are_refused_where_batch_normalisation_cannot_take_them(
    model: str, side: int, tmp_path: Path
) -> None:
    recipe = replace(DIGITS, model=model, image_size=side, batch_size=1)
    with pytest.raises(InputError, match=r"--batch-size is 1; expected at least 2, as batch normalisation"):
        prepare(recipe, TrainOptions(out=tmp_path / "run", workers=0), WORLD)
    assert not list(tmp_path.iterdir())


def test_batches_of_one_are_taken_without_batch_normalisation(tmp_path: Path) -> None:
    recipe = replace(DIGITS, model="deit_tiny_patch4_8", batch_size=1)
    run = prepare(recipe, TrainOptions(out=tmp_path / "run", workers=0), WORLD)
    assert run.batches.steps == 1000
