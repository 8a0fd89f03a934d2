"""Annotations in Pascal VOC's XML: the one reader, for detection and for localization."""

import codecs
import math
import re
import xml.etree.ElementTree as ET
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

from cutmix.errors import InputError

_YES, _NO = ("1", "true", "yes", "y"), ("0", "false", "no", "n", "unspecified", "")


class VocObject(NamedTuple):
    """One annotated object.

    Attributes:
        name: Its class.
        corners: xmin, ymin, xmax, ymax as the file has them: pixels, the last one inside. VOC counts them from 1,
            ImageNet from 0.
        difficult: Whether it is marked as hard to recognize.
    """

    name: str
    corners: tuple[float, float, float, float]
    difficult: bool


class Annotation(NamedTuple):
    """The annotation of one image.

    Attributes:
        size: Width and height in pixels, as the file has them.
        objects: In the file's order. The parts of an object (``<part>``) are not objects.
    """

    size: tuple[int, int]
    objects: tuple[VocObject, ...]


def read_annotation(file: Path) -> Annotation:
    """Read one annotation in any encoding that Python knows.

    Raises:
        InputError: The file cannot be read as XML, or a size, a corner or a mark is not a number.
    """
    root = _parse(file)
    width, height = (round(_number(root, f"size/{side}", str(file))) for side in ("width", "height"))
    if min(width, height) < 1:
        raise InputError(f"{file} gives its image a size of {width}×{height} pixels; expected 1 or more")
    objects = tuple(_object(item, f"object {i} of {file}") for i, item in enumerate(root.findall("object"), 1))
    return Annotation((width, height), objects)


def _parse(file: Path) -> ET.Element:
    try:
        content = file.read_bytes()
        declared = re.match(rb"""(?:\xef\xbb\xbf)?\s*<\?xml[^>]*encoding\s*=\s*["']([\w.-]+)""", content)
        if declared and not content.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
            # decoded here, since expat knows four encodings only
            text = content.decode("utf-8-sig" if declared[1].lower() == b"utf-8" else declared[1].decode())
            return ET.fromstring(re.sub(r"^\s*<\?xml.*?\?>", "", text, flags=re.DOTALL))
        return ET.fromstring(content)
    except (ET.ParseError, ValueError, LookupError, OSError, RecursionError) as error:
        raise InputError(f"{file} cannot be read as XML ({error})") from None


def _object(item: ET.Element, where: str) -> VocObject:
    left, top, right, bottom = (_number(item, f"bndbox/{side}", where) for side in ("xmin", "ymin", "xmax", "ymax"))
    name = " ".join((item.findtext("name") or "").split())
    return VocObject(name, (left, top, right, bottom), _mark(item, "difficult", where))


def _number(element: ET.Element, tag: str, where: str) -> float:
    text = element.findtext(tag)
    with suppress(ValueError):
        if math.isfinite(number := float(text or "")):
            return number
    raise InputError(f"{where} has '{text or ''}' as its {tag}; expected a number")


def _mark(element: ET.Element, tag: str, where: str) -> bool:
    """Read a mark that programs write as 0, 0.0, no, False or Unspecified and the like, or leave out."""
    text = (element.findtext(tag) or "").strip().lower()
    if text in _YES or text in _NO:
        return text in _YES
    return _number(element, tag, where) != 0
