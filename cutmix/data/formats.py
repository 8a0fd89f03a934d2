"""CIFAR-10 and CIFAR-100 in their official layouts: the Python pickles and the binary files."""

import pickle
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, cast

import numpy as np
import torch
from torch import Tensor

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
