"""What a data set is, and how one is opened: by a known name or by a path."""

import difflib
import hashlib
import os
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal, get_args

import torch
from torch import Tensor

from cutmix.data.decode import find_unreadable
from cutmix.data.folder import is_split, read_folder
from cutmix.data.formats import (
    find_cifar,
    find_cub,
    find_idx,
    find_tiny_imagenet,
    read_cifar,
    read_cub,
    read_digits,
    read_idx,
    read_tiny_imagenet,
)
from cutmix.errors import InputError
from cutmix.runtime.seeding import derive_seed

Split = Literal["train", "test", "all"]

_CIFAR = (125.3 / 255, 123.0 / 255, 113.9 / 255), (63.0 / 255, 62.1 / 255, 66.7 / 255)  # the paper's, for both
_IMAGENET = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
_MEAN_STD = {
    "digits": ((0.3049,), (0.3754,)),
    "mnist": ((0.1307,), (0.3081,)),
    "fashion-mnist": ((0.2860,), (0.3530,)),
    "cifar-10": _CIFAR,
    "cifar-100": _CIFAR,
    "tiny-imagenet-200": _IMAGENET,
    "imagenet": _IMAGENET,
}


@dataclass(frozen=True, eq=False)
class _Labelled:
    """What the two kinds of sets share.

    Args:
        name: A known name, or the folder's.
        split: "train" or "test".
        classes: The class names; a label is an index into them.
        labels: (N,) int64.
        mean: Of each channel, pixels taken as 0 to 1.
        std: Of each channel, pixels taken as 0 to 1.
    """

    name: str
    split: Split
    classes: tuple[str, ...]
    labels: Tensor
    mean: tuple[float, ...]
    std: tuple[float, ...]

    def __post_init__(self) -> None:
        if len(self) and not 0 <= int(self.labels.min()) <= int(self.labels.max()) < self.num_classes:
            raise InputError(
                f"the {self.split} labels of {self.name} run from {int(self.labels.min())} to "
                f"{int(self.labels.max())}: expected 0 to {self.num_classes - 1} for its {self.num_classes} classes"
            )

    def __len__(self) -> int:
        return len(self.labels)

    def fingerprint(self) -> str:
        """Return a digest of which samples these are, in which order, with which labels."""
        digest = hashlib.blake2b(self.labels.numpy().tobytes(), digest_size=16)
        for path in getattr(self, "paths", ()):
            digest.update(path.name.encode())
        return digest.hexdigest()

    @property
    def num_classes(self) -> int:
        """Classes that a label can name."""
        return len(self.classes)


@dataclass(frozen=True, eq=False)
class ArraySet(_Labelled):
    """A split that is small enough to be one tensor.

    Args:
        name, split, classes, labels, mean, std: Name of the set; "train" or "test"; the class names; (N,) int64 indices
            into them; mean and standard deviation of each channel, pixels taken as 0 to 1.
        images: (N, C, H, W) uint8.
        skipped: Unreadable files that were left out on request.
    """

    images: Tensor
    skipped: tuple[Path, ...] = ()

    @property
    def in_chans(self) -> int:
        """Channels of the images."""
        return self.images.shape[1]


@dataclass(frozen=True, eq=False)
class FileSet(_Labelled):
    """A split of image files, decoded to RGB when they are loaded.

    Args:
        name, split, classes, labels, mean, std: Name of the set; "train" or "test"; the class names; (N,) int64 indices
            into them; mean and standard deviation of each channel, pixels taken as 0 to 1.
        paths: The N files.
        skipped: Unreadable files that were left out on request.
    """

    paths: tuple[Path, ...]
    skipped: tuple[Path, ...] = ()

    @property
    def in_chans(self) -> int:
        """Channels of the decoded images."""
        return 3


ImageSet = ArraySet | FileSet


def take(data: ImageSet, index: Tensor) -> ImageSet:
    """Return the images of a set at some indices, (n,) int64, in their order."""
    labels = data.labels[index]
    if isinstance(data, FileSet):
        return replace(data, labels=labels, paths=tuple(data.paths[i] for i in index.tolist()))
    return replace(data, labels=labels, images=data.images[index])


def keep_per_class(data: ImageSet, count: int, seed: int = 0) -> ImageSet:
    """Keep ``count`` images of each class, in their order; a smaller subset is part of every larger one.

    Args:
        data: A split.
        count: Images of each class, at least 1.
        seed: Decides which images.

    Raises:
        InputError: If a class has fewer images.
    """
    order = torch.randperm(len(data), generator=torch.Generator().manual_seed(derive_seed(seed, "subset")))
    kept = []
    for label, name in enumerate(data.classes):
        members = order[data.labels[order] == label]
        if len(members) < count:
            raise InputError(
                f"class '{name}' of {data.name} has {len(members)} {data.split} images; expected at least {count}"
            )
        kept.append(members[:count])
    return take(data, torch.cat(kept).sort().values)


