"""Find and open a data set, by a known name or by a path whose contents are recognized; then divide it into splits."""

import os
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import torch

from cutmix.data.decode import digest_pixels, find_unreadable, in_threads
from cutmix.data.division import MOST_NEAR, Copies, divide, divide_folds, divide_stored, find_copies, find_near
from cutmix.data.folder import ClassFolders, File, find_parts, is_hidden, printable_name, read_class_folders
from cutmix.data.formats import (
    find_cifar,
    find_cub,
    find_idx,
    find_imagenet,
    find_tiny_imagenet,
    read_cifar,
    read_cub,
    read_digits,
    read_idx,
    read_tiny_imagenet,
)
from cutmix.data.sets import ArraySet, FileSet, ImageSet, Split, Splits
from cutmix.data.shards import Catalogue, find_shards, read_shards
from cutmix.data.sources import Paths, Source, Sources, shared_folder
from cutmix.data.tables import PREFIX, SUFFIXES, is_saved, read_hub, read_label_file
from cutmix.data.transforms import IMAGENET_MEAN, IMAGENET_STD
from cutmix.errors import InputError, did_you_mean

_FINDERS: dict[str, Callable[[Path], Path | None]] = {
    "cifar-10": lambda root: find_cifar("cifar-10", root),
    "cifar-100": lambda root: find_cifar("cifar-100", root),
    "fashion-mnist": lambda root: find_idx("fashion-mnist", root),
    "mnist": lambda root: find_idx("mnist", root),
    "tiny-imagenet-200": find_tiny_imagenet,
    "cub-200-2011": find_cub,
    "imagenet": find_imagenet,
}
OF_FILES = ("imagenet", "cub-200-2011")  # of many sizes
STORED = ("shards", "hub")  # of images inside larger files
NAMES = ("digits", "cifar-10", "cifar-100", "fashion-mnist", "tiny-imagenet-200", "imagenet", "cub-200-2011")


def locate(data: str, download: bool = False) -> tuple[str, Path]:
    """Return the name of a known set, or "folder", "shards" or "hub", and its location."""
    if data.startswith(PREFIX):
        return "hub", Path(data)
    path = Path(data).expanduser()
    if path.is_dir():
        return _recognize(path)
    if path.is_file() and path.suffix.lower() in SUFFIXES:
        return "folder", path
    if path.exists():
        raise InputError(
            f"{data} is a file; expected a folder of class folders or of a known data set, unpacked, or labels "
            f"({', '.join(SUFFIXES)})"
        )
    if data not in NAMES:
        hint = did_you_mean(data.lower(), NAMES, f"expected a folder or one of {', '.join(NAMES)}")
        raise InputError(f"'{data}' is neither a folder that exists nor a known data set: {hint}")
    if data == "digits":
        return data, Path()
    roots, places = data_roots()
    found = _find_named(data, roots)
    if not found and download and data not in OF_FILES:
        _download(data, roots[0])
        found = _find_named(data, roots)
    if found:
        return data, found
    remedy = "give its path, or fetch it with cutmix train --download (download=True)"
    if data == "cub-200-2011":
        remedy = "fetch its archive by hand, unpack it, and give its path"
    if data == "imagenet":
        remedy = "prepare its train/ and val/ by hand, and give the path of the folder around them"
    raise InputError(f"{data} was not found in {places}: {remedy}")


def data_roots() -> tuple[list[Path], str]:
    """Return the folders to look up data sets in, ``$CUTMIX_DATA`` and ``./data``, and their names for a sentence."""
    roots = [Path(root) for root in (os.environ.get("CUTMIX_DATA"), "data") if root]
    return roots, " and ".join(map(str, roots)) + ("" if len(roots) > 1 else " ($CUTMIX_DATA is not set)")


def _recognize(path: Path) -> tuple[str, Path]:
    found = {name: folder for name, find in _FINDERS.items() if (folder := find(path))}
    if len(found) > 1:
        raise InputError(f"{path} holds {' and '.join(found)}: give the path of one of them, or its name")
    if found:
        return next(iter(found.items()))
    return "hub" if is_saved(path) else "shards" if find_shards(path) else "folder", path


