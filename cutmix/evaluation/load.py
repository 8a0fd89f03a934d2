"""Load the weights of a run or of a file, their model, and the images to evaluate on, with its classes."""

import contextlib
import json
import logging
import os
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from cutmix.config.options import EvaluateOptions
from cutmix.config.recipe import FILE_SIZE, Recipe
from cutmix.data import ArraySet, FileSet, ImageSet, Splits, open_data, open_splits
from cutmix.data.command import describe_splits
from cutmix.data.division import find_shared
from cutmix.data.folder import printable_name
from cutmix.data.image_files import Decoder
from cutmix.data.opening import list_folder, open_whole
from cutmix.data.sets import keep_per_class, random_subset
from cutmix.data.transforms import Interpolation
from cutmix.errors import InputError, did_you_mean
from cutmix.models import create_model, weights_normalization
from cutmix.models.regularizers import regularize
from cutmix.runs.folder import find_weights, saved_recipe
from cutmix.runtime.checkpoint import Header, read_header, timm_config
from cutmix.runtime.files import read_arrays, read_lenient_text
from cutmix.runtime.seeding import derive_seed
from cutmix.runtime.weights import Weights, count_classes, load_weights, read_weights

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Subject:
    """The weights to evaluate, and the known facts of their training."""

    weights: Path
    content: Weights
    header: Header  # empty for a file of another program
    classes: tuple[str, ...] | None  # names of the outputs in their order
    recipe: Recipe | None
    run: Path | None  # the folder of the run
    which: str  # "last" or "best" epoch of a run, or "file"

    @property
    def model(self) -> str:
        """The name of the model as the recipe or the file gives it; "" if neither does."""
        named = self.recipe.model if self.recipe else self.header.model
        return named or self.content.header.get("model", "")

    @property
    def channels_last(self) -> bool:
        """The memory format of training, to the last bit; where it is not known, the faster one on a CPU."""
        return self.recipe is None or self.recipe.channels_last


class View(NamedTuple):
    """The preprocessing of images."""

    image_size: int | None  # side of the model's input in pixels; None keeps small images at their size
    crop_fraction: float  # of image files: side of the crop as a share of the resized short side
    squash: bool  # resize both sides to the same length, whatever the aspect ratio
    interpolation: Interpolation
    decoder: Decoder


def find_view(options: EvaluateOptions, subject: Subject, data: ImageSet) -> View:
    """Return the preprocessing: that of the recipe's test images; without one, of the options, else of the file."""
    header = subject.header
    size = options.image_size or header.image_size or (FILE_SIZE if isinstance(data, FileSet) else None)
    if size is None and isinstance(data, ArraySet) and is_cut(options, subject, data):
        size = min(data.images.shape[2:])
    if subject.recipe is None:
        crop, squash = options.crop_fraction or header.crop_fraction or 0.875, options.squash or bool(header.squash)
        return View(size, crop, squash, header.interpolation or "bilinear", "exact")
    recipe = subject.recipe
    view = View(size, recipe.crop_fraction, recipe.squash, recipe.interpolation, recipe.decoder)
    if header.small and isinstance(data, FileSet):  # the whole image is resized, as in training and by ``predict``
        view = View(size, 1.0, squash=True, interpolation="bilinear", decoder="exact")
    if options.crop_fraction not in (None, view.crop_fraction):
        raise InputError(
            f"--crop-fraction is {options.crop_fraction:g}; expected {view.crop_fraction:g}, with which "
            f"{subject.weights} was trained"
        )
    if options.squash and not view.squash:
        raise InputError(f"--squash is given, but {subject.weights} was trained without it")
    return view


def is_cut(options: EvaluateOptions, subject: Subject, data: ImageSet) -> bool:
    """Return whether images are resized and cropped as image files are; others are resized whole, as small ones are.

    Small images are cropped too if the weights were trained on image files, as ``predict`` does, or if a crop is given.
    """
    header = subject.header
    if isinstance(data, FileSet) or header.small is not None:
        return isinstance(data, FileSet) or not header.small
    return bool(options.crop_fraction or options.squash or header.crop_fraction)


