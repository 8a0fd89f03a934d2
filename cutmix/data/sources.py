"""Sources of encoded images: a file, or a place inside a tar file of webdataset's format. No torch here.

The files of a sample in a tar follow each other and share a name up to its first dot: an image, and its label in
NAME.cls (a class id or name) or NAME.json (``label``, ``class``).
"""

import functools
import io
import itertools
import json
import os
import re
import tarfile
from array import array
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from itertools import groupby
from pathlib import Path
from typing import Any, NamedTuple, TypeVar, overload

import numpy as np
from PIL import Image

from cutmix.data.folder import EXTENSIONS
from cutmix.errors import UNREADABLE, InputError
from cutmix.runtime.files import to_json, write_atomic

_FORMATS = ("AVIF", "BMP", "DIB", "GIF", "ICO", "JPEG", "JPEG2000", "PCX", "PNG", "PPM", "QOI", "SGI", "TIFF", "WEBP")


def known_formats() -> list[str]:
    """Return the formats of image files that are decoded, whatever the file's name.

    None of them starts another program, as PostScript would. AVIF comes with newer releases of Pillow.
    """
    Image.init()
    return [name for name in _FORMATS if name in Image.OPEN]


class Stored:
    """An encoded image inside a larger file, which functions for image files take in place of a path."""

    name: str  # of the original file, with folders
    suffix: str  # the ending of the name, with the dot
    place: str  # the larger file

    def read_bytes(self) -> bytes:
        """Return the encoded image; raise OSError if it cannot be read."""
        raise NotImplementedError

    @property
    def stem(self) -> str:
        """Its name without folders and ending."""
        return os.path.splitext(os.path.basename(self.name))[0]

    def __str__(self) -> str:
        return f"{self.place}: {self.name}"


Source = Path | Stored
"""An image file, or its stand-in inside a larger file."""


SourceT = TypeVar("SourceT", bound=Source, covariant=True)


class SourcesOf(Sequence[SourceT]):
    """The encoded images of a set."""

    shard: np.ndarray | None = None  # the number of the shard of each image, (n,)

    def one(self, number: int) -> SourceT:
        """Return the image at an index from 0 on."""
        raise NotImplementedError

    @overload
    def __getitem__(self, index: int) -> SourceT: ...
    @overload
    def __getitem__(self, index: slice) -> tuple[SourceT, ...]: ...
    def __getitem__(self, index: int | slice) -> SourceT | tuple[SourceT, ...]:
        """Return an image, or a tuple of them for a slice."""
        numbers = range(len(self))[index]
        return self.one(numbers) if isinstance(numbers, int) else tuple(map(self.one, numbers))

    def __iter__(self) -> Iterator[SourceT]:
        return map(self.one, range(len(self)))

    def take(self, index: Sequence[int] | np.ndarray) -> "SourcesOf[SourceT]":
        """Return some of the images, by their indices."""
        raise NotImplementedError

    def names(self) -> list[str]:
        """Return the name of each, with the folders that differ."""
        raise NotImplementedError

    def identities(self) -> Iterable[bytes]:
        """Yield name and size of each image, which do not change when a data set is moved."""
        raise NotImplementedError


Sources = SourcesOf[Source]
"""Images of any kind of place."""


class Paths(SourcesOf[Path]):
    """Paths in little memory: a million ``Path`` objects take 320 MB, their names a quarter of that.

    Their names are below ``top`` or, without it, below the folder that all of them share.
    """

    def __init__(self, paths: Iterable[Path], top: str | None = None) -> None:
        self._top = top
        names = [os.fsencode(path) for path in paths]
        self._ends = array("q", itertools.accumulate(map(len, names)))
        self._names = b"".join(names)

    def __len__(self) -> int:
        return len(self._ends)

    def one(self, number: int) -> Path:
        """Return a path by its index."""
        return Path(os.fsdecode(self._names[self._ends[number - 1] if number else 0 : self._ends[number]]))

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Sequence) and tuple(self) == tuple(other)

    def __hash__(self) -> int:
        return hash(self._names)

    def take(self, index: Sequence[int] | np.ndarray) -> "Paths":
        """Return some of the paths, by their indices."""
        return Paths((self.one(i) for i in index), self._top)

    def names(self) -> list[str]:
        """Return each path below the folder of all."""
        top = self._top or shared_folder(self)
        return [os.path.relpath(path, top) for path in self]

    def identities(self) -> Iterable[bytes]:
        """Yield the name of each file, without folders, and its size."""
        return (os.fsencode(path.name) + b"/%d" % _size(path) for path in self)


