"""Folders of images: recognize images, classes and splits. No torch here."""

import os
import re
import stat
import unicodedata
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, NamedTuple, TypeVar

from cutmix.errors import InputError, a_few, counted, printable
from cutmix.runtime.files import regular
from cutmix.runtime.seeding import derive_seed

EXTENSIONS = (
    ".apng", ".avif", ".avifs", ".bmp", ".bw", ".dib", ".gif", ".icb", ".ico", ".j2c", ".j2k", ".jfif", ".jp2", ".jpc",
    ".jpe", ".jpeg", ".jpf", ".jpg", ".jpx", ".mpo", ".pbm", ".pcx", ".pfm", ".pgm", ".png", ".pnm", ".ppm", ".qoi",
    ".rgb", ".rgba", ".sgi", ".tga", ".tif", ".tiff", ".vda", ".vst", ".webp",
)  # fmt: skip
"""Of the formats that ``decode.read_image`` takes."""

_NOT_DATA = ("__MACOSX", "@eaDir", "$RECYCLE.BIN")  # folders that archivers and file managers add

_UNLABELLED = "; if its images have no labels, move the folder elsewhere"


class File(NamedTuple):
    """An image file."""

    path: Path
    identity: tuple[int, int]  # device and inode, the same for every link to the file
    size: int  # in bytes


@dataclass(frozen=True)
class Listing:
    """The contents of a folder, at any depth."""

    # the images, sorted by path; each file once, however many links in the folder point to it
    files: list[File] = field(default_factory=list)
    others: list[Path] = field(default_factory=list)  # the visible files that are not images
    hidden: list[Path] = field(default_factory=list)  # the hidden files and folders
    repeated: list[Path] = field(default_factory=list)  # links to files that are in ``files`` by another name


def is_image(name: str) -> bool:
    """Return whether a name is that of a visible file in a format that can be decoded."""
    return name.lower().endswith(EXTENSIONS) and not is_hidden(name)


def is_hidden(name: str) -> bool:
    """Return whether a file or folder is hidden, or was added by an archiver or a file manager."""
    return name.startswith(".") or name in _NOT_DATA


def list_images(folder: Path) -> Listing:
    """List a folder at any depth, through symbolic links."""
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
        link = next((path for path in (folder, *folder.parents) if path.is_symlink()), folder)
        raise InputError(f"{link} is a link to {link.resolve()}, a folder around it; remove the link")
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


def say_others(counts: dict[str, int]) -> str:
    """Return a phrase about the files of a folder that are not images, counted by ``count_suffixes``."""
    kinds = ", ".join(f"{count:,} {suffix}" for suffix, count in counts.items())
    return f"{counted(sum(counts.values()), 'file is not an image', 'files are not images')}: {kinds}"


# ---- division by hash ----

Split = Literal["train", "test"]
Names = TypeVar("Names", bound=Sequence[str])


def held_share(count: int, fraction: float) -> int:
    """Return the number of ``count`` items to hold out: with a fraction above 0 at least one, and never all."""
    return min(max(round(fraction * count), 1), count - 1) if fraction and count else 0


def hold_out(groups: Iterable[Names], count: int, seed: int) -> list[Names]:
    """Return the groups of names whose hash with the seed is smallest, until they have ``count`` names; never all.

    The first name of each group is hashed. The order of the groups does not matter, and a new name moves hardly any
    other.
    """
    ranked = sorted(groups, key=lambda group: derive_seed(seed, "split", group[0]))
    names = groups_held = 0
    while groups_held < len(ranked) - 1 and names < count:
        names += len(ranked[groups_held])
        groups_held += 1
    return ranked[:groups_held]


# ---- text files ----


def read_text(path: Path) -> str:
    """Return the text of a UTF-8 file, with or without a byte-order mark; refuse other encodings."""
    try:
        return regular(path).read_text(encoding="utf-8-sig")
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror}") from None
    except UnicodeDecodeError as error:
        raise InputError(f"{path} is not UTF-8 text from byte {error.start + 1:,} on; save it as UTF-8") from None


_PARTS = {
    "train": r"(train|training|trn)",
    "val": r"(val|valid|validation|validate|dev|eval)",
    "test": r"(test|testing|tst)",
}
NAMES_OF_PARTS = {
    part: re.compile(rf"{names}[-_ .]?(set|data|dataset|images|imgs|split)?", re.I) for part, names in _PARTS.items()
}

_PARTS_IN_NAMES = [re.compile(rf"(?<![a-z]){names}(?![a-z])", re.I) for names in _PARTS.values()]
"""Of ``seg_train`` and ``train2017``, which ``NAMES_OF_PARTS`` does not take."""


