"""The gallery shows lines where the boxes are, and nothing that was not asked for."""

import io
from pathlib import Path

import numpy as np
import pytest
import torch
from matplotlib.axes import Axes
from PIL import Image

from cutmix.errors import InputError
from cutmix.transfer.average_precision import Detections
from cutmix.transfer.detection_data import DetectionSet, make_picture
from cutmix.transfer.galleries import gallery_of_detections


@pytest.fixture
def grey(tmp_path: Path) -> DetectionSet:
    """Three grey pictures with an object each, the second one's difficult."""
    pictures = []
    for i in range(3):
        path = tmp_path / f"p{i}.png"
        Image.new("RGB", (120, 80), (128, 128, 128)).save(path)
        pictures.append(make_picture(path, (120, 80), [(10, 10, 100, 70)], [i % 2], [i == 1], path.name))
    return DetectionSet("grey", "test", ("cat", "$dog_1$"), tuple(pictures))


def found(*rows: tuple[int, float]) -> Detections:
    images, scores = (np.array(column) for column in zip(*rows, strict=True))
    return Detections(
        images, np.zeros(len(rows), dtype=np.int64), scores, np.tile([20.0, 20.0, 90.0, 60.0], (len(rows), 1))
    )


def drawn(png: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(png)).convert("L")).astype(int)


def test_what_is_found_is_drawn_on_the_right_picture_of_its_pair(grey: DetectionSet) -> None:
    none, one = (drawn(gallery_of_detections(grey, found((image, 0.9)))) for image in (2, 0))
    assert none.shape == one.shape
    width = none.shape[1] // 4
    changed = np.argwhere((none != one)[: none.shape[0] // 2])  # the first row: pictures 0 and 1
    assert len(changed) > 200
    assert changed[:, 1].min() >= width
    assert changed[:, 1].max() <= 2 * width


@pytest.mark.parametrize(
    ("scores", "drawn_of_them"),
    [
        ((0.9, 0.6, 0.1), 2),  # all that reach 0.5
        ((0.2, 0.1, 0.05), 1),  # none does: as many as there are objects
        ((0.2, 0.2, 0.2), 1),
        ((), 0),
    ],
)
def test_the_surest_are_drawn_and_counted(
    grey: DetectionSet, monkeypatch: pytest.MonkeyPatch, scores: tuple[float, ...], drawn_of_them: int
) -> None:
    titles, texts = [], []
    monkeypatch.setattr(Axes, "set_title", lambda self, text, **_: titles.append(text))
    monkeypatch.setattr(Axes, "text", lambda self, x, y, text, **_: texts.append(text))
    rows = [(0, score) for score in scores] + [(2, 0.8)]
    gallery_of_detections(grey, found(*rows), pictures=[0])
    assert titles == ["p0: true", f"found: the surest {drawn_of_them} of {len(scores)}"]
    assert texts[1:] == [f"cat {score:.2f}" for score in reversed(scores[:drawn_of_them])]  # the surest on top


def test_lines_are_black_and_white_and_tell_kinds_apart(grey: DetectionSet) -> None:
    shares = []
    for number in (0, 1):  # an object and a difficult one at the same place
        image = drawn(gallery_of_detections(grey, found((2, 0.9)), pictures=[number]))
        left = image[:, : image.shape[1] // 4]
        body = left[(left == 128).any(1)][:, (left == 128).any(0)]  # without title and margin
        shares.append(((body < 60).mean(), (body > 220).mean()))
    assert shares[0][0] > 0.005
    assert shares[0][1] > 0.005
    assert shares[1][1] < 0.9 * shares[0][1]  # dotted has fewer white pixels than solid


def test_an_odd_number_of_pictures_and_none_that_is_absent(grey: DetectionSet) -> None:
    tall = Image.open(io.BytesIO(gallery_of_detections(grey, found((0, 0.9)), pictures=[0, 1, 2])))
    flat = Image.open(io.BytesIO(gallery_of_detections(grey, found((0, 0.9)), pictures=[2])))
    assert tall.width == flat.width
    assert tall.height > flat.height
    for wrong in ([], [3], [-1]):
        with pytest.raises(InputError, match="expected numbers from 0 to 2"):
            gallery_of_detections(grey, found((0, 0.9)), pictures=wrong)


def test_a_picture_of_another_size_is_named(grey: DetectionSet) -> None:
    Image.new("RGB", (50, 50)).save(grey.pictures[1].path)
    assert torch.equal(grey.pictures[0].boxes, torch.tensor([[10.0, 10.0, 100.0, 70.0]]))
    with pytest.raises(InputError, match=r"p1\.png is 50×50 pixels, but its annotation says 120×80"):
        gallery_of_detections(grey, found((0, 0.9)))
