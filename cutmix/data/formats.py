"""The known data sets in their official layouts: CIFAR, MNIST, digits, Tiny-ImageNet-200, ImageNet and CUB-200-2011.

For each there is a function that finds its folder and one that reads a split of it: arrays, or a list of files.
"""

import gzip
import math
import mmap
import pickle
import pickletools
import re
import zlib
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import torch
from torch import Tensor

from cutmix.data.decode import find_unreadable, read_same_size
from cutmix.data.folder import read_text
from cutmix.errors import InputError
from cutmix.runtime.files import regular

Arrays = tuple[Tensor, Tensor, tuple[str, ...]]
"""Images (N, C, H, W) uint8; labels (N,) int64; the class names."""

# ---- CIFAR: Python pickles or binary files ----

_PIXELS = 3 * 32 * 32


@dataclass(frozen=True)
class _Cifar:
    """The layout of one official archive; a binary record has ``label_bytes``, the last of which is the label."""

    folder: str
    train: tuple[str, ...]
    test: tuple[str, ...]
    names: str
    names_key: str = ""
    labels_key: str = ""
    label_bytes: int = 0


_FIVE = tuple(f"data_batch_{k}" for k in range(1, 6))
_CIFARS = {
    "cifar-10": (
        _Cifar("cifar-10-batches-py", _FIVE, ("test_batch",), "batches.meta", "label_names", "labels"),
        _Cifar(
            "cifar-10-batches-bin", tuple(f"{name}.bin" for name in _FIVE), ("test_batch.bin",), "batches.meta.txt",
            label_bytes=1,
        ),
    ),
    "cifar-100": (
        _Cifar("cifar-100-python", ("train",), ("test",), "meta", "fine_label_names", "fine_labels"),
        _Cifar("cifar-100-binary", ("train.bin",), ("test.bin",), "fine_label_names.txt", label_bytes=2),
    ),
}  # fmt: skip


def find_cifar(name: str, root: Path) -> Path | None:
    """Return the folder of ``name`` ("cifar-10" or "cifar-100"): ``root`` itself or a folder in it, else None."""
    for layout in _CIFARS[name]:
        if folder := _find(root, layout.folder, layout.names):
            return folder
    return None


def _find(root: Path, name: str, *files: str) -> Path | None:
    """Return ``root`` or the folder ``name`` in it, whichever has that name or holds all the files; else None."""
    for folder in (root, root / name):
        if folder.is_dir() and (folder.name == name or all((folder / file).is_file() for file in files)):
            return folder
    return None


def read_cifar(name: str, folder: Path, split: str) -> Arrays:
    """Read one split of CIFAR-10 or CIFAR-100.

    Source: https://www.cs.toronto.edu/~kriz/cifar.html; checked against ``torchvision.datasets``.
    """
    layouts = _CIFARS[name]
    layout = next((x for x in layouts if x.folder == folder.name or (folder / x.names).is_file()), layouts[0])
    files = [folder / file for file in (layout.train if split == "train" else layout.test)]
    missing = [file.name for file in [*files, folder / layout.names] if not file.is_file()]
    if missing:
        raise InputError(f"{folder} is not a complete {name}: {', '.join(missing)} is missing; unpack it again")
    if layout.label_bytes:
        names = read_text(folder / layout.names).split()
        images, labels = _read_binary(files, layout.label_bytes)
    else:
        names = [_text(name) for name in _entry(folder / layout.names, layout.names_key)]
        images, labels = _read_pickles(files, layout.labels_key)
    return images.view(-1, 3, 32, 32), labels, tuple(names)


