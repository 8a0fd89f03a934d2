"""The transfer recipes against the paper's figures, and what they refuse."""

from dataclasses import replace
from typing import Any

import pytest

from cutmix.config.recipe import Training
from cutmix.config.tasks import (
    CAPTIONING,
    FASTER_RCNN,
    SSD300,
    TASKS,
    Captioning,
    Detection,
    backbone_in_words,
    backbone_name,
    find_transfer,
    small_transfer,
)
from cutmix.errors import InputError
from cutmix.training.state import learning_rate

EVERY = [recipe for recipes in TASKS.values() for recipe in recipes]
UNREAD: dict[str, dict[str, Any]] = {
    "ssd300": {"min_size": 200, "max_size": 300, "freeze": False},
    "faster-rcnn": {"image_size": 96},
}
VOC = 16_551  # images of VOC2007 and VOC2012 trainval


@pytest.mark.parametrize(("recipe", "decays"), [(SSD300, (80_000, 100_000)), (FASTER_RCNN, (100_000,))])
def test_iterations_and_decays_are_the_papers(recipe: Detection, decays: tuple[int, ...]) -> None:
    steps = -(-VOC // recipe.batch_size)
    assert recipe.epochs * steps == pytest.approx(120_000, rel=0.002)
    rates = [learning_rate(recipe, step, steps) for step in range(0, recipe.epochs * steps, steps)]
    found = [number * steps for number in range(1, len(rates)) if rates[number] < rates[number - 1]]
    assert all(0 <= there - decay < steps for there, decay in zip(found, decays, strict=True))  # an epoch ends first
    assert rates[-1] == pytest.approx(recipe.lr * 0.1 ** len(decays))


def test_batches_and_learning_rates_are_the_papers() -> None:
    assert [(recipe.name, recipe.batch_size, recipe.lr) for recipe in EVERY] == [
        ("ssd300", 32, 0.001), ("faster-rcnn", 8, 0.01), ("captioning", 20, 0.001),
    ]  # fmt: skip
    assert (CAPTIONING.epochs, CAPTIONING.beam, CAPTIONING.weight_decay) == (100, 20, 0)


def test_biases_decay_as_in_each_code_base() -> None:
    assert (SSD300.decay_all, SSD300.weight_decay) == (True, 5e-4)
    assert (FASTER_RCNN.decay_all, FASTER_RCNN.weight_decay) == (False, 1e-4)


@pytest.mark.parametrize("recipe", EVERY, ids=lambda recipe: recipe.name)
def test_a_recipe_survives_its_file(recipe: Training) -> None:
    for one in (recipe, small_transfer(recipe)):  # type: ignore[arg-type]
        assert type(one).from_dict(one.to_dict()) == one
        assert (one.nesterov, one.compile, one.clip_grad_norm) == (False, "off", 0)


def test_recipes_are_found_by_task_and_architecture() -> None:
    assert find_transfer("detection") is SSD300
    assert find_transfer("detection", "faster-rcnn") is FASTER_RCNN
    assert find_transfer("captioning") is CAPTIONING
    assert find_transfer("detection", "captioning") is SSD300  # what is no detector is refused with the flags
    with pytest.raises(InputError, match=r'^there is no task "segmentation"; expected detection or captioning$'):
        find_transfer("segmentation")


@pytest.mark.parametrize(
    ("backbone", "name"),
    [
        ("runs/x", "x"),
        ("runs/x/", "x"),
        ("runs/x/model.safetensors", "x"),
        ("runs/x/best.safetensors", "x-best"),
        ("weights/resnet50.pth", "resnet50.pth"),
        ("none", "none"),
    ],
)
def test_the_file_of_a_run_has_the_name_of_the_run(backbone: str, name: str) -> None:
    assert backbone_name(backbone) == name
    assert backbone_in_words(backbone) == ("random weights" if backbone == "none" else name)
    assert backbone_in_words("pretrained") == "timm’s weights"


def test_what_a_detector_does_not_read_is_the_papers() -> None:
    for recipe in (SSD300, FASTER_RCNN):
        assert replace(recipe, **UNREAD[recipe.arch]).without_unread() == recipe.without_unread() == recipe
        for name, value in {**UNREAD["ssd300"], **UNREAD["faster-rcnn"], "lr": 0.5}.items():
            if name not in UNREAD[recipe.arch]:
                assert getattr(replace(recipe, **{name: value}).without_unread(), name) == value


def test_the_small_recipes_are_small() -> None:
    for recipe in EVERY:
        assert small_transfer(recipe).epochs <= 40
        assert small_transfer(recipe).name.endswith("-small")
    assert small_transfer(FASTER_RCNN).freeze is FASTER_RCNN.freeze  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("kind", "fields", "message"),
    [
        (Detection, {"compile": "model"}, "--compile is not available for transfer"),
        (Detection, {"image_size": 16}, "--image-size is 16; expected a number of at least 32"),
        (Detection, {"val_fraction": 0.0}, "--val-fraction is 0.0; expected a number above 0 and below 1"),
        (Detection, {"val_fraction": 1.0}, "--val-fraction is 1.0; expected a number above 0 and below 1"),
        (Captioning, {"crop": 300}, "--crop is 300; expected at most --image-size, 256"),
        (Captioning, {"beam": 0}, "--beam is 0; expected a number of at least 1"),
        (Captioning, {"dropout": 1.5}, "--dropout is 1.5"),
        (Captioning, {"epochs": 0}, "--epochs is 0"),
    ],
)
def test_what_is_out_of_range_is_refused(kind: type[Any], fields: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        kind(**fields)
