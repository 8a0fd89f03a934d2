"""How a run's state starts, and that a snapshot of it holds everything."""

import io
from dataclasses import replace
from typing import Any

import pytest
import torch

from cutmix.data import ArraySet, open_data
from cutmix.distributed import World
from cutmix.errors import InputError
from cutmix.mixing import mixed_cross_entropy
from cutmix.recipes import RECIPES, Recipe
from cutmix.state import State, make_mix, restore, start_state, take_snapshot

ALONE = World(0, 1, torch.device("cpu"))
RECIPE = replace(RECIPES["digits-resnet20-cutmix"], ema_decay=0.9)
MIXES = ("none", "cutmix", "mixup", "cutout", "cutmix-or-mixup")


@pytest.fixture(scope="module")
def digits() -> ArraySet:
    data = open_data("digits", "train")
    assert isinstance(data, ArraySet)
    return data


def step(state: State, data: ArraySet) -> None:
    """Take a step on images that the global generator draws."""
    chosen = torch.randint(len(data), (16,))
    images, labels = data.images[chosen].float() / 255, data.labels[chosen]
    images, targets = state.mix(images, labels) if state.mix else (images, labels)  # type: ignore[assignment]
    mixed_cross_entropy(state.model(images), targets).backward()
    state.optimizer.step()
    state.optimizer.zero_grad()
    if state.average:
        state.average.update_parameters(state.model)
    state.step += 1


def saved(snapshot: dict[str, Any]) -> dict[str, Any]:
    """Return a snapshot as it comes back from a file."""
    file = io.BytesIO()
    torch.save(snapshot, file)
    file.seek(0)
    return torch.load(file, weights_only=True)


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
@pytest.mark.parametrize("mix", MIXES)
def test_a_restored_state_goes_on_as_the_saved_one(digits: ArraySet, mix: Any, optimizer: Any) -> None:
    recipe = replace(RECIPE, mix=mix, optimizer=optimizer, lr=0.01)
    one = start_state(recipe, digits, ALONE)
    for _ in range(2):
        step(one, digits)
    one.best = {"epoch": 1, "top1_err": 50.0}
    snapshot = saved(take_snapshot(one, ALONE))
    for _ in range(2):
        step(one, digits)
    other = start_state(replace(recipe, seed=5), digits, ALONE)
    step(other, digits)
    restore(other, snapshot, ALONE)
    assert (other.step, other.best) == (2, one.best)
    for _ in range(2):
        step(other, digits)
    for module, same in ((one.model, other.model), (one.measured, other.measured)):
        for name, value in module.state_dict().items():
            assert torch.equal(value, same.state_dict()[name]), name
    assert one.measured is not one.model


def test_a_seed_decides_the_weights_whatever_was_drawn_before(digits: ArraySet) -> None:
    first = start_state(RECIPE, digits, ALONE).model.state_dict()
    torch.randn(100)
    same, other = (start_state(replace(RECIPE, seed=s), digits, ALONE).model.state_dict() for s in (0, 1))
    assert all(torch.equal(first[name], same[name]) for name in first)
    assert not torch.equal(first["conv1.weight"], other["conv1.weight"])


def test_processes_start_with_the_same_weights_and_draw_differently(digits: ArraySet) -> None:
    models, draws = [], []
    for rank in range(2):
        models.append(start_state(RECIPE, digits, World(rank, 2, ALONE.device)).model.state_dict())
        draws.append(torch.rand(3))
    assert all(torch.equal(models[0][name], models[1][name]) for name in models[0])
    assert not torch.equal(draws[0], draws[1])


@pytest.mark.parametrize(
    ("mix", "name"), list(zip(MIXES[1:], ("CutMix", "Mixup", "Cutout", "RandomChoice"), strict=True))
)
def test_a_mix_is_the_transform_of_its_name(mix: Any, name: str) -> None:
    images = torch.rand(8, 3, 32, 32)
    batch = images.clone()
    transform = make_mix(Recipe(mix=mix))
    assert type(transform).__name__ == name
    mixed, _ = transform(batch, torch.arange(8))  # type: ignore[misc]
    assert mixed is batch  # no copy
    assert not torch.equal(mixed, images)


def test_probability_zero_never_mixes() -> None:
    images = torch.rand(8, 3, 32, 32)
    for mix in MIXES[1:]:
        transform = make_mix(Recipe(mix=mix, mix_prob=0.0))  # type: ignore[arg-type]
        assert transform
        assert torch.equal(transform(images.clone(), torch.arange(8))[0], images)


def test_no_mix_is_none() -> None:
    assert make_mix(Recipe(mix="none")) is None


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (lambda s: s.pop("optimizer"), "optimizer"),
        (lambda s: s.pop("processes"), "not one of this run"),
        (lambda s: s.update(model={}), "not one of this run"),
        (lambda s: s.update(average=None), "not one of this run"),
        (lambda s: s["optimizer"].update(param_groups=[]), "not one of this run"),
        (lambda s: s["processes"].append({}), "started with 2 processes and goes on exactly only with as many"),
        (lambda s: s["processes"][0].update(torch=torch.zeros(3, dtype=torch.uint8)), "not one of this run"),
    ],
)
def test_a_snapshot_that_does_not_fit_is_refused(digits: ArraySet, damage: Any, reason: str) -> None:
    state = start_state(RECIPE, digits, ALONE)
    snapshot = take_snapshot(state, ALONE)
    damage(snapshot)
    with pytest.raises(InputError, match=reason):
        restore(state, snapshot, ALONE)


@pytest.mark.parametrize("model", ["test_vit", "resnet18"])
def test_the_size_of_the_images_is_tried(digits: ArraySet, model: str) -> None:
    recipe = replace(RECIPE, model=model)
    if model == "resnet18":
        assert start_state(recipe, digits, ALONE).model.training
    else:
        with pytest.raises(InputError, match="test_vit takes no images of 8×8 pixels"):
            start_state(recipe, digits, ALONE)
        with pytest.raises(InputError, match="test_vit takes no images of 24×24 pixels"):
            start_state(replace(recipe, image_size=24), digits, ALONE)
