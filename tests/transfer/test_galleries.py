"""The page of captions: its size, its choice, and everything that a caption may hold."""

import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from cutmix.errors import InputError
from cutmix.transfer.caption_data import CaptionSet
from cutmix.transfer.galleries import gallery_of_captions


@pytest.fixture
def data(tmp_path: Path) -> CaptionSet:
    for i in range(6):
        Image.new("RGB", (30 + 5 * i, 40), (40 * i, 255 - 40 * i, 90)).save(tmp_path / f"{i}.png")
    texts = ("A dog runs .", "price $1$ \\frac, 猫 and everything else that can be said in very many words")
    return CaptionSet("some", "test", tuple(tmp_path / f"{i}.png" for i in range(6)), (texts,) * 6)


def opened(png: bytes) -> np.ndarray:
    image = Image.open(io.BytesIO(png))
    assert image.format == "PNG"
    return np.asarray(image.convert("RGB"))


@pytest.mark.parametrize(("count", "rows", "columns"), [(1, 1, 1), (3, 1, 3), (9, 2, 4)])
def test_a_page_has_rows_of_four(data: CaptionSet, count: int, rows: int, columns: int) -> None:
    captions = {path.name: "a caption $x$ \\frac 猫" if i else "" for i, path in enumerate(data.paths)}
    page = opened(gallery_of_captions(data, captions, count=count))
    assert page.shape == (round(120 * 3.1 * rows), round(120 * 2.6 * columns), 3)


def test_the_pictures_are_on_the_page_and_a_seed_chooses_them(data: CaptionSet) -> None:
    captions = {path.name: "a dog" for path in data.paths}

    def shown(seed: int) -> set[int]:
        page = opened(gallery_of_captions(data, captions, count=2, seed=seed))
        return {i for i in range(6) if (page == (40 * i, 255 - 40 * i, 90)).all(2).sum() > 5000}

    chosen = [shown(seed) for seed in (0, 1, 2, 0)]
    assert {len(pictures) for pictures in chosen} == {2}
    assert chosen[0] == chosen[3]
    assert any(pictures != chosen[0] for pictures in chosen)


def test_what_is_said_is_drawn(data: CaptionSet) -> None:
    pages = [
        opened(gallery_of_captions(data, {path.name: said for path in data.paths}, count=2))
        for said in ("a dog", "a cat")
    ]
    assert not np.array_equal(*pages)


def test_a_picture_without_a_caption_is_refused(data: CaptionSet) -> None:
    with pytest.raises(InputError, match=r"there is no caption for the picture '\d.png' of some"):
        gallery_of_captions(data, {})
