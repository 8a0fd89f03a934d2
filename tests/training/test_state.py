"""How a run's state starts, and that a snapshot of it holds everything."""

import io
import json
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

import cutmix.training.state
from cutmix.config.recipes import RECIPES, SMALL
from cutmix.data import ArraySet, open_data
from cutmix.errors import InputError
from cutmix.mixing import FeatureMix, Mix
from cutmix.models import create_model
from cutmix.runtime.device import World
from cutmix.runtime.weights import save_weights
from cutmix.training import mixes
from cutmix.training.mixes import image_mixing, make_cutout, make_mix
from cutmix.training.state import State, restore, start_state, take_snapshot

small = partial(replace, SMALL)
ALONE = World(0, 1, torch.device("cpu"))
RECIPE = replace(RECIPES["digits-resnet20-cutmix"], ema_decay=0.9)
MIXES = {
    "none": "Mix", "cutmix": "CutMix", "mixup": "Mixup", "cutout": "Cutout", "cutmix-or-mixup": "RandomChoice",
    "feature-cutmix": "FeatureCutMix", "manifold-mixup": "ManifoldMixup",
    "cutmix-center-gaussian": "CenterGaussianCutMix", "cutmix-fixed-size": "FixedSizeCutMix",
    "cutmix-one-hot": "OneHotCutMix", "cutmix-complete-label": "CompleteLabelCutMix",
    "cutmix-scheduled": "ScheduledCutMix", "cutmix-3": "MultiCutMix", "cutmix-4": "MultiCutMix",
    "smmix": "SMMix",
}  # fmt: skip
ON_IMAGES = [name for name in MIXES if name not in ("none", "feature-cutmix", "manifold-mixup", "smmix")]


@pytest.fixture(scope="module")
def digits() -> ArraySet:
    data = open_data("digits", "train")
    assert isinstance(data, ArraySet)
    return data


def step(state: State, data: ArraySet) -> None:
    """Take a step on images that the global generator draws."""
    chosen = torch.randint(len(data), (16,))
    images, labels = data.images[chosen].float() / 255, data.labels[chosen]
    if state.cutout:
        images, _ = state.cutout(images, labels)
    state.mix.loss(state.model, *state.mix.mix(images, labels)).backward()
    state.optimizer.step()
    state.optimizer.zero_grad()
    if state.average:
        state.average.update(state.network)
    state.step += 1


def saved(snapshot: dict[str, Any]) -> dict[str, Any]:
    """Return a snapshot as it comes back from a file."""
    file = io.BytesIO()
    torch.save(snapshot, file)
    file.seek(0)
    return torch.load(file, weights_only=True)


OTHERS = [
    {"mix": "smmix", "model": "deit_tiny_patch4_8"},
    {"optimizer": "adamw"},
    {"mix": "feature-cutmix", "shake_drop": 0.5},
    {"mix": "manifold-mixup", "cutout": True, "cutout_size": 3, "stochastic_depth": 0.25},
    {"drop_block": 0.1, "drop_block_size": 2},
]


@pytest.mark.parametrize("changes", [{"mix": mix} for mix in MIXES if mix != "smmix"] + OTHERS, ids=str)
def test_a_restored_state_goes_on_as_the_saved_one(digits: ArraySet, changes: dict[str, Any]) -> None:
    recipe = replace(RECIPE, lr=0.01, **changes)
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
    for module, same in ((one.model, other.model), (one.exported, other.exported)):
        for name, value in module.state_dict().items():
            assert torch.equal(value, same.state_dict()[name]), name
    assert one.exported is not one.model


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


def test_the_first_process_downloads_alone(digits: ArraySet, monkeypatch: pytest.MonkeyPatch) -> None:
    alone = []
    monkeypatch.setattr(cutmix.training.state, "create_model", lambda *a, pretrained, **b: create_model(*a, **b))
    monkeypatch.setattr(cutmix.training.state, "first_alone", lambda make, world: alone.append(world.rank) or make())
    for pretrained in (True, False):
        start_state(replace(RECIPE, pretrained=pretrained), digits, World(1, 2, ALONE.device))
    assert alone == [1]


def test_each_method_is_built_by_its_name() -> None:
    made = {name: make_mix(small(mix=name)) for name in mixes.MIXES}
    assert all(isinstance(mix, Mix) for mix in made.values())
    assert {name: type(mix).__name__ for name, mix in made.items()} == MIXES


