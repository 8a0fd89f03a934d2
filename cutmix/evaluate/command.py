"""``cutmix evaluate``: measure a run, or any file of weights, on its own or on other data."""

import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.markup import escape
from rich.table import Table
from torch import nn

from cutmix.checkpoint import load_weights, read_weights
from cutmix.data import FileSet, ImageSet, open_data, test_loader
from cutmix.distributed import World, processes
from cutmix.errors import InputError
from cutmix.evaluate.classification import measures, predict
from cutmix.jsonl import append_line
from cutmix.models import create_model, pretrained_normalization
from cutmix.options import EvaluateOptions
from cutmix.precision import autocast, resolve_precision
from cutmix.recipe import Recipe
from cutmix.regularizers import regularize
from cutmix.run_folder import command_line, environment, saved_recipe, today


@dataclass(frozen=True)
class Subject:
    """What is measured: weights, and what they were trained as, as far as that is known."""

    weights: Path
    recipe: Recipe | None
    run: Path | None
    about: dict[str, Any]
    which: str

    @property
    def classes(self) -> tuple[str, ...] | None:
        """The classes that were learnt, in order."""
        return tuple(self.about["classes"]) if "classes" in self.about else None


def run_evaluate(options: EvaluateOptions) -> list[dict[str, Any]]:
    """Measure, print a table, append the records to the run's results or to ``--out``, and return them.

    Raises:
        InputError: If the run, the file, the network or the data do not fit one another.
    """
    if options.image_size is not None and options.image_size < 1:
        raise InputError(f"--image-size is {options.image_size}; expected a number of pixels above 0")
    subject = find_subject(options)
    with processes(options.device) as world:
        data = open_test_set(options, subject)
        model = load_model(options, subject, data).to(world.device)
        precision = resolve_precision(
            options.precision or (subject.recipe.precision if subject.recipe else "float32"), world.device
        )
        size = options.image_size or subject.about.get("image_size")
        loader = test_loader(
            data, batch_size=options.batch_size, device=world.device,
            image_size=size or (224 if isinstance(data, FileSet) else None),
            crop_fraction=subject.recipe.crop_fraction if subject.recipe else options.crop_fraction,
            channels_last=bool(subject.recipe and subject.recipe.channels_last),
            workers=options.workers, rank=world.rank, world_size=world.size,
        )  # fmt: skip
        predictions = predict(model, loader.epoch(), world, autocast=autocast(precision, world.device))
        common = describe(options, subject, data, model, precision, world)
        records = [{**common, **measure} for measure in measures(predictions)]
        if world.first:
            target = options.out or (subject.run / "results.jsonl" if subject.run else None)
            if target:
                for record in records:
                    append_line(target, record)
            show(records, data, target)
    return records


def find_subject(options: EvaluateOptions) -> Subject:
    """Find the weights and what is known of them."""
    source = options.source
    if source.is_dir():
        name = "model.safetensors" if options.which == "last" else "best.safetensors"
        recipe: Recipe | None = saved_recipe(source)
        if not (source / name).exists():
            raise InputError(f"{source / name} is not there: the run is not finished; go on with it with --resume")
        about = read_weights(source / name)[1]
        return Subject(source / name, recipe, source, _read(about), options.which)
    if not source.exists():
        raise InputError(f"{source} is not there; expected the folder of a run, or a file of weights")
    about = read_weights(source)[1]
    recipe = Recipe.from_dict(json.loads(about["recipe"])) if "recipe" in about else None
    return Subject(source, recipe, None, _read(about), "file")


def open_test_set(options: EvaluateOptions, subject: Subject) -> ImageSet:
    """Open what is to be measured on, and see that its classes are the ones that were learnt."""
    name = options.data or (subject.recipe.data if subject.recipe else None)
    if not name:
        raise InputError(f"{subject.weights} does not say what it was trained on; give --data")
    split: dict[str, Any] = {}
    if subject.recipe:
        split = {"val_fraction": subject.recipe.val_fraction, "seed": subject.recipe.seed}
    data = open_data(name, "test", skip_unreadable=options.skip_unreadable, **split)
    if subject.classes and len(subject.classes) != data.num_classes:
        raise InputError(
            f"{subject.weights} knows {len(subject.classes)} classes, but {data.name} has {data.num_classes}"
        )
    if subject.classes and subject.classes != data.classes:
        ours, theirs = next(pair for pair in zip(subject.classes, data.classes, strict=True) if pair[0] != pair[1])
        raise InputError(f'{subject.weights} was trained with class "{ours}" where {data.name} has "{theirs}"')
    if "mean" in subject.about:  # the normalisation goes with the weights, not with the images
        return replace(data, mean=tuple(subject.about["mean"]), std=tuple(subject.about["std"]))
    if options.model and data.in_chans == 3 and (normalization := pretrained_normalization(options.model)):
        return replace(data, mean=normalization[0], std=normalization[1])
    return data


def load_model(options: EvaluateOptions, subject: Subject, data: ImageSet) -> nn.Module:
    """Make the network and load its weights."""
    name = options.model or (subject.recipe.model if subject.recipe else None)
    if not name:
        raise InputError(f"{subject.weights} does not say which network it is; give --model")
    model = create_model(name, data.num_classes, in_chans=data.in_chans)
    load_weights(model, subject.weights)
    if subject.recipe:  # the one regularizer that is not the identity in evaluation
        regularize(model, shake_drop=subject.recipe.shake_drop, decay=subject.recipe.depth_decay)
    if subject.recipe and subject.recipe.channels_last:  # the arithmetic of training, to the last bit
        model = model.to(memory_format=torch.channels_last)
    return model


def describe(
    options: EvaluateOptions, subject: Subject, data: ImageSet, model: nn.Module, precision: str, world: World
) -> dict[str, Any]:
    """Return what every record of this evaluation says beside its measure."""
    about, recipe = environment(world.device), subject.recipe
    return {
        "recipe": recipe.name if recipe else subject.weights.stem, "data": data.name, "split": "test",
        "model": options.model or (recipe.model if recipe else None),
        "parameters": sum(p.numel() for p in model.parameters()), "mix": recipe.mix if recipe else None,
        "epochs": recipe.epochs if recipe else None, "seed": recipe.seed if recipe else None,
        "which": subject.which, "epoch": subject.about.get("epoch"),
        "weights": "ema" if recipe and recipe.ema_decay else "model",
        "file": str(subject.weights), "precision": precision, "skipped": len(data.skipped),
        **{name: about[name] for name in ("commit", "torch", "device")}, "date": today(), "command": command_line(),
    }  # fmt: skip


def show(records: list[dict[str, Any]], data: ImageSet, target: Path | None) -> None:
    """Print the table."""
    table = Table(
        "measure", "value (%)", "95 % interval", "images", title=escape(f"{records[0]['file']} on {data.name}")
    )
    for r in records:
        table.add_row(r["measure"], f"{r['value']:.2f}", f"{r['low']:.2f} – {r['high']:.2f}", f"{r['n']:,}")
    console = Console()
    console.print(table)
    if data.skipped:
        console.print(f"{len(data.skipped)} unreadable pictures were left out")
    if target:
        console.print(f"appended to {target}", soft_wrap=True, markup=False, highlight=False)


def _read(about: dict[str, str]) -> dict[str, Any]:
    """Return what a file of weights of ours says of itself; nothing of another's."""
    names = ("classes", "epoch", "mean", "std", "image_size")
    return {name: json.loads(about[name]) for name in names if name in about}
