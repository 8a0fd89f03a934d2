"""Functions that all layouts of data sets share: find images, read the lists of the splits, read COCO's JSON."""

import codecs
import os
from collections import defaultdict
from collections.abc import Collection, Hashable, Iterable, Iterator, Mapping
from dataclasses import MISSING, dataclass, fields
from pathlib import Path, PurePosixPath
from typing import Any, Generic, TypeVar

from cutmix.data.decode import Pixels, digest_pixels, in_threads
from cutmix.data.division import MOST_BYTES
from cutmix.data.folder import EXTENSIONS, held_share, hold_out
from cutmix.errors import InputError, a_few
from cutmix.runtime.files import check_fields, kind_of, parse_object, read_bytes, read_lenient_text

_SUFFIXES = (*EXTENSIONS, ".xml")
_FLAGS = ("-1", "0", "1")  # VOC's lists of one class: absent, difficult, present


def left_out(what: str, files: Collection[Path]) -> list[str]:
    """Return a note on files that are not used, with their number and the first names; none without files."""
    return [f"{what}: {len(files):,} ({a_few(sorted(file.name for file in files), 3)})"] if files else []


def is_unicode(text: str) -> bool:
    """Return whether a text is free of lone surrogates, as Python has them for bytes that are not UTF-8."""
    return not any("\ud800" <= letter <= "\udfff" for letter in text)


def find_groups(paths: Collection[Path]) -> list[list[Path]]:
    """Return the groups of two or more files that hold the same image; none of a set that is too large to compare."""
    if sum(path.stat().st_size for path in paths) > MOST_BYTES:
        return []
    groups: dict[bytes, list[Path]] = defaultdict(list)
    for path, pixels in zip(paths, in_threads(digest_pixels, paths), strict=True):
        if isinstance(pixels, Pixels):
            groups[pixels.digest].append(path)
    return [group for group in groups.values() if len(group) > 1]


def split_by_hash(
    images: Mapping[str, Path], test_fraction: float, seed: int
) -> tuple[tuple[list[str], list[str]], list[str]]:
    """Divide the names of images into training and testing, copies in one split; return notes on them too."""
    names = {path: name for name, path in images.items()}
    groups = [sorted(names[path] for path in group) for group in find_groups(list(names))]
    alone = sorted(set(images) - {name for group in groups for name in group})
    count = held_share(len(images), test_fraction)
    test = {name for group in hold_out([*groups, *([name] for name in alone)], count, seed) for name in group}
    copies = [images[name] for group in groups for name in group[1:]]
    return (sorted(images.keys() - test), sorted(test)), left_out("copies of other images, in the same split", copies)


def note_leaks(train: Collection[Path], test: Collection[Path]) -> list[str]:
    """Return a note on the test images that are copies of training images, if there are any."""
    groups = [{*group} for group in find_groups([*train, *test])]
    leaks = [path for group in groups if group & {*train} for path in group & {*test}]
    return left_out("test images that are copies of training images", leaks)


def image_folders(root: Path, part: str, source: Path) -> list[Path]:
    """Return the existing folders in which the images of a part, such as train2017, are looked for; its own first."""
    found = [folder for folder in (root / part, root / "images" / part, root / "images") if folder.is_dir()]
    if not found:
        raise InputError(f"{root} has no images for {source.name}; expected them in {part}, images/{part} or images")
    return [*found, root]


def find_image(name: str, folders: Collection[Path]) -> Path | None:
    """Return the file that a ``file_name`` means, or None.

    Programs write the paths of their own disk, so a name may begin with folders that are not part of the data set: the
    longest end of it that exists below one of the folders counts.
    """
    parts = [part for part in PurePosixPath(name.replace("\\", "/")).parts if part not in ("/", "..", ".")]
    ends = [Path(*parts[start:]) for start in range(len(parts))]
    try:
        return next((folder / end for end in ends for folder in folders if (folder / end).is_file()), None)
    except OSError:  # a name that is too long
        return None


def read_list(file: Path, names: Collection[str], where: Path) -> list[str]:
    """Return the images, of those in ``names``, that a list names, in its order; ``where`` they are is for errors.

    A line may contain spaces, and have folders before the name, the suffix of a file, and a flag or a second path after
    it.
    """
    found: dict[str, int] = {}
    for number, line in enumerate(read_lenient_text(file).split("\n"), 1):
        line = line.strip(" \t\r")
        if not line:
            continue
        name = next((name for text in _readings(line) for name in _ends(text) if name in names), None)
        if name is None:
            raise InputError(f"line {number} of {file} is '{line}'; expected the name of an image in {where}")
        if name in found:
            raise InputError(f"lines {found[name]} and {number} of {file} both name '{name}'; expected each once")
        found[name] = number
    if not found:
        raise InputError(f"{file} names no image; expected one on each line")
    return list(found)


def check_apart(names: Collection[str], file: Path, others: Collection[str], other: Path) -> None:
    """Refuse two lists that share a name."""
    if shared := {*names} & {*others}:
        raise InputError(f"{file} and {other} both name '{min(shared)}'; expected each image in one split")


def _readings(line: str) -> Iterator[str]:
    """Yield the meanings of a line: a name with spaces, a name followed by a flag, or the first of several words."""
    yield line
    words = line.split()
    if words[-1] in _FLAGS and len(words) > 1:
        yield line[: line.rindex(words[-1])].strip()
    yield words[0]


def _ends(text: str) -> Iterator[str]:
    """Yield a path and its ends, each with and without its suffix, the longest first."""
    parts = PurePosixPath(text.replace("\\", "/")).parts
    for start in range(len(parts)):
        end = "/".join(parts[start:])
        yield end
        if end.lower().endswith(_SUFFIXES):
            yield end[: end.rindex(".")]