def test_an_unknown_method_is_refused() -> None:
    with pytest.raises(InputError, match=r"^--mix is cutmx; expected one of none, cutmix, mixup, .*, smmix$"):
        make_mix(small(mix="cutmx"))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"mix": "cutmix", "mix_layers": (2,)}, "is cutmix, which has none; expected --mix feature-cutmix or manifold"),
        ({"mix": "smmix", "accumulate": 2}, "--mix smmix takes whole batches"),
        ({"mix": "smmix", "mix_per_sample": True}, "give neither --mix-per-sample nor --accumulate"),
        ({"mix": "cutout", "cutout": True}, "for Cutout alone, give --mix cutout only"),
        ({"mix": "none", "cutout": True}, "--cutout goes before another mix, but --mix is none"),
    ],
)
def test_a_field_that_the_method_does_not_read_is_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        make_mix(small(**changes))


@pytest.mark.parametrize("changes", [{"mix": "cutout"}, {"mix": "cutmix-fixed-size"}, {"mix": "mixup", "cutout": True}])
def test_a_square_that_covers_each_image_is_refused(digits: ArraySet, changes: dict[str, Any]) -> None:
    with pytest.raises(InputError, match="--cutout-size is 16; expected less than 16, as it would cover images of 8×8"):
        start_state(replace(RECIPE, cutout_size=16, **changes), digits, ALONE)


def test_the_fields_reach_the_transform() -> None:
    given = make_mix(small(mix="feature-cutmix", mix_layers=(1, 3), alpha=0.3, mix_prob=0.4, mix_per_sample=True))
    assert isinstance(given, FeatureMix)
    transform: Any = given.transform
    assert given.layers == (1, 3)
    assert (transform.alpha, transform.prob, transform.per_sample) == (0.3, 0.4, True)
    numbers = [make_mix(small(mix=mix)).num_images for mix in ("cutmix-3", "cutmix-4")]  # type: ignore
    assert numbers == [3, 4]
    assert make_mix(small(mix="cutmix-fixed-size", cutout_size=5)).size == 5  # type: ignore
    assert make_cutout(small(mix="mixup", cutout=True, cutout_size=7)).size == 7  # type: ignore
    assert make_cutout(small(mix="mixup")) is None


@pytest.mark.parametrize("mix", ON_IMAGES)
def test_it_writes_into_the_batch(mix: Any) -> None:
    images = torch.rand(8, 3, 32, 32)
    batch = images.clone()
    transform: Any = make_mix(small(mix=mix))
    if mix == "cutmix-scheduled":
        transform.progress = 1.0
    mixed, _ = transform(batch, torch.arange(8))
    assert mixed is batch  # no copy
    assert not torch.equal(mixed, images)
    never: Any = make_mix(small(mix=mix, mix_prob=0.0))
    assert torch.equal(never(images.clone(), torch.arange(8))[0], images)


@pytest.mark.parametrize("mix", [*ON_IMAGES, "feature-cutmix", "manifold-mixup"])
def test_figures_show_every_image_mixed(mix: Any) -> None:
    images = torch.rand(8, 3, 32, 32) + 0.1
    transform: Any = image_mixing(small(mix=mix, mix_prob=0.01))
    assert not torch.equal(transform(images.clone(), torch.arange(8))[0], images)


def test_figures_show_cutout_first_and_no_layer_but_the_images() -> None:
    images, labels = torch.ones(8, 3, 32, 32), torch.arange(8)
    cut: Any = image_mixing(small(mix="manifold-mixup", mix_layers=(4,), cutout=True))
    holes, same = cut(images.clone(), labels)
    assert set(holes.unique().tolist()) == {0.0, 1.0}
    assert torch.equal(same, labels)
    both: Any = image_mixing(small(mix="mixup", cutout=True))
    assert len(both(images.clone(), labels)[0].unique()) == 4  # 0, 1, λ and 1 − λ
    assert image_mixing(small(mix="feature-cutmix", mix_layers=(2, 3))) is None
    assert image_mixing(small(mix="none")) is None


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (lambda s: s.pop("optimizer"), "optimizer"),
        (lambda s: s.pop("processes"), "not one of this run"),
        (lambda s: s.update(model={}), "not one of this run"),
        (lambda s: s.update(average=None), "not one of this run"),
        (lambda s: s["optimizer"].update(param_groups=[]), "not one of this run"),
        (lambda s: s["processes"].append({}), "started with 2 processes, and needs as many to resume"),
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


