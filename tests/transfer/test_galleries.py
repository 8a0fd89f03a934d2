"""Figures of test images: their size and choice, every text of a caption, and lines where the boxes are."""

import io
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from matplotlib.axes import Axes
from PIL import Image

from cutmix.errors import InputError
from cutmix.transfer.average_precision import Detections
from cutmix.transfer.caption_data import CaptionSet
from cutmix.transfer.captioning import gallery_of_captions
from cutmix.transfer.detection_data import BoxedImage, DetectionSet
from cutmix.transfer.detection_task import gallery_of_detections


@pytest.fixture
def data(tmp_path: Path) -> CaptionSet:
    for i in range(6):
        Image.new("RGB", (30 + 5 * i, 40), (40 * i, 255 - 40 * i, 90)).save(tmp_path / f"{i}.png")
    texts = ("A dog runs .", "price $1$ \\frac, 猫 and everything else that can be said in very many words")
    return CaptionSet(
        "some",
        "test",
        tuple(tmp_path / f"{i}.png" for i in range(6)),
        tuple(f"{i}.png" for i in range(6)),
        (texts,) * 6,
    )


def opened(png: bytes) -> np.ndarray:
    image = Image.open(io.BytesIO(png))
    assert image.format == "PNG"
    return np.asarray(image.convert("RGB"))


@pytest.mark.parametrize(("count", "rows", "columns"), [(1, 1, 1), (3, 1, 3), (9, 2, 4)])
def test_a_page_has_rows_of_four(data: CaptionSet, count: int, rows: int, columns: int) -> None:
    captions = {path.name: "a caption $x$ \\frac 猫" if i else "" for i, path in enumerate(data.paths)}
    page = opened(gallery_of_captions(data, captions, count=count))
    assert page.shape == (round(120 * 3.1 * rows), round(120 * 2.6 * columns), 3)


def test_the_images_are_on_the_page_and_a_seed_chooses_them(data: CaptionSet) -> None:
    captions = {path.name: "a dog" for path in data.paths}

    def shown(seed: int) -> set[int]:
        page = opened(gallery_of_captions(data, captions, count=2, seed=seed))
        return {i for i in range(6) if (page == (40 * i, 255 - 40 * i, 90)).all(2).sum() > 5000}

    chosen = [shown(seed) for seed in (0, 1, 2, 0)]
    assert {len(images) for images in chosen} == {2}
    assert chosen[0] == chosen[3]
    assert any(images != chosen[0] for images in chosen)


def test_what_is_said_is_drawn(data: CaptionSet) -> None:
    pages = [
        opened(gallery_of_captions(data, {path.name: said for path in data.paths}, count=2))
        for said in ("a dog", "a cat")
    ]
    assert not np.array_equal(*pages)


def test_a_image_without_a_caption_is_refused(data: CaptionSet) -> None:
    with pytest.raises(InputError, match=r"the image '\d.png' of some has no caption; expected one for every image"):
        gallery_of_captions(data, {})


# ---- detections ----


@pytest.fixture
def grey(tmp_path: Path, boxed: Callable[..., BoxedImage]) -> DetectionSet:
    """Three grey images with an object each, the second one's difficult."""
    images = []
    for i in range(3):
        path = tmp_path / f"p{i}.png"
        Image.new("RGB", (120, 80), (128, 128, 128)).save(path)
        images.append(boxed(path, (120, 80), [(10, 10, 100, 70)], [i % 2], [i == 1]))
    return DetectionSet("grey", "test", ("cat", "$dog_1$"), tuple(images))


def found(*rows: tuple[int, float]) -> Detections:
    images, scores = (np.array(column) for column in zip(*rows, strict=True))
    return Detections(
        images, np.zeros(len(rows), dtype=np.int64), scores, np.tile([20.0, 20.0, 90.0, 60.0], (len(rows), 1))
    )


def drawn(png: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(png)).convert("L")).astype(int)


def test_detections_are_drawn_on_the_right_image_of_a_pair(grey: DetectionSet) -> None:
    none, one = (drawn(gallery_of_detections(grey, found((image, 0.9)))) for image in (2, 0))
    assert none.shape == one.shape
    width = none.shape[1] // 4
    changed = np.argwhere((none != one)[: none.shape[0] // 2])  # the first row: images 0 and 1
    assert len(changed) > 200
    assert changed[:, 1].min() >= width
    assert changed[:, 1].max() <= 2 * width


@pytest.mark.parametrize(
    ("scores", "drawn_of_them"),
    [
        ((0.9, 0.6, 0.1), 2),  # all from 0.5
        ((0.2, 0.1, 0.05), 1),  # none: as many as there are objects
        ((0.2, 0.2, 0.2), 1),
        ((), 0),
    ],
)
def test_the_highest_scores_are_drawn_and_counted(
    grey: DetectionSet, monkeypatch: pytest.MonkeyPatch, scores: tuple[float, ...], drawn_of_them: int
) -> None:
    titles, texts = [], []
    monkeypatch.setattr(Axes, "set_title", lambda self, text, **_: titles.append(text))
    monkeypatch.setattr(Axes, "text", lambda self, x, y, text, **_: texts.append(text))
    rows = [(0, score) for score in scores] + [(2, 0.8)]
    gallery_of_detections(grey, found(*rows), images=[0])
    assert titles == ["p0: true", f"detected: the top {drawn_of_them} of {len(scores)}"]
    assert texts[1:] == [f"cat {score:.2f}" for score in reversed(scores[:drawn_of_them])]  # the highest score on top


def test_lines_are_black_and_white_and_tell_kinds_apart(grey: DetectionSet) -> None:
    shares = []
    for number in (0, 1):  # an object and a difficult one at the same place
        image = drawn(gallery_of_detections(grey, found((2, 0.9)), images=[number]))
        left = image[:, : image.shape[1] // 4]
        body = left[(left == 128).any(1)][:, (left == 128).any(0)]  # without title and margin
        shares.append(((body < 60).mean(), (body > 220).mean()))
    assert shares[0][0] > 0.005
    assert shares[0][1] > 0.005
    assert shares[1][1] < 0.9 * shares[0][1]  # dotted has fewer white pixels than solid


def test_an_odd_number_of_images_and_none_that_is_absent(grey: DetectionSet) -> None:
    tall = Image.open(io.BytesIO(gallery_of_detections(grey, found((0, 0.9)), images=[0, 1, 2])))
    flat = Image.open(io.BytesIO(gallery_of_detections(grey, found((0, 0.9)), images=[2])))
    assert tall.width == flat.width
    assert tall.height > flat.height
    for wrong in ([], [3], [-1]):
        with pytest.raises(InputError, match="expected indices from 0 to 2"):
            gallery_of_detections(grey, found((0, 0.9)), images=wrong)


def test_a_image_of_another_size_is_named(grey: DetectionSet) -> None:
    Image.new("RGB", (50, 50)).save(grey.images[1].path)
    assert torch.equal(grey.images[0].boxes, torch.tensor([[10.0, 10.0, 100.0, 70.0]]))
    with pytest.raises(InputError, match=r"p1\.png is 50×50 pixels; expected 120×80 by its annotation"):
        gallery_of_detections(grey, found((0, 0.9)))