Id = int | str


@dataclass(frozen=True)
class Image:
    """An entry of "images"."""

    id: Id
    file_name: str
    width: float = 0
    height: float = 0


@dataclass(frozen=True)
class Category:
    """An entry of "categories"."""

    id: Id
    name: str


@dataclass(frozen=True)
class Box:
    """An entry of "annotations" in a file of boxes; ``bbox`` is left, top, width and height."""

    image_id: Id
    category_id: Id
    bbox: tuple[float, float, float, float]
    id: Id | None = None
    iscrowd: int | bool | None = None
    area: float | None = None


@dataclass(frozen=True)
class Caption:
    """An entry of "annotations" in a file of captions."""

    image_id: Id
    caption: str
    id: Id | None = None


Annotation = TypeVar("Annotation", Box, Caption)
Entry = TypeVar("Entry")


@dataclass(frozen=True, eq=False)
class CocoFile(Generic[Annotation]):
    """An annotation file."""

    path: Path
    images: list[Image]  # sorted by their ids
    categories: list[Category]  # sorted by their ids; none in a file of captions
    annotations: Mapping[Id, list[Annotation]]  # of each image, by its id


def read_coco(path: Path, kind: type[Annotation]) -> CocoFile[Annotation]:
    """Read a file of boxes or captions; with boxes, categories and the sizes of images are needed too."""
    lists, boxes = parse_object(read_bytes(path).removeprefix(codecs.BOM_UTF8), str(path)), kind is Box
    images = _read_list(lists, "images", Image, path)
    categories = _read_list(lists, "categories", Category, path) if boxes else []
    annotations = _read_list(lists, "annotations", kind, path)
    for number, image in enumerate(images):
        _check_image(image, f"images[{number}] of {path}", sized=boxes)
    for number, category in enumerate(categories):
        if not (category.name.strip() and is_unicode(category.name)):
            what = f"categories[{number}] of {path}: name is {kind_of(category.name)}"
            raise InputError(f"{what}; expected a text in Unicode")
    _check_unique([image.id for image in images], f"images[{{}}].id of {path}")
    _check_unique([image.file_name for image in images], f"images[{{}}].file_name of {path}")
    _check_unique([category.id for category in categories], f"categories[{{}}].id of {path}")
    _check_unique([category.name for category in categories], f"categories[{{}}].name of {path}")
    _check_unique([entry.id for entry in annotations], f"annotations[{{}}].id of {path}")
    known: dict[str, set[Id]] = {"image_id": {image.id for image in images}}
    if boxes:
        known["category_id"] = {category.id for category in categories}
    by_image: dict[Id, list[Annotation]] = defaultdict(list)
    for number, entry in enumerate(annotations):
        _check_annotation(entry, known, f"annotations[{number}]", path)
        by_image[entry.image_id].append(entry)
    return CocoFile(path, sorted(images, key=_by_id), sorted(categories, key=_by_id), by_image)


def _by_id(entry: Image | Category) -> tuple[bool, Id]:
    return isinstance(entry.id, str), entry.id


def _read_list(lists: Mapping[str, Any], name: str, kind: type[Entry], path: Path) -> list[Entry]:
    """Return the checked entries of a list, without the fields that are not needed."""
    if not isinstance(entries := lists.get(name), list):
        raise InputError(f"'{name}' of {path} is {kind_of(entries)}; expected a list")
    required = tuple(field.name for field in fields(kind) if field.default is MISSING)  # type: ignore[arg-type]
    names = {field.name for field in fields(kind)}  # type: ignore[arg-type]
    found = []
    for number, entry in enumerate(entries):
        where = f"{name}[{number}] of {path}"
        if not isinstance(entry, dict):
            raise InputError(f"{where} is {kind_of(entry)}; expected an object with {' and '.join(required)}")
        found.append(kind(**check_fields(kind, {k: v for k, v in entry.items() if k in names}, where, required)))
    return found


def _check_image(image: Image, where: str, *, sized: bool) -> None:
    if not image.file_name.strip() or b"\0" in os.fsencode(image.file_name):
        raise InputError(f"{where}: file_name is {kind_of(image.file_name)}; expected the name of a file")
    for side in ("width", "height") if sized else ():
        value = getattr(image, side)
        if not 1 <= value < 2**31 or value != int(value):
            raise InputError(f"{where}: {side} is {value:g}; expected a whole number of pixels")


def _check_annotation(entry: Box | Caption, known: Mapping[str, set[Id]], where: str, path: Path) -> None:
    for field, ids in known.items():
        if (value := getattr(entry, field)) not in ids:
            listed = {"image_id": "images", "category_id": "categories"}[field]
            raise InputError(f"{where}.{field} of {path} is {kind_of(value)}; expected the id of one of its {listed}")
    if isinstance(entry, Box) and min(entry.bbox[2:]) < 0:
        raise InputError(f"{where}.bbox of {path} is {list(entry.bbox)}; expected left, top, width ≥ 0 and height ≥ 0")
    if isinstance(entry, Box) and (entry.area or 0) < 0:
        raise InputError(f"{where}.area of {path} is {entry.area:g}; expected square pixels, at least 0")


def _check_unique(values: Iterable[Hashable], what: str) -> None:
    first: dict[Hashable, int] = {}
    for number, value in enumerate(values):
        if value is not None and first.setdefault(value, number) != number:
            where = f"{what.format(number)} is {kind_of(value)}"
            raise InputError(f"{where}, as that of number {first[value]}; expected each once")