def refuse_inside(out: Path, data: str) -> None:
    """Refuse a folder to write images into that would become a class of the data, or part of one."""
    if not data or not Path(data).expanduser().is_dir() or (found := locate(data))[0] not in ("folder", "imagenet"):
        return
    for folder in (find_parts(found[1]) or {"all": found[1]}).values():
        place = out.resolve()
        inside = place.relative_to(folder.resolve()).parts if place.is_relative_to(folder.resolve()) else ()
        if inside and not any(map(is_hidden, inside)):
            raise InputError(f"{out} is inside {folder}, and would be a class of it; choose another folder with --out")


def _find_named(name: str, roots: list[Path]) -> Path | None:
    places = [place for root in roots for place in (root, root / name)]
    if name == "imagenet":
        return next((place for place in places if place.name == name and place.is_dir()), None)
    return next((folder for place in places if place.is_dir() and (folder := _FINDERS[name](place))), None)


def _download(name: str, root: Path) -> None:
    from torchvision import datasets  # slow to import, and rarely needed here

    try:
        if name == "tiny-imagenet-200":
            datasets.utils.download_and_extract_archive(
                "http://cs231n.stanford.edu/tiny-imagenet-200.zip",
                str(root),
                md5="90528d7ca1a48142e341f4ef8d21d0de",
            )
        else:
            fetch = {"cifar-10": "CIFAR10", "cifar-100": "CIFAR100", "fashion-mnist": "FashionMNIST"}
            getattr(datasets, fetch[name])(root, download=True)
    except (OSError, RuntimeError) as error:
        raise InputError(f"{name} could not be downloaded into {root}: {error}") from None


def is_small(data: str) -> bool:
    """Return whether ``data``, as ``open_splits`` takes it, is a set of small images, held as one tensor."""
    if data in NAMES and not Path(data).is_dir():
        return data not in OF_FILES
    return locate(data)[0] not in ("folder", *STORED, *OF_FILES)


_CIFAR = (125.3 / 255, 123.0 / 255, 113.9 / 255), (63.0 / 255, 62.1 / 255, 66.7 / 255)  # the paper's, for both
_IMAGENET = IMAGENET_MEAN, IMAGENET_STD
_MEAN_STD = {
    "digits": ((0.3049,), (0.3754,)),
    "mnist": ((0.1307,), (0.3081,)),
    "fashion-mnist": ((0.2860,), (0.3530,)),
    "cifar-10": _CIFAR,
    "cifar-100": _CIFAR,
    "tiny-imagenet-200": _IMAGENET,
    "imagenet": _IMAGENET,
}


def open_splits(
    data: str,
    *,
    val_fraction: float = 0.2,
    seed: int = 0,
    skip_unreadable: bool = False,
    download: bool = False,
    copies: Copies | None = None,
    channels: int = 3,
    fold: tuple[int, int] | None = None,
    reported_only: bool = False,
) -> Splits:
    """Open all splits of a data set.

    ``data`` is "digits", "cifar-10", "cifar-100", "fashion-mnist", "tiny-imagenet-200", "imagenet", "cub-200-2011",
    "hf:NAME" of the Hugging Face Hub, or a path. A path that exists takes precedence; its contents are recognized: an
    official layout (the folder itself or its parent), folders of splits (``train/``, ``val/``, ``test/``, in any case
    and by their usual other names), one folder of class folders, tar shards, or the result of ``save_to_disk``. A name
    is looked up in ``$CUTMIX_DATA``, then in ``./data``, and fetched with ``download``.

    The known sets have the official training and test images and no validation images; the test images of "imagenet"
    and "tiny-imagenet-200" are the validation images, whose labels are known. A folder is divided as ``divide`` or,
    with ``fold`` (the fold to test on, from 1, and the number of folds), ``divide_folds`` describes. ``copies`` are the
    equal images of a folder, if another process has found them. With ``skip_unreadable``, files that are not readable
    images are listed in ``skipped`` instead of refused. With ``reported_only``, only those of the split of the results
    matter in a folder.
    """
    _check_fraction(val_fraction)
    name, folder = locate(data, download)
    if fold is not None and name != "folder":
        raise InputError(f"{name} has its own splits; --folds divides a folder of images without splits")
    if name in STORED:
        return _open_stored(name, folder, val_fraction, seed, skip_unreadable, channels=channels)
    if name not in ("folder", "imagenet"):
        train, test = (_open_known(name, folder, split, skip_unreadable, channels) for split in ("train", "test"))
        _check_channels(train, channels)
        return Splits(train, None, test, {"train": "official", "test": "official"}, official=True)
    about = (name, folder, val_fraction, seed, skip_unreadable, () if reported_only else ("train", "val", "test"))
    return _open_folder(*about, copies=copies, channels=channels, fold=fold)