def find_subject(options: EvaluateOptions) -> Subject:
    """Find the weights and the known facts of their training."""
    is_run = options.source.is_dir() and timm_config(options.source) is None
    run, which = (options.source, options.which) if is_run else (None, "file")
    recipe = saved_recipe(run) if run else None
    path = find_weights(options.source, options.which)
    header = read_header(path)
    if recipe is None and header.recipe is not None:
        recipe = Recipe.from_dict(header.recipe)
    classes = read_classes(options.classes) if options.classes else header.classes
    content = read_weights(path, use_ema=options.weights_ema)
    if options.classes:
        _check_count(options.classes, len(classes or ()), header.num_classes, path)
    if options.classes and header.classes not in (None, classes):
        named = ", ".join(header.classes[:3])
        _log.info("%s names its classes otherwise (%s, …); those of %s are used", path, named, options.classes)
    return Subject(path, content, header, classes, recipe, run, which)


def read_classes(path: Path) -> tuple[str, ...]:
    """Read the names of a model's classes, in the order of its outputs.

    The file is text with a name in each line, or JSON: a list of names, or a dictionary from the number of an output to
    its name, or to a list that begins with the name (ImageNet's ``imagenet_class_index.json``).
    """
    text = read_lenient_text(path)
    names: Any = re.split(r"\r\n?|\n", text.rstrip())
    if text.lstrip()[:1] in ("[", "{"):
        try:
            names = json.loads(text)
            if isinstance(names, dict):
                names = [names[str(number)] for number in range(len(names))]
            names = [name[0] if isinstance(name, list) else name for name in names]
        except (ValueError, KeyError, IndexError, RecursionError):
            names = [None]
    if not all(isinstance(name, str) and name.strip() for name in names) or not names:
        raise InputError(f"{path} does not hold a list of classes; expected a name in each line, or JSON")
    names = tuple(printable_name(name.strip().encode("utf-8", "surrogateescape")) for name in names)
    if twice := [name for name, count in Counter(names).items() if count > 1]:
        raise InputError(f"{path} has the class '{twice[0]}' twice; expected each name once")
    return names


def _check_count(names: Path, count: int, outputs: int | None, weights: Path) -> None:
    """Refuse a file of classes that does not name each output of the weights, if their number is known."""
    if outputs not in (None, count):
        raise InputError(f"{names} has {count} names; expected {outputs}, a name for each class of {weights}")


def open_test_set(options: EvaluateOptions, subject: Subject) -> ImageSet:
    """Open the images to evaluate on, with labels in the classes of the model and its normalization.

    Of the run's own data this is the test split, or the validation split if there is none; of other data, every image
    of a folder of class folders, or the test images of a named data set.
    """
    name = options.data or (subject.recipe.data if subject.recipe else None)
    if not name:
        raise InputError(f"{subject.weights} does not say what it was trained on; give --data")
    reading: dict[str, Any] = {"skip_unreadable": options.skip_unreadable}
    own = _is_own(options, subject)
    if own:
        splits = open_splits(name, reported_only=True, **reading, **_division_of(subject))
        if splits.reported is None:
            raise InputError(f"{subject.weights} was trained on all images of {name}; give others with --data")
        data: ImageSet = splits.reported
        _note_changes(subject, name, splits)
    else:
        splits = open_whole(name, channels=subject.header.in_chans or 3, **reading)
        data = splits.train
        _note_training_images(subject, data)
    for line in describe_splits(splits).left_out():
        _log.info("%s", line)
    if subject.header.in_chans not in (None, data.in_chans):
        raise InputError(
            f"{subject.weights} takes images of {subject.header.in_chans} channels; those of {data.name} have "
            f"{data.in_chans}"
        )
    trained_on = subject.header.multi_label or (None if subject.recipe is None else False)
    if trained_on is not None and data.multi_label != trained_on:
        several, single = "any number of labels an image", "one label an image"
        kinds = (several, single) if data.multi_label else (single, several)
        raise InputError(f"{data.name} has {kinds[0]}; expected {kinds[1]}, as {subject.weights} was trained on")
    if subject.classes:
        if options.classes and subject.header.num_classes is None:
            outputs = _count_outputs(options, subject, data)
            _check_count(options.classes, len(subject.classes), outputs, subject.weights)
        data = match_classes(data, subject.classes, options.classes or subject.weights)
    else:
        data = _guess_classes(options, subject, data)
    if normalization := weights_normalization(options.model or subject.model, subject.header, data.in_chans):
        data = replace(data, mean=normalization[0], std=normalization[1])
    if subject.recipe and not own and data.name == printable_name(Path(name).resolve().name):
        data = replace(data, name=_name_apart(name, subject, data))
    return data


