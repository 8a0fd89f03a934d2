"""A training step never waits for its device: meta tensors stand for those of a GPU, whose values nothing can read."""

import contextlib
import functools
import sys
from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

import cutmix.training.state
from cutmix.config.options import TrainOptions
from cutmix.config.recipe import Recipe, complete
from cutmix.config.recipes import RECIPES
from cutmix.data import ArraySet, Augment, loaders
from cutmix.runtime.device import World, make_scaler
from cutmix.runtime.terminal import Progress
from cutmix.training.classification import Classification
from cutmix.training.loop import train_step
from cutmix.training.setup import Run
from cutmix.training.state import FUSED, make_average, make_optimizer, start_state

GPU = torch.device("meta")
SMALL = {"deit": "deit_tiny_patch4_32", "cait": "cait_xxs24_patch4_32", "pvt": "pvt_tiny_patch1_32"}


class Device(TorchDispatchMode):
    """Counts the operations on the device, and notes what would wait for a GPU: reading raises by itself."""

    def __init__(self) -> None:
        super().__init__()
        self.launches, self.waits = 0, list[str]()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.ops.aten._fused_sgd_.default:  # which PyTorch has not for meta tensors
            self.launches += 1
            return None
        result = func(*args, **(kwargs or {}))
        given = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        made = [leaf for leaf in tree_leaves(result) if isinstance(leaf, Tensor)]
        if any(tensor.device == GPU for tensor in made):
            self.launches += not func.is_view
            from_host = [tensor for tensor in given if tensor.device.type == "cpu"]
            copies = func in (torch.ops.aten._to_copy.default, torch.ops.aten.copy_.default)
            free = (kwargs or {}).get("non_blocking") or (len(args) > 2 and args[2] is True)
            if any(tensor.ndim or copies for tensor in from_host) and not (copies and free):
                self.waits.append(str(func))
        return result


class Values(TorchFunctionMode):
    """Notes tensors that are made of values on the device, which no dispatch shows."""

    def __init__(self, waits: list[str]) -> None:
        super().__init__()
        self.waits = waits

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in (torch.tensor, torch.as_tensor) and not isinstance(args[0], Tensor):
            device = (kwargs or {}).get("device")
            self.waits += [str(func)] if device is not None and torch.device(device) == GPU else []
        return func(*args, **(kwargs or {}))


@contextlib.contextmanager
def watched() -> Iterator[Device]:
    """Watch what happens on the device."""
    with Device() as device, Values(device.waits):
        yield device


def different_steps() -> Iterable[Recipe]:
    """Yield the recipes whose steps differ, with small models."""
    same = {
        "name": "r", "data": "x", "epochs": 2, "batch_size": 8, "lr": 0.1, "weight_decay": 0.1, "warmup_epochs": 0.0,
        "crop_scale": (0.3, 1.0), "pretrained": False, "ema_decay": 0.0, "label_smoothing": 0.1, "cutout_size": 8,
    }  # fmt: skip
    names = ("optimizer", "mix", "mix_prob", "mix_per_sample", "mix_layers", "cutout", "stochastic_depth", "shake_drop")
    seen = set[Recipe]()
    for recipe in RECIPES.values():
        recipe, _ = complete(recipe, images=1000, classes=10, files=False)
        family = next((small for name, small in SMALL.items() if recipe.model.startswith(name)), "resnet20")
        small = Recipe(model=family, **same, **{name: getattr(recipe, name) for name in names})
        if small.mix == "smmix":
            small = replace(small, mix_prob=1.0)  # each batch, and not by chance Mixup
        if small not in seen:
            seen.add(small)
            yield small


STEPS = list(different_steps())