def open_data(
    data: str,
    split: Split,
    *,
    val_fraction: float = 0.2,
    seed: int = 0,
    skip_unreadable: bool = False,
    download: bool = False,
    channels: int = 3,
    fold: tuple[int, int] | None = None,
) -> ImageSet:
    """Open one split of a data set, as an :class:`ArraySet` for the small known sets, else as a :class:`FileSet`.

    ``split`` is "train"; "val", to choose by; "test", to report on; or "all": every image of one folder of class
    folders, and the test images (``test/``, else all of ``val/``) of other data. The other arguments are those of
    ``open_splits``.
    """
    if split not in get_args(Split):
        raise InputError(f"split is '{split}'; expected 'train', 'val', 'test' or 'all'")
    _check_fraction(val_fraction)
    name, folder = locate(data, download)
    if split == "all":
        return open_whole(data, skip_unreadable=skip_unreadable, channels=channels).train
    if name not in ("folder", "imagenet", *STORED):
        if split == "val":
            raise InputError(f"{name} has no val split; expected 'train' or 'test'")
        known = _open_known(name, folder, split, skip_unreadable, channels)
        _check_channels(known, channels)
        return known
    if name in STORED:
        splits = _open_stored(name, folder, val_fraction, seed, skip_unreadable, (split,), channels=channels)
    else:
        splits = _open_folder(name, folder, val_fraction, seed, skip_unreadable, (split,), channels=channels, fold=fold)
    found = {"train": splits.train, "val": splits.val, "test": splits.test}[split]
    if found is None:
        why = f"; it has {', '.join(splits.origin)}" + ("" if val_fraction else " (val_fraction is 0)")
        raise InputError(f"{data} has no {split} split{why}")
    return found


def _check_fraction(val_fraction: float) -> None:
    if not 0 <= val_fraction < 1:
        raise InputError(f"val_fraction is {val_fraction}; expected a share of at least 0 and below 1")


def _check_channels(data: ImageSet, channels: int) -> None:
    """Refuse a number of channels, other than the default, that a known set of small images does not have."""
    if channels not in (3, data.in_chans):
        raise InputError(f"--channels is {channels}; {data.name} has {data.in_chans} already")


def _open_known(
    name: str, folder: Path, split: Literal["train", "test"], skip_unreadable: bool, channels: int
) -> ImageSet:
    skipped: tuple[Path, ...] = ()
    if name == "digits":
        images, labels, classes = read_digits(split)
    elif name in ("cifar-10", "cifar-100"):
        images, labels, classes = read_cifar(name, folder, split)
    elif name in ("fashion-mnist", "mnist"):
        images, labels, classes = read_idx(name, folder, split)
    elif name == "tiny-imagenet-200":
        images, labels, classes, skipped = read_tiny_imagenet(folder, split, skip_unreadable=skip_unreadable)
    else:
        paths, numbers, classes = read_cub(folder, split)
        unreadable = find_unreadable(paths, channels) if skip_unreadable else set()
        samples = list(zip(paths, numbers, strict=True))
        return _file_set(name, folder, split, samples, classes, unreadable, channels=channels)
    if not len(labels):
        raise InputError(f"{folder} holds no {split} images of {name}")
    return ArraySet(name, split, classes, labels, *_MEAN_STD[name], images, skipped)


