"""The recipes: their names, the paper's numbers, and that every one of them trains."""

import itertools
import re
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from torch import nn

import cutmix.training.setup
import cutmix.training.state
from cutmix.config.options import TrainOptions
from cutmix.config.recipe import Recipe
from cutmix.config.recipes import METHODS, RECIPES, find_recipe
from cutmix.data import ArraySet, FileSet, Splits, open_splits
from cutmix.errors import InputError
from cutmix.models import PyramidNet, create_model
from cutmix.models.cifar import BasicBlock, Bottleneck, CifarResNet
from cutmix.models.regularizers import regularize
from cutmix.runtime.device import World
from cutmix.training.loop import train_step
from cutmix.training.setup import prepare

DATA = {"digits": "digits", "fashion": "fashion-mnist", "cifar10": "cifar-10", "cifar100": "cifar-100",
        "tiny": "tiny-imagenet-200", "imagenet": "imagenet", "cub": "cub-200-2011"}  # fmt: skip


def test_names_say_data_model_and_method() -> None:
    methods = "|".join(map(re.escape, METHODS))
    for name, recipe in RECIPES.items():
        assert recipe.name == name
        if name == "photos":
            continue
        match = re.fullmatch(rf"([a-z0-9]+)-([a-z0-9]+|(?:deit|cait|pvt)-\w+|\w+-wsol)(?:-({methods}))?", name)
        assert match, name
        assert DATA[match[1]] == recipe.data
        network = re.sub(r"_(cifar|32x4d|gap|wsol|224|patch\d+_\d+)$", "", recipe.model).replace("_", "-")
        assert network == match[2].removesuffix("-wsol")
        of_method = METHODS.get(match[3], {"mix": "none"})
        assert {field: getattr(recipe, field) for field in of_method} == of_method


def test_a_method_changes_its_own_numbers_only() -> None:
    baseline, cutmix = RECIPES["cifar100-resnet20"], RECIPES["cifar100-resnet20-cutmix"]
    assert replace(baseline, name=cutmix.name, mix="cutmix", mix_prob=0.5) == cutmix


# ---- the paper's numbers, as literals ----

CIFAR = {
    "data": "cifar-100", "epochs": 300, "batch_size": 64, "lr": 0.25, "schedule": "step", "milestones": (0.5, 0.75),
    "gamma": 0.1, "warmup_epochs": 0.0, "optimizer": "sgd", "momentum": 0.9, "nesterov": True, "weight_decay": 1e-4,
    "decay_all": True, "label_smoothing": 0.0, "ema_decay": 0.0, "clip_grad_norm": 0.0, "accumulate": 1,
    "crop_padding": 4, "padding_mode": "constant", "flip": True, "auto_augment": "none", "color_jitter": 0.0,
    "lighting": 0.0, "mix": "none", "eval_every": 1, "stochastic_depth": 0.0, "shake_drop": 0.0, "drop_block": 0.0,
}  # fmt: skip
IMAGENET = CIFAR | {
    "data": "imagenet", "batch_size": 256, "lr": 0.1, "milestones": (0.25, 0.5, 0.75), "image_size": 224,
    "crop_scale": (0.08, 1.0), "crop_fraction": 0.875, "color_jitter": 0.4, "lighting": 0.1, "zero_init": False,
}  # fmt: skip


@pytest.mark.parametrize(
    ("name", "numbers"),
    [
        ("cifar100-pyramidnet200", CIFAR | {"model": "pyramidnet200"}),
        ("cifar100-pyramidnet110", CIFAR | {"model": "pyramidnet110"}),
        ("cifar100-resnet110", CIFAR | {"model": "resnet110"}),
        ("cifar10-pyramidnet200", CIFAR | {"model": "pyramidnet200", "data": "cifar-10"}),
        ("imagenet-resnet50", IMAGENET | {"model": "resnet50"}),
        ("imagenet-resnet101", IMAGENET | {"model": "resnet101"}),
        ("imagenet-resnext101", IMAGENET | {"model": "resnext101_32x4d"}),
    ],
)
def test_baselines_have_the_papers_numbers(name: str, numbers: dict[str, Any]) -> None:
    assert {field: getattr(RECIPES[name], field) for field in numbers} == numbers


