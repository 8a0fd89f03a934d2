"""The MNIST layout (idx files, plain or gzip), in which Fashion-MNIST comes too."""

import gzip
import math
import zlib
from pathlib import Path

import torch
from torch import Tensor

from cutmix.errors import InputError

_PREFIX = {"train": "train", "test": "t10k"}
_FASHION = (
    "T-shirt/top",
    "Trouser",
    "Pullover",
    "Dress",
    "Coat",
    "Sandal",
    "Shirt",
    "Sneaker",
    "Bag",
    "Ankle boot",
)


def find_idx(name: str, root: Path) -> Path | None:
    """Return the folder of ``name`` ("fashion-mnist" or "mnist"): ``root`` or where torchvision puts it, else None.

    The files of both sets have the same names: they are Fashion-MNIST when their path says "fashion".
    """
    official = {"fashion-mnist": "FashionMNIST", "mnist": "MNIST"}[name]
    for folder in (root, root / "raw", root / official / "raw", root / official, root / name):
        found = any(_find_file(folder, split, kind) for split in _PREFIX for kind in ("images", "labels"))
        if found and ("fashion" in str(folder.resolve()).lower()) == (name == "fashion-mnist"):
            return folder
    return None


def read_idx(name: str, folder: Path, split: str) -> tuple[Tensor, Tensor, tuple[str, ...]]:
    """Read one split.

    Returns:
        images (N, 1, H, W) uint8, labels (N,) int64, the class names.

    Raises:
        InputError: A file is missing or damaged, or images and labels differ in number.

    Source: https://github.com/zalandoresearch/fashion-mnist; checked against ``torchvision.datasets``.
    """
    files = {kind: _find_file(folder, split, kind) for kind in ("images", "labels")}
    for kind, file in files.items():
        if file is None:
            expected = f"{_PREFIX[split]}-{kind}-idx{3 if kind == 'images' else 1}-ubyte(.gz)"
            raise InputError(f"{folder} is not a complete {name}: {expected} is missing; unpack it again")
    images, labels = (_read(file, 3 if kind == "images" else 1) for kind, file in files.items() if file)
    if len(images) != len(labels):
        raise InputError(f"{folder} holds {len(images)} {split} images and {len(labels)} labels: they must agree")
    classes = _FASHION if name == "fashion-mnist" else tuple("0123456789")
    return images.unsqueeze(1), labels.long(), classes


def _find_file(folder: Path, split: str, kind: str) -> Path | None:
    suffix = "idx3-ubyte" if kind == "images" else "idx1-ubyte"
    candidates = [folder / f"{_PREFIX[split]}-{kind}{dash}{suffix}{gz}" for gz in ("", ".gz") for dash in "-."]
    return next((file for file in candidates if file.is_file()), None)


def _read(file: Path, dims: int) -> Tensor:
    """Read an idx file of unsigned bytes: magic number, sizes (big-endian), values."""
    try:
        with gzip.open(file) if file.suffix == ".gz" else file.open("rb") as stream:
            if stream.read(4) != bytes((0, 0, 8, dims)):
                raise InputError(f"{file} is not an idx file of unsigned bytes in {dims} dimensions")
            shape = [int.from_bytes(stream.read(4), "big") for _ in range(dims)]
            values = torch.empty(shape, dtype=torch.uint8)
            count = math.prod(shape)
            # through a flat view: a gzip stream fills what it is given piece by piece
            filled, view = 0, memoryview(values.numpy().reshape(-1).data)
            while filled < count and (got := stream.readinto(view[filled:])):
                filled += got
            if filled < count or stream.read(1):
                raise InputError(f"{file} is damaged: it does not hold the {count} values that it announces")
    except (OSError, EOFError, zlib.error, RuntimeError) as error:
        raise InputError(f"{file} is damaged ({error}): unpack it again") from None
    return values