def open_data(
    data: str,
    split: Split,
    *,
    val_fraction: float = 0.2,
    seed: int = 0,
    skip_unreadable: bool = False,
    download: bool = False,
) -> ImageSet:
    """Open one split of a data set.

    Args:
        data: "digits", "cifar-10", "cifar-100", "fashion-mnist", "tiny-imagenet-200", "imagenet", "cub-200-2011", or a
            path. A path that exists wins; what lies there is recognised: an official layout (the folder itself or its
            parent), ``train/`` and ``val/``, or one folder of class folders. A name is looked up in ``$CUTMIX_DATA``,
            then in ``./data``.
        split: "train", "test", or "all": every image of one folder of class folders, the test split of anything else.
        val_fraction: In (0, 1): the test share of each class when one folder of class folders is split.
        seed: Decides that split, and nothing else.
        skip_unreadable: Decode every file now and leave out, in ``skipped``, those that are no readable images.
        download: Fetch a known set that is absent.

    Returns:
        An :class:`ArraySet` for the small known sets, a :class:`FileSet` otherwise.

    Raises:
        InputError: Nothing usable is there; the sentence says what was found and what was expected.
    """
    if split not in get_args(Split):
        raise InputError(f"split is '{split}': expected 'train', 'test' or 'all'")
    if not 0 < val_fraction < 1:
        raise InputError(f"val_fraction is {val_fraction}: expected a share between 0 and 1")
    name, folder = locate(data, download)
    if split == "all" and (name != "folder" or is_split(folder)):
        split = "test"
    if name == "digits":
        images, labels, classes = read_digits(split)
    elif name in ("cifar-10", "cifar-100"):
        images, labels, classes = read_cifar(name, folder, split)
    elif name in ("fashion-mnist", "mnist"):
        images, labels, classes = read_idx(name, folder, split)
    elif name == "tiny-imagenet-200":
        images, labels, classes, skipped = read_tiny_imagenet(folder, split, skip_unreadable=skip_unreadable)
        return ArraySet(name, split, classes, labels, *_IMAGENET, images, skipped)
    elif name == "cub-200-2011":
        paths, numbers, classes = read_cub(folder, split)
        return _file_set(name, folder, split, list(paths), list(numbers), classes, skip_unreadable)
    else:
        found = read_folder(folder, split, val_fraction=val_fraction, seed=seed)
        return _file_set(folder.resolve().name, folder, split, *found, skip_unreadable)
    if not len(labels):
        raise InputError(f"{folder} holds no {split} images of {name}")
    return ArraySet(name, split, classes, labels, *_MEAN_STD[name], images)


def is_small(data: str) -> bool:
    """Return whether ``data``, as ``open_data`` takes it, is a set of small images, held as one tensor."""
    if data in _NAMES and not Path(data).is_dir():
        return data not in _OF_FILES
    return locate(data)[0] not in ("folder", *_OF_FILES)


def _file_set(
    name: str,
    folder: Path,
    split: Split,
    paths: list[Path],
    labels: list[int],
    classes: tuple[str, ...],
    skip_unreadable: bool,
) -> FileSet:
    skipped = find_unreadable(paths) if skip_unreadable else set()
    if skipped:
        kept = [(path, label) for path, label in zip(paths, labels, strict=True) if path not in skipped]
        emptied = sorted(set(labels) - {label for _, label in kept})
        if emptied:
            raise InputError(
                f"{folder}: none of the {split} images of class '{classes[emptied[0]]}' can be read: mend them"
            )
        paths, labels = [path for path, _ in kept], [label for _, label in kept]
    return FileSet(name, split, classes, torch.tensor(labels), *_IMAGENET, tuple(paths), tuple(sorted(skipped)))


# ---- where it lies ----

_FINDERS: dict[str, Callable[[Path], Path | None]] = {
    "cifar-10": lambda root: find_cifar("cifar-10", root),
    "cifar-100": lambda root: find_cifar("cifar-100", root),
    "fashion-mnist": lambda root: find_idx("fashion-mnist", root),
    "mnist": lambda root: find_idx("mnist", root),
    "tiny-imagenet-200": find_tiny_imagenet,
    "cub-200-2011": find_cub,
}
_OF_FILES = ("imagenet", "cub-200-2011")  # photographs of many sizes
_NAMES = ("digits", "cifar-10", "cifar-100", "fashion-mnist", "tiny-imagenet-200", "imagenet", "cub-200-2011")


def locate(data: str, download: bool = False) -> tuple[str, Path]:
    """Return the known set's name, or "folder", and where it lies; data and errors are those of ``open_data``."""
    path = Path(data).expanduser()
    if path.is_dir():
        return _recognise(path)
    if path.exists():
        raise InputError(f"{data} is a file: expected a folder of class folders or of a known data set, unpacked")
    if data not in _NAMES:
        close = difflib.get_close_matches(data.lower(), _NAMES, n=1)
        hint = f"did you mean '{close[0]}'?" if close else f"expected a folder or one of {', '.join(_NAMES)}"
        raise InputError(f"'{data}' is neither a folder that exists nor a known data set: {hint}")
    if data == "digits":
        return data, Path()
    roots = [Path(root) for root in (os.environ.get("CUTMIX_DATA"), "data") if root]
    found = _find_named(data, roots)
    if not found and download and data not in _OF_FILES:
        _download(data, roots[0])
        found = _find_named(data, roots)
    if found:
        return data, found
    places = " and ".join(str(root) for root in roots) + ("" if len(roots) > 1 else " ($CUTMIX_DATA is not set)")
    remedy = "give its path, or fetch it with cutmix train --download (download=True)"
    if data == "cub-200-2011":
        remedy = "fetch its archive by hand, unpack it, and give its path"
    if data == "imagenet":
        remedy = "prepare its train/ and val/ folders of class folders by hand, and give their path"
    raise InputError(f"{data} was not found in {places}: {remedy}")


def _recognise(path: Path) -> tuple[str, Path]:
    found = {name: folder for name, find in _FINDERS.items() if (folder := find(path))}
    if len(found) > 1:
        raise InputError(f"{path} holds {' and '.join(found)}: give the path of one of them, or its name")
    return next(iter(found.items()), ("folder", path))


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