def changed(name: str) -> dict[str, Any]:
    """Return what a recipe changes in its baseline, which is named by the first two words."""
    recipe, baseline = RECIPES[name], RECIPES["-".join(name.split("-")[:2])]
    names = [field.name for field in fields(Recipe) if field.name != "name"]
    return {field: getattr(recipe, field) for field in names if getattr(recipe, field) != getattr(baseline, field)}


HALF = {"mix_prob": 0.5}
SMOOTH, SHAKE = {"label_smoothing": 0.1}, {"shake_drop": 0.5}
ROWS: dict[str, dict[str, Any]] = {
    "cifar100-pyramidnet200-stochastic-depth": {"stochastic_depth": 0.25},
    "cifar100-pyramidnet200-label-smoothing": SMOOTH,
    "cifar100-pyramidnet200-cutout": {"mix": "cutout"},
    "cifar100-pyramidnet200-cutout-label-smoothing": {"mix": "cutout"} | SMOOTH,
    "cifar100-pyramidnet200-dropblock": {"drop_block": 0.1},
    "cifar100-pyramidnet200-dropblock-label-smoothing": {"drop_block": 0.1} | SMOOTH,
    "cifar100-pyramidnet200-mixup-0.5": {"mix": "mixup", "alpha": 0.5},
    "cifar100-pyramidnet200-mixup-1.0": {"mix": "mixup"},
    "cifar100-pyramidnet200-manifold-mixup": {"mix": "manifold-mixup"},
    "cifar100-pyramidnet200-cutout-mixup": {"mix": "mixup", "cutout": True},
    "cifar100-pyramidnet200-cutout-manifold-mixup": {"mix": "manifold-mixup", "cutout": True},
    "cifar100-pyramidnet200-shakedrop": SHAKE,
    "cifar100-pyramidnet200-cutmix": {"mix": "cutmix"} | HALF,
    "cifar100-pyramidnet200-cutmix-shakedrop": {"mix": "cutmix"} | HALF | SHAKE,
    "cifar100-pyramidnet200-cutmix-alpha-0.1": {"mix": "cutmix", "alpha": 0.1} | HALF,
    "cifar100-pyramidnet200-cutmix-alpha-0.25": {"mix": "cutmix", "alpha": 0.25} | HALF,
    "cifar100-pyramidnet200-cutmix-alpha-0.5": {"mix": "cutmix", "alpha": 0.5} | HALF,
    "cifar100-pyramidnet200-cutmix-alpha-2": {"mix": "cutmix", "alpha": 2.0} | HALF,
    "cifar100-pyramidnet200-cutmix-alpha-4": {"mix": "cutmix", "alpha": 4.0} | HALF,
    "cifar100-pyramidnet200-feature-cutmix": {"mix": "feature-cutmix"} | HALF,
    "cifar100-pyramidnet200-feature-cutmix-layer-0": {"mix": "feature-cutmix", "mix_layers": (0,)} | HALF,
    "cifar100-pyramidnet200-feature-cutmix-layer-1": {"mix": "feature-cutmix", "mix_layers": (1,)} | HALF,
    "cifar100-pyramidnet200-feature-cutmix-layer-2": {"mix": "feature-cutmix", "mix_layers": (2,)} | HALF,
    "cifar100-pyramidnet200-feature-cutmix-layer-3": {"mix": "feature-cutmix", "mix_layers": (3,)} | HALF,
    "cifar100-pyramidnet200-feature-cutmix-layer-4": {"mix": "feature-cutmix", "mix_layers": (4,)} | HALF,
    "cifar100-pyramidnet200-cutmix-center-gaussian": {"mix": "cutmix-center-gaussian"} | HALF,
    "cifar100-pyramidnet200-cutmix-fixed-size": {"mix": "cutmix-fixed-size"} | HALF,
    "cifar100-pyramidnet200-cutmix-one-hot": {"mix": "cutmix-one-hot"} | HALF,
    "cifar100-pyramidnet200-cutmix-scheduled": {"mix": "cutmix-scheduled"},
    "cifar100-pyramidnet200-cutmix-complete-label": {"mix": "cutmix-complete-label"} | HALF,
    "cifar100-pyramidnet200-cutmix-3-images": {"mix": "cutmix-3"} | HALF,
    "cifar100-pyramidnet200-cutmix-4-images": {"mix": "cutmix-4"} | HALF,
    "cifar100-pyramidnet110-cutmix": {"mix": "cutmix"} | HALF,
    "cifar100-resnet110-cutmix": {"mix": "cutmix", "lr": 0.1},
    "cifar10-pyramidnet200-cutout": {"mix": "cutout"},
    "cifar10-pyramidnet200-mixup-1.0": {"mix": "mixup"},
    "cifar10-pyramidnet200-manifold-mixup": {"mix": "manifold-mixup"},
    "cifar10-pyramidnet200-cutmix": {"mix": "cutmix"} | HALF,
    "imagenet-resnet50-stochastic-depth": {"stochastic_depth": 0.25},
    "imagenet-resnet50-cutout": {"mix": "cutout"},
    "imagenet-resnet50-mixup": {"mix": "mixup"},
    "imagenet-resnet50-manifold-mixup": {"mix": "manifold-mixup"},
    "imagenet-resnet50-dropblock": {"drop_block": 0.1, "drop_block_size": 7},
    "imagenet-resnet50-feature-cutmix": {"mix": "feature-cutmix"},
    "imagenet-resnet50-cutmix": {"mix": "cutmix"},
    "imagenet-resnet50-autoaugment": {"auto_augment": "imagenet", "color_jitter": 0.0, "lighting": 0.0},
    "imagenet-resnet101-cutout": {"mix": "cutout"},
    "imagenet-resnet101-mixup": {"mix": "mixup"},
    "imagenet-resnet101-cutmix": {"mix": "cutmix"},
    "imagenet-resnext101-cutmix": {"mix": "cutmix"},
}