def _open_folder(
    name: str,
    folder: Path,
    val_fraction: float,
    seed: int,
    skip_unreadable: bool,
    wanted: tuple[str, ...],
    copies: Copies | None = None,
    channels: int = 3,
    fold: tuple[int, int] | None = None,
) -> Splits:
    """Divide a folder; the ``wanted`` splits, by default that of the results, are searched for unreadable files."""
    folders = _listed(folder)
    known = name == "imagenet"
    copies = Copies() if known else copies or find_copies(folders, channels=channels)
    count = sum(len(own) for classes in folders.parts.values() for own in classes)
    if copies.near is None and copies.compared == "pixels" and count <= MOST_NEAR:
        copies = replace(copies, near=find_near(folders, channels))
    if fold is not None:
        division = divide_folds(folders, copies, *fold, seed)
    else:
        division = divide(folders, copies, 0.0 if known else val_fraction, seed)
    wanted = wanted or ("test" if any(division.parts.get("test", ())) else "val",)
    # the images of a fold may share a folder that those of the others do not
    every = [path for classes in division.parts.values() for path, _ in _samples(classes)]
    top = None if fold is None else shared_folder(every)
    sets: dict[str, FileSet] = {}
    for split, classes in division.parts.items():
        samples = _samples(classes)
        if samples:
            unreadable = _unreadable(samples, split, copies, skip_unreadable, channels) if split in wanted else set()
            about: Any = (name, folder, split, samples, folders.classes, unreadable)
            sets[split] = _file_set(*about, several=folders.labels, channels=channels, top=top)
    origin = {split: phrase for split, phrase in division.origin.items() if split in sets}
    return Splits(sets["train"], sets.get("val"), sets.get("test"), origin, folders, copies, division.leaks, known)


def list_folder(data: str) -> ClassFolders:
    """Return the images of a folder of class folders, or of a file of labels; refuse other data."""
    name, path = locate(data)
    if name not in ("folder", "imagenet"):
        raise InputError(f"{data} is not a folder of class folders")
    return _listed(path)


def _listed(path: Path) -> ClassFolders:
    return read_label_file(path) if path.is_file() else read_class_folders(path)


def open_whole(data: str, *, skip_unreadable: bool = False, channels: int = 3) -> Splits:
    """Open the images of ``open_data(data, "all")`` as the only split, ``train``; raises as that does."""
    name, folder = locate(data)
    if name not in ("folder", "imagenet", *STORED):
        return Splits(_open_known(name, folder, "test", skip_unreadable, channels), None, None, {})
    found = _catalogue(name, folder) if name in STORED else _listed(folder)
    part = next(part for part in ("all", "test", "val", "train") if part in found.parts)
    split: Split = "all" if part in ("all", "train") else "test"
    if isinstance(found, Catalogue):
        stored = _stored_set(folder.name, split, found.classes, *found.parts[part], skip_unreadable, channels)
        return Splits(stored, None, None, {})
    samples = _samples(found.parts[part])
    unreadable = find_unreadable([path for path, _ in samples], channels) if skip_unreadable else set()
    about: Any = (name, folder, split, samples, found.classes, unreadable)
    return Splits(_file_set(*about, several=found.labels, channels=channels), None, None, {}, found)


def _samples(classes: list[list[File]]) -> list[tuple[Path, int]]:
    return [(file.path, label) for label, own in enumerate(classes) for file in own]


def _unreadable(samples: list[tuple[Path, int]], split: str, copies: Copies, skip: bool, channels: int) -> set[Path]:
    """Return the known unreadable files of a split, or refuse them."""
    if skip and copies.compared != "pixels":
        return find_unreadable([path for path, _ in samples], channels)
    found = {path for path, _ in samples if path in copies.unreadable}
    if found and not skip:
        more = f" ({len(found)} {split} images cannot be read)" if len(found) > 1 else ""
        raise InputError(f"{copies.unreadable[min(found)]}{more}")
    return found