@dataclass(frozen=True)
class ClassFolders:
    """The images of a folder of class folders."""

    root: Path  # the folder, or the file of labels
    classes: tuple[str, ...]  # the class names, printable, in the order of their labels
    # the images of each class, by the part of their folders: "train", "val" and "test", or "all"
    parts: dict[str, list[list[File]]]
    folders: dict[str, Path]  # the folder of each part
    listings: list[Listing] = field(default_factory=list)  # the contents of the class folders
    # folders and images beside the class folders or the parts, which are left out
    beside: list[Path] = field(default_factory=list)
    # the class ids of each image, if an image can have several; ``parts`` then has a group for each rarest class
    labels: dict[Path, tuple[int, ...]] | None = None

    def name_of(self, path: Path) -> str:
        """Return a path relative to the folder, or to that of the file of labels."""
        return Path(os.path.relpath(path, self.root.parent if self.root.is_file() else self.root)).as_posix()


def read_class_folders(root: Path) -> ClassFolders:
    """List the images of a data set by class.

    With folders named ``train``, ``val`` or ``test`` inside (in any case, and ``Training``, ``valid``, ``test_set`` and
    the like), these are the parts, and each holds the class folders. Otherwise ``root`` holds them. Classes are sorted
    by the names of their folders, as torchvision does.
    """
    folders = find_parts(root) or {"all": root}
    names = {part: _class_names(folder, part, root) for part, folder in folders.items()}
    beside = [path for path in _visible(root) if path not in folders.values()] if "all" not in folders else []
    beside = [path for path in beside if path.is_dir() or is_image(path.name)]
    first = next(iter(folders))
    for part, folder in folders.items():
        beside += [path for path in _visible(folder) if not path.is_dir() and is_image(path.name)]
        _compare_classes(folders[first], names[first], folder, names[part])
    # in one order of classes: the names of folders, composed in one part and decomposed in another, sort differently
    listings = {
        part: {name: list_images(folders[part] / own[name]) for name in names[first]} for part, own in names.items()
    }
    for part, listed in listings.items():
        _refuse_empty(folders[part], names[part], listed)
    _refuse_two_classes(listings)
    parts = {part: [listing.files for listing in listed.values()] for part, listed in listings.items()}
    every = [listing for listed in listings.values() for listing in listed.values()]
    return ClassFolders(root, tuple(names[first]), parts, folders, every, beside)


def find_parts(root: Path) -> dict[str, Path]:
    """Return the folders of the splits by their part, "train", "val" and "test"; empty if a folder is not split.

    A folder called ``train`` may also be a class of that name: it then holds images, and other classes are beside it.
    """
    visible = [path for path in _visible(root) if path.is_dir()]
    found: dict[str, Path] = {}
    for part, pattern in NAMES_OF_PARTS.items():
        folders = [path for path in visible if pattern.fullmatch(path.name)]
        if len(folders) > 1:
            names = " and ".join(f"{path.name}/" for path in folders)
            raise InputError(f"{root} has {names}, which both stand for the {part} split; expected one of them")
        if folders:
            found[part] = folders[0]
    beside = [path for path in visible if path not in found.values()]
    if beside and all(_holds_images(path) for path in found.values()):
        return {}
    if list(found) == ["train"] and (classes := [path.name for path in beside if list_images(path).files]):
        raise InputError(
            f"{root} has {found['train'].name}/ beside {a_few(classes)}, which hold images too; expected class folders "
            "only, or the splits train/, val/ and test/ only"
        )
    if found and "train" not in found:
        names = " and ".join(f"{path.name}/" for path in found.values())
        raise InputError(
            f"{root} has {names} but no train/; give both, or one folder of class folders such as "
            f"{next(iter(found.values()))}"
        )
    return found


# ---- class folders ----


def _visible(folder: Path) -> list[Path]:
    try:
        return sorted(path for path in folder.iterdir() if not is_hidden(path.name))
    except OSError as error:
        raise InputError(f"{folder} cannot be read: {error.strerror}") from None


def _holds_images(folder: Path) -> bool:
    return any(is_image(path.name) and not path.is_dir() for path in _visible(folder))


