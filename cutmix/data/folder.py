"""Which image files lie in a folder, and how files are divided into splits by their names' hashes. No torch here."""

import itertools
import os
import stat
from array import array
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, NamedTuple, TypeVar, overload

from cutmix.errors import InputError
from cutmix.runtime.seeding import derive_seed

EXTENSIONS = (
    ".apng", ".avif", ".avifs", ".bmp", ".bw", ".dib", ".gif", ".icb", ".ico", ".j2c", ".j2k", ".jfif", ".jp2", ".jpc",
    ".jpe", ".jpeg", ".jpf", ".jpg", ".jpx", ".mpo", ".pbm", ".pcx", ".pfm", ".pgm", ".png", ".pnm", ".ppm", ".qoi",
    ".rgb", ".rgba", ".sgi", ".tga", ".tif", ".tiff", ".vda", ".vst", ".webp",
)  # fmt: skip
"""Of the formats that ``decode.read_image`` takes."""

_NOT_DATA = ("__MACOSX", "@eaDir", "$RECYCLE.BIN")  # folders that archivers and file managers add


class File(NamedTuple):
    """An image file.

    Attributes:
        path: Where it was found.
        identity: Device and inode, the same for every link to the file.
        size: In bytes.
    """

    path: Path
    identity: tuple[int, int]
    size: int


class Paths(Sequence[Path]):
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

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Sequence) and tuple(self) == tuple(other)

    def __hash__(self) -> int:
        return hash(self._names)


@dataclass(frozen=True)
class Listing:
    """The contents of a folder, at any depth.

    Attributes:
        files: The images, sorted by path; each file once, however many links in the folder point to it.
        others: The visible files that are not images.
        hidden: The hidden files and folders.
        repeated: Links to files that are in ``files`` by another name.
    """

    files: list[File] = field(default_factory=list)
    others: list[Path] = field(default_factory=list)
    hidden: list[Path] = field(default_factory=list)
    repeated: list[Path] = field(default_factory=list)


def is_image(name: str) -> bool:
    """Return whether a name is that of a visible file in a format that can be decoded."""
    return name.lower().endswith(EXTENSIONS) and not is_hidden(name)


def is_hidden(name: str) -> bool:
    """Return whether a file or folder is hidden, or was added by an archiver or a file manager."""
    return name.startswith(".") or name in _NOT_DATA


def list_images(folder: Path) -> Listing:
    """List a folder at any depth, through symbolic links.

    Raises:
        InputError: A folder cannot be read, or a link leads to a folder around it.
    """
    found = Listing()
    seen: set[tuple[int, int]] = set()
    walk = _walk(folder, (), set(), found)
    for path, status in sorted(walk, key=lambda item: item[0]):
        if not is_image(path.name) or (status and not stat.S_ISREG(status.st_mode)):
            found.others.append(path)
        elif status is None:  # a link to nothing, which is refused when it is decoded
            found.files.append(File(path, (-1, len(found.files)), 0))
        elif (identity := (status.st_dev, status.st_ino)) in seen:
            found.repeated.append(path)
        else:
            seen.add(identity)
            found.files.append(File(path, identity, status.st_size))
    return found


def _walk(
    folder: Path, around: tuple[tuple[int, int], ...], seen: set[tuple[int, int]], found: Listing
) -> Iterator[tuple[Path, os.stat_result | None]]:
    """Yield the visible files below a folder with their status (None for a link to nothing), each folder once."""
    try:
        status = folder.stat()
        entries = [(folder / entry.name, _is_folder(entry)) for entry in os.scandir(folder)]
    except OSError as error:
        raise InputError(f"{folder} cannot be read: {error.strerror}") from None
    identity = (status.st_dev, status.st_ino)
    if identity in around:
        raise InputError(f"{folder} is a link to {folder.resolve()}, a folder around it; remove the link")
    if identity in seen:
        found.repeated.append(folder)
        return
    seen.add(identity)
    for path, is_folder in sorted(entries):
        if is_hidden(path.name):
            found.hidden.append(path)
        elif is_folder:
            yield from _walk(path, (*around, identity), seen, found)
        else:
            try:
                yield path, path.stat()
            except OSError:
                yield path, None


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link to itself
        return False


def count_suffixes(paths: Iterable[Path]) -> dict[str, int]:
    """Count files by their suffix in lower case (their name, if they have none), the most frequent first."""
    counts = Counter(path.suffix.lower() or path.name for path in paths)
    return dict(sorted(counts.items(), key=lambda item: (-item[1], item[0])))


# ---- division by hash ----

Split = Literal["train", "test"]
Names = TypeVar("Names", bound=Sequence[str])


def held_share(count: int, fraction: float) -> int:
    """Return how many of ``count`` are held out: with a fraction above 0 at least one, and never all."""
    return min(max(round(fraction * count), 1), count - 1) if fraction and count else 0


def hold_out(groups: Iterable[Names], count: int, seed: int) -> list[Names]:
    """Return the groups of names whose hash with the seed is smallest, until they have ``count`` names; never all.

    The order of the groups does not matter, and a new name moves hardly any other.

    Args:
        groups: Each a sequence of names, the first of which is hashed.
        count: Names to hold out.
        seed: Decides which groups, and nothing else does.
    """
    ranked = sorted(groups, key=lambda group: derive_seed(seed, "split", group[0]))
    names = groups_held = 0
    while groups_held < len(ranked) - 1 and names < count:
        names += len(ranked[groups_held])
        groups_held += 1
    return ranked[:groups_held]


# ---- text files ----


def read_text(path: Path) -> str:
    """Return a file's text, with or without a byte-order mark.

    Raises:
        InputError: The file cannot be read, or is not UTF-8.
    """
    try:
        return path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path} cannot be read as text: {error}") from None
