"""Tar shards in webdataset's format: an index of their samples, and reads at an offset. No torch here.

Shards are splits if their names or folders contain train, val or test. The index is a cache beside the shards; it is
built again if they have changed.
"""

import functools
import json
import os
import re
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from cutmix.data.folder import EXTENSIONS, NAMES_OF_PARTS, is_hidden, printable_name, read_text
from cutmix.data.sources import CLASSES, Sources, SourcesOf, State, Stored, opened, scan, state_of
from cutmix.errors import UNREADABLE, InputError, counted
from cutmix.runtime.files import read_arrays, write_atomic

INDEX = "cutmix-index.npz"

_ROW = np.dtype([("shard", "<u2"), ("offset", "<i8"), ("size", "<u4"), ("name", "<u4"), ("suffix", "u1")])

# with the key as a number, -1 if it is none, and the number of the label, while shards are read
_SCANNED = np.dtype([*_ROW.descr, ("key", "<i8"), ("label", "<u4"), ("length", "<u4")])

_CHUNK = 1 << 16  # rows of which the names are Python objects at a time

Label = tuple[int | None, str | None]
"""Class id and class name of a sample, one of which may be missing."""


@dataclass(frozen=True)
class Catalogue:
    """The samples of a data set whose images lie inside larger files."""

    classes: tuple[str, ...]  # in the order of their labels
    parts: dict[str, tuple[np.ndarray, Sources]]  # labels, (n,) int64, and images, by "train", "val", "test", or "all"
    places: dict[str, str] = field(default_factory=dict)  # the contents of each part, as a phrase


# ---- images inside shards ----


class _Names(Sequence[str]):
    """Names in one piece of memory, read from the index on first use and again after ``release``."""

    def __init__(self, load: Callable[[], tuple[bytes, np.ndarray]]) -> None:
        self._load = load

    @functools.cached_property
    def _held(self) -> tuple[bytes, np.ndarray]:
        return self._load()

    def __len__(self) -> int:
        return len(self._held[1])

    def __getitem__(self, number: Any) -> Any:
        text, ends = self._held
        return text[ends[number - 1] if number else 0 : ends[number]].decode("utf-8", "surrogatepass")

    def release(self) -> None:
        """Free the memory of the names."""
        vars(self).pop("_held", None)


class Members(SourcesOf[Stored]):
    """Images inside tar shards: 19 bytes of memory each, and their names in the index.

    Each row has the shard, offset and size of an image, and the number of its name. A tar file whose state has changed
    since its members were read is refused.
    """

    def __init__(self, shards: Sequence[Path], states: Sequence[State], rows: np.ndarray, names: _Names) -> None:
        self.shards, self.states, self.rows, self.known_names = tuple(shards), tuple(states), rows, names
        self.shard = rows["shard"]

    def __len__(self) -> int:
        return len(self.rows)

    def one(self, number: int) -> Stored:
        """Return an image by its index."""
        return _Member(self, self.rows[number].tolist())

    def take(self, index: Sequence[int] | np.ndarray) -> "Members":
        """Return some of the images, by their indices."""
        return Members(self.shards, self.states, self.rows[np.asarray(index, np.int64)], self.known_names)

    def names(self) -> list[str]:
        """Return the name of each image: of its original file, or of the shard and the member."""
        return [self.known_names[i] for i in self.rows["name"].tolist()]

    def identities(self) -> Iterable[bytes]:
        """Yield the name of each image, without folders, and its size."""
        for start in range(0, len(self), _CHUNK):
            for number, size in self.rows[start : start + _CHUNK][["name", "size"]].tolist():
                yield os.fsencode(os.path.basename(self.known_names[number])) + b"/%d" % size
        self.known_names.release()


class _Member(Stored):
    """An image inside a shard."""

    def __init__(self, members: Members, row: tuple[int, int, int, int, int]) -> None:
        self.members, (self.shard, self.offset, self.size, self.number, suffix) = members, row
        self.suffix = EXTENSIONS[suffix]

    @property
    def name(self) -> str:  # type: ignore[override]
        return self.members.known_names[self.number]

    @property
    def place(self) -> str:  # type: ignore[override]
        return str(self.members.shards[self.shard])

    def read_bytes(self) -> bytes:
        file = opened(self.members.shards[self.shard], self.members.states[self.shard])
        content = os.pread(file.number, self.size, self.offset)
        if len(content) < self.size:
            raise OSError("the shard is shorter than in its index")
        return content


# ---- finding shards ----


def find_shards(folder: Path, *, trained: bool = True) -> dict[str, list[Path]]:
    """Return the shards of a folder by their part, "train", "val", "test" or "all"; empty if it holds no shards.

    Unless ``trained`` is false, a part to train on is required.
    """
    visible = sorted(path for path in folder.iterdir() if not is_hidden(path.name))
    folders = [path for path in visible if path.is_dir()]
    parts: dict[str, list[Path]] = {}
    if not folders:
        for path in _tars(visible):
            parts.setdefault(_part_of(path.stem), []).append(path)
    for path in folders:
        part = _part_of(path.name)
        inside = [] if part == "all" else _tars(sorted(path.iterdir()))
        if not inside:
            return {}
        parts.setdefault(part, []).extend(inside)
    if len(parts) > 1 and "all" in parts:
        raise InputError(f"{parts['all'][0]} belongs to no split, others in {folder} do; expected train, val or test")
    if parts and trained and not {"train", "all"} & parts.keys():
        raise InputError(f"{folder} has shards of {' and '.join(parts)} but none to train on; expected train-*.tar")
    return parts