def _class_names(folder: Path, part: str, root: Path) -> dict[str, str]:
    """Return the folder of each class by the class's name."""
    names = [path.name for path in _visible(folder) if path.is_dir()]
    if not names:
        if not _holds_images(folder):
            raise InputError(f"{folder} holds no images; expected one folder a class with its images inside")
        hint = _UNLABELLED if part not in ("all", "train") else ""
        tables = [path.name for path in _visible(root) if path.suffix.lower() in (".csv", ".tsv", ".jsonl", ".parquet")]
        hint += f", or as --data a file of labels, such as {root / tables[0]}" if tables else ""
        raise InputError(
            f"{folder} holds images but no class folders; expected one folder a class with its images inside{hint}"
        )
    if len(names) == 1 and (deeper := _deeper(folder / names[0])):
        what = "give that path" if part == "all" else f"move them into {folder}"
        raise InputError(f"{folder} holds one folder only; the class folders are in {deeper}: {what}")
    _refuse_same_subfolders(folder, names)
    shown = {printable_name(name): name for name in names}
    if len(shown) < len(names):
        twice = next(name for name in names if shown[printable_name(name)] != name)
        raise InputError(
            f"{folder} has two folders whose names both read '{printable_name(twice)}'; expected each class once"
        )
    if len(names) < 2:
        hint = _UNLABELLED if part not in ("all", "train") else ""
        raise InputError(f"{folder} holds one class only ('{names[0]}'); a classifier needs two or more{hint}")
    return shown


def printable_name(name: str | bytes) -> str:
    """Return the name of a class for its folder: composed Unicode with unprintable characters escaped."""
    text = os.fsencode(name).decode("utf-8", "backslashreplace")
    return printable(unicodedata.normalize("NFC", text))


def _deeper(folder: Path) -> Path | None:
    """Return the first folder at or below this one that holds several folders, if no images come before."""
    for _ in range(100):  # a link may lead back
        inside = [path for path in _visible(folder) if path.is_dir()]
        if _holds_images(folder) or not inside:
            return None
        if len(inside) > 1:
            return folder
        folder = inside[0]
    return None


def _refuse_same_subfolders(folder: Path, names: list[str]) -> None:
    """Refuse class folders that look like splits, or like folders around the class folders."""
    around = [name for name in names if _deeper(folder / name)]
    named = [name for name in around if any(pattern.search(name) for pattern in _PARTS_IN_NAMES)]
    if sum(any(map(pattern.search, named)) for pattern in _PARTS_IN_NAMES) > 1:
        raise InputError(
            f"{a_few(named)} in {folder} read like splits and hold folders, no images: move those folders into train, "
            "val and test; if they are classes, move the images up into them"
        )
    deepest = [_deeper(folder / name) or folder / name for name in names]
    inside = [frozenset(path.name for path in _visible(path) if path.is_dir()) for path in deepest]
    splits = NAMES_OF_PARTS.values()
    for name, own in zip(names, inside, strict=True):
        found = [part for part in sorted(own) if any(pattern.fullmatch(part) for pattern in splits)]
        if len(found) > 1 and len(set(inside)) > 1 and not _holds_images(folder / name):
            raise InputError(
                f"{folder / name} beside {a_few(other for other in names if other != name)} holds the splits "
                f"{a_few(found)}: give {folder / name} if it is the data set"
            )
    if len(names) < 2 or len(set(inside)) > 1 or any(_holds_images(folder / name) for name in names):
        return
    if len(inside[0]) > 1 or any(pattern.fullmatch(name) for name in inside[0] for pattern in splits):
        raise InputError(
            f"{a_few(names)} in {folder} all hold the same folders, {a_few(sorted(inside[0]))}: if they are splits, "
            "name them train, val and test; if they are classes, move the images up into them"
        )


def _compare_classes(folder: Path, names: dict[str, str], other: Path, others: dict[str, str]) -> None:
    if differing := set(names) ^ set(others):
        name = min(differing)
        has, lacks = (folder, other) if name in names else (other, folder)
        raise InputError(f"the class '{name}' is in {has} but not in {lacks}; both need the same classes")


def _refuse_empty(folder: Path, names: dict[str, str], listed: dict[str, Listing]) -> None:
    empty = [name for name, listing in listed.items() if not listing.files]
    others = count_suffixes(path for name in empty for path in listed[name].others)
    only = ", only " + ", ".join(f"{count} {suffix}" for suffix, count in others.items()) if others else ""
    if len(empty) == len(listed):
        raise InputError(f"{folder} holds no images in its {len(listed)} folders{only}")
    if empty:
        what = f"the class folder {folder / names[empty[0]]} holds"
        if len(empty) > 1:
            what = f"{len(empty)} class folders in {folder} ({a_few(empty)}) hold"
        raise InputError(f"{what} no images{only}; fill or remove them")


def _refuse_two_classes(listings: dict[str, dict[str, Listing]]) -> None:
    """Refuse a file that links put into two classes: one of the labels is wrong."""
    seen: dict[tuple[int, int], tuple[str, Path]] = {}
    for listed in listings.values():
        for name, listing in listed.items():
            for file in listing.files:
                other, path = seen.setdefault(file.identity, (name, file.path))
                if other != name and file.identity[0] != -1:
                    raise InputError(f"{path} and {file.path} are links to one file, in two classes; remove one")