def shared_folder(paths: Iterable[Path]) -> str:
    """Return the folder that all paths share; a file of labels may hold relative and absolute ones."""
    return os.path.commonpath([os.path.abspath(path.parent) for path in paths])


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:  # refused when it is decoded
        return -1


CLASSES = "classes.txt"

_MOST_CLASSES = 1_000_000
_MOST_LABEL_BYTES = 1 << 20
_ID_KEYS = ("label", "cls", "class_id", "target")
_NAME_KEYS = ("class", "class_name", "label_name", "category", "species", "label")
_BLOCK = 512  # of a tar file


State = tuple[int, int, int, int]


def state_of(status: os.stat_result) -> State:
    """Return the properties that change when a file is replaced or written to."""
    return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns


class _Opened:
    """An open file, closed after its last use; OSError if it is missing or its state has changed."""

    number = -1

    def __init__(self, path: Path, state: State) -> None:
        self.number = os.open(path, os.O_RDONLY | getattr(os, "O_CLOEXEC", 0))
        if state_of(os.fstat(self.number)) != state:
            raise OSError(f"{path} has changed since it was first read")

    def __del__(self, close: Any = os.close) -> None:
        if self.number >= 0:
            close(self.number)


opened = functools.lru_cache(maxsize=128)(_Opened)
"""Return an open file in a state; the last ones stay open, as each read of an image needs one."""


class Sample(NamedTuple):
    """A sample of a shard, with its label, the name of its class, or both."""

    key: str
    name: str
    offset: int
    size: int
    suffix: int
    label: int | None
    class_name: str | None


