"""What is chosen for the data at hand, and that what is given stays."""

import json
from dataclasses import fields, replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from cutmix.config.recipe import ARRAYS, Recipe, complete
from cutmix.config.recipes import RECIPES, SMALL
from cutmix.runtime.files import read_lines

RESULTS = Path(__file__).parents[2] / "results"

SIZES = (2, 10, 48, 240, 2400, 60_000, 1_200_000)


def folder(images: int = 240, **given: object) -> Recipe:
    return complete(Recipe(data="photos", **given), images=images, classes=5, files=True)[0]  # type: ignore[arg-type]


@pytest.mark.parametrize("pretrained", [True, False])
@pytest.mark.parametrize("images", SIZES)
def test_every_field_is_filled(images: int, pretrained: bool) -> None:
    recipe = folder(images, pretrained=pretrained)
    allowed = {"weights", "train_per_class", "image_size", "mixup_alpha", "class_weights"}
    assert {field.name for field in fields(Recipe) if getattr(recipe, field.name) is None} <= allowed
    assert 8 <= recipe.batch_size <= 64
    assert recipe.warmup_epochs < recipe.epochs


@pytest.mark.parametrize("pretrained", [True, False])
def test_more_images_are_seen_less_often_in_larger_batches_and_more_steps(pretrained: bool) -> None:
    chosen = [folder(images, pretrained=pretrained) for images in SIZES]
    epochs, batches = [r.epochs for r in chosen], [r.batch_size for r in chosen]
    steps = [r.epochs * images / r.batch_size for r, images in zip(chosen, SIZES, strict=True)]
    assert epochs == sorted(epochs, reverse=True)
    assert batches == sorted(batches)
    assert steps == sorted(steps)


def test_random_weights_train_longer_at_a_higher_rate() -> None:
    tuned, scratch = folder(pretrained=True), folder(pretrained=False)
    assert scratch.epochs > tuned.epochs
    assert scratch.lr > tuned.lr


def test_few_steps_have_a_higher_rate() -> None:
    """docs/experiments/defaults.md: it helps in 30 and 48 steps, and does harm in 160 (1,010 images)."""
    chosen = folder(300, pretrained=True)
    assert (chosen.epochs, chosen.batch_size, chosen.lr) == (30, 32, 5e-4)
    rates = {epochs: folder(300, pretrained=True, epochs=epochs).lr for epochs in (60, 30, 20, 10, 5, 3, 1)}
    assert rates == {60: 5e-4, 30: 5e-4, 20: 5e-4, 10: 5e-4, 5: 1e-3, 3: 1.5e-3, 1: 1.5e-3}
    assert folder(1010, pretrained=True, epochs=10).lr == folder(1010, pretrained=True).lr == 7.1e-4
    assert folder(300, pretrained=True, epochs=3, lr=1e-4).lr == 1e-4
    said = "\n".join(complete(Recipe(data="photos", epochs=3), images=300, classes=5, files=True)[1])
    assert (
        "--lr 0.0015 --weight-decay 0.05 --warmup-epochs 0.3: for trained weights and batches of 32, 30 steps" in said
    )


def test_weights_from_a_file_are_fine_tuned() -> None:
    given, published = folder(weights="w.pth"), folder()
    assert (given.pretrained, published.pretrained) == (False, True)
    assert (given.epochs, given.lr) == (published.epochs, published.lr)


def test_what_is_given_stays() -> None:
    given = {"model": "resnet18", "epochs": 3, "batch_size": 7, "optimizer": "sgd", "lr": 0.3, "weight_decay": 0.0,
             "warmup_epochs": 0.0, "ema_decay": 0.0, "crop_scale": (0.5, 1.0), "mix": "none", "mix_prob": 0.0,
             "label_smoothing": 0.0, "pretrained": False, "name": "mine"}  # fmt: skip
    recipe, lines = complete(Recipe(data="photos", **given), images=48, classes=5, files=True)  # type: ignore[arg-type]
    assert {name: getattr(recipe, name) for name in given} == given
    assert lines == []


