"""What an image is read from: a file, or a place inside a larger file. No torch here."""

import itertools
import os
from array import array
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import overload

import numpy as np


class Stored:
    """An encoded image inside a larger file, which functions for image files take in place of a path.

    Attributes:
        name: Name of the file that it was, with folders.
        suffix: The ending of its name, with the dot.
        place: The larger file.
    """

    name: str
    suffix: str
    place: str

    def read_bytes(self) -> bytes:
        """Return the encoded image; raise OSError where it cannot be read."""
        raise NotImplementedError

    @property
    def stem(self) -> str:
        """Its name without folders and ending."""
        return os.path.splitext(os.path.basename(self.name))[0]

    def __str__(self) -> str:
        return f"{self.place}: {self.name}"


Source = Path | Stored
"""An image file, or what takes its place."""


class Sources(Sequence[Source]):
    """The encoded images of a set.

    Attributes:
        shard: The number of the shard of each image, (n,); None where they are not in shards.
    """

    shard: np.ndarray | None = None

    def take(self, index: Sequence[int] | np.ndarray) -> "Sources":
        """Return some of them, by their indices."""
        raise NotImplementedError

    def names(self) -> list[str]:
        """Return the name of each, with the folders that differ."""
        raise NotImplementedError

    def identities(self) -> Iterable[bytes]:
        """Yield name and size of each, which stay the same when a data set is moved."""
        raise NotImplementedError


class Paths(Sources):
    """Paths in little memory: a million ``Path`` objects take 320 MB, their names a quarter of that.

    Args:
        paths: The paths, in their order.
    """

    def __init__(self, paths: Iterable[Path]) -> None:
        names = [os.fsencode(path) for path in paths]
        self._ends = array("q", itertools.accumulate(map(len, names)))
        self._names = b"".join(names)

    def __len__(self) -> int:
        return len(self._ends)

    @overload
    def __getitem__(self, index: int) -> Path: ...
    @overload
    def __getitem__(self, index: slice) -> tuple[Path, ...]: ...
    def __getitem__(self, index: int | slice) -> Path | tuple[Path, ...]:
        """Return a path, or a tuple of them for a slice."""
        if isinstance(index, slice):
            return tuple(self[i] for i in range(len(self))[index])
        number = range(len(self))[index]
        return Path(os.fsdecode(self._names[self._ends[number - 1] if number else 0 : self._ends[number]]))

    def __iter__(self) -> Iterator[Path]:
        return (self[i] for i in range(len(self)))

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Sequence) and tuple(self) == tuple(other)

    def __hash__(self) -> int:
        return hash(self._names)

    def take(self, index: Sequence[int] | np.ndarray) -> "Paths":
        """Return some of the paths, by their indices."""
        return Paths(self[i] for i in index)

    def names(self) -> list[str]:
        """Return each path below the folder that all of them share."""
        top = os.path.commonpath([path.parent for path in self])
        return [os.path.relpath(path, top) for path in self]

    def identities(self) -> Iterable[bytes]:
        """Yield the name of each file, without folders, and its size."""
        return (os.fsencode(path.name) + b"/%d" % _size(path) for path in self)


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:  # refused when it is decoded
        return -1
