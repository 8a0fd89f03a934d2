"""Classes of unequal size: weights of the loss, and a sampler that draws every class alike."""

import itertools
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from sklearn.utils.class_weight import compute_class_weight
from torch import Tensor, nn

import cutmix.training.loop
import cutmix.training.state
from cutmix.config.options import TrainOptions
from cutmix.config.recipe import Recipe
from cutmix.data import ArraySet, Augment, FileSet, train_loader
from cutmix.data.sets import take
from cutmix.data.transforms import TrainOrder
from cutmix.errors import InputError
from cutmix.runtime.device import World
from cutmix.runtime.weights import read_weights
from cutmix.training.classification import Classification
from cutmix.training.loop import run_training
from cutmix.training.setup import prepare, read_class_weights

WORLD = World(0, 1, torch.device("cpu"))
NAMES = ("ant", "bee", "été")
LABELS = torch.tensor([0] * 30 + [1] * 9 + [2] * 3)
OPTIONS = TrainOptions(workers=0, device="cpu", checkpoint_every=2, log_every=1)


def unequal(side: int = 4) -> ArraySet:
    images = torch.arange(len(LABELS), dtype=torch.uint8)[:, None, None, None].expand(-1, 3, side, side).contiguous()
    return ArraySet("insects", "train", NAMES, LABELS, (0.5,) * 3, (0.25,) * 3, images)


# ---- weights ----


def test_balanced_weights_are_those_of_scikit_learn() -> None:
    expected = compute_class_weight("balanced", classes=np.arange(3), y=LABELS.numpy())
    found = read_class_weights("balanced", unequal())
    assert found.numpy() == pytest.approx(expected, rel=1e-6)
    assert float(found[LABELS].mean()) == pytest.approx(1)


@pytest.mark.parametrize(
    "text",
    [
        "ant,1\nbee,2\nété,4\n", "class,weight\r\nété,4\r\nant,1\r\nbee,2\r\n", '\ufeff"ant", 1\n\nbee,2.0\nété,4e0',
        '{"bee": 2, "ant": 1.0, "été": 4}',
    ],
)  # fmt: skip
def test_weights_of_a_file_are_read_by_class_and_scaled(text: str, tmp_path: Path) -> None:
    (tmp_path / "weights").write_text(text, encoding="utf-8")
    found = read_class_weights(str(tmp_path / "weights"), unequal())
    scale = 42 / (30 * 1 + 9 * 2 + 3 * 4)
    assert found.tolist() == pytest.approx([scale, 2 * scale, 4 * scale])


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("ant,1\nbee,2\n", "has no weight for the class 'été'"),
        ("ant,1\nbees,2\nété,1", r"has a weight for 'bees', which is not a class of insects; did you mean .bee."),
        ("ant,1\nbee,0\nété,1", "the weight of 'bee' is '0'; expected a number above 0"),
        ("ant,1\nbee,much\nété,1", "the weight of 'bee' is 'much'"),
        ("ant,1\nbee,inf\nété,1", "the weight of 'bee' is 'inf'"),
        ("ant,1\nant,2\n", "two weights for the class 'ant'"),
        ("ant 1\nbee 2\n", "has the line 'ant 1'; expected a class name, a comma and a weight"),
        ('{"ant": true, "bee": 1, "été": 1}', "the weight of 'ant' is True"),
        ('{"ant": [1]}', r"the weight of 'ant' is \[1\]"),
        ('{"ant": 1, "ant": 2}', "two weights for the class 'ant'"),
        ('{"ant": 1', "is not JSON"),
        ("", "has no weight for the class 'ant'"),
        ("ant,1e308\nbee,1e-308\nété,1", "has weights from 1e-308 to 1e\\+308; expected at most 1e9 times apart"),
    ],
)
def test_a_file_that_does_not_fit_is_refused(text: str, sentence: str, tmp_path: Path) -> None:
    (tmp_path / "weights").write_text(text, encoding="utf-8")
    with pytest.raises(InputError, match=sentence):
        read_class_weights(str(tmp_path / "weights"), unequal())


def test_a_word_that_is_no_file_is_refused() -> None:
    with pytest.raises(InputError, match=r"--class-weights is balance, which cannot be read .*expected balanced, or"):
        read_class_weights("balance", unequal())


def test_balancing_twice_is_refused() -> None:
    with pytest.raises(InputError, match="which would balance twice; give one"):
        Recipe(class_weights="balanced", sampler="balanced")


def weighted_task(mix: str, tmp_path: Path, **changes: Any) -> Classification:
    weights = {str(digit): 1 + digit for digit in range(10)}
    (tmp_path / "weights.json").write_text(json.dumps(weights))
    recipe = Recipe(data="digits", mix=mix, crop_padding=1, precision="float32", label_smoothing=0.1)
    recipe = replace(recipe, class_weights=str(tmp_path / "weights.json"), **changes)
    task = prepare(recipe, replace(OPTIONS, out=tmp_path / "run"), WORLD).task
    assert isinstance(task, Classification)
    return task