def _file_set(
    name: str,
    folder: Path,
    split: Split,
    samples: list[tuple[Path, int]],
    classes: tuple[str, ...],
    unreadable: set[Path],
    *,
    several: dict[Path, tuple[int, ...]] | None = None,
    channels: int = 3,
    top: str | None = None,
) -> FileSet:
    """Make a set of the readable files, with names below the folder ``top``.

    ``several`` has their labels where an image can have several.
    """
    kept = [(path, label) for path, label in samples if path not in unreadable]
    labels = torch.tensor([label for _, label in kept], dtype=torch.int64)
    if several is not None:
        labels = torch.zeros(len(kept), len(classes), dtype=torch.uint8)
        for row, (path, _) in zip(labels, kept, strict=True):
            row[list(several[path])] = 1
        if split == "train" and (missing := (labels.sum(0) == 0).nonzero().flatten().tolist()):
            raise InputError(f"{folder} leaves no training images with the label '{classes[missing[0]]}'")
    else:
        _check_readable(folder, split, classes, {label for _, label in samples}, set(labels.tolist()))
    shown = printable_name(folder.resolve().name) if name == "folder" else name
    paths, skipped = Paths((path for path, _ in kept), top), tuple(sorted(unreadable))
    return FileSet(shown, split, classes, labels, *_normalization(channels), paths, skipped, channels)


def _check_readable(where: Path | str, split: str, classes: tuple[str, ...], given: set[int], left: set[int]) -> None:
    """Refuse a split without readable images, and training images without those of a class."""
    if split == "train" and (emptied := given - left):
        raise InputError(
            f"{where}: none of the train images of class '{classes[min(emptied)]}' can be read; repair them"
        )
    if given and not left:
        raise InputError(f"{where}: none of the {split} images can be read; repair them")


def _normalization(channels: int) -> tuple[tuple[float, ...], tuple[float, ...]]:
    return _IMAGENET if channels == 3 else ((0.5,) * channels, (0.25,) * channels)


# ---- images inside larger files ----


def _catalogue(name: str, folder: Path) -> Catalogue:
    return read_hub(str(folder)) if name == "hub" else read_shards(folder, find_shards(folder))


def _open_stored(
    name: str, folder: Path, val_fraction: float, seed: int, skip_unreadable: bool,
    wanted: tuple[str, ...] = ("train", "val", "test"), channels: int = 3,
) -> Splits:  # fmt: skip
    """Divide shards, or a data set of Hugging Face, unless they are divided; copies of images are not searched for."""
    found = _catalogue(name, folder)
    parts, origin = divide_stored(found, folder, val_fraction, seed)
    sets: dict[str, FileSet] = {}
    for split, (part, index) in parts.items():
        labels, images = found.parts[part]
        if index is not None:
            labels, images = labels[index], images.take(index)
        skip = skip_unreadable and split in wanted
        sets[split] = _stored_set(folder.name, split, found.classes, labels, images, skip, channels)  # type: ignore[arg-type]
    return Splits(sets["train"], sets.get("val"), sets.get("test"), origin)


def _stored_set(
    name: str, split: Split, classes: tuple[str, ...], labels: np.ndarray, images: Sources, skip: bool, channels: int
) -> FileSet:
    """Make a set of the readable images."""
    skipped: tuple[Source, ...] = ()
    if skip:
        found = in_threads(partial(digest_pixels, channels=channels), images)
        bad = [i for i, each in enumerate(found) if isinstance(each, InputError)]
        kept = np.setdiff1d(np.arange(len(images)), bad)
        _check_readable(name, split, classes, set(labels.tolist()), set(labels[kept].tolist()))
        skipped, labels, images = tuple(images[i] for i in bad), labels[kept], images.take(kept)
    normalization = _normalization(channels)
    return FileSet(
        printable_name(name), split, classes, torch.from_numpy(labels), *normalization, images, skipped, channels
    )