def _division_of(subject: Subject) -> dict[str, Any]:
    """Return how the run divided its own data."""
    return subject.recipe.reading() if subject.recipe else {}


def _is_own(options: EvaluateOptions, subject: Subject) -> bool:
    """Return whether the data are those that the weights were trained on, under the same or another name."""
    recipe = subject.recipe
    if recipe is None or not options.data:
        return recipe is not None
    if options.data == recipe.data or os.path.realpath(options.data) == os.path.realpath(recipe.data):
        return True
    if subject.header.data is None:
        return False
    try:
        train_set = open_data(options.data, "train", **_division_of(subject))
        if recipe.train_per_class is not None:
            train_set = keep_per_class(train_set, recipe.train_per_class)
    except InputError:
        return False
    return train_set.fingerprint() == subject.header.data


def _name_apart(path: str, subject: Subject, data: ImageSet) -> str:
    """Return the end of a path that names neither the run's own data nor other images that it was evaluated on."""
    assert subject.recipe is not None
    parts, own = (Path(os.path.realpath(each)).parts for each in (path, subject.recipe.data))
    for count in range(1, len(parts)):
        name = printable_name("/".join(parts[-count:]))
        if parts[-count:] != own[-count:] and _images_of(subject, name) <= {data.fingerprint()}:
            return name
    return printable_name("/".join(parts))


def _images_of(subject: Subject, name: str) -> set[str]:
    """Return the fingerprints of the data of a name among the saved predictions of a run."""
    saved = (subject.run / "predictions").glob("*.npz") if subject.run else ()
    found = set()
    for file in saved:
        if file.stem.endswith(f"-{subject.which}-{file_name(name)}"):
            with contextlib.suppress(InputError):  # a damaged file is written again
                found |= {
                    str(value) for key, value in read_arrays(file, ("logits", "labels")).items() if key == "images"
                }
    return found


def file_name(data: str) -> str:
    """Return the name of a data set as a part of a file's name."""
    return data.replace("/", "-")[-100:]


def _note_changes(subject: Subject, name: str, splits: Splits) -> None:
    """Warn if the training images of the run's own data are no longer those that it was trained on."""
    recipe = subject.recipe
    if recipe is None or subject.header.data is None or splits.official:
        return
    with contextlib.suppress(InputError):
        for skipping in (False, True):  # unreadable images of this split have not been searched for
            trained = splits.train
            if skipping:
                trained = open_data(name, "train", skip_unreadable=True, **_division_of(subject))
            if recipe.train_per_class is not None:
                trained = keep_per_class(trained, recipe.train_per_class)
            if trained.fingerprint() == subject.header.data:
                return
    _log.warning(
        "%s has changed since %s was trained: images that it was trained on may be among those evaluated",
        name, subject.weights,
    )  # fmt: skip


def _note_training_images(subject: Subject, data: ImageSet) -> None:
    """Log how many of the images are training images of the run, as far as its data are still there."""
    recipe = subject.recipe
    if recipe is None or not isinstance(data, FileSet):
        return
    try:
        known = [file.path for part in list_folder(recipe.data).parts.values() for own in part for file in own]
        if not find_shared(_files(data), known):
            return  # the division of a folder decodes its images
        trained = open_data(recipe.data, "train", **_division_of(subject), skip_unreadable=True)
    except InputError:
        return
    if recipe.train_per_class is not None:
        trained = keep_per_class(trained, recipe.train_per_class)
    if count := len(find_shared(_files(data), _files(trained))):
        _log.warning(
            "%d of the %d images of %s are training images of %s: the error on them is no test error",
            count, len(data), data.name, subject.weights,
        )  # fmt: skip


def _files(data: ImageSet) -> list[Path]:
    return [path for path in data.paths if isinstance(path, Path)] if isinstance(data, FileSet) else []