def _tars(paths: Iterable[Path]) -> list[Path]:
    paths = [path for path in paths if not is_hidden(path.name)]
    found = [path for path in paths if path.suffix.lower() == ".tar" and path.is_file()]
    packed = [path for path in paths if re.search(r"-\d+\.(tar\.\w+|tgz)$", path.name)]
    if packed and not found:
        raise InputError(f"{packed[0]} is compressed, so that no image in it can be read alone; expected .tar files")
    return found


def _part_of(stem: str) -> str:
    """Return the split that a word of a name stands for, or "all"."""
    words = re.split(r"[-_.\d]+", stem)
    return next((part for part, names in NAMES_OF_PARTS.items() for word in words if names.fullmatch(word)), "all")


# ---- classes ----


def _classes(root: Path, labels: Iterable[Label]) -> tuple[tuple[str, ...], Callable[[Label], int]]:
    """Return the class names, and a function from a label to the index of its class.

    Ids keep their values: they are the outputs of a model. Their names are those of the samples or of ``classes.txt``.
    """
    names: dict[int, str] = {}
    only_names: set[str] = set()
    most = -1
    for label, name in labels:
        if label is None:
            only_names.add(str(name))
            continue
        most = max(most, label)
        if name is not None and names.setdefault(label, name) != name:
            raise InputError(f"{root} has the names '{names[label]}' and '{name}' of class {label}; expected one")
    if only_names and most >= 0:
        raise InputError(f"{root} has class ids for some samples and names for others; expected either for all")
    if only_names:
        listed = sorted(only_names)
        number = {name: i for i, name in enumerate(listed)}
        return _checked(root, listed), lambda label: number[str(label[1])]
    if (root / CLASSES).is_file():
        listed = read_text(root / CLASSES).splitlines()
        if most >= len(listed):
            raise InputError(f"{root} has the label {most}, but {CLASSES} there names {len(listed)} classes")
        for i, name in names.items():
            if listed[i] != name:
                raise InputError(f"{root} names class {i} '{name}', but {CLASSES} there '{listed[i]}'")
    else:
        listed = [names.get(i, str(i)) for i in range(most + 1)]
    return _checked(root, listed), lambda label: int(label[0] or 0)


def _checked(root: Path, names: list[str]) -> tuple[str, ...]:
    shown = tuple(map(printable_name, names))
    if len(set(shown)) < len(shown):
        twice = next(name for i, name in enumerate(shown) if name in shown[:i])
        raise InputError(f"{root} has two classes named '{twice}'; expected each name once")
    if len(shown) < 2:
        raise InputError(f"{root} holds one class only; a classifier needs two or more")
    return shown


# ---- the index ----


def read_shards(root: Path, shards: dict[str, list[Path]]) -> Catalogue:
    """Return the samples of shards, from the index beside them or by reading every header.

    They are in the order of shards and members; or in that of their keys, if these count from 0.
    """
    order = [path for part in shards.values() for path in part]
    states = [state_of(path.stat()) for path in order]
    parts_of = [part for part, paths in shards.items() for _ in paths]
    state = json.dumps(  # without device and inode, which are others where a data set has been moved
        [
            [part, path.relative_to(root).as_posix(), *own[2:]]
            for part, path, own in zip(parts_of, order, states, strict=True)
        ]
    )
    state += read_text(root / CLASSES) if (root / CLASSES).is_file() else ""
    arrays: dict[str, Any] | None = _load_index(root / INDEX, state, shards, order)
    from_index = functools.partial(_load_names, root / INDEX)
    load: Callable[[], tuple[bytes, np.ndarray]] = from_index
    if arrays is None:
        arrays = _build_index(root, shards, order) | {"state": np.array(state)}
        held = arrays["names"].tobytes(), arrays["ends"]
        load = lambda: held  # noqa: E731 - a folder that cannot be written is read again each time
        with suppress(InputError):
            write_atomic(root / INDEX, lambda file: np.savez(file, **arrays))
            load = from_index
    names, start = _Names(load), 0
    parts: dict[str, tuple[np.ndarray, Sources]] = {}
    counts = [len(arrays[f"labels-{part}"]) for part in shards]
    for part, count in zip(shards, counts, strict=True):
        images = Members(order, states, arrays["rows"][start : start + count], names)
        parts[part], start = (arrays[f"labels-{part}"], images), start + count
    places = {part: counted(len(paths), "shard") for part, paths in shards.items()}
    return Catalogue(tuple(arrays["classes"].tolist()), parts, places)


