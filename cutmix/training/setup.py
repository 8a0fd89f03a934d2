"""Setup of a training run: data, loaders, model, state and folder, before the first step."""

import csv
import io
import json
import math
from collections.abc import Iterable
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from cutmix.config.options import RunOptions, TrainOptions
from cutmix.config.recipe import ARRAYS, Recipe, Training, complete, flag
from cutmix.data import Augment, FileSet, ImageSet, Splits, open_splits, test_loader, train_loader
from cutmix.data.command import describe_splits
from cutmix.data.decode import FAST_JPEG, read_channels
from cutmix.data.division import Copies
from cutmix.data.folder import printable_name
from cutmix.data.loaders import Loader
from cutmix.data.opening import refuse_inside
from cutmix.data.sets import keep_per_class, random_subset, side_of
from cutmix.errors import InputError, did_you_mean
from cutmix.models import weights_normalization
from cutmix.runs.folder import RunFolder, environment, read_recipe, today
from cutmix.runs.read import NOTHING, read_environment
from cutmix.runtime.checkpoint import Background, Header, read_header
from cutmix.runtime.device import World, autocast, from_first, parallel, resolve_precision
from cutmix.runtime.files import regular
from cutmix.runtime.terminal import Progress, say
from cutmix.training.classification import Classification, MultiLabel, Task
from cutmix.training.mixes import method_of, read_fields
from cutmix.training.state import State, start_state
from cutmix.training.trackers import Tracker, check_tracker


@dataclass
class Run:
    """A prepared training run, the input of the loop; ``prepare`` returns that of a classifier."""

    recipe: Training
    options: RunOptions
    world: World
    path: Path
    data: str
    task: Task
    batches: Loader
    state: State
    fingerprint: str
    network: nn.Module
    progress: Progress
    about: dict[str, Any]
    folder: RunFolder | None = None
    board: Tracker | None = None
    notes: list[str] = field(default_factory=list)
    unread: list[tuple[Tensor, int]] = field(default_factory=list)
    writing: Background = field(default_factory=Background)

    @property
    def checkpoint(self) -> Path:
        """The file to resume from."""
        return self.path / "checkpoint.pt"


def prepare(recipe: Recipe, options: TrainOptions, world: World) -> Run:
    """Open the data, create the model and its loaders, and refuse contradictions before anything is written."""
    check_tracker(options.log, options.out)
    if recipe.mix is not None:
        method_of(recipe)
    splits = open_sets(recipe, options, world)
    given, (recipe, notes) = recipe, resolve(recipe, splits.train, world.device)
    path = run_folder(recipe, options)
    refuse_inside(path, recipe.data)
    recipe, started, saved = from_first(lambda: _as_begun(given, recipe, path, options), world)
    normalization = saved if started else starting_normalization(recipe, splits.train.in_chans)
    if normalization:
        splits = splits.normalized(*normalization)
    check_fits(recipe, splits, world)
    train_set, val_set, test_set = splits.train, splits.chooses, splits.reported
    shared: dict[str, Any] = {
        "batch_size": recipe.batch_size, "device": world.device, "workers": options.workers,
        "channels_last": recipe.channels_last, "decoder": recipe.decoder, "rank": world.rank, "world_size": world.size,
    }  # fmt: skip
    augment = Augment(**{field.name: getattr(recipe, field.name) for field in fields(Augment)})
    batches = train_loader(
        train_set, augment, seed=recipe.seed, balanced=recipe.sampler == "balanced",
        repeats=recipe.repeated_augmentation, raw=recipe.compile == "step", **shared,
    )  # fmt: skip
    shared |= {name: getattr(recipe, name) for name in ("image_size", "crop_fraction", "squash", "interpolation")}
    weights = read_class_weights(recipe.class_weights, train_set) if recipe.class_weights else None
    notes += describe_balance(recipe, train_set, weights)
    if world.first and notes:
        say("\n".join(notes))  # before any weights are downloaded
    state, notes = start_state(recipe, train_set, world, started=started), []
    if (precision := resolve_precision(given.precision, world.device, state.network)) != recipe.precision:
        recipe = replace(recipe, precision=precision)
        notes.append("float32, as depthwise convolutions are slower in bfloat16 on a CPU (--precision)")
    task = (MultiLabel if train_set.multi_label else Classification)(
        recipe, state, world, train_set, autocast(recipe.precision, world.device), test_set=test_set,
        test_batches=test_loader(test_set, **shared) if test_set else None, val_set=val_set,
        val_batches=test_loader(val_set, **shared) if val_set and val_set is not test_set else None,
        train_batches=test_loader(train_set, **shared) if recipe.train_error else None,
        class_weights=None if weights is None else weights.to(world.device),
    )  # fmt: skip
    about: dict[str, Any] = {"skipped": task.skipped, "mean": _listed(train_set.mean), "std": _listed(train_set.std)}
    about |= {"images": splits.fingerprint()}
    run = assemble(recipe, options, world, train_set.name, state, task, batches, **about)
    run.about |= {"task": "multilabel"} if train_set.multi_label else {}
    return replace(run, notes=notes)


