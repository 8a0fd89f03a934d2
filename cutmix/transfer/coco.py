"""Annotation files in COCO's JSON, for detection and for captions; every value is checked as it is read."""

import codecs
import os
from collections import defaultdict
from collections.abc import Hashable, Iterable, Mapping
from dataclasses import MISSING, dataclass, fields
from pathlib import Path
from typing import Any, Generic, TypeVar

from cutmix.errors import InputError
from cutmix.runtime.schema import check_fields, kind_of, parse_object
from cutmix.transfer.layouts import is_unicode

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
    """An annotation file.

    Args:
        path: The file.
        images: The images, sorted by their ids.
        categories: The categories, sorted by their ids; none in a file of captions.
        annotations: The annotations of each image, by its id.
    """

    path: Path
    images: list[Image]
    categories: list[Category]
    annotations: Mapping[Id, list[Annotation]]


def read_coco(path: Path, kind: type[Annotation]) -> CocoFile[Annotation]:
    """Read an annotation file.

    Args:
        path: A JSON file.
        kind: The type of its annotations; with boxes, categories and the sizes of images are needed too.

    Raises:
        InputError: If the file is not JSON, a list or a field is missing or of another type, two entries of a list have
            the same id or name, or an annotation refers to an image or a category that is not listed.
    """
    try:
        content = path.read_bytes().removeprefix(codecs.BOM_UTF8)
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror}") from None
    lists, boxes = parse_object(content, str(path)), kind is Box
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


def _check_unique(values: Iterable[Hashable], what: str) -> None:
    first: dict[Hashable, int] = {}
    for number, value in enumerate(values):
        if value is not None and first.setdefault(value, number) != number:
            where = f"{what.format(number)} is {kind_of(value)}"
            raise InputError(f"{where}, as that of number {first[value]}; expected each once")