def read_unlabelled(shards: Sequence[Path]) -> Members:
    """Return the images of shards, with and without labels."""
    states, text = [state_of(path.stat()) for path in shards], bytearray()
    scanned = [_scan(number, path, text, None) for number, path in enumerate(shards)]
    rows = np.concatenate([np.empty(0, _SCANNED), *scanned])
    rows["name"], held = np.arange(len(rows)), (bytes(text), np.cumsum(rows["length"], dtype=np.int64))
    return Members(shards, states, _plain(rows), _Names(lambda: held))


def _build_index(root: Path, shards: dict[str, list[Path]], order: list[Path]) -> dict[str, np.ndarray]:
    """Read the headers of all shards."""
    if len(order) > np.iinfo(np.uint16).max:
        raise InputError(f"{root} has {len(order):,} shards; expected at most {np.iinfo(np.uint16).max:,}")
    number = {path: i for i, path in enumerate(order)}
    labels: dict[Label, int] = {}  # the different ones, numbered
    parts: dict[str, np.ndarray] = {}
    lengths, text, count = [], bytearray(), 0
    for part, paths in shards.items():
        rows = np.concatenate([_scan(number[path], path, text, labels) for path in paths])
        if not len(rows):
            raise InputError(f"{root} has no {part} images in its {len(paths)} shards; expected some")
        rows["name"], count = np.arange(count, count + len(rows)), count + len(rows)
        lengths.append(rows["length"])
        parts[part] = _in_order(rows)
    classes, label_of = _classes(root, labels)
    numbers = np.array([label_of(label) for label in labels], np.int64)
    return {f"labels-{part}": numbers[rows["label"]] for part, rows in parts.items()} | {
        "rows": _plain(np.concatenate([*parts.values()])), "names": np.frombuffer(text, np.uint8),
        "ends": np.cumsum(np.concatenate(lengths), dtype=np.int64), "classes": np.array(classes, np.str_),
    }  # fmt: skip


def _scan(number: int, path: Path, text: bytearray, labels: dict[Label, int] | None) -> np.ndarray:
    """Return a row for each sample of a shard, and add its name and, unless None, its label to those known."""
    rows = []
    for sample in scan(path, labels is not None):
        name = sample.name.encode("utf-8", "surrogatepass")
        text += name
        key = int(sample.key) if re.fullmatch(r"[0-9]{1,18}", sample.key) else -1
        label = 0 if labels is None else labels.setdefault((sample.label, sample.class_name), len(labels))
        rows.append((number, sample.offset, sample.size, 0, sample.suffix, key, label, len(name)))
    return np.array(rows, _SCANNED)


def _plain(rows: np.ndarray) -> np.ndarray:
    """Return rows as the index has them."""
    plain = np.empty(len(rows), _ROW)
    for name in _ROW.names or ():
        plain[name] = rows[name]
    return plain


def _in_order(rows: np.ndarray) -> np.ndarray:
    """Return samples in the order of their keys, if these are the numbers from 0 on; else unchanged."""
    order = np.argsort(rows["key"], kind="stable")
    return rows[order] if np.array_equal(rows["key"][order], np.arange(len(rows))) else rows


def _load_index(path: Path, state: str, parts: Iterable[str], shards: list[Path]) -> dict[str, np.ndarray] | None:
    """Return the index if it is undamaged and of these shards, without its names."""
    try:
        arrays = read_arrays(path, ("names", "ends"))
        if str(arrays["state"]) != state:
            return None
        rows, classes = arrays["rows"], arrays["classes"]
        labels = np.concatenate([arrays[f"labels-{part}"] for part in parts])
        sizes = np.array([shard.stat().st_size for shard in shards])
        whole = rows.dtype == _ROW and rows.shape == labels.shape and classes.dtype.kind == "U"
        whole = whole and classes.ndim == 1 and _checked(path.parent, classes.tolist()) == tuple(classes.tolist())
        whole = whole and labels.dtype == np.int64 and 0 <= labels.min() <= labels.max() < len(classes)
        whole = whole and rows["shard"].max() < len(shards) and rows["suffix"].max() < len(EXTENSIONS)
        whole = whole and rows["offset"].min() >= 0
        return arrays if whole and bool((rows["offset"] + rows["size"] <= sizes[rows["shard"]]).all()) else None
    except (*UNREADABLE, KeyError):
        return None


def _load_names(path: Path) -> tuple[bytes, np.ndarray]:
    """Return the concatenated names, and the end of each."""
    try:
        arrays = read_arrays(path, ("classes", "state"))
        text, ends, last = arrays["names"].tobytes(), arrays["ends"], int(arrays["rows"]["name"].max())
        whole = ends.dtype == np.int64 and ends.ndim == 1 and ends.size > last and ends[-1] == len(text)
        if whole and bool((np.diff(ends, prepend=0) >= 0).all()):
            text.decode("utf-8", "surrogatepass")
            starts = np.frombuffer(text, np.uint8)[ends[ends < len(text)]]
            if not bool(((starts & 0xC0) == 0x80).any()):  # no name starts inside a letter
                return text, ends
    except (*UNREADABLE, KeyError):
        pass
    raise InputError(f"{path} is damaged; remove it, and it is written again")