def test_the_lines_name_every_chosen_flag_and_no_other() -> None:
    _, lines = complete(Recipe(data="photos", epochs=3, mix="mixup"), images=48, classes=5, files=True)
    text = "\n".join(lines)
    assert "48 training images" in text
    assert all(f"--{name} " in text for name in ("model", "batch-size", "lr", "warmup-epochs", "mix-prob"))
    assert "--epochs" not in text
    assert "--mix mixup" not in text


def test_what_is_not_read_is_no_choice() -> None:
    for given in ({"squash": True}, {"mix": "none"}, {"mix": "cutout"}):
        lines = "".join(complete(Recipe(data="photos", **given), images=48, classes=5, files=True)[1])
        assert [f"--{name} " in lines for name in ("crop-scale", "mix-prob", "cutout-size")] == [
            "squash" not in given, given.get("mix") == "cutout", given.get("mix") == "cutout"
        ]  # fmt: skip


def test_cutout_removes_half_the_side_of_the_image() -> None:
    """As in the paper: 16 of 32 pixels on CIFAR, 112 of 224 on ImageNet."""
    photos = Recipe(data="photos", mix="cutout")
    made, lines = complete(photos, images=48, classes=5, files=True, side=224)
    assert made.cutout_size == 112
    assert "  --cutout-size 112: half the side of the image" in lines
    small = replace(photos, image_size=64)
    assert complete(small, images=48, classes=5, files=True, side=224)[0].cutout_size == 32
    for side, size in ((32, 16), (28, 14), (8, 4), (1, 1)):
        assert complete(Recipe(), images=48, classes=5, files=False, side=side)[0].cutout_size == size


def test_the_name_says_data_model_and_mix(tmp_path: Path) -> None:
    (tmp_path / "my photos").mkdir()
    data = str(tmp_path / "my photos")
    assert complete(Recipe(data=data), images=48, classes=5, files=True)[0].name == "my photos-resnet50-none"
    assert complete(Recipe(mix="mixup"), images=48, classes=5, files=False)[0].name == "digits-resnet20-mixup"


def test_small_sets_have_one_recipe_whatever_their_size() -> None:
    for images in SIZES:
        recipe, lines = complete(Recipe(name=None, data="digits"), images=images, classes=10, files=False)
        assert {name: getattr(recipe, name) for name in ARRAYS} == {name: getattr(SMALL, name) for name in ARRAYS}
        assert not lines


def test_a_named_recipe_is_complete() -> None:
    for name, recipe in RECIPES.items():
        if name != "photos":
            assert complete(recipe, images=10, classes=2, files=True) == (recipe, [])


def test_no_recorded_run_of_the_defaults_is_worse_than_the_plain_loop_beside_it() -> None:
    errors: dict[tuple[object, ...], dict[str, float]] = {}
    for line in read_lines(RESULTS / "defaults.log.jsonl"):
        side = line["side"] if line["side"].startswith("plain") else line["chosen"]["mix"]
        errors.setdefault((line["images"], line["start"], line["seed"]), {})[side] = line["top1_err"]
    beside = [
        (found[folder().mix], error)
        for found in errors.values() if folder().mix in found
        for side, error in found.items() if side.startswith("plain")
    ]  # fmt: skip
    assert len(beside) >= 6
    assert all(ours < plain for ours, plain in beside)


@pytest.mark.parametrize(("classes", "rate"), [(5, 1e-3), (99, 1e-3), (100, 3.5e-4), (0, 3.5e-4)])
def test_weights_that_told_few_classes_apart_get_a_higher_rate(tmp_path: Path, classes: int, rate: float) -> None:
    """Without a list of classes in the file, the weights are taken for those of a large set."""
    names = json.dumps([f"class {k}" for k in range(classes)])
    metadata = {"digest": "", "classes": names, "num_classes": str(classes)} if classes else None
    save_file({"weight": torch.zeros(1)}, tmp_path / "a.safetensors", metadata)
    assert folder(100, weights=str(tmp_path / "a.safetensors")).lr == rate
