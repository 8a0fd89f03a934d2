"""Where a data set lies: a known name, or a path whose contents are recognized."""

import os
from collections.abc import Callable
from pathlib import Path

from cutmix.data.formats import find_cifar, find_cub, find_idx, find_imagenet, find_tiny_imagenet
from cutmix.data.hub import PREFIX, is_saved
from cutmix.data.label_file import SUFFIXES
from cutmix.data.shards import find_shards
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
    """Return the name of a known set, or "folder", "shards" or "hub", and where it lies; raise as ``open_data``."""
    if data.startswith(PREFIX):
        return "hub", Path(data)
    path = Path(data).expanduser()
    if path.is_dir():
        return _recognise(path)
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
    roots = [Path(root) for root in (os.environ.get("CUTMIX_DATA"), "data") if root]
    found = _find_named(data, roots)
    if not found and download and data not in OF_FILES:
        _download(data, roots[0])
        found = _find_named(data, roots)
    if found:
        return data, found
    places = " and ".join(str(root) for root in roots) + ("" if len(roots) > 1 else " ($CUTMIX_DATA is not set)")
    remedy = "give its path, or fetch it with cutmix train --download (download=True)"
    if data == "cub-200-2011":
        remedy = "fetch its archive by hand, unpack it, and give its path"
    if data == "imagenet":
        remedy = "prepare its train/ and val/ by hand, and give the path of the folder around them"
    raise InputError(f"{data} was not found in {places}: {remedy}")


def _recognise(path: Path) -> tuple[str, Path]:
    found = {name: folder for name, find in _FINDERS.items() if (folder := find(path))}
    if len(found) > 1:
        raise InputError(f"{path} holds {' and '.join(found)}: give the path of one of them, or its name")
    if found:
        return next(iter(found.items()))
    return "hub" if is_saved(path) else "shards" if find_shards(path) else "folder", path


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