def check_fits(recipe: Recipe, splits: Splits, world: World) -> None:
    """Refuse settings that the images or the number of processes do not allow."""
    if method_of(recipe).whole and recipe.batch_size < 2 * world.size:
        raise InputError(
            f"--batch-size is {recipe.batch_size}; expected at least {2 * world.size}, as --mix {recipe.mix} needs a "
            "partner for each image of a process"
        )
    if splits.train.multi_label:
        refuse_for_labels(recipe)
    if recipe.freeze and world.size > 1:
        raise InputError("--freeze trains in one process; start it without torchrun")
    if recipe.patience and splits.chooses in (None, splits.reported):
        raise InputError(
            "--patience needs images to choose an epoch by that are not those of the results; expected a val and a "
            "test split (a folder without splits gets both where --val-fraction holds out 100 images or more), or "
            "--patience 0"
        )
    if recipe.train_error and splits.reported is None:
        raise InputError("--train-error is compared with the error on other images; expected a val or a test split")


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

    ``about`` holds further entries of the run's environment file.
    """
    check_schedule(recipe)
    network = parallel(state.model, world, sync_bn=recipe.sync_bn)
    return Run(
        recipe, options, world, run_folder(recipe, options), data, task, batches, state, task.fingerprint(),
        network=compiled(network, recipe),
        progress=Progress(recipe.epochs, batches.steps, shown=world.first),
        about=environment(world.device)
        | {"evaluated_on": task.reported_on or NOTHING}
        | {"precision": recipe.precision, "processes": world.size, "date": today()}
        | {"parameters": sum(p.numel() for p in state.network.parameters())}
        | about,
    )  # fmt: skip


def check_schedule(recipe: Training) -> None:
    """Refuse a learning rate that never reaches its highest value, or rises after the warm-up."""
    if recipe.warmup_epochs > recipe.epochs:
        raise InputError(
            f"--warmup-epochs is {recipe.warmup_epochs:g}; expected at most the {recipe.epochs} of --epochs, as the "
            "learning rate would not reach --lr"
        )
    if recipe.schedule == "cosine" and recipe.min_lr > recipe.lr:
        raise InputError(f"--min-lr is {recipe.min_lr:g}; expected at most the {recipe.lr:g} of --lr")


def compiled(network: nn.Module, recipe: Training) -> nn.Module:
    """Return a network, compiled for each size of its batches if the recipe asks for compilation.

    A graph for every size at once would be slower than one for the usual size and one for the last batch of an epoch.
    """
    if recipe.compile == "off":
        return network
    config = torch._dynamo.config  # training and evaluation, of the model and of its average, at two sizes or more
    config.recompile_limit = max(config.recompile_limit, 32)
    return torch.compile(network, dynamic=False)  # type: ignore[return-value]


def run_folder(recipe: Training, options: RunOptions) -> Path:
    """Return the folder of a run."""
    return options.out or Path("runs") / f"{recipe.name}-seed{recipe.seed}"


def _as_begun(
    given: Recipe, resolved: Recipe, path: Path, options: RunOptions
) -> tuple[Recipe, bool, tuple[tuple[float, ...], tuple[float, ...]] | None]:
    """Return the recipe, whether there is a checkpoint to resume from, and the mean and std that it was trained with.

    Fields of the resolved recipe that were not given are those of the run in the folder.
    """
    started = options.resume and (path / "checkpoint.pt").exists()
    if options.resume and (path / "config.json").exists():
        before = read_recipe(path, Recipe)
        resolved = replace(
            resolved, **{name: vars(before)[name] for name, value in vars(given).items() if value is None}
        )
    return resolved, started, saved_normalization(path) if started else None


def open_sets(recipe: Recipe, options: TrainOptions, world: World) -> Splits:
    """Open the images to train and to evaluate on; the first process downloads them and finds copies for all."""
    if not recipe.data:
        raise InputError("--data is missing; expected a folder of class folders or the name of a known set")

    def opened(copies: Copies | None) -> Splits:
        return open_splits(
            recipe.data, copies=copies, skip_unreadable=options.skip_unreadable,
            download=options.download and world.first, **recipe.reading(),
        )  # fmt: skip

    found: list[Splits] = []

    def first() -> Copies:
        found.append(opened(None))
        return found[0].copies

    copies = from_first(first, world)  # only one process decodes a folder to find them
    splits = found[0] if found else opened(copies)
    if world.first and splits.folders:
        say("\n".join(describe_splits(splits).lines()))
    if splits.reported is None and recipe.val_fraction:
        raise InputError(
            f"{recipe.data} leaves no images to evaluate on; expected two of some class, or --val-fraction 0 to train "
            "on all images and evaluate none"
        )
    if recipe.channels != 3 and isinstance(splits.train, FileSet):
        splits = splits.normalized(*channel_statistics(splits.train))
    if recipe.train_per_class is not None:
        splits = replace(splits, train=keep_per_class(splits.train, recipe.train_per_class))
    return splits


def _listed(values: tuple[float, ...]) -> str:
    return ", ".join(map(repr, values))


def channel_statistics(data: FileSet) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Return the mean and the standard deviation of each channel of up to 256 training images, for pixels in [0, 1].

    The images are a random subset, always the same; at most 10,000 pixels of each are read.
    """
    sums = torch.zeros(3, data.in_chans, dtype=torch.float64)
    for index in random_subset(len(data), 256, 0).tolist():
        pixels = np.asarray(read_channels(data.paths[index], data.in_chans, skippable=True))
        step = max(math.isqrt(pixels.shape[0] * pixels.shape[1] // 10_000), 1)
        values = torch.from_numpy(pixels[::step, ::step].reshape(-1, data.in_chans) / 255.0)
        sums += torch.stack([torch.ones(data.in_chans), values.mean(0), values.square().mean(0)])
    mean, square = sums[1:] / sums[0]
    return tuple(mean.tolist()), tuple((square - mean**2).clamp(min=1 / 255**2).sqrt().tolist())


def saved_normalization(path: Path) -> tuple[tuple[float, ...], tuple[float, ...]] | None:
    """Return the mean and std that the run in a folder was started with; None if its environment lacks them."""
    about = read_environment(path / "environment.json")
    try:
        mean, std = (tuple(map(float, about[name].split(", "))) for name in ("mean", "std"))
    except (KeyError, ValueError, AttributeError):
        return None
    return mean, std


def starting_normalization(recipe: Recipe, in_chans: int) -> tuple[tuple[float, ...], tuple[float, ...]] | None:
    """Return the mean and std of the weights that training starts from; None for those of the data set."""
    if not (recipe.pretrained or recipe.weights):
        return None
    return weights_normalization(recipe.model, read_header(recipe.weights) if recipe.weights else Header(), in_chans)


def fill_in(recipe: Recipe, data: ImageSet, images: int | None = None) -> tuple[Recipe, list[str]]:
    """Return the recipe ``complete`` for training images, or for another number of them, and notes on the choices."""
    return complete(
        recipe, images=len(data) if images is None else images, classes=data.num_classes,
        files=isinstance(data, FileSet), multi_label=data.multi_label, side=side_of(data),
    )  # fmt: skip


def resolve(recipe: Recipe, data: ImageSet, device: torch.device) -> tuple[Recipe, list[str]]:
    """Return the recipe with the fields filled in that follow from data or device, and notes on the choices."""
    files, (recipe, notes) = isinstance(data, FileSet), fill_in(recipe, data)
    size = recipe.image_size or (side_of(data) if files else None)
    if files and recipe.decoder == "fast" and not FAST_JPEG:
        recipe = replace(recipe, decoder="exact")
        notes.append(
            "the package simplejpeg is not installed: JPEG files are decoded by Pillow, as --decoder exact does"
        )
    notes += _without_effect(recipe, files)
    return replace(recipe, image_size=size, precision=resolve_precision(recipe.precision, device)), notes


def _without_effect(recipe: Recipe, files: bool) -> list[str]:
    """Return notes on fields that are not at their defaults and that nothing reads."""
    of_files = ("crop_fraction", "interpolation", "decoder", "squash", "val_fraction", "split_seed")
    unread: dict[str, Iterable[str]] = {
        "image files": ("crop_padding", "padding_mode") if files else (),
        "small images": () if files else ("crop_scale", *of_files),
        "AdamW": ("momentum", "nesterov") if recipe.optimizer == "adamw" else (),
        f"a {recipe.schedule} schedule": ("milestones", "gamma") if recipe.schedule != "step" else ("min_lr",),
        "no --weights": () if recipe.weights else ("weights_ema",),
        f"--mix {recipe.mix}": {"alpha", "mixup_alpha", "mix_per_sample"} - read_fields(recipe),
        "no --drop-block": () if recipe.drop_block else ("drop_block_size",),
        "no --stochastic-depth": () if recipe.stochastic_depth or recipe.shake_drop else ("depth_decay",),
    }
    notes = []
    for reason, names in unread.items():
        given = [name for name in sorted(names) if getattr(recipe, name) != ARRAYS.get(name, getattr(Recipe, name))]
        notes += [f"note: without effect with {reason}: --{', --'.join(map(flag, given))}"] if given else []
    return notes


def refuse_for_labels(recipe: Recipe) -> None:
    """Refuse settings that need one label an image, if images can have several."""
    given = {
        "--class-weights": recipe.class_weights is not None, "--sampler balanced": recipe.sampler == "balanced",
        f"--mix {recipe.mix}": method_of(recipe).whole,
    }  # fmt: skip
    for name, is_given in given.items():
        if is_given:
            raise InputError(f"{name} needs one label an image; images of {recipe.data} can have several")


# ---- classes of unequal size ----


def read_class_weights(given: str, data: ImageSet) -> Tensor:
    """Return the weight of each class in the loss, (K,) float32, scaled to a mean of 1 over the training images.

    ``given`` is "balanced", for weights in inverse proportion to the number of training images, n / (K nₖ) as in
    scikit-learn's ``compute_class_weight``; or a CSV file with a class name and a number in each line, with or without
    a header, or a JSON object of numbers by class name.
    """
    counts = data.labels.bincount(minlength=data.num_classes).double()
    if given == "balanced":
        weights = 1 / counts.clamp(min=1)
    else:
        by_name = _read_file(Path(given).expanduser())
        for name in by_name:
            if name not in data.classes:
                hint = did_you_mean(name, data.classes, f"expected the {data.num_classes} classes of {data.name}")
                raise InputError(f"{given} has a weight for '{name}', which is not a class of {data.name}; {hint}")
        if missing := [name for name in data.classes if name not in by_name]:
            raise InputError(f"{given} has no weight for the class '{missing[0]}'; expected one for each class")
        weights = torch.tensor([by_name[name] for name in data.classes], dtype=torch.float64)
        if weights.max() > 1e9 * weights.min():
            raise InputError(
                f"{given} has weights from {weights.min():g} to {weights.max():g}; expected at most 1e9 times apart"
            )
    return (weights * len(data) / (weights * counts).sum()).float()


def _read_file(path: Path) -> dict[str, float]:
    """Return the weights of a file by the printable names of their classes."""
    try:
        text = regular(path).read_bytes().decode("utf-8-sig", "surrogateescape")
    except OSError as error:
        raise InputError(
            f"--class-weights is {path}, which cannot be read ({error.strerror}); expected balanced, or a CSV or JSON "
            "file of weights by class name"
        ) from None
    rows: list[tuple[Any, Any]]
    if text.lstrip().startswith("{"):
        try:
            rows = json.loads(text, object_pairs_hook=list)
        except (ValueError, RecursionError) as error:
            raise InputError(f"{path} is not JSON: {error}") from None
    else:
        try:
            lines = [row for row in csv.reader(io.StringIO(text, newline="")) if row]
        except csv.Error as error:
            raise InputError(f"{path} is not CSV: {error}") from None
        if bad := next((row for row in lines if len(row) != 2), None):
            raise InputError(f"{path} has the line {','.join(bad)!r}; expected a class name, a comma and a weight")
        rows = [(name.strip(), number) for name, number in lines]
        if rows and _number(rows[0][1]) is None:
            rows = rows[1:]  # the header
    found: dict[str, float] = {}
    for name, value in rows:
        number = _number(value)
        if number is None or not 0 < number < math.inf:
            raise InputError(f"{path}: the weight of '{name}' is {value!r}; expected a number above 0")
        if (shown := printable_name(name.encode("utf-8", "surrogateescape"))) in found:
            raise InputError(f"{path} has two weights for the class '{shown}'; expected one")
        found[shown] = number
    return found


def _number(value: Any) -> float | None:
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        return None
    try:
        return float(value)
    except ValueError:
        return None


def describe_balance(recipe: Recipe, data: ImageSet, weights: Tensor | None) -> list[str]:
    """Return lines about the weights of the classes and the balanced sampler, if there are any."""
    lines = []
    if weights is not None:
        how = "balanced" if recipe.class_weights == "balanced" else f"of {recipe.class_weights}, scaled to a mean of 1"
        lines.append(f"class weights ({how}): {_some(data.classes, [f'{weight:.3g}' for weight in weights.tolist()])}")
    if recipe.sampler == "balanced":
        counts = data.labels.bincount(minlength=data.num_classes)
        share = len(data) / int((counts > 0).sum())
        times = [f"{share / count:.3g}" if count else "0" for count in counts.tolist()]
        lines.append(
            f"balanced sampler: about {share:.0f} images of each class an epoch; draws of each image, by class: "
            f"{_some(data.classes, times)}"
        )
    return lines


def _some(names: tuple[str, ...], values: list[str]) -> str:
    pairs = [f"{name} {value}" for name, value in zip(names, values, strict=True)]
    if len(pairs) > 10:
        pairs[5:-5] = [f"… {len(pairs) - 10} more …"]
    return ", ".join(pairs)