@pytest.mark.parametrize("name", ROWS)
def test_rows_change_what_the_paper_changes(name: str) -> None:
    assert changed(name) == ROWS[name]


def test_smmix_has_the_numbers_of_its_authors_code() -> None:
    numbers = {
        "data": "imagenet", "image_size": 224, "epochs": 300, "batch_size": 1024, "optimizer": "adamw", "lr": 1e-3,
        "weight_decay": 0.05, "decay_all": False, "schedule": "cosine", "warmup_epochs": 5, "min_lr": 1e-5,
        "clip_grad_norm": 0.0, "ema_decay": 0.0, "stochastic_depth": 0.1, "label_smoothing": 0.1,
        "auto_augment": "rand-m9-mstd0.5-inc1", "color_jitter": 0.0, "interpolation": "bicubic", "crop_fraction": 0.875,
        "crop_scale": (0.08, 1.0), "flip": True, "mix": "smmix", "mix_prob": 0.5, "alpha": 0.8,
    }  # fmt: skip
    for network in ("deit-tiny", "deit-small", "deit-base", "cait-xxs24", "cait-xxs36", "pvt-tiny", "pvt-large"):
        recipe = RECIPES[f"imagenet-{network}-smmix"]
        assert {field: getattr(recipe, field) for field in numbers} == numbers


def test_what_a_row_needs_is_its_baselines() -> None:
    for name in ("cifar100-pyramidnet200", "cifar10-pyramidnet200", "imagenet-resnet50"):
        recipe = RECIPES[name]
        assert (recipe.alpha, recipe.mix_prob, recipe.mix_layers) == (1.0, 1.0, (0, 1, 2, 3, 4))
        side = 112 if recipe.data == "imagenet" else 16
        assert (recipe.cutout_size, recipe.drop_block_size, recipe.depth_decay) == (side, 4, "linear")
        assert not recipe.mix_per_sample


# ---- every one of them trains ----


