"""The parts of the page: escaping, figures."""

import io

import numpy as np
import pytest
from PIL import Image

from cutmix.errors import InputError
from cutmix.report.page import HTML, Definition, Row, figure, link


def png(width: int, height: int) -> bytes:
    file = io.BytesIO()
    Image.fromarray(np.zeros((height, width, 3), np.uint8)).save(file, "png")
    return file.getvalue()


def test_a_figure_knows_its_size() -> None:
    made = figure(png(31, 17), "x.png", alt="a", caption="b")
    assert (made["width"], made["height"], made["alt"], made["caption"]) == (31, 17, "a", "b")


@pytest.mark.parametrize("content", [b"", b"no figure", png(3, 3)[:20]])
def test_what_is_no_png_is_named(content: bytes) -> None:
    with pytest.raises(InputError, match=r"runs/x\.png is not a PNG image"):
        figure(content, "runs/x.png", alt="", caption="")


def test_only_markup_is_markup() -> None:
    assert link("a-b", "<x>") == '<a href="#a-b">&lt;x&gt;</a>'
    table = HTML.table("<c>", [link("a", "head"), "<h>"], [Row(link("b", "row"), ["<d>"])])
    assert '<a href="#a">head</a>' in table
    assert '<a href="#b">row</a>' in table
    assert not {"<c>", "<h>", "<d>"} & set(str(table).split(">"))
    assert "&lt;d&gt;" in table


def test_the_width_of_a_cell_is_that_of_its_words() -> None:
    short, long = link("an-anchor-that-is-much-longer-than-the-word", "word"), "word " * 10
    assert "class=" not in HTML.table("c", ["a"], [Row(short, [])]).partition("<tbody>")[2]
    assert 'class="long"' in HTML.table("c", ["a"], [Row(long, [])])


def test_definitions_can_be_linked_to() -> None:
    made = HTML.definitions([("Title", [Definition("metric-x", "<X>", "Means & says.")])])
    assert '<dt id="metric-x">&lt;X&gt;</dt>' in made
    assert "Means &amp; says." in made
