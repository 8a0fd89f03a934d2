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
from cutmix.data.sources import CLASSES, Sample, Sources, SourcesOf, State, Stored, opened, scan, state_of
from cutmix.errors import UNREADABLE, InputError, counted
from cutmix.runtime.files import read_arrays, write_atomic

INDEX = "cutmix-index.npz"

_ROW = np.dtype([("shard", "<u2"), ("offset", "<i8"), ("size", "<u4"), ("name", "<u4"), ("suffix", "u1")])


@dataclass(frozen=True)
class Catalogue:
    """The samples of a data set whose images lie inside larger files."""

    classes: tuple[str, ...]  # in the order of their labels
    parts: dict[str, tuple[np.ndarray, Sources]]  # labels, (n,) int64, and images, by "train", "val", "test", or "all"
    places: dict[str, str] = field(default_factory=dict)  # the contents of each part, as a phrase


# ---- images inside shards ----


class _Names(Sequence[str]):
    """Names in one piece of memory, read from the index on first use."""

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


class Members(SourcesOf[Stored]):
    """Images inside tar shards: 19 bytes of memory each, and their names in the index.

    Each row has the shard, offset and size of an image, and the number of its name. A tar file whose state has changed
    since its members were read is refused.
    """

    def __init__(self, shards: Sequence[Path], states: Sequence[State], rows: np.ndarray, names: Sequence[str]) -> None:
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
        for name, size in zip(self.names(), self.rows["size"].tolist(), strict=True):
            yield os.fsencode(os.path.basename(name)) + b"/%d" % size


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


def _classes(root: Path, samples: Iterable[Sample]) -> tuple[tuple[str, ...], Callable[[Sample], int]]:
    """Return the class names, and a function from a sample to the index of its class.

    Ids keep their values: they are the outputs of a model. Their names are those of the samples or of ``classes.txt``.
    """
    names: dict[int, str] = {}
    only_names: set[str] = set()
    most = -1
    for sample in samples:
        if sample.label is None:
            only_names.add(str(sample.class_name))
            continue
        most = max(most, sample.label)
        name = sample.class_name
        if name is not None and names.setdefault(sample.label, name) != name:
            raise InputError(
                f"{root} has the names '{names[sample.label]}' and '{name}' of class {sample.label}; expected one"
            )
    if only_names and most >= 0:
        raise InputError(f"{root} has class ids for some samples and names for others; expected either for all")
    if only_names:
        listed = sorted(only_names)
        number = {name: i for i, name in enumerate(listed)}
        return _checked(root, listed), lambda sample: number[str(sample.class_name)]
    if (root / CLASSES).is_file():
        listed = read_text(root / CLASSES).splitlines()
        if most >= len(listed):
            raise InputError(f"{root} has the label {most}, but {CLASSES} there names {len(listed)} classes")
        for i, name in names.items():
            if listed[i] != name:
                raise InputError(f"{root} names class {i} '{name}', but {CLASSES} there '{listed[i]}'")
    else:
        listed = [names.get(i, str(i)) for i in range(most + 1)]
    return _checked(root, listed), lambda sample: int(sample.label or 0)


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
    load: Callable[[], tuple[bytes, np.ndarray]]
    if arrays is None:
        arrays = _build_index(root, shards, order) | {"state": np.array(state)}
        held = arrays["names"].tobytes(), arrays["ends"]
        with suppress(InputError):  # a folder that cannot be written is read again each time
            write_atomic(root / INDEX, lambda file: np.savez(file, **arrays))
        load = lambda: held  # noqa: E731
    else:
        last = int(arrays["rows"]["name"].max())
        load = functools.partial(_load_names, root / INDEX, last)
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
    states = [state_of(path.stat()) for path in shards]
    samples = [(number, sample) for number, path in enumerate(shards) for sample in scan(path, False)]
    rows = np.array([(n, s.offset, s.size, i, s.suffix) for i, (n, s) in enumerate(samples)], _ROW)
    return Members(shards, states, rows, [sample.name for _, sample in samples])


def _build_index(root: Path, shards: dict[str, list[Path]], order: list[Path]) -> dict[str, np.ndarray]:
    """Read the headers of all shards."""
    if len(order) > np.iinfo(np.uint16).max:
        raise InputError(f"{root} has {len(order):,} shards; expected at most {np.iinfo(np.uint16).max:,}")
    number = {path: i for i, path in enumerate(order)}
    parts = {
        part: _in_order([(number[path], sample) for path in paths for sample in scan(path, True)])
        for part, paths in shards.items()
    }
    for part, found in parts.items():
        if not found:
            raise InputError(f"{root} has no {part} images in its {len(shards[part])} shards; expected some")
    classes, label_of = _classes(root, (sample for found in parts.values() for _, sample in found))
    every = [pair for found in parts.values() for pair in found]
    texts = [sample.name.encode("utf-8", "surrogatepass") for _, sample in every]
    rows = [(shard, s.offset, s.size, i, s.suffix) for i, (shard, s) in enumerate(every)]
    labels = {
        f"labels-{part}": np.array([label_of(sample) for _, sample in found], np.int64) for part, found in parts.items()
    }
    return labels | {
        "rows": np.array(rows, _ROW), "names": np.frombuffer(b"".join(texts), np.uint8),
        "ends": np.cumsum([len(text) for text in texts], dtype=np.int64), "classes": np.array(classes, np.str_),
    }  # fmt: skip


def _in_order(found: list[tuple[int, Sample]]) -> list[tuple[int, Sample]]:
    """Return samples in the order of their keys, if these are the numbers from 0 on; else unchanged."""
    if not all(sample.key.isascii() and sample.key.isdecimal() for _, sample in found):
        return found
    numbered = sorted(found, key=lambda pair: int(pair[1].key))
    return numbered if [int(sample.key) for _, sample in numbered] == list(range(len(found))) else found


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


def _load_names(path: Path, last: int) -> tuple[bytes, np.ndarray]:
    """Return the concatenated names, and the end of each; ``last`` is the largest number of a name."""
    try:
        arrays = read_arrays(path, ("rows", "classes", "state"))
        text, ends = arrays["names"].tobytes(), arrays["ends"]
        whole = ends.dtype == np.int64 and ends.ndim == 1 and ends.size > last and ends[-1] == len(text)
        if whole and bool((np.diff(ends, prepend=0) >= 0).all()):
            for start, end in zip([0, *ends[:-1].tolist()], ends.tolist(), strict=True):
                text[start:end].decode("utf-8", "surrogatepass")
            return text, ends
    except (*UNREADABLE, KeyError):
        pass
    raise InputError(f"{path} is damaged; remove it, and it is written again")
