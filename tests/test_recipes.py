"""Recipes: their ranges, their names, their numbers, their way through JSON and the command line."""

import json
import re
from dataclasses import fields, replace
from typing import Any

import pytest

from cutmix.errors import InputError
from cutmix.recipes import RECIPES, Recipe, find_recipe, flag


@pytest.mark.parametrize("recipe", RECIPES.values(), ids=RECIPES)
def test_a_recipe_goes_through_json(recipe: Recipe) -> None:
    assert Recipe.from_dict(json.loads(json.dumps(recipe.to_dict()))) == recipe


def test_a_field_that_no_recipe_has_is_refused() -> None:
    with pytest.raises(InputError, match="no field named learning_rate"):
        Recipe.from_dict({"learning_rate": 1})


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
    ],
)  # fmt: skip
def test_what_is_out_of_range_is_refused_by_its_flag(field: str, wrong: tuple[Any, ...]) -> None:
    for value in wrong:
        with pytest.raises(InputError, match=rf"^--{flag(field)} is "):
            Recipe(**{field: value})


@pytest.mark.parametrize(
    "changes",
    [
        {"val_fraction": 0.5, "crop_fraction": 1.0, "mix_prob": 0.0, "gamma": 0.0, "momentum": 0.0, "nesterov": False},
        {"mix_prob": 1.0, "gamma": 1.0, "label_smoothing": 1.0, "crop_scale": (1.0, 1.0), "milestones": ()},
        {"weight_decay": 0.0, "crop_padding": 0, "warmup_epochs": 0.0, "clip_grad_norm": 0.0, "image_size": 1},
        {"momentum": 0.0, "optimizer": "adamw", "seed": -(2**63)},
    ],
)
def test_the_ends_of_the_ranges_are_allowed(changes: dict[str, Any]) -> None:
    assert all(getattr(Recipe(**changes), name) == value for name, value in changes.items())


@pytest.mark.parametrize(
    ("changes", "message"),
    [({"momentum": 0.0}, "--nesterov needs momentum"), ({"pretrained": True, "weights": "w.pth"}, "one only")],
)
def test_what_contradicts_itself_is_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        Recipe(**changes)


def test_names_say_data_model_and_method() -> None:
    data = {"digits": "digits", "fashion": "fashion-mnist", "cifar10": "cifar-10", "cifar100": "cifar-100",
            "tiny": "tiny-imagenet-200"}  # fmt: skip
    for name, recipe in RECIPES.items():
        assert recipe.name == name
        if name == "photos":
            continue
        match = re.fullmatch(r"([a-z0-9]+)-([a-z0-9]+)(?:-(cutmix|mixup|cutout))?", name)
        assert match, name
        assert data[match[1]] == recipe.data
        assert recipe.model.removesuffix("_cifar") == match[2]
        assert recipe.mix == (match[3] or "none")


def test_a_method_changes_its_own_numbers_only() -> None:
    baseline, cutmix = RECIPES["cifar100-resnet20"], RECIPES["cifar100-resnet20-cutmix"]
    assert replace(baseline, name=cutmix.name, mix="cutmix", mix_prob=0.5) == cutmix


def test_the_papers_resnet110_has_the_papers_numbers() -> None:
    """Paper v2 §4.1.2 and the settings of its code; CutMix as the authors ran it on this network."""
    baseline, cutmix = RECIPES["cifar100-resnet110"], RECIPES["cifar100-resnet110-cutmix"]
    paper = {
        "data": "cifar-100", "model": "resnet110", "epochs": 300, "batch_size": 64, "lr": 0.25, "schedule": "step",
        "milestones": (0.5, 0.75), "gamma": 0.1, "warmup_epochs": 0.0, "optimizer": "sgd", "momentum": 0.9,
        "nesterov": True, "weight_decay": 1e-4, "decay_all": True, "label_smoothing": 0.0, "ema_decay": 0.0,
        "crop_padding": 4, "padding_mode": "constant", "flip": True, "clip_grad_norm": 0.0, "mix": "none",
    }  # fmt: skip
    assert {name: getattr(baseline, name) for name in paper} == paper
    differences = {f.name for f in fields(Recipe) if getattr(baseline, f.name) != getattr(cutmix, f.name)}
    assert differences == {"name", "mix", "lr"}
    assert (cutmix.lr, cutmix.alpha, cutmix.mix_prob, cutmix.mix_per_sample) == (0.1, 1.0, 1.0, False)
    assert RECIPES["cifar100-resnet110-cutout"].cutout_size == 16


def test_a_name_that_is_not_there_gets_the_closest() -> None:
    assert find_recipe("photos") is RECIPES["photos"]
    with pytest.raises(InputError, match=r'no recipe "cifar100-resnet21".* cifar100-resnet20'):
        find_recipe("cifar100-resnet21")