@pytest.fixture(scope="module")
def image_files(tmp_path_factory: pytest.TempPathFactory) -> Splits:
    folder, pixels = tmp_path_factory.mktemp("image_files"), np.random.default_rng(0)
    for split, label, i in itertools.product(("train", "val"), ("cat", "dog"), range(4)):
        path = folder / split / label / f"{i}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels.integers(0, 256, (50, 40, 3), dtype=np.uint8)).save(path)
    return open_splits(str(folder))


def small_images(channels: int, side: int) -> ArraySet:
    images = torch.randint(0, 256, (8, channels, side, side), dtype=torch.uint8)
    return ArraySet("noise", "train", ("a", "b"), torch.arange(8) % 2, (0.5,) * channels, (0.25,) * channels, images)


def create_shrunk(name: str, num_classes: int, *, in_chans: int, pretrained: Any) -> nn.Module:
    if name.startswith("pyramidnet"):
        return PyramidNet(2, 12, num_classes, in_chans)
    if name.startswith(("deit", "cait", "pvt")):
        return timm.create_model(
            "vit_tiny_patch16_224", num_classes=num_classes, in_chans=in_chans, img_size=32, patch_size=8, embed_dim=12,
            depth=2, num_heads=2,
        )  # fmt: skip
    return CifarResNet(Bottleneck if name == "resnet110" else BasicBlock, 2, num_classes, in_chans)


@pytest.mark.parametrize("recipe", RECIPES.values(), ids=RECIPES)
def test_it_takes_a_step(recipe: Recipe, image_files: Splits, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    sides = {"digits": (1, 8), "fashion-mnist": (1, 28), "": None, "imagenet": None, "cub-200-2011": None}
    shape = sides.get(recipe.data, (3, 32))
    splits = image_files if shape is None else Splits(small_images(*shape), None, small_images(*shape), {})
    monkeypatch.setattr(cutmix.training.setup, "open_sets", lambda *_: splits)
    monkeypatch.setattr(cutmix.training.state, "create_model", create_shrunk)
    small = replace(
        recipe, batch_size=8, precision="float32", pretrained=False, cutout_size=min(recipe.cutout_size or 16, 16),
        mix_prob=1.0, image_size=32 if isinstance(splits.train, FileSet) else None,
    )  # fmt: skip
    run = prepare(small, TrainOptions(out=tmp_path / "run", workers=0, device="cpu"), World(0, 1, torch.device("cpu")))
    before = {name: tensor.clone() for name, tensor in run.state.model.named_parameters()}
    run.state.step = run.recipe.epochs * run.batches.steps - 1  # the end of a schedule of mixing
    images, labels = next(iter(run.batches.epoch(0)))
    assert train_step(run, images, labels).isfinite()
    after = dict(run.state.model.named_parameters())
    assert all(tensor.isfinite().all() for tensor in after.values())
    assert any(not torch.equal(after[name], before[name]) for name in before)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["cifar100-pyramidnet200-cutmix-shakedrop", "cifar100-pyramidnet110-cutmix",
                                  "cifar100-pyramidnet200-dropblock", "cifar100-resnet110-cutmix",
                                  "imagenet-resnet50-dropblock", "imagenet-resnet101-cutmix",
                                  "imagenet-resnext101-cutmix"])  # fmt: skip
def test_the_full_network_is_built_and_run(name: str) -> None:
    recipe = RECIPES[name]
    classes, side = (1000, 224) if recipe.data == "imagenet" else (100, 32)
    model = regularize(
        create_model(recipe.model, classes), shake_drop=recipe.shake_drop, drop_block=recipe.drop_block,
        block_size=recipe.drop_block_size,
    )  # fmt: skip
    with torch.inference_mode():
        logits = model.train()(torch.randn(2, 3, side, side))
    assert logits.shape == (2, classes)
    assert logits.isfinite().all()


def test_a_name_that_is_not_there_gets_the_closest() -> None:
    assert find_recipe("photos") is RECIPES["photos"]
    with pytest.raises(InputError, match=r"no recipe .cifar100-resnet21.;.* 'cifar100-resnet20'"):
        find_recipe("cifar100-resnet21")