@pytest.mark.parametrize(
    ("model", "side", "sentence"),
    [
        ("resnet20", 8, "CifarResNet has no attention over all tokens of an image"),
        ("deit_tiny_patch4_10", 10, "the images are 10×10 pixels, which tokens of 4×4 pixels do not divide"),
        ("deit_tiny_patch8_8", 8, "expected .* at least 2×2 tokens, from smaller patches or larger images"),
        ("pvt_tiny_patch1_8", 8, "expected .* at least 2×2 tokens, from smaller patches or larger images"),
    ],
)
def test_a_network_that_smmix_cannot_go_by_is_refused(digits: ArraySet, model: str, side: int, sentence: str) -> None:
    recipe = replace(RECIPE, model=model, image_size=side, mix="smmix", accumulate=1)
    with pytest.raises(InputError, match=sentence):
        start_state(recipe, digits, ALONE)


def test_a_drop_block_that_does_not_fit_is_refused(digits: ArraySet) -> None:
    recipe = replace(RECIPE, drop_block=0.1)  # 8×8 pixels leave a map of 2×2
    with pytest.raises(InputError, match="DropBlock's block of 4×4 is larger than the feature map of 2×2"):
        start_state(recipe, digits, ALONE)
    model = start_state(replace(recipe, image_size=16), digits, ALONE).model
    assert all(module.training for module in model.modules())


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"mix": "feature-cutmix", "mix_layers": (0, 2)}, "no module layer1, so layer 2 cannot be mixed"),
        ({"shake_drop": 0.5}, "no residual blocks with a drop_path"),
    ],
)
def test_a_network_without_what_is_asked_for_is_refused(
    digits: ArraySet, monkeypatch: pytest.MonkeyPatch, changes: dict[str, Any], message: str
) -> None:
    linear = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 10))
    monkeypatch.setattr(cutmix.training.state, "create_model", lambda *_, **__: linear)
    with pytest.raises(InputError, match=f"Sequential has {message}"):
        start_state(replace(RECIPE, **changes), digits, ALONE)


def test_regularizers_leave_the_first_weights_as_they_are(digits: ArraySet) -> None:
    plain = start_state(replace(RECIPE, ema_decay=0.0), digits, ALONE)
    shaken = start_state(replace(RECIPE, shake_drop=0.5), digits, ALONE)
    assert all(torch.equal(a, b) for a, b in zip(plain.model.parameters(), shaken.model.parameters(), strict=True))
    for model in (shaken.model, shaken.exported):
        assert [name for name, module in model.named_modules() if type(module).__name__ == "ShakeDrop"]


def test_branches_start_at_zero_or_at_one(digits: ArraySet) -> None:
    starts = {}
    for zero in (True, False):
        state = start_state(replace(RECIPE, model="resnet18", zero_init=zero), digits, ALONE)
        modules = [module for module in state.model.modules() if isinstance(module, torch.nn.BatchNorm2d)]
        starts[zero] = [float(module.weight.detach().unique()) for module in modules]
    assert (len(starts[True]), starts[True].count(0.0)) == (20, 8)
    assert starts[False] == [1.0] * 20


def test_weights_from_a_file_are_not_touched(digits: ArraySet, tmp_path: Path) -> None:
    zeros = create_model("resnet18", 10, in_chans=1)
    torch.save(zeros.state_dict(), tmp_path / "w.pth")
    recipe = replace(RECIPE, model="resnet18", zero_init=False, weights=str(tmp_path / "w.pth"))
    started = start_state(recipe, digits, ALONE).model.state_dict()
    assert all(torch.equal(started[name], tensor) for name, tensor in zeros.state_dict().items())


def test_weights_that_were_trained_with_shake_drop_start_with_it(digits: ArraySet, tmp_path: Path) -> None:
    shaken, path = replace(RECIPE, shake_drop=0.5), str(tmp_path / "w.safetensors")
    network = start_state(shaken, digits, ALONE).network
    save_weights(path, network.state_dict(), {"model": "resnet20", "recipe": json.dumps(shaken.to_dict())})
    images = torch.rand(2, 1, 8, 8)
    again = start_state(replace(shaken, weights=path), digits, ALONE).network
    assert torch.equal(again.eval()(images), network.eval()(images))
    with pytest.raises(InputError, match="was trained with --shake-drop"):
        start_state(replace(RECIPE, weights=path), digits, ALONE)  # its branches would be twice as large
