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
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

import cutmix.training.loop
import cutmix.training.state
from cutmix.config.options import RunOptions, TrainOptions
from cutmix.config.recipe import Recipe, complete
from cutmix.config.recipes import RECIPES
from cutmix.config.tasks import Captioning, Detection
from cutmix.data import ArraySet, Augment, loaders
from cutmix.runtime.device import World, autocast, make_scaler
from cutmix.runtime.terminal import Progress, Stop
from cutmix.training.classification import Classification, MultiLabel, finish_and_mix
from cutmix.training.loop import train_epoch, train_step
from cutmix.training.setup import Run
from cutmix.training.state import FUSED, make_average, make_optimizer, start_state
from cutmix.transfer.caption_data import Images
from cutmix.transfer.command import prepare_transfer
from cutmix.transfer.detection_layouts import open_detection
from cutmix.transfer.detection_task import make_batches

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


def make_run(recipe: Recipe, labels: str = "one", device: torch.device = GPU) -> Run:
    """Return a run on a device, by default of unknown values, with one label an image, weighted ones or several."""
    images, names = torch.zeros(32, 3, 32, 32, dtype=torch.uint8), tuple("0123456789")
    ids = torch.arange(32) % 10
    data = ArraySet("zeros", "train", names, ids, (0.5,) * 3, (0.5,) * 3, images)
    state = start_state(recipe, data, World(0, 1, torch.device("cpu")))
    state.model.to(device)
    state.optimizer, state.average = make_optimizer(recipe, state.model), make_average(recipe, state.network)
    state.scaler = make_scaler(recipe.precision, device)
    world, precision = World(0, 1, device), autocast(recipe.precision, device)
    shared_fields = ("color_jitter", "lighting", "random_erasing", "auto_augment")
    augment = Augment(crop_padding=4, flip=True, **{name: getattr(recipe, name) for name in shared_fields})
    shared: dict[str, Any] = {"batch_size": 8, "device": device, "workers": 0, "channels_last": recipe.channels_last}
    make = Classification
    if labels == "several":
        data, make = replace(data, labels=F.one_hot(ids, 10).to(torch.uint8)), MultiLabel
    batches = loaders.train_loader(data, augment, seed=0, raw=recipe.compile == "step", **shared)
    tests = loaders.test_loader(data, image_size=None, **shared)
    task = make(recipe, state, world, data, precision, data, tests)
    if labels == "weighted":
        task.class_weights = torch.ones(10).to(device)
    task.__dict__["_prepare"] = finish_and_mix  # as compiled: the same operations
    return Run(
        recipe, TrainOptions(), world, Path("run"), "zeros", task, batches, state, "", state.model,
        Progress(2, batches.steps, shown=False), {},
    )  # fmt: skip


@functools.cache
def step(recipe: Recipe, labels: str = "one") -> Device:
    """Take one step, and after it one that is watched, with its batch."""
    with as_on_cuda():
        run = make_run(recipe, labels)
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
        {"color_jitter": 0.4, "lighting": 0.1}, {"compile": "step"}, {"compile": "step", "cutout": True},
        {"auto_augment": "cifar10"}, {"auto_augment": "rand-m9-mstd0.5-inc1"},
    ],
    ids=str,
)  # fmt: skip
def test_no_option_of_a_step_waits(changes: dict[str, Any]) -> None:
    assert not step(replace(PLAIN, **changes)).waits


@pytest.mark.parametrize("labels", ["weighted", "several"])
def test_neither_class_weights_nor_several_labels_wait(labels: str) -> None:
    assert not step(PLAIN, labels).waits


@pytest.mark.parametrize("policy", ["cifar10", "trivial", "augmix", "rand-m9-mstd0.5-inc1"])
def test_a_policy_changes_images_one_by_one_on_the_cpu(policy: str) -> None:
    images = torch.zeros(8, 3, 32, 32, dtype=torch.uint8)
    data = ArraySet("zeros", "train", ("a",), torch.zeros(8, dtype=torch.int64), (0.5,) * 3, (0.5,) * 3, images)
    loader: Any = loaders.train_loader(
        data, Augment(auto_augment=policy), seed=0, batch_size=8, device=GPU, workers=0, channels_last=False
    )
    assert loader.images.device.type == "cpu"
    ((there, labels),) = loader.epoch()
    assert there.device == labels.device == GPU


def test_a_step_of_captioning_waits_for_nothing(caption_folder: Path) -> None:
    small = Captioning(
        data=str(caption_folder), model="resnet20", batch_size=6, image_size=36, crop=32, embed=8, hidden=8,
        min_count=1, dropout=0.1, val_fraction=0.25, precision="float32", tune_encoder=True, optimizer="sgd",
    )  # fmt: skip
    with as_on_cuda():
        run = prepare_transfer(small, RunOptions(), World(0, 1, torch.device("cpu")))
        run.world = World(0, 1, GPU)
        run.network = run.state.model.to(GPU)
        run.state.optimizer = make_optimizer(small, run.state.model)
        for kept in (2**31, 0):  # bytes of images that stay on the device
            batches: Any = run.batches
            batches.images = Images(batches.data.paths, 36, GPU, kept)
            batches.scale = tuple(scale.to(GPU) for scale in batches.scale)
            epoch = batches.epoch(0)
            with watched():
                train_step(run, *next(epoch))
            with watched() as device:
                train_step(run, *next(epoch))
            assert not device.waits


def test_boxes_and_images_of_detection_are_copied_without_a_wait(voc_folder: Path) -> None:
    data = open_detection(voc_folder)
    batches, tests = make_batches(Detection(batch_size=2), *data, (0.5,) * 3, World(0, 1, GPU), 0)
    with watched() as device:
        for loader in (batches, tests):
            images, targets = next(loader.epoch())
            assert {each.device for each in tree_leaves((images, targets))} == {GPU}
    assert not device.waits


def test_no_step_waits_for_the_other_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whether one of them stops is asked in each step, and read after the next one was launched."""
    said: list[str] = []

    class Work:
        def wait(self) -> None:
            said.append("read")

    def all_reduce(votes: Tensor, *, async_op: bool, **_: Any) -> Work:
        assert async_op
        said.append("ask")
        return Work()

    monkeypatch.setattr(torch.distributed, "all_reduce", all_reduce)
    monkeypatch.setattr(cutmix.training.loop, "check_finite", lambda run: said.append("the end"))
    monkeypatch.setattr(
        cutmix.training.loop, "train_step", lambda run, *batch: said.append("step") or torch.zeros((), device=GPU)
    )
    with as_on_cuda():
        run = make_run(PLAIN)
        run.world = World(0, 2, GPU)
        train_epoch(run, 0, Stop())
    steps = ["step", "ask", *["step", "read", "ask"] * 3]
    assert said == [*steps, "read", "the end"]


@pytest.mark.gpu
@pytest.mark.parametrize("recipe", STEPS, ids=lambda recipe: f"{recipe.model}-{recipe.mix}")
def test_a_step_on_a_gpu_waits_for_nothing(recipe: Recipe) -> None:
    run = make_run(replace(recipe, precision="bfloat16", ema_decay=0.9), device=torch.device("cuda"))
    batches = run.batches.epoch(0)
    for _ in range(2):
        train_step(run, *next(batches))  # what is loaded or chosen at first may wait
    images, labels = next(batches)
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        loss = train_step(run, images, labels)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert loss.isfinite()


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