def _read_pickles(files: list[Path], labels_key: str) -> tuple[Tensor, Tensor]:
    images = torch.empty((sum(file.stat().st_size // _PIXELS for file in files), _PIXELS), dtype=torch.uint8)
    labels: list[int] = []
    for file in files:
        content = _unpickle(file)
        pixels, own = content.get("data"), content.get(labels_key)
        if not (
            isinstance(pixels, _Array)
            and isinstance(own, list)
            and all(isinstance(label, int) and abs(label) < 1 << 62 for label in own)
            and pixels.shape == (len(own), _PIXELS)
            and isinstance(pixels.raw, bytes | bytearray)
            and len(pixels.raw) == len(own) * _PIXELS
        ):
            raise InputError(f"{file} is not a CIFAR file: it needs 'data' (N, {_PIXELS}) uint8 and N '{labels_key}'")
        rows = slice(len(labels), len(labels) + len(own))
        images[rows].numpy()[:] = np.frombuffer(pixels.raw, np.uint8).reshape(pixels.shape)
        labels += own
        del content, pixels  # before the next file is read
    return images[: len(labels)], torch.tensor(labels, dtype=torch.int64)


def _read_binary(files: list[Path], label_bytes: int) -> tuple[Tensor, Tensor]:
    record = label_bytes + _PIXELS
    counts = [file.stat().st_size // record for file in files]
    images = torch.empty((sum(counts), _PIXELS), dtype=torch.uint8)
    labels = torch.empty(sum(counts), dtype=torch.int64)
    row = 0
    for file, count in zip(files, counts, strict=True):
        if file.stat().st_size != count * record:
            raise InputError(f"{file} is damaged: its size is not a multiple of {record} bytes, one CIFAR record")
        records = np.memmap(file, np.uint8, "r", shape=(count, record)) if count else np.empty((0, record))
        for first in range(0, count, 1000):  # a piece at a time: mapped bytes count as memory
            piece = torch.from_numpy(np.array(records[first : first + 1000]))
            images[row : row + len(piece)] = piece[:, label_bytes:]
            labels[row : row + len(piece)] = piece[:, label_bytes - 1]
            row += len(piece)
    return images, labels


def _entry(file: Path, key: str) -> list[Any]:
    values = _unpickle(file).get(key)
    if not isinstance(values, list):
        raise InputError(f"{file} is damaged: it has no list '{key}'")
    return values


def _text(value: bytes | str) -> str:
    return value.decode("latin-1") if isinstance(value, bytes) else str(value)


class _Array:
    """A stand-in for NumPy's array and dtype while a file is unpickled: the file calls nothing of NumPy."""

    code, shape, raw = "", (), b""

    def __init__(self, code: Any = "", *_: Any) -> None:
        self.code = code

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        if len(state) == 5:  # of an array; a dtype's has eight or nine parts
            _, self.shape, dtype, fortran_order, self.raw = state
            if _text(dtype.code) != "u1" or fortran_order:
                raise InputError("holds an array that is not plain uint8")


class _ArraysOnly(pickle.Unpickler):
    """Unpickles numbers, strings, lists, dicts and uint8 arrays; everything else is refused."""

    def find_class(self, module: str, name: str) -> type:
        if (module.replace("_core", "core"), name) not in (
            ("numpy.core.multiarray", "_reconstruct"), ("numpy", "ndarray"), ("numpy", "dtype"),
        ):  # fmt: skip
            raise InputError(f"is refused, and nothing of it was run: it asks for {module}.{name}, not for data")
        return _Array


def _unpickle(file: Path) -> dict[str, Any]:
    try:
        with regular(file).open("rb") as stream:
            _check_pickle(stream)
            stream.seek(0)
            content = _ArraysOnly(stream, encoding="bytes").load()
        return {_text(key): value for key, value in content.items()}
    except InputError as error:
        raise InputError(f"{file} {error}") from None
    except Exception as error:  # a damaged pickle makes the unpickler raise almost anything
        raise InputError(f"{file} is damaged ({error or type(error).__name__}): unpack it again") from None


_MOST_STEPS = 2_000_000
"""Of a pickle; the official files have 200,000, and share no object."""


def _check_pickle(stream: BinaryIO) -> None:
    """Refuse a pickle that would take far more memory or time than the official ones, before it is read."""
    codes = {ord(code.code): (code.name, code.arg) for code in pickletools.opcodes}
    lengths = {-2: 1, -3: 4, -4: 4, -5: 8}  # bytes of the length that stands before an argument, by pickletools' mark
    position = steps = shared = 0
    with mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ) as content:
        while position < len(content):
            name, argument = codes[content[position]]
            first = position = position + 1
            size = argument.n if argument else 0
            if argument and size == -1:  # a line, or two
                for _ in range(2 if "pair" in argument.name else 1):
                    position = content.find(b"\n", position) + 1 or len(content)
            elif size in lengths:
                first += lengths[size]
                position = first + int.from_bytes(content[position:first], "little")
            else:
                position += size
            index = 0
            if name.endswith("PUT"):
                index = (
                    int(content[first:position]) if size == -1 else int.from_bytes(content[first:position], "little")
                )
            steps, shared = steps + 1, shared + ("GET" in name or name == "DUP")
            if max(steps, index) > _MOST_STEPS or shared > 16:
                raise InputError(f"is damaged: at byte {first} it announces more objects than CIFAR has")
            if name == "STOP":
                return


# ---- MNIST and Fashion-MNIST: idx files, plain or gzip ----

_PREFIX = {"train": "train", "test": "t10k"}
_FASHION = (
    "T-shirt/top", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot"
)  # fmt: skip
_FIRST_LABELS = {  # of the training and the test images
    "5041921314": "mnist", "7210414959": "mnist", "9003027255": "fashion-mnist", "9211614657": "fashion-mnist",
}  # fmt: skip
_INFLATION, _MOST_VALUES = 1032, 1 << 30
"""A gzip file holds at most so many times its size; the largest set of this kind, EMNIST, has 640 million values."""


def find_idx(name: str, root: Path) -> Path | None:
    """Return the folder of ``name`` ("fashion-mnist" or "mnist"): ``root`` or where torchvision puts it, else None.

    The files of both sets have the same names: the first labels tell which they are, and the path if these are others.
    """
    official = {"fashion-mnist": "FashionMNIST", "mnist": "MNIST"}[name]
    for folder in (root, root / "raw", root / official / "raw", root / official, root / name):
        found = any(_find_idx_file(folder, split, kind) for split in _PREFIX for kind in ("images", "labels"))
        if found and _known_idx(folder) == name:
            return folder
    return None


def _known_idx(folder: Path) -> str:
    for split in _PREFIX:
        file = _find_idx_file(folder, split, "labels")
        with suppress(OSError, EOFError, zlib.error):  # of a damaged file, which is refused when it is read
            if file:
                with gzip.open(regular(file)) if file.suffix == ".gz" else regular(file).open("rb") as stream:
                    first = "".join(map(str, stream.read(18)[8:]))
                if first in _FIRST_LABELS:
                    return _FIRST_LABELS[first]
    return "fashion-mnist" if "fashion" in str(folder.resolve()).lower() else "mnist"


def read_idx(name: str, folder: Path, split: str) -> Arrays:
    """Read one split of MNIST or Fashion-MNIST.

    Source: https://github.com/zalandoresearch/fashion-mnist; checked against ``torchvision.datasets``.
    """
    files = {kind: _find_idx_file(folder, split, kind) for kind in ("images", "labels")}
    for kind, file in files.items():
        if file is None:
            expected = f"{_PREFIX[split]}-{kind}-idx{3 if kind == 'images' else 1}-ubyte(.gz)"
            raise InputError(f"{folder} is not a complete {name}: {expected} is missing; unpack it again")
    images, labels = (_read_idx_file(file, 3 if kind == "images" else 1) for kind, file in files.items() if file)
    if len(images) != len(labels):
        raise InputError(f"{folder} holds {len(images)} {split} images and {len(labels)} labels; they must agree")
    classes = _FASHION if name == "fashion-mnist" else tuple("0123456789")
    return images.unsqueeze(1), labels.long(), classes


def _find_idx_file(folder: Path, split: str, kind: str) -> Path | None:
    suffix = "idx3-ubyte" if kind == "images" else "idx1-ubyte"
    candidates = [folder / f"{_PREFIX[split]}-{kind}{dash}{suffix}{gz}" for gz in ("", ".gz") for dash in "-."]
    return next((file for file in candidates if file.is_file()), None)


def _read_idx_file(file: Path, dims: int) -> Tensor:
    """Read an idx file of unsigned bytes: magic number, sizes (big-endian), values."""
    try:
        most = file.stat().st_size * (_INFLATION if file.suffix == ".gz" else 1)
        with gzip.open(regular(file)) if file.suffix == ".gz" else regular(file).open("rb") as stream:
            if stream.read(4) != bytes((0, 0, 8, dims)):
                raise InputError(f"{file} is not an idx file of unsigned bytes in {dims} dimensions")
            shape = [int.from_bytes(stream.read(4), "big") for _ in range(dims)]
            count = math.prod(shape)
            if count > min(most, _MOST_VALUES):  # before memory is allocated
                raise InputError(f"{file} is damaged: it does not hold the {count} values that it announces")
            values = torch.empty(shape, dtype=torch.uint8)
            # through a flat view: a gzip stream fills it piece by piece
            filled, view = 0, memoryview(values.numpy().reshape(-1).data)
            while filled < count and (got := stream.readinto(view[filled:])):
                filled += got
            if filled < count or stream.read(1):
                raise InputError(f"{file} is damaged: it does not hold the {count} values that it announces")
    except (OSError, EOFError, zlib.error, RuntimeError) as error:
        raise InputError(f"{file} is damaged ({error}): unpack it again") from None
    return values


# ---- digits: 1,797 scans of 8×8 pixels that come with scikit-learn ----


def read_digits(split: str) -> Arrays:
    """Read one split: 1,000 scans to train and 797 to test, stratified, the same in every run.

    The 17 grey levels are spread over 0 to 255.

    Source: the test part of the UCI "Optical Recognition of Handwritten Digits", as ``sklearn.datasets`` has it.
    """
    from sklearn.datasets import load_digits  # takes a second to import
    from sklearn.model_selection import train_test_split

    digits = load_digits()
    train, test = train_test_split(
        np.arange(len(digits.target)), train_size=1000, stratify=digits.target, random_state=0
    )
    index = np.sort(train if split == "train" else test)
    images = np.rint(digits.images[index] * (255 / 16)).astype(np.uint8)
    labels = digits.target[index].astype(np.int64)
    return torch.from_numpy(images).unsqueeze(1), torch.from_numpy(labels), tuple("0123456789")


# ---- Tiny-ImageNet-200: image files, decoded once into one tensor ----

_TINY = "tiny-imagenet-200"


def find_tiny_imagenet(root: Path) -> Path | None:
    """Return the folder that holds ``train/`` and ``val/``: ``root`` itself or a folder in it, else None."""
    return _find(root, _TINY, "val/val_annotations.txt")


def read_tiny_imagenet(
    folder: Path, split: str, *, skip_unreadable: bool
) -> tuple[Tensor, Tensor, tuple[str, ...], tuple[Path, ...]]:
    """Read one split; "test" is the validation set, since the labels of the test set were never published.

    The classes are ordered by WordNet id and named by their first word in ``words.txt``, or by the id without that
    file. A reduced copy, with fewer images per class, is read as well. Returned are the images (N, 3, 64, 64) uint8,
    labels (N,) int64, the class names, and the files left out.
    """
    train = folder / "train"
    ids = sorted(entry.name for entry in train.iterdir() if entry.is_dir()) if train.is_dir() else []
    if not ids:
        raise InputError(f"{folder} is not a complete {_TINY}: train/ is missing or empty; unpack it again")
    pairs = list(_tiny_train(train, ids) if split == "train" else _tiny_val(folder / "val", ids))
    skipped = find_unreadable([path for path, _ in pairs]) if skip_unreadable else set()
    kept = [(path, label) for path, label in pairs if path not in skipped]
    without = set(range(len(ids))) - {label for _, label in kept}
    if without:
        raise InputError(f"{folder}: the class {ids[min(without)]} has no {split} images; unpack it again")
    images = read_same_size([path for path, _ in kept], 64, 64)
    labels = torch.tensor([label for _, label in kept])
    return images, labels, _tiny_names(folder / "words.txt", ids), tuple(sorted(skipped))


def _tiny_train(train: Path, ids: list[str]) -> Iterator[tuple[Path, int]]:
    for label, wnid in enumerate(ids):
        for path in sorted((train / wnid / "images").glob("[!.]*.JPEG")):
            yield path, label


def _tiny_val(val: Path, ids: list[str]) -> Iterator[tuple[Path, int]]:
    annotations, label_of = val / "val_annotations.txt", {wnid: label for label, wnid in enumerate(ids)}
    if not annotations.is_file():
        raise InputError(f"{val.parent} is not a complete {_TINY}: {annotations} is missing; unpack it again")
    for line in read_text(annotations).splitlines():
        name, wnid, *_ = [*line.split("\t"), ""]
        if wnid not in label_of:
            raise InputError(f"{annotations}: the class '{wnid}' of '{name}' is none of the {len(ids)} in train/")
        yield val / "images" / name, label_of[wnid]


def _tiny_names(words: Path, ids: list[str]) -> tuple[str, ...]:
    rows = [line.partition("\t") for line in read_text(words).splitlines()] if words.is_file() else []
    names = {wnid: text.split(",")[0].strip() for wnid, _, text in rows}
    return tuple(names.get(wnid) or wnid for wnid in ids)


# ---- ImageNet: class folders in train/ and val/ ----


def find_imagenet(root: Path) -> Path | None:
    """Return ``root`` if it holds ``val/``, and ``train/`` with ImageNet's thousand class folders, else None."""
    train = root / "train"
    if not (root / "val").is_dir() or not train.is_dir():
        return None
    names = [entry.name for entry in train.iterdir() if re.fullmatch(r"n\d{8}", entry.name)]
    return root if len(names) == 1000 else None


# ---- CUB-200-2011: image files ----


def find_cub(root: Path) -> Path | None:
    """Return the folder that holds ``images.txt`` and ``images/``: ``root`` itself or a folder in it, else None."""
    files = ("images.txt", "train_test_split.txt")
    found = _find(root, "CUB_200_2011", *files)
    return found if found and all((found / file).is_file() for file in files) else None


def read_cub(folder: Path, split: str) -> tuple[list[Path], list[int], tuple[str, ...]]:
    """List the images of one split, in the order of ``images.txt``: 5,994 to train and 5,794 to test.

    Returned are the files, their labels from 0, and the class names, e.g. "Black footed Albatross".
    """
    classes = [(number, name) for _, (number, name) in read_rows(folder / "classes.txt", " ", 2)]
    label_of = {number: label for label, (number, _) in enumerate(classes)}
    tables = {
        name: dict(row for _, row in read_rows(folder / f"{name}.txt", " ", 2))
        for name in ("images", "image_class_labels", "train_test_split")
    }
    wanted = "1" if split == "train" else "0"
    paths, labels = [], []
    for number, name in tables["images"].items():
        number_of_class = tables["image_class_labels"].get(number)
        if number_of_class not in label_of or number not in tables["train_test_split"]:
            raise InputError(f"{folder}: image {number} ({name}) has no class or is in no split; unpack the set again")
        if tables["train_test_split"][number] == wanted:
            paths.append(folder / "images" / name)
            labels.append(label_of[number_of_class])
    if not paths:
        raise InputError(f"{folder} has no {split} images; unpack the set again")
    names = tuple(name.partition(".")[2].replace("_", " ") or name for _, name in classes)
    return paths, labels, names


def read_rows(file: Path, separator: str, columns: int) -> Iterator[tuple[int, list[str]]]:
    """Yield the number of each line of a table, from 1, and its columns."""
    if not file.is_file():
        raise InputError(f"{file} is missing; expected it with the other annotations")
    for number, line in enumerate(read_text(file).splitlines(), 1):
        parts = line.split(separator)
        if len(parts) != columns:
            raise InputError(f"{file}, line {number}: {len(parts)} columns; expected {columns}")
        yield number, parts
