"""Annotation files in COCO's JSON, for detection and for captions; every value is checked as it is read."""

import codecs
import math
import os
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cutmix.errors import InputError
from cutmix.runtime.schema import kind_of, parse_json

Entry = dict[str, Any]


def is_id(value: Any) -> bool:
    """Return whether a value can be an id: a whole number, or a text."""
    return (isinstance(value, int) and not isinstance(value, bool)) or is_text(value)


def is_text(value: Any) -> bool:
    """Return whether a value is a text that can be written as UTF-8, as one with a lone surrogate cannot."""
    try:
        return isinstance(value, str) and bool(value.strip()) and value.encode() is not None
    except UnicodeEncodeError:
        return False


def is_caption(value: Any) -> bool:
    """Return whether a value is a text that can be written as UTF-8, perhaps without a word."""
    return isinstance(value, str) and (not value.strip() or is_text(value))


def is_file_name(value: Any) -> bool:
    """Return whether a value can be the name of a file, also of one that is not UTF-8 on the disk."""
    try:
        return isinstance(value, str) and b"\0" not in os.fsencode(value) and bool(value.strip())
    except UnicodeEncodeError:
        return False


def is_side(value: Any) -> bool:
    """Return whether a value is a number of pixels of an image's side."""
    return _is_number(value) and 1 <= value < 2**31 and value == int(value)


def is_box(value: Any) -> bool:
    """Return whether a value is a box: left, top, width and height."""
    return isinstance(value, list) and len(value) == 4 and all(map(_is_number, value)) and min(value[2:]) >= 0


def is_area(value: Any) -> bool:
    """Return whether a value is an area in square pixels."""
    return _is_number(value) and value >= 0


def is_flag(value: Any) -> bool:
    """Return whether a value is 0, 1, true or false."""
    return isinstance(value, int) and value in (0, 1)


def _is_number(value: Any) -> bool:
    try:
        return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    except OverflowError:
        return False


_KINDS: dict[Callable[[Any], bool], str] = {
    is_id: "a whole number or a text",
    is_text: "a text in Unicode",
    is_caption: "a text in Unicode",
    is_file_name: "the name of a file",
    is_side: "a whole number of pixels",
    is_box: "[left, top, width, height]",
    is_area: "a number of square pixels",
    is_flag: "0 or 1",
}
_OPTIONAL = ("iscrowd", "area")

Schema = Mapping[str, Mapping[str, Callable[[Any], bool]]]


@dataclass(frozen=True, eq=False)
class CocoFile:
    """The lists of an annotation file.

    Args:
        path: The file.
        lists: The entries of "images", "annotations" and, where the schema has it, "categories"; all other fields of
            an entry are left as they were.
    """

    path: Path
    lists: Mapping[str, list[Entry]]

    @property
    def images(self) -> list[Entry]:
        """The images, in the file's order."""
        return self.lists["images"]

    def by_image(self) -> dict[Any, list[Entry]]:
        """Return the annotations of each image by its id, an empty list where there are none.

        Raises:
            InputError: If an annotation belongs to an image that is not listed.
        """
        found: dict[Any, list[Entry]] = {image["id"]: [] for image in self.images}
        for number, entry in enumerate(self.lists["annotations"]):
            if entry["image_id"] not in found:
                raise InputError(
                    f"annotations[{number}].image_id of {self.path} is {kind_of(entry['image_id'])}; expected the id "
                    "of one of its images"
                )
            found[entry["image_id"]].append(entry)
        return found


def read_coco(path: Path, schema: Schema) -> CocoFile:
    """Read an annotation file.

    Args:
        path: A JSON file.
        schema: The lists that are needed, the fields of their entries, and what each field has to satisfy.

    Raises:
        InputError: If the file is no JSON, a list or a field is missing or of another type, or two entries of a list
            have the same "id", "file_name" or "name".
    """
    content = _read_json(path)
    if not isinstance(content, dict):
        raise InputError(f"{path} is {kind_of(content)}; expected an object with {_listed(schema)}")
    lists = {}
    for name, fields in schema.items():
        entries = content.get(name)
        if not isinstance(entries, list):
            raise InputError(f"'{name}' of {path} is {kind_of(entries)}; expected a list")
        for number, entry in enumerate(entries):
            _check_entry(entry, fields, f"{name}[{number}]", path)
        for field in {"id", *fields} & {"id", "file_name", "name"}:
            _check_unique(entries, field, name, path)
        lists[name] = entries
    return CocoFile(path, lists)


def _read_json(path: Path) -> Any:
    try:
        content = path.read_bytes()
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror}") from None
    return parse_json(content.removeprefix(codecs.BOM_UTF8), str(path))


def _check_entry(entry: Any, fields: Mapping[str, Callable[[Any], bool]], where: str, path: Path) -> None:
    if not isinstance(entry, dict):
        raise InputError(f"{where} of {path} is {kind_of(entry)}; expected an object with {_listed(fields)}")
    for field, fits in fields.items():
        if field in _OPTIONAL and entry.get(field) is None:
            continue
        if not fits(entry.get(field)):
            value = kind_of(entry[field]) if field in entry else "missing"
            raise InputError(f"{where}.{field} of {path} is {value}; expected {_KINDS[fits]}")


def _check_unique(entries: list[Entry], field: str, name: str, path: Path) -> None:
    first: dict[Any, int] = {}
    for number, entry in enumerate(entries):
        value = entry.get(field)
        if is_id(value) or is_file_name(value):
            if value in first:
                raise InputError(
                    f"{name}[{number}].{field} of {path} is {kind_of(value)}, as is {name}[{first[value]}].{field}; "
                    "expected each once"
                )
            first[value] = number


def _listed(names: Collection[str]) -> str:
    return " and ".join(f"'{name}'" for name in names if name not in _OPTIONAL)