@contextlib.contextmanager
def as_on_cuda() -> Iterator[None]:
    """Let meta tensors have what those of a CUDA GPU have: fused optimizers, and autocast, which only casts."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cutmix.training.state, "FUSED", (*FUSED, "meta"))
        patch.setattr(sys.modules["torch.optim.optimizer"], "_get_fused_kernels_supported_devices", lambda: ["meta"])
        patch.setattr(torch, "is_autocast_enabled", lambda *_: False)
        patch.setattr(torch, "get_autocast_dtype", lambda *_: torch.bfloat16)
        patch.setattr(torch, "autocast", lambda *_, **__: contextlib.nullcontext())
        yield


def make_run(recipe: Recipe) -> Run:
    """Return a run on the device whose values are unknown."""
    images = torch.zeros(32, 3, 32, 32, dtype=torch.uint8)
    data = ArraySet("zeros", "train", tuple("0123456789"), torch.arange(32) % 10, (0.5,) * 3, (0.5,) * 3, images)
    state = start_state(recipe, data, World(0, 1, torch.device("cpu")))
    state.model.to(GPU)
    state.optimizer, state.average = make_optimizer(recipe, state.model), make_average(recipe, state.network)
    state.scaler = make_scaler(recipe.precision, GPU)
    world = World(0, 1, GPU)
    augment = Augment(
        crop_padding=4,
        flip=True,
        color_jitter=recipe.color_jitter,
        lighting=recipe.lighting,
        random_erasing=recipe.random_erasing,
    )
    shared: dict[str, Any] = {"batch_size": 8, "device": GPU, "workers": 0, "channels_last": recipe.channels_last}
    batches = loaders.train_loader(data, augment, seed=0, **shared)
    tests = loaders.test_loader(data, image_size=None, **shared)
    task = Classification(recipe, state, world, data, contextlib.nullcontext(), data, tests)
    return Run(
        recipe, TrainOptions(), world, Path("run"), "zeros", task, batches, state, "",
            state.model,         contextlib.nullcontext(), Progress(2, batches.steps, shown=False), {},
    )  # fmt: skip


@functools.cache
def step(recipe: Recipe) -> Device:
    """Take one step, and after it one that is watched, with its batch."""
    with as_on_cuda():
        run = make_run(recipe)
        batches = run.batches.epoch(0)
        with watched():
            train_step(run, *next(batches))
        with watched() as device:
            loss = train_step(run, *next(batches))
    assert loss.device == GPU
    return device


@pytest.mark.parametrize("recipe", STEPS, ids=lambda recipe: f"{recipe.model}-{recipe.mix}")
def test_a_step_waits_for_nothing_and_launches_little_more_than_a_plain_one(recipe: Recipe) -> None:
    layers = Recipe().mix_layers
    device = step(recipe)
    plain = step(replace(recipe, mix="none", mix_layers=layers, cutout=False, color_jitter=0.0, lighting=0.0))
    assert not device.waits
    assert device.launches <= (2 if recipe.mix == "smmix" else 1) * plain.launches + 130  # SMMix has a second pass


PLAIN = next(recipe for recipe in STEPS if recipe.mix == "cutmix")


@pytest.mark.parametrize("clip", [0.0, 1.0])
@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_no_step_in_float16_waits_for_whether_a_gradient_overflowed(optimizer: Any, clip: float) -> None:
    recipe = replace(PLAIN, optimizer=optimizer, clip_grad_norm=clip)
    plain, scaled = step(recipe), step(replace(recipe, precision="float16"))
    assert not scaled.waits
    assert scaled.launches - plain.launches <= 10


@pytest.mark.parametrize(
    "changes",
    [
        {"accumulate": 2}, {"clip_grad_norm": 1.0}, {"random_erasing": 0.5}, {"head_lr_factor": 2.0},
        {"precision": "bfloat16"}, {"precision": "tf32"}, {"channels_last": False}, {"drop_block": 0.1},
    ],
    ids=str,
)  # fmt: skip
def test_no_option_of_a_step_waits(changes: dict[str, Any]) -> None:
    assert not step(replace(PLAIN, **changes)).waits


def test_the_moving_average_is_a_few_launches() -> None:
    plain, averaged = step(PLAIN), step(replace(PLAIN, ema_decay=0.9))
    assert not averaged.waits
    assert averaged.launches - plain.launches <= 2


def test_a_copy_that_waits_is_noted_and_a_read_value_is_refused() -> None:
    with watched() as device:
        there = torch.ones(3).to(GPU)
        assert len(device.waits) == 1
        torch.ones(3).to(GPU, non_blocking=True)
        assert len(device.waits) == 1
        there + torch.tensor(2.0)  # a number of the host travels with the launch
        assert len(device.waits) == 1
        there.copy_(torch.ones(3))
        torch.tensor([1.0], device=GPU)
        assert len(device.waits) == 3
    for read in (lambda: there.sum().item(), lambda: bool(there.all()), lambda: there.cpu(), lambda: there.nonzero()):
        with pytest.raises((RuntimeError, NotImplementedError)):
            read()
