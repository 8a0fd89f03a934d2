"""What a training run works with: data, loaders, network and all around it, made before the first step."""

import contextlib
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from cutmix.config.options import RunOptions, TrainOptions
from cutmix.config.recipe import Recipe, Training, complete
from cutmix.data import Augment, FileSet, ImageSet, Splits, open_splits, test_loader, train_loader
from cutmix.data.decode import FAST_JPEG
from cutmix.data.describe import describe_splits
from cutmix.data.loaders import Loader
from cutmix.data.sets import keep_per_class
from cutmix.errors import InputError, missing_extra
from cutmix.models import weights_normalization
from cutmix.runs.folder import RunFolder, environment, today
from cutmix.runtime.device import autocast, resolve_precision
from cutmix.runtime.distributed import World, barrier, parallel
from cutmix.runtime.header import Header, read_header
from cutmix.runtime.progress import Progress
from cutmix.training.classification import Classification, Task
from cutmix.training.state import State, start_state


@dataclass
class Run:
    """What the loop works with, made once; ``prepare`` makes it for classifiers."""

    recipe: Training
    options: RunOptions
    world: World
    path: Path
    data: str
    task: Task
    batches: Loader
    state: State
    network: nn.Module
    autocast: contextlib.AbstractContextManager
    progress: Progress
    about: dict[str, Any]
    folder: RunFolder | None = None
    board: Any = None
    notes: list[str] = field(default_factory=list)
    unread: list[tuple[Tensor, int]] = field(default_factory=list)

    @property
    def checkpoint(self) -> Path:
        """Where to go on."""
        return self.path / "checkpoint.pt"


def prepare(recipe: Recipe, options: TrainOptions, world: World) -> Run:
    """Open the data, make everything that the loop works with, and find what is wrong before anything is written."""
    if options.tensorboard:
        summary_writer()
    splits = open_sets(recipe, options, world)
    recipe, notes = resolve(recipe, splits.train, world.device)
    if normalization := starting_normalization(recipe, splits.train.in_chans):
        splits = splits.normalized(*normalization)
    train_set, val_set, test_set = splits.train, splits.chooses, splits.reported
    assert test_set is not None
    shared: dict[str, Any] = {
        "batch_size": recipe.batch_size, "device": world.device, "workers": options.workers,
        "channels_last": recipe.channels_last, "decoder": recipe.decoder, "rank": world.rank, "world_size": world.size,
    }  # fmt: skip
    augment = Augment(**{field.name: getattr(recipe, field.name) for field in fields(Augment)})
    batches = train_loader(train_set, augment, seed=recipe.seed, **shared)
    shared |= {name: getattr(recipe, name) for name in ("image_size", "crop_fraction", "squash", "interpolation")}
    if recipe.mix == "smmix" and recipe.batch_size < 2 * world.size:
        raise InputError(
            f"--batch-size is {recipe.batch_size}; expected at least {2 * world.size}, as --mix smmix needs a partner "
            "for each image of a process"
        )
    state = start_state(recipe, train_set, world)
    task = Classification(
        recipe, state, world, train_set, test_set, test_loader(test_set, **shared),
        autocast(recipe.precision, world.device), val_set=val_set,
        val_batches=test_loader(val_set, **shared) if val_set and val_set is not test_set else None,
        train_batches=test_loader(train_set, **shared) if recipe.train_error else None,
    )  # fmt: skip
    about: dict[str, Any] = {"skipped": task.skipped, "mean": _listed(train_set.mean), "std": _listed(train_set.std)}
    run = assemble(recipe, options, world, train_set.name, state, task, batches, **about)
    return replace(run, notes=notes)


def assemble(
    recipe: Training,
    options: RunOptions,
    world: World,
    data: str,
    state: State,
    task: Task,
    batches: Loader,
    **about: Any,
) -> Run:
    """Return the run of a task: its folder, its progress bar, the model wrapped for several processes, its provenance.

    Args:
        recipe: With every automatic value resolved.
        options: How to run it.
        world: This process among all.
        data: Name of the data set.
        state: The model and its optimizer.
        task: What is learned.
        batches: Training batches of this process.
        **about: Entries for the run's environment file.
    """
    network = parallel(state.model, world)
    return Run(
        recipe, options, world, options.out or Path("runs") / f"{recipe.name}-seed{recipe.seed}", data, task, batches,
        state,
        network=torch.compile(network) if recipe.compile else network,  # type: ignore[arg-type]
        autocast=autocast(recipe.precision, world.device),
        progress=Progress(recipe.epochs, batches.steps, shown=world.first),
        about=environment(world.device)
        | {"processes": world.size, "parameters": sum(p.numel() for p in state.network.parameters()), "date": today()}
        | about,
    )  # fmt: skip


def open_sets(recipe: Recipe, options: TrainOptions, world: World) -> Splits:
    """Open the images to train and to evaluate on; if there is a download, the first process does it for all."""
    if not recipe.data:
        raise InputError("there is no data to train on; give a folder of class folders or a known set with --data")

    def opened() -> Splits:
        return open_splits(
            recipe.data, val_fraction=recipe.val_fraction, seed=recipe.split_seed,
            skip_unreadable=options.skip_unreadable, download=options.download and world.first,
        )  # fmt: skip

    splits = opened() if world.first or not options.download else None
    if options.download:
        barrier(world)
    splits = splits or opened()
    if world.first and splits.folders:
        print(*describe_splits(splits).lines(), sep="\n", flush=True)
    if splits.reported is None:
        raise InputError(
            f"{recipe.data} leaves no images to evaluate on; expected two of some class, and --val-fraction above 0"
        )
    if recipe.train_per_class is not None:
        splits = replace(splits, train=keep_per_class(splits.train, recipe.train_per_class))
    return splits


def _listed(values: tuple[float, ...]) -> str:
    return ", ".join(f"{value:g}" for value in values)


def starting_normalization(recipe: Recipe, in_chans: int) -> tuple[tuple[float, ...], tuple[float, ...]] | None:
    """Return the mean and std of the weights that training starts from; None for those of the data set."""
    if not (recipe.pretrained or recipe.weights):
        return None
    return weights_normalization(recipe.model, read_header(recipe.weights) if recipe.weights else Header(), in_chans)


def resolve(recipe: Recipe, data: ImageSet, device: torch.device) -> tuple[Recipe, list[str]]:
    """Return the recipe with every field that follows from data or device filled in, and lines about the choices."""
    files = isinstance(data, FileSet)
    recipe, notes = complete(recipe, images=len(data), classes=data.num_classes, files=files)
    size = recipe.image_size or (224 if files else None)
    if files and recipe.decoder == "fast" and not FAST_JPEG:
        recipe = replace(recipe, decoder="exact")
        notes.append(
            "the package simplejpeg is not installed: JPEG files are decoded by Pillow, as --decoder exact does"
        )
    return replace(recipe, image_size=size, precision=resolve_precision(recipe.precision, device)), notes


def summary_writer() -> Any:
    """Return the class of TensorBoard's writer.

    Raises:
        InputError: If TensorBoard is not installed.
    """
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        raise missing_extra("--tensorboard", "tensorboard") from None
    return SummaryWriter
