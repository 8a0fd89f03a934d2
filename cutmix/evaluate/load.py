"""The subject of an evaluation: weights of a run or of a file, the network that they are for, the data it is shown."""

import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from cutmix.config.options import EvaluateOptions
from cutmix.config.recipe import Recipe
from cutmix.data import FileSet, ImageSet, open_data, open_splits
from cutmix.data.transforms import Interpolation
from cutmix.errors import InputError
from cutmix.models import create_model, pretrained_normalization
from cutmix.models.regularizers import regularize
from cutmix.runs.folder import saved_recipe
from cutmix.runtime.seeding import derive_seed
from cutmix.runtime.weights import load_weights, read_weights


@dataclass(frozen=True)
class Subject:
    """What is measured: weights, and what they were trained as, as far as that is known.

    Attributes:
        weights: The file.
        recipe: What they were trained by, or None.
        run: The folder of the run, or None.
        about: What the file says of itself.
        which: Epoch of a run, or "file".
    """

    weights: Path
    recipe: Recipe | None
    run: Path | None
    about: dict[str, Any]
    which: str

    @property
    def classes(self) -> tuple[str, ...] | None:
        """The classes that were learnt, in order."""
        return tuple(self.about["classes"]) if "classes" in self.about else None

    @property
    def channels_last(self) -> bool:
        """The memory format of training, to the last bit; where it is not known, the faster one on a CPU."""
        return self.recipe is None or self.recipe.channels_last


class View(NamedTuple):
    """How images are shown to the network.

    Attributes:
        image_size: Side of its input in pixels; None is that of small images as they are.
        crop_fraction: Of photographs, the share of the resized short side that the crop has.
        squash: Whether their sides are resized alike, whatever the shape.
        interpolation: How they are resized.
    """

    image_size: int | None
    crop_fraction: float
    squash: bool
    interpolation: Interpolation


def find_view(options: EvaluateOptions, subject: Subject, data: ImageSet) -> View:
    """Return how images are shown: as the recipe tests, or as the options say where there is none."""
    size = options.image_size or subject.about.get("image_size") or (224 if isinstance(data, FileSet) else None)
    if subject.recipe is None:
        return View(size, options.crop_fraction, False, "bilinear")
    return View(size, subject.recipe.crop_fraction, subject.recipe.squash, subject.recipe.interpolation)


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
    if subject.recipe:
        division = {"val_fraction": subject.recipe.val_fraction, "seed": subject.recipe.seed}
        splits = open_splits(name, skip_unreadable=options.skip_unreadable, **division)  # type: ignore[arg-type]
        data = splits.test or splits.val or splits.train
    else:  # images that the weights were not trained on: every one of them
        data = open_data(name, "all", skip_unreadable=options.skip_unreadable)
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


def draw_images(n: int, count: int | None, seed: int) -> Tensor | None:
    """Return the indices of the images to measure on, rising; None is all n. Of a larger count a smaller is a part."""
    if count is None or count >= n:
        return None
    generator = torch.Generator().manual_seed(derive_seed(seed, "evaluate", "images"))
    return torch.randperm(n, generator=generator)[:count].sort().values


def load_model(options: EvaluateOptions, subject: Subject, data: ImageSet) -> nn.Module:
    """Make the network and load its weights."""
    name = options.model or (subject.recipe.model if subject.recipe else None)
    if not name:
        raise InputError(f"{subject.weights} does not say which network it is; give --model")
    model = create_model(name, data.num_classes, in_chans=data.in_chans)
    load_weights(model, subject.weights)
    if subject.recipe:  # the one regularizer that is not the identity in evaluation
        regularize(model, shake_drop=subject.recipe.shake_drop, decay=subject.recipe.depth_decay)
    return model.to(memory_format=torch.channels_last) if subject.channels_last else model


def _read(about: dict[str, str]) -> dict[str, Any]:
    """Return what a file of weights of ours says of itself; nothing of another's."""
    names = ("classes", "epoch", "mean", "std", "image_size")
    return {name: json.loads(about[name]) for name in names if name in about}
