"""The recipe: its ranges, what contradicts itself, its way through JSON."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cutmix.config.recipe import Recipe, flag
from cutmix.config.recipes import RECIPES
from cutmix.errors import InputError


@pytest.mark.parametrize("recipe", RECIPES.values(), ids=RECIPES)
def test_a_recipe_goes_through_json(recipe: Recipe) -> None:
    assert Recipe.from_dict(json.loads(json.dumps(recipe.to_dict()))) == recipe


def test_a_field_that_no_recipe_has_is_refused() -> None:
    with pytest.raises(InputError, match="unknown field 'learning_rate'"):
        Recipe.from_dict({"learning_rate": 1})


def test_a_recipe_from_before_a_field_was_there_does_what_it_did() -> None:
    old = {"name": "old", "data": "cifar-100", "mix": "cutmix", "mix_prob": 0.5, "milestones": [0.5], "seed": 3}
    recipe = Recipe.from_dict(old)
    assert {name: getattr(recipe, name) for name in old} == old | {"milestones": (0.5,)}
    off = ("stochastic_depth", "shake_drop", "drop_block", "color_jitter", "lighting", "cutout")
    assert not any(getattr(recipe, name) for name in off)
    assert recipe.auto_augment == "none"
    assert recipe.zero_init  # as timm has it
    assert recipe.interpolation == "bilinear"


INF, NAN = float("inf"), float("nan")


@pytest.mark.parametrize(
    ("field", "wrong"),
    [
        ("val_fraction", (-0.1, 1.1, NAN)), ("image_size", (0, -1)), ("crop_padding", (-1,)),
        ("crop_scale", ((0.0, 1.0), (0.9, 0.1), (0.5, 1.1))), ("crop_fraction", (0.0, 1.1)),
        ("alpha", (0.0, -1.0, INF, NAN)), ("mix_prob", (-0.1, 1.1)), ("cutout_size", (0,)),
        ("label_smoothing", (-0.1, 1.1)), ("epochs", (0, -3)), ("batch_size", (0,)), ("accumulate", (0,)),
        ("lr", (0.0, -0.1, INF, NAN)), ("momentum", (-0.1, 1.1)), ("weight_decay", (-1e-4, INF)),
        ("milestones", ((0.5, 1.5), (-0.1,))), ("gamma", (-0.1, 1.1)), ("warmup_epochs", (-1.0, INF)),
        ("clip_grad_norm", (-1.0, NAN)), ("ema_decay", (-0.1, 1.0)), ("eval_every", (0,)), ("seed", (2**63,)),
        ("color_jitter", (-0.1, 1.1)), ("lighting", (-0.1, INF)), ("stochastic_depth", (-0.1, 1.0, NAN)),
        ("shake_drop", (-0.1, 1.0)), ("drop_block", (-0.1, 1.0)), ("drop_block_size", (0,)),
        ("mix_layers", ((), (5,), (0, -1))), ("optimizer", ("adam",)), ("schedule", ("steps",)), ("flip", ("no",)),
        ("sampler", ("balance",)), ("precision", ("fp16",)), ("crop_scale", ((0.5,),)),
    ],
)  # fmt: skip
def test_what_is_out_of_range_or_no_choice_is_refused_by_its_flag(field: str, wrong: tuple[Any, ...]) -> None:
    for value in wrong:
        with pytest.raises(InputError, match=rf"^--{flag(field)} is "):
            Recipe(**{"mix": "feature-cutmix", field: value})


@pytest.mark.parametrize(
    "changes",
    [
        {"val_fraction": 0.5, "crop_fraction": 1.0, "mix_prob": 0.0, "gamma": 0.0, "momentum": 0.0, "nesterov": False},
        {"mix_prob": 1.0, "gamma": 1.0, "label_smoothing": 1.0, "crop_scale": (1.0, 1.0), "milestones": ()},
        {"weight_decay": 0.0, "crop_padding": 0, "warmup_epochs": 0.0, "clip_grad_norm": 0.0, "image_size": 1},
        {"momentum": 0.0, "optimizer": "adamw", "seed": -(2**63)},
        {"color_jitter": 1.0, "drop_block": 0.99, "drop_block_size": 1, "stochastic_depth": 0.99},
        {"mix": "manifold-mixup", "mix_layers": (0, 4), "cutout": True, "shake_drop": 0.99, "drop_block": 0.1},
    ],
)
def test_the_ends_of_the_ranges_are_allowed(changes: dict[str, Any]) -> None:
    assert all(getattr(Recipe(**changes), name) == value for name, value in changes.items())


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"momentum": 0.0, "optimizer": "sgd"}, "--nesterov needs momentum"),
        ({"pretrained": True, "weights": "w.pth"}, "one of them"),
        ({"stochastic_depth": 0.1, "shake_drop": 0.1}, "ShakeDrop replaces stochastic depth"),
    ],
)
def test_what_contradicts_itself_is_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        Recipe(**changes)


def test_whole_numbers_of_float_fields_are_floats() -> None:
    """A resumed run, whose recipe was read from JSON, writes the same bytes as the run that was started."""
    recipe = Recipe(warmup_epochs=1, crop_scale=(0.5, 1), milestones=(0, 1), lr=1, epochs=3)
    assert json.dumps(recipe.to_dict()) == json.dumps(
        Recipe.from_dict(json.loads(json.dumps(recipe.to_dict()))).to_dict()
    )
    assert [type(value) for value in (recipe.warmup_epochs, *recipe.crop_scale, *recipe.milestones, recipe.epochs)] == [
        *[float] * 5, int
    ]  # fmt: skip


def test_numbers_of_numpy_and_paths_are_taken_as_plain_ones() -> None:
    """A sweep over ``np.linspace`` is a sweep over numbers, and a path is a text."""
    plain = {"lr": 0.25, "epochs": 3, "milestones": (0.5,), "weights": "w.pth"}
    given = {"lr": np.float32(0.25), "epochs": np.int64(3), "milestones": [np.float64(0.5)], "weights": Path("w.pth")}
    for recipe in (Recipe(**given), Recipe.from_dict(given)):  # type: ignore[arg-type]
        assert json.dumps(recipe.to_dict()) == json.dumps(Recipe(**plain).to_dict())  # type: ignore[arg-type]