def match_classes(data: ImageSet, classes: tuple[str, ...], source: Path) -> ImageSet:
    """Return a set whose labels are numbered as the model's outputs; refuse a class that has no output."""
    if data.classes == classes:
        return data
    output = {name: number for number, name in enumerate(classes)}
    unknown = [name for name in data.classes if name not in output]
    if unknown:
        hint = did_you_mean(unknown[0], classes, "expected classes that the model was trained on")
        raise InputError(
            f"{data.name} has the class '{unknown[0]}', which is not among the {len(classes)} of {source}; {hint}"
        )
    if len(data.classes) < len(classes):
        _log.info(
            "%s: %d of the %d classes of the model; labels are matched by name, predictions are among all classes",
            data.name, len(data.classes), len(classes),
        )  # fmt: skip
    order = torch.tensor([output[name] for name in data.classes])
    if data.multi_label:
        labels = data.labels.new_zeros(len(data), len(classes)).index_copy_(1, order, data.labels)
        return replace(data, classes=classes, labels=labels)
    return replace(data, classes=classes, labels=order[data.labels])


def _guess_classes(options: EvaluateOptions, subject: Subject, data: ImageSet) -> ImageSet:
    """Return a set for weights that do not name their classes: ImageNet's by name, others in the order of folders."""
    count = _count_outputs(options, subject, data)
    if count is None:
        return data
    if names := imagenet_classes(count, data.classes):
        return match_classes(data, names, subject.weights)
    if count != data.num_classes:
        raise InputError(
            f"{subject.weights} has {count} classes and does not name them, {data.name} has {data.num_classes}; give "
            "the names of its classes with --classes FILE"
        )
    numbers = all(name.isdecimal() for name in data.classes) and list(data.classes) != sorted(data.classes, key=int)
    _log.info(
        "%s does not name its classes: the outputs are taken in the order of the classes of %s (%s%s)%s; give "
        "--classes FILE if they are in another order",
        subject.weights, data.name, ", ".join(data.classes[:4]), ", …" if len(data.classes) > 4 else "",
        ", numbers sorted as text like torchvision's, where timm sorts by value" if numbers else "",
    )  # fmt: skip
    return data


def _count_outputs(options: EvaluateOptions, subject: Subject, data: ImageSet) -> int | None:
    model = create_model(_model_name(options, subject), data.num_classes, in_chans=data.in_chans)
    return count_classes(model, subject.content)


def imagenet_classes(count: int, folders: Sequence[str]) -> tuple[str, ...] | None:
    """Return the names of the ``count`` outputs of an ImageNet model, in the words of the class folders.

    Folders may be named by WordNet ids (n01440764) or by words (tench, great_white_shark). None is returned if no
    variant of ImageNet has ``count`` classes, or a folder does not name exactly one of them.
    """
    from timm.data import ImageNetInfo, infer_imagenet_subset

    subset = infer_imagenet_subset({"num_classes": count})
    if not subset:
        return None
    info = ImageNetInfo(subset)
    names = list(info.label_names())
    if set(folders) <= set(names):
        return tuple(names)
    by_word: dict[str, list[int]] = {}
    for number, words in enumerate(info.label_descriptions()):
        for word in {_plain(word) for word in words.split(",")}:
            by_word.setdefault(word, []).append(number)
    found = [by_word.get(_plain(folder), []) for folder in folders]
    if any(len(numbers) != 1 for numbers in found) or len({numbers[0] for numbers in found}) < len(found):
        return None
    for folder, (number,) in zip(folders, found, strict=True):
        names[number] = folder
    return tuple(names)


def _plain(words: str) -> str:
    return words.strip().lower().replace("_", " ").replace("-", " ")


def draw_images(n: int, count: int | None, seed: int) -> Tensor | None:
    """Return ascending indices of the images to evaluate on, None for all n; a smaller draw is part of a larger one."""
    if count is None or count >= n:
        return None
    return random_subset(n, count, derive_seed(seed, "evaluate", "images"))


def load_model(options: EvaluateOptions, subject: Subject, data: ImageSet) -> nn.Module:
    """Create the model and load its weights."""
    recipe = subject.recipe
    name = _model_name(options, subject)
    model = create_model(name, data.num_classes, in_chans=data.in_chans)
    load_weights(model, subject.content, name=name)
    if recipe:  # the one regularizer that is not the identity in evaluation
        regularize(model, shake_drop=recipe.shake_drop, decay=recipe.depth_decay)
    return model.to(memory_format=torch.channels_last) if subject.channels_last else model


def _model_name(options: EvaluateOptions, subject: Subject) -> str:
    if not (options.model or subject.model):
        raise InputError(f"{subject.weights} does not say which model it is; give --model")
    return options.model or subject.model
