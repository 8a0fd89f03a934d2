"""Parts of a section of the page: rows, definitions, links, images, and the macros of the template."""

import base64
from collections.abc import Sequence
from importlib.resources import files
from typing import Any, NamedTuple

import jinja2
from markupsafe import Markup

from cutmix.errors import InputError

_TEMPLATE = files("cutmix.report").joinpath("page.html.jinja").read_text(encoding="utf-8")
# The macros of the page; whatever is given to them is escaped unless it is Markup.
HTML: Any = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined).from_string(_TEMPLATE).module


class Section(NamedTuple):
    """A section of the page: its title, the anchor of its link, its content."""

    title: str
    anchor: str
    body: Markup


class Row(NamedTuple):
    """A row of a table: its heading, its cells, and whether it is emphasized."""

    name: str
    cells: Sequence[str]
    strong: bool = False


class Definition(NamedTuple):
    """A definition: the anchor of its link, the term, its meaning."""

    anchor: str
    term: str
    text: str


def link(anchor: str, text: str) -> Markup:
    """Return a link to an anchor on the page."""
    return Markup('<a href="#{}">{}</a>').format(anchor, text)


def picture(png: bytes, where: object, *, alt: str, caption: str) -> dict[str, Any]:
    """Return an image as the template embeds it.

    Args:
        png: Content of the file.
        where: Name of the file, for the error message.
        alt: Text for a reader who does not see the image.
        caption: Caption.

    Raises:
        InputError: If the content is no PNG image.
    """
    if png[:8] != b"\x89PNG\r\n\x1a\n" or len(png) < 24:
        raise InputError(f"{where} is no PNG image; remove it or write it again")
    return {
        "base64": base64.b64encode(png).decode(),
        "width": int.from_bytes(png[16:20], "big"),
        "height": int.from_bytes(png[20:24], "big"),
        "alt": alt,
        "caption": caption,
    }
