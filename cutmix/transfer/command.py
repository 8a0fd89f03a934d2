"""``cutmix transfer``: train a detector or a captioner on a backbone, in the loop of ``cutmix train``."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from cutmix.config.options import RunOptions
from cutmix.config.recipe import flag
from cutmix.config.tasks import Captioning, Detection, Transfer
from cutmix.data.loaders import Loader
from cutmix.errors import InputError, reason
from cutmix.evaluation.load import read_classes
from cutmix.mixing import Mix
from cutmix.runtime.device import (
    World,
    autocast,
    check_memory,
    first_alone,
    make_scaler,
    processes,
    resolve_precision,
)
from cutmix.runtime.seeding import derive_seed
from cutmix.training.classification import Task
from cutmix.training.loop import after_restart, run_to_end
from cutmix.training.setup import Run, assemble
from cutmix.training.state import State, make_average, make_optimizer
from cutmix.training.trackers import check_tracker
from cutmix.transfer.backbone import Backbone, load_backbone
from cutmix.transfer.caption_data import CaptionBatches, ImageBatches
from cutmix.transfer.caption_layouts import open_captions
from cutmix.transfer.caption_scores import Vocabulary
from cutmix.transfer.captioning import CaptioningTask, ShowAndTell
from cutmix.transfer.detection_layouts import open_detection
from cutmix.transfer.detection_task import DetectionTask, make_batches, make_detector


def run_transfer(recipe: Transfer, options: RunOptions | None = None) -> Path:
    """Train and evaluate a detector or a captioner, and return the folder of the run."""
    options = options or RunOptions()
    if not recipe.data:
        raise InputError("--data is missing; expected the folder of a detection or captioning data set")
    options = after_restart(options)
    with processes(options.device, options.timeout) as world:
        return run_to_end(prepare_transfer(recipe, options, world))


def prepare_transfer(recipe: Transfer, options: RunOptions, world: World) -> Run:
    """Assemble the run of a recipe; every error is found before anything is written."""
    for name in ("download", "skip_unreadable"):
        if getattr(options, name, False):  # options of a classifier, from Python
            raise InputError(f"--{flag(name)} is not available for transfer; expected a complete data set on the disk")
    check_tracker(options.log, options.out)
    torch.manual_seed(derive_seed(recipe.seed, "model"))
    backbone = first_alone(lambda: load_backbone(recipe), world)  # the first process downloads
    precision = resolve_precision(recipe.precision, world.device, backbone.network)
    recipe = replace(recipe, model=backbone.model, precision=precision)
    if isinstance(recipe, Detection):
        if recipe.backbone == "none":
            recipe = replace(recipe, freeze=False)
        recipe = replace(recipe.without_unread(), classes=_classes(recipe.classes))
        state, task, batches = _detection(recipe, backbone, options, world)
    elif isinstance(recipe, Captioning):
        state, task, batches = _captioning(recipe, backbone, world)
    else:
        raise InputError(f"the recipe is a {type(recipe).__name__}; expected a Detection or Captioning")
    torch.manual_seed(derive_seed(recipe.seed, "training", world.rank))
    return assemble(recipe, options, world, Path(recipe.data).resolve().name, state, task, batches)


def _classes(given: tuple[str, ...]) -> tuple[str, ...]:
    """Return class names, or those in a file if its name is the only one given."""
    file = Path(given[0]).expanduser() if len(given) == 1 else None
    if file and not file.is_file() and (file.suffix in (".txt", ".json") or len(file.parts) > 1):
        raise InputError(f"--classes {file} does not exist; expected class names, or a file with a name in each line")
    return read_classes(file) if file and file.is_file() else given


def _detection(recipe: Detection, backbone: Backbone, options: RunOptions, world: World) -> tuple[State, Task, Loader]:
    train_set, test_set = open_detection(
        recipe.data, classes=recipe.classes, test_fraction=recipe.val_fraction, seed=recipe.seed
    )
    name = "image_size" if recipe.arch == "ssd300" else "min_size"
    side, images = getattr(recipe, name), min(recipe.batch_size, len(train_set)) / world.size
    check_memory(12.0 * images * side**2, f"--{flag(name)} is {side}: a batch of images")
    state = _state(recipe, make_detector(recipe, backbone, train_set.num_classes), world)
    batches, test_batches = make_batches(recipe, train_set, test_set, backbone.mean, world, options.workers)
    cast = autocast(recipe.precision, world.device)
    task = DetectionTask(recipe, state, world, train_set, test_set, test_batches, cast, backbone)
    return state, task, batches


def _captioning(recipe: Captioning, backbone: Backbone, world: World) -> tuple[State, Task, Loader]:
    train_set, test_set = (
        replace(data, mean=backbone.mean, std=backbone.std)
        for data in open_captions(recipe.data, test_fraction=recipe.val_fraction, seed=recipe.seed)
    )
    vocabulary = Vocabulary.from_captions((c for several in train_set.captions for c in several), recipe.min_count)
    _check_sizes(recipe, min(recipe.batch_size, len(train_set)) / world.size, len(vocabulary))
    state = _state(recipe, _captioner(recipe, backbone, len(vocabulary)), world)
    shared: dict[str, Any] = {
        "batch_size": recipe.batch_size, "device": world.device, "size": recipe.image_size, "crop": recipe.crop,
        "channels_last": recipe.channels_last, "rank": world.rank, "world_size": world.size,
    }  # fmt: skip
    batches = CaptionBatches(train_set, vocabulary, seed=recipe.seed, **shared)
    test_batches = ImageBatches(test_set, **shared)
    cast = autocast(recipe.precision, world.device)
    task = CaptioningTask(
        recipe, state, world, train_set, test_set, test_batches, cast, backbone, vocabulary=vocabulary
    )
    return state, task, batches


def _check_sizes(recipe: Captioning, images: float, words: int) -> None:
    """Refuse a recipe that needs more than the memory for a batch of this many images in one process."""
    sizes = {
        "image_size": (3.0 * images * recipe.image_size**2, "a batch of images"),
        "crop": (12.0 * images * recipe.crop**2, "a batch of crops"),
        "embed": (4.0 * recipe.embed * (words + 4 * recipe.hidden), "the embeddings and their weights in the LSTM"),
        "hidden": (16.0 * recipe.layers * recipe.hidden**2, "the LSTM"),
        "beam": (4.0 * images * recipe.beam * words, "a step of the search"),
    }
    for name, (size, what) in sizes.items():
        check_memory(size, f"--{flag(name)} is {getattr(recipe, name)}: {what}")


def _captioner(recipe: Captioning, backbone: Backbone, words: int) -> ShowAndTell:
    """Return the captioner, and check that its encoder takes images of this size."""
    try:
        network = ShowAndTell(
            backbone.network, words, embed=recipe.embed, hidden=recipe.hidden, layers=recipe.layers,
            dropout=recipe.dropout, tune_encoder=recipe.tune_encoder,
        ).eval()  # fmt: skip
        with torch.inference_mode():
            network.encode(torch.zeros(1, 3, recipe.crop, recipe.crop))
    except (AssertionError, RuntimeError, ValueError) as error:
        raise InputError(
            f"--crop is {recipe.crop} ({reason(error)}); expected a size that {backbone.title} can encode"
        ) from None
    return network.train()


def _state(recipe: Transfer, network: nn.Module, world: World) -> State:
    network = network.to(world.device)
    if recipe.channels_last:
        network = network.to(memory_format=torch.channels_last)
    scaler = make_scaler(recipe.precision, world.device)
    return State(network, make_optimizer(recipe, network), make_average(recipe, network), None, Mix(), scaler)