@pytest.mark.parametrize("mix", ["none", "mixup", "cutmix", "cutmix-3", "feature-cutmix"])
def test_weighted_losses_of_parts_add_up(mix: str, tmp_path: Path) -> None:
    images, labels = torch.rand(6, 1, 8, 8, generator=torch.Generator().manual_seed(0)), torch.arange(6)
    losses = []
    for parts in (1, 3) if mix != "feature-cutmix" else (1,):
        task = weighted_task(mix, tmp_path, accumulate=parts)
        network = task.state.model.eval()
        split = task.split(images.clone(), labels, 0.0)
        assert len(split) == parts
        losses.append(sum(task.loss(network, x, y).item() * len(x) / 6 for x, y in split))
    assert losses == pytest.approx([losses[0]] * len(losses), rel=1e-5)
    if mix == "none":
        weights = torch.arange(1.0, 11.0)
        digits = task.train_set.labels
        weights *= len(digits) / weights[digits].sum()
        sums = F.cross_entropy(network(images), labels, weights, reduction="sum", label_smoothing=0.1)
        assert losses[0] == pytest.approx(sums.item() / 6, rel=1e-5)


# ---- sampler ----


@pytest.mark.parametrize("world", [1, 2, 3])
def test_the_balanced_sampler_draws_each_class_alike(world: int) -> None:
    orders = [TrainOrder(42, 6, 0, rank, world, LABELS) for rank in range(world)]
    for epoch in range(3):
        indices = orders[0].indices(epoch)
        assert all(torch.equal(order.indices(epoch), indices) for order in orders)
        drawn = torch.cat([indices[order.share(step)] for step in range(orders[0].steps) for order in orders])
        assert LABELS[drawn].bincount().tolist() == [14, 14, 14]
        times = drawn.bincount(minlength=42)
        assert times[LABELS == 0].max() == 1
        assert sorted(times[LABELS == 1].tolist()) == [1] * 4 + [2] * 5
        assert sorted(times[LABELS == 2].tolist()) == [4, 5, 5]
    assert not torch.equal(orders[0].indices(0), orders[0].indices(1))
    assert not torch.equal(orders[0].indices(0), TrainOrder(42, 6, 1, 0, world, LABELS).indices(0))


def test_every_image_of_a_large_class_has_its_turn() -> None:
    order = TrainOrder(42, 6, 0, 0, 1, LABELS)
    assert torch.cat([order.indices(epoch) for epoch in range(12)]).unique().tolist() == list(range(42))


def test_a_rest_is_one_more_of_some_classes() -> None:
    labels = torch.tensor([0] * 9 + [1, 2])
    counts = [
        sorted(labels[TrainOrder(11, 4, 0, 0, 1, labels).indices(epoch)][:11].bincount().tolist()) for epoch in range(4)
    ]
    assert counts == [[3, 4, 4]] * 4


def test_an_image_that_comes_again_is_augmented_differently(tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    for k in range(12):
        Image.fromarray(random.integers(0, 256, (24, 24, 3), dtype=np.uint8)).save(tmp_path / f"{k:02}.png")
    paths, labels = tuple(sorted(tmp_path.iterdir())), torch.tensor([0] * 11 + [1])
    data = FileSet("insects", "train", ("ant", "bee"), labels, (0.5,) * 3, (0.25,) * 3, paths)
    loader = train_loader(
        data, Augment(image_size=16, crop_scale=(0.3, 0.9)), batch_size=4, seed=0, device="cpu", workers=0,
        channels_last=False, balanced=True,
    )  # fmt: skip
    images, drawn = (torch.cat(part) for part in zip(*loader.epoch(0), strict=True))
    rare = images[drawn == 1]
    assert len(rare) == 6
    assert all(not torch.equal(a, b) for a, b in itertools.combinations(rare, 2))
    again = torch.cat([batch for batch, _ in loader.epoch(0, start=1)])
    assert torch.equal(again, images[4:])


class Small(nn.Module):
    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Flatten(), nn.Linear(64, 16), nn.Dropout(0.2))
        self.fc = nn.Linear(16, num_classes)

    def forward(self, images: Tensor) -> Tensor:
        return self.fc(self.net(images))


@pytest.mark.parametrize("changes", [{"sampler": "balanced"}, {"class_weights": "balanced", "mix": "cutmix"}], ids=str)
def test_a_balanced_run_is_resumed_exactly(
    changes: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(cutmix.training.state, "create_model", lambda name, num_classes, **_: Small(num_classes))
    splits = cutmix.training.setup.open_splits("digits")
    kept = torch.arange(1000)[(splits.train.labels < 3) | (torch.arange(1000) % 7 == 0)]
    fewer = replace(splits, train=take(splits.train, kept))
    monkeypatch.setattr(cutmix.training.setup, "open_splits", lambda *_, **__: fewer)
    recipe = Recipe(data="digits", epochs=2, batch_size=64, crop_padding=1, precision="float32", lr=0.05, **changes)
    whole = run_training(recipe, replace(OPTIONS, out=tmp_path / "whole"))
    said = capsys.readouterr().out
    assert ("balanced sampler: about 40 images of each class" in said) == ("sampler" in changes)
    assert ("class weights (balanced): 0 0.4" in said) == ("class_weights" in changes)
    original, calls = cutmix.training.loop.train_step, itertools.count(1)

    def step(*arguments: Any) -> Tensor:
        if next(calls) == 10:
            raise KeyboardInterrupt
        return original(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(cutmix.training.loop, "train_step", step)
        with pytest.raises(KeyboardInterrupt):
            run_training(recipe, replace(OPTIONS, out=tmp_path / "run"))
    run = run_training(recipe, replace(OPTIONS, out=tmp_path / "run", resume=True))
    ours, theirs = (read_weights(folder / "model.safetensors").tensors for folder in (run, whole))
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
