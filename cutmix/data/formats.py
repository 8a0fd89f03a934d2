"""CIFAR-10 and CIFAR-100 in their official layouts: the Python pickles and the binary files."""

import gzip
import math
import pickle
import re
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, cast

import numpy as np
import torch
from torch import Tensor

from cutmix.data.decode import find_unreadable, read_same_size
from cutmix.errors import InputError

_PIXELS = 3 * 32 * 32


@dataclass(frozen=True)
class _Layout:
    """Where one official archive keeps what; ``label_bytes`` a record, of which the last is the label."""

    folder: str
    train: tuple[str, ...]
    test: tuple[str, ...]
    names: str
    names_key: str = ""
    labels_key: str = ""
    label_bytes: int = 0


_LAYOUTS = {
    "cifar-10": (
        _Layout(
            "cifar-10-batches-py",
            tuple(f"data_batch_{k}" for k in range(1, 6)),
            ("test_batch",),
            "batches.meta",
            names_key="label_names",
            labels_key="labels",
        ),
        _Layout(
            "cifar-10-batches-bin",
            tuple(f"data_batch_{k}.bin" for k in range(1, 6)),
            ("test_batch.bin",),
            "batches.meta.txt",
            label_bytes=1,
        ),
    ),
    "cifar-100": (
        _Layout(
            "cifar-100-python",
            ("train",),
            ("test",),
            "meta",
            names_key="fine_label_names",
            labels_key="fine_labels",
        ),
        _Layout("cifar-100-binary", ("train.bin",), ("test.bin",), "fine_label_names.txt", label_bytes=2),
    ),
}


def find_cifar(name: str, root: Path) -> Path | None:
    """Return the folder of ``name`` ("cifar-10" or "cifar-100"): ``root`` itself or a folder in it, else None."""
    for layout in _LAYOUTS[name]:
        for folder in (root, root / layout.folder):
            if folder.is_dir() and (folder.name == layout.folder or (folder / layout.names).is_file()):
                return folder
    return None


def read_cifar(name: str, folder: Path, split: str) -> tuple[Tensor, Tensor, tuple[str, ...]]:
    """Read one split.

    The pixels are held once: a pickle's own buffer becomes the tensor, several files are read into one.

    Returns:
        images (N, 3, 32, 32) uint8, labels (N,) int64, the class names.

    Raises:
        InputError: A file is missing or damaged, or a pickle asks for anything but an array of bytes.

    Source: https://www.cs.toronto.edu/~kriz/cifar.html; checked against ``torchvision.datasets``.
    """
    layouts = _LAYOUTS[name]
    layout = next((x for x in layouts if x.folder == folder.name or (folder / x.names).is_file()), layouts[0])
    files = [folder / file for file in (layout.train if split == "train" else layout.test)]
    missing = [file.name for file in [*files, folder / layout.names] if not file.is_file()]
    if missing:
        raise InputError(f"{folder} is not a complete {name}: {', '.join(missing)} is missing; unpack it again")
    if layout.label_bytes:
        names = (folder / layout.names).read_text().split()
        images, labels = _read_binary(files, layout.label_bytes)
    else:
        names = [_text(name) for name in _entry(folder / layout.names, layout.names_key)]
        images, labels = _read_pickles(files, layout.labels_key)
    return images.view(-1, 3, 32, 32), labels, tuple(names)