def _members(path: Path) -> Iterator[tuple[str, int, int]]:
    """Yield name, offset and size of the regular files of a tar; refuse other entries."""
    total, last = path.stat().st_size, 0
    with tarfile.open(path, "r:") as tar:
        while (info := tar.next()) is not None:
            tar.members.clear()  # type: ignore[attr-defined]  # which would hold all of them
            end = info.offset_data + info.size
            if info.offset < last or info.size < 0 or end > total:
                raise InputError(f"{path} is damaged or incomplete: {info.name} ends beyond the file; copy it again")
            last = info.offset_data
            if info.isdir():
                continue
            if not info.isreg() or info.issparse():
                kind = "a link" if info.issym() or info.islnk() else "no regular file"
                raise InputError(f"{path} holds {info.name}, which is {kind}; expected images and labels only")
            if info.name.startswith("/") or ".." in info.name.split("/"):
                raise InputError(f"{path} holds {info.name}, which leads out of its folder; expected plain names")
            last = end
            yield info.name, info.offset_data, info.size
    with path.open("rb") as file:  # a file that was cut between two members has no end
        file.seek(max(-(-last // _BLOCK) * _BLOCK, 0))
        if file.read(_BLOCK) != bytes(_BLOCK):
            raise InputError(f"{path} is incomplete: it has no end of an archive; copy it again")


def scan(path: Path, labelled: bool) -> list[Sample]:
    """Return the samples of a shard, in their order."""

    def key_of(member: tuple[str, int, int]) -> str:
        folder, slash, base = member[0].rpartition("/")
        return folder + slash + base.partition(".")[0]

    try:
        found: list[Sample] = []
        seen: set[str] = set()
        for key, members in groupby(_members(path), key_of):
            if os.path.basename(key) == "" or os.path.basename(key).startswith("__"):
                continue  # hidden files, and those about the shard
            files: dict[str, tuple[str, int, int]] = {}
            for member in members:
                ending = member[0][len(key) + 1 :].lower()
                if ending in files or key in seen:
                    raise InputError(f"{path} holds the sample {key} twice; expected each name once")
                files[ending] = member
            seen.add(key)
            sample = _sample(path, key, files, labelled)
            found += [sample] if sample else []
    except InputError:
        raise
    except (*UNREADABLE, tarfile.TarError, MemoryError, OverflowError) as error:
        raise InputError(f"{path} cannot be read as a tar file ({error}); expected an uncompressed one") from None
    return found


def _sample(path: Path, key: str, files: dict[str, tuple[str, int, int]], labelled: bool) -> Sample | None:
    """Make a sample of its files; None of files that are neither image nor label."""
    images = [ending for ending in files if f".{ending}" in EXTENSIONS]
    about = {ending: _read_label(path, *files[ending]) for ending in ("cls", "json") if labelled and ending in files}
    if not images:
        if "cls" in about:
            raise InputError(f"{path} holds a label but no image of the sample {key}; expected both")
        return None
    if len(images) > 1:
        raise InputError(f"{path} holds {' and '.join(images)} of the sample {key}; expected one image")
    name, offset, size = files[images[0]]
    fields = json_object(about["json"], f"{path}: {key}.json", '{"label": …}') if "json" in about else {}
    label, class_name = _label_of(path, key, about.get("cls"), fields) if labelled else (None, None)
    own = fields.get("file")
    shown = own if isinstance(own, str) and own else f"{path.stem}/{name}"
    return Sample(key, shown, offset, size, EXTENSIONS.index(f".{images[0]}"), label, class_name)


def _read_label(path: Path, name: str, offset: int, size: int) -> bytes:
    if size > _MOST_LABEL_BYTES:
        raise InputError(f"{path}: {name} has {size:,} bytes; expected a label")
    return os.pread(opened(path, state_of(path.stat())).number, size, offset)


def json_object(content: str | bytes, where: str, expected: str) -> dict[str, Any]:
    """Return a JSON object; its place and the expected content are for messages."""
    try:
        found = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise InputError(f"{where} is not JSON: {error}") from None
    if not isinstance(found, dict):
        raise InputError(f"{where} is not an object; expected {expected}")
    return found


def _label_of(path: Path, key: str, cls: bytes | None, fields: dict[str, Any]) -> tuple[int | None, str | None]:
    """Return the class id and the class name of a sample, one of which may be missing."""
    values = [fields[k] for k in _ID_KEYS if isinstance(fields.get(k), int) and not isinstance(fields[k], bool)]
    names = [fields[k] for k in _NAME_KEYS if isinstance(fields.get(k), str) and fields[k].strip()]
    if cls is not None:
        text = cls.decode("utf-8", "surrogateescape").strip()
        if re.fullmatch(r"-?\d{1,18}", text):
            values.insert(0, int(text))
        elif text:
            names.insert(0, text)
    if not values and not names:
        raise InputError(f"{path} has no label of the sample {key}; expected {key}.cls, or a label in {key}.json")
    if len(set(values[:2])) > 1 and cls is not None:
        raise InputError(f"{path} has the labels {values[0]} and {values[1]} of the sample {key}; expected one")
    if values and not 0 <= values[0] < _MOST_CLASSES:
        raise InputError(f"{path}: the label of {key} is {values[0]}; expected 0 to {_MOST_CLASSES - 1:,}")
    return values[0] if values else None, names[0] if names else None


# ---- writing ----


def plan_shards(sizes: Sequence[int], order: Sequence[int], most_bytes: int) -> list[list[int]]:
    """Divide samples, in an order, into shards of about ``most_bytes``; return the indices in each."""
    shards: list[list[int]] = []
    filled = most_bytes
    for index in order:
        if filled >= most_bytes:
            shards.append([])
            filled = 0
        shards[-1].append(index)
        filled += sizes[index] + 4 * _BLOCK  # headers and label
    return shards


def write_shard(
    path: Path,
    indices: Sequence[int],
    sources: Sequence[Source],
    names: Sequence[str],
    labels: Sequence[int],
    classes: Sequence[str],
) -> None:
    """Write a tar file of samples, whole or not at all; its bytes depend on nothing but the samples.

    The keys are the indices, so that readers can restore the order of the data set.
    """

    def write(file: Any) -> None:
        with tarfile.open(fileobj=file, mode="w", format=tarfile.USTAR_FORMAT) as tar:
            for index in indices:
                source, label = sources[index], labels[index]
                try:
                    content = source.read_bytes()
                except OSError as error:
                    raise InputError(f"{source} cannot be read: {error.strerror or error}") from None
                about = {"file": names[index], "label": label, "class": classes[label]}
                key, suffix = f"{index:09d}", os.path.splitext(names[index])[1].lower()
                suffix = suffix if suffix in EXTENSIONS else _suffix_of(source, content)
                for ending, part in ((suffix, content), (".cls", b"%d" % label), (".json", to_json(about))):
                    info = tarfile.TarInfo(key + ending)
                    info.size = len(part)
                    tar.addfile(info, io.BytesIO(part))

    write_atomic(path, write)


def _suffix_of(source: Source, content: bytes) -> str:
    """Return the usual ending of the format of an image whose name has none."""
    with suppress(*UNREADABLE):
        kind = Image.open(io.BytesIO(content), formats=known_formats()).format
        usual = {"JPEG": ".jpg", "PNG": ".png", "TIFF": ".tif", "WEBP": ".webp"}
        if kind in usual:
            return usual[kind]
        known = (ending for ending, its in Image.registered_extensions().items() if its == kind)
        if found := next((ending for ending in known if ending in EXTENSIONS), None):
            return found
    raise InputError(f"{source} cannot be read as an image; repair it, or leave it out with --skip-unreadable")