def _read_pickles(files: list[Path], labels_key: str) -> tuple[Tensor, Tensor]:
    if len(files) == 1:
        return _read_pickle(files[0], labels_key)
    images = torch.empty((sum(file.stat().st_size // _PIXELS for file in files), _PIXELS), dtype=torch.uint8)
    labels = torch.empty(len(images), dtype=torch.int64)
    rows = 0
    for file in files:
        part, part_labels = _read_pickle(file, labels_key)
        images[rows : rows + len(part)], labels[rows : rows + len(part)] = part, part_labels
        rows += len(part)
        del part  # before the next file is read
    return images[:rows], labels[:rows]


def _read_pickle(file: Path, labels_key: str) -> tuple[Tensor, Tensor]:
    content = _unpickle(file)
    pixels, labels = content.get("data"), content.get(labels_key)
    if not (
        isinstance(pixels, _Array)
        and isinstance(labels, list)
        and all(isinstance(label, int) and abs(label) < 1 << 62 for label in labels)
        and pixels.values.shape == (len(labels), _PIXELS)
    ):
        raise InputError(f"{file} is not a CIFAR file: it needs 'data' (N, {_PIXELS}) uint8 and N '{labels_key}'")
    return torch.from_numpy(pixels.values), torch.tensor(labels, dtype=torch.int64)


def _read_binary(files: list[Path], label_bytes: int) -> tuple[Tensor, Tensor]:
    record = label_bytes + _PIXELS
    counts = [file.stat().st_size // record for file in files]
    images = torch.empty((sum(counts), _PIXELS), dtype=torch.uint8)
    labels = torch.empty(sum(counts), dtype=torch.int64)
    row = 0
    for file, count in zip(files, counts, strict=True):
        if file.stat().st_size != count * record:
            raise InputError(f"{file} is damaged: its size is no multiple of {record} bytes, one CIFAR record")
        records = np.memmap(file, np.uint8, "r", shape=(count, record)) if count else np.empty((0, record))
        for first in range(0, count, 1000):  # a piece at a time: what is mapped counts as memory
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


def _unpickle(file: Path) -> dict[str, Any]:
    try:
        with file.open("rb") as stream:
            content = _ArraysOnly(_Reader(stream), encoding="bytes").load()
        return {_text(key): value for key, value in content.items()}
    except InputError as error:
        raise InputError(f"{file} {error}") from None
    except Exception as error:  # a damaged pickle makes the unpickler raise almost anything
        raise InputError(f"{file} is damaged ({error or type(error).__name__}): unpack it again") from None


def _text(value: bytes | str) -> str:
    return value.decode("latin-1") if isinstance(value, bytes) else value


class _Array:
    """Stands in for a NumPy array while it is unpickled: NumPy itself is never called by the file."""

    def __init__(self, *_: object) -> None:
        self.values = np.empty((0, 0), np.uint8)

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        _, shape, dtype, fortran_order, raw = state
        if _text(dtype.code) != "u1" or fortran_order:
            raise InputError("holds an array that is not plain uint8")
        writable = raw if isinstance(raw, bytearray) else bytearray(raw)
        self.values = np.frombuffer(writable, np.uint8).reshape(shape)


class _Dtype:
    """Stands in for a NumPy dtype while it is unpickled."""

    def __init__(self, code: bytes | str = "", *_: object) -> None:
        self.code = code

    def __setstate__(self, state: object) -> None:
        pass


class _Reader:
    """Reads large pieces into writable memory, which then is the tensor's: no copy, no read-only buffer."""

    def __init__(self, stream: BinaryIO) -> None:
        self.stream = stream
        self.readline = stream.readline
        self.left = stream.seek(0, 2)
        stream.seek(0)

    def read(self, count: int) -> bytes:
        if count < 1 << 16:
            return self.stream.read(count)
        if count > self.left:  # before it is allocated
            raise EOFError("it is truncated")
        piece = bytearray(count)
        self.readinto(piece)
        return cast(bytes, piece)

    def readinto(self, piece: bytearray) -> int:
        return self.stream.readinto(piece)  # type: ignore[attr-defined]


# The unpickler written in Python, since the one in C holds a Python-2 string twice while reading it: twice the set.
class _ArraysOnly(pickle._Unpickler):
    """Unpickles numbers, strings, lists, dicts and uint8 arrays; whatever else a file asks for is refused."""

    def find_class(self, module: str, name: str) -> type:
        stand_ins: dict[tuple[str, str], type] = {
            ("numpy.core.multiarray", "_reconstruct"): _Array,
            ("numpy._core.multiarray", "_reconstruct"): _Array,
            ("numpy", "ndarray"): _Array,
            ("numpy", "dtype"): _Dtype,
        }
        if (module, name) not in stand_ins:
            raise InputError(f"is refused, and nothing of it was run: it asks for {module}.{name}, not for data")
        return stand_ins[module, name]


# ---- idx ----
# The MNIST layout (idx files, plain or gzip), in which Fashion-MNIST comes too.

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


# ---- digits ----
# The digits that come with scikit-learn: 1,797 real scans, 8×8, nothing to download.


def read_digits(split: str) -> tuple[Tensor, Tensor, tuple[str, ...]]:
    """Read one split: 1,000 scans to train and 797 to test, stratified, the same in every run.

    Returns:
        images (N, 1, 8, 8) uint8, the 17 grey levels spread over 0 to 255; labels (N,) int64; the class names.

    Source: the test part of the UCI "Optical Recognition of Handwritten Digits", as ``sklearn.datasets`` has it.
    """
    from sklearn.datasets import load_digits  # a second to import: only who asks for it waits
    from sklearn.model_selection import train_test_split

    digits = load_digits()
    train, test = train_test_split(
        np.arange(len(digits.target)), train_size=1000, stratify=digits.target, random_state=0
    )
    index = np.sort(train if split == "train" else test)
    images = np.rint(digits.images[index] * (255 / 16)).astype(np.uint8)
    labels = digits.target[index].astype(np.int64)
    return torch.from_numpy(images).unsqueeze(1), torch.from_numpy(labels), tuple("0123456789")


# ---- tiny imagenet ----
# Tiny-ImageNet-200 in its official layout, decoded once into one tensor.

_TINY_FOLDER = "tiny-imagenet-200"


def find_tiny_imagenet(root: Path) -> Path | None:
    """Return the folder that holds ``train/`` and ``val/``: ``root`` itself or a folder in it, else None."""
    for folder in (root, root / _TINY_FOLDER):
        if folder.is_dir() and (folder.name == _TINY_FOLDER or (folder / "val" / "val_annotations.txt").is_file()):
            return folder
    return None


def read_tiny_imagenet(
    folder: Path, split: str, *, skip_unreadable: bool
) -> tuple[Tensor, Tensor, tuple[str, ...], tuple[Path, ...]]:
    """Read one split; "test" is the validation set, since the labels of the test set were never published.

    The classes are ordered by WordNet id and named by the first word that ``words.txt`` gives for them, or by the
    id where there is no such file. A reduced copy, with fewer images a class, is read as well.

    Returns:
        images (N, 3, 64, 64) uint8, labels (N,) int64, the class names, the files left out.

    Raises:
        InputError: A split is missing, a class has no images, or a file cannot be read.
    """
    train = folder / "train"
    ids = sorted(entry.name for entry in train.iterdir() if entry.is_dir()) if train.is_dir() else []
    if not ids:
        raise InputError(f"{folder} is not a complete {_TINY_FOLDER}: train/ is missing or empty; unpack it again")
    pairs = list(_train_files(train, ids) if split == "train" else _val_files(folder / "val", ids))
    skipped = find_unreadable([path for path, _ in pairs]) if skip_unreadable else set()
    kept = [(path, label) for path, label in pairs if path not in skipped]
    without = set(range(len(ids))) - {label for _, label in kept}
    if without:
        raise InputError(f"{folder}: the class {ids[min(without)]} has no {split} images; unpack it again")
    images = read_same_size([path for path, _ in kept], 64, 64)
    labels = torch.tensor([label for _, label in kept])
    return images, labels, _names(folder, ids), tuple(sorted(skipped))


def _train_files(train: Path, ids: list[str]) -> Iterator[tuple[Path, int]]:
    for label, wnid in enumerate(ids):
        for path in sorted((train / wnid / "images").glob("[!.]*.JPEG")):
            yield path, label


def _val_files(val: Path, ids: list[str]) -> Iterator[tuple[Path, int]]:
    annotations, label_of = val / "val_annotations.txt", {wnid: label for label, wnid in enumerate(ids)}
    if not annotations.is_file():
        raise InputError(f"{val.parent} is not a complete {_TINY_FOLDER}: {annotations} is missing; unpack it again")
    for line in annotations.read_text().splitlines():
        name, wnid, *_ = [*line.split("\t"), ""]
        if wnid not in label_of:
            raise InputError(f"{annotations}: the class '{wnid}' of '{name}' is none of the {len(ids)} in train/")
        yield val / "images" / name, label_of[wnid]


def _names(folder: Path, ids: list[str]) -> tuple[str, ...]:
    words: dict[str, str] = {}
    if (folder / "words.txt").is_file():
        for line in (folder / "words.txt").read_text(encoding="utf-8").splitlines():
            wnid, _, text = line.partition("\t")
            words[wnid] = text.split(",")[0].strip()
    return tuple(words.get(wnid) or wnid for wnid in ids)


# ---- imagenet ----


def find_imagenet(root: Path) -> Path | None:
    """Return ``root`` if it holds ``val/``, and ``train/`` with ImageNet's thousand class folders, else None."""
    train = root / "train"
    if not (root / "val").is_dir() or not train.is_dir():
        return None
    names = [entry.name for entry in train.iterdir() if re.fullmatch(r"n\d{8}", entry.name)]
    return root if len(names) == 1000 else None


# ---- cub ----
# CUB-200-2011 in its official layout: the images of a split, their labels and the names of the birds.

_CUB_FOLDER = "CUB_200_2011"


def find_cub(root: Path) -> Path | None:
    """Return the folder that holds ``images.txt`` and ``images/``: ``root`` itself or a folder in it, else None."""
    for folder in (root, root / _CUB_FOLDER):
        if (folder / "images.txt").is_file() and (folder / "train_test_split.txt").is_file():
            return folder
    return None


def read_cub(folder: Path, split: str) -> tuple[list[Path], list[int], tuple[str, ...]]:
    """List the images of one split, in the order of ``images.txt``.

    Args:
        folder: Holds ``images/``, ``images.txt``, ``classes.txt``, ``image_class_labels.txt`` and
            ``train_test_split.txt``.
        split: "train" or "test"; the whole set has 5,994 and 5,794 images.

    Returns:
        The files; their labels, from 0; the class names, e.g. "Black footed Albatross".

    Raises:
        InputError: A file is missing or does not belong to the others, or the split has no images.
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
    """Yield the number of each line of a table, from 1, and its columns.

    Raises:
        InputError: The file is missing or a line has another number of columns.
    """
    if not file.is_file():
        raise InputError(f"{file} is missing; expected it with the other annotations")
    for number, line in enumerate(file.read_text(encoding="utf-8").splitlines(), 1):
        parts = line.split(separator)
        if len(parts) != columns:
            raise InputError(f"{file}, line {number}: {len(parts)} columns; expected {columns}")
        yield number, parts
