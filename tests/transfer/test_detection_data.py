"""Detection data: objects and fingerprints of a set, files checked, and augmented samples with their boxes."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, ImageOps
from torch import Tensor

from cutmix.errors import InputError
from cutmix.transfer.detection_data import (
    BoxedImage,
    DetectionSamples,
    DetectionSet,
    RawImage,
    detection_sets,
    faster_rcnn_transform,
    ssd_transform,
)

WHITE = 250


@pytest.fixture
def white_boxes(tmp_path: Path, boxed: Callable[..., BoxedImage]) -> DetectionSet:
    """Black images with one white object in each; the last has a difficult object besides, and one has none."""
    rng = np.random.default_rng(0)
    images = []
    for i in range(12):
        pixels = np.zeros((90, 120, 3), dtype=np.uint8)
        left, top = rng.integers(0, 60, 2).tolist()
        width, height = rng.integers(20, 30, 2).tolist()
        box = (left, top, left + width, top + height)
        pixels[top : top + height, left : left + width] = 255
        path = tmp_path / f"{i}.png"
        Image.fromarray(pixels).save(path)
        boxes = [] if i == 10 else [box] if i < 11 else [box, (0, 0, 5, 5)]
        labels = [i % 3] * len(boxes)
        images.append(boxed(path, (120, 90), boxes, labels, [False, True][: len(boxes)]))
    return DetectionSet("white", "train", ("a", "b", "c"), tuple(images))


def extent(image: Tensor) -> list[int]:
    """Return the edges of the white pixels."""
    rows, cols = torch.nonzero((image > WHITE).all(0), as_tuple=True)
    return [int(cols.min()), int(rows.min()), int(cols.max()) + 1, int(rows.max()) + 1]


def test_without_a_transform_boxes_are_the_files(white_boxes: DetectionSet) -> None:
    samples = DetectionSamples(white_boxes)
    assert len(samples) == 12
    for i in range(10):
        image, target = samples[0, i]
        assert (image.shape, image.dtype) == ((3, 90, 120), torch.uint8)
        assert target["boxes"].tolist() == [extent(image)]
        assert target["labels"].tolist() == [i % 3]


def test_flipped_boxes_are_around_the_flipped_pixels(white_boxes: DetectionSet) -> None:
    samples, plain = (DetectionSamples(white_boxes, transform) for transform in (faster_rcnn_transform(), None))
    flipped = 0
    for epoch in range(10):
        for i in range(10):
            image, target = samples[epoch, i]
            assert target["boxes"].tolist() == [extent(image)]
            flipped += not torch.equal(image, plain[0, i][0])
    assert 30 <= flipped <= 70  # of 100, expected 50 ± 5


def test_ssds_boxes_follow_their_pixels(white_boxes: DetectionSet) -> None:
    samples = DetectionSamples(white_boxes, ssd_transform(150, fill=(0, 0, 0)))
    objects = 0
    for epoch in range(6):
        for i in range(10):
            image, target = samples[epoch, i]
            assert (image.shape, image.dtype) == ((3, 150, 150), torch.uint8)
            assert type(image) is type(target["boxes"]) is Tensor
            assert len(target["boxes"]) == len(target["labels"]) == 1  # a crop keeps an object
            bright = (image.amax(0) > image.max() // 2).nonzero()  # contrast and brightness may darken what was white
            edges = [*bright.amin(0).flip(0).tolist(), *(bright.amax(0) + 1).flip(0).tolist()]
            assert target["boxes"][0].tolist() == pytest.approx(edges, abs=1.5)
            objects += target["labels"].item() == i % 3
    assert objects == 60


def test_the_canvas_has_the_mean_color(white_boxes: DetectionSet) -> None:
    samples = DetectionSamples(white_boxes, ssd_transform(100, fill=(0.2, 0.4, 0.6)))
    mean = torch.tensor([51, 102, 153], dtype=torch.uint8)
    seen = sum(
        (samples[epoch, 0][0].permute(1, 2, 0) == mean).all(-1).float().mean().item() > 0.3 for epoch in range(20)
    )
    assert 3 <= seen <= 17


@pytest.mark.parametrize("make", [ssd_transform, faster_rcnn_transform])
def test_a_sample_depends_on_seed_epoch_and_index_alone(
    white_boxes: DetectionSet, make: Callable[[], Callable]
) -> None:
    torch.manual_seed(0)
    before = torch.get_rng_state()
    first = [DetectionSamples(white_boxes, make(), seed=3)[2, i] for i in (0, 1, 2)]
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(99)
    again = [DetectionSamples(white_boxes, make(), seed=3)[2, i] for i in (2, 1, 0)][::-1]
    for (image, target), (same, its) in zip(first, again, strict=True):
        assert torch.equal(image, same)
        assert torch.equal(target["boxes"], its["boxes"])
    for seed, epoch in ((4, range(6)), (3, range(3, 9))):
        others = [DetectionSamples(white_boxes, make(), seed=seed)[e, 0][0] for e in epoch]
        assert any(not torch.equal(first[0][0], other) for other in others)


def test_difficult_objects_are_dropped_unless_they_are_kept(white_boxes: DetectionSet) -> None:
    assert len(DetectionSamples(white_boxes)[0, 11][1]["labels"]) == 1
    assert len(DetectionSamples(white_boxes, keep_difficult=True)[0, 11][1]["labels"]) == 2


def test_an_image_without_objects_stays(white_boxes: DetectionSet) -> None:
    for transform in (None, faster_rcnn_transform(), ssd_transform(64)):
        image, target = DetectionSamples(white_boxes, transform)[0, 10]
        assert image.shape[0] == 3
        assert (target["boxes"].shape, target["labels"].shape) == ((0, 4), (0,))


def test_batches_are_lists(white_boxes: DetectionSet) -> None:
    jobs, batch = DetectionSamples(white_boxes).begin(0, [1, 10])
    for job in reversed(jobs):
        job()
    images, targets = batch()
    assert [image.shape for image in images] == [(3, 90, 120)] * 2
    assert [len(target["labels"]) for target in targets] == [1, 0]


def test_an_unreadable_image_is_refused(white_boxes: DetectionSet) -> None:
    white_boxes.images[4].path.write_bytes(b"no image")
    Image.new("RGB", (90, 120)).save(white_boxes.images[5].path)
    samples = DetectionSamples(white_boxes, faster_rcnn_transform())
    with pytest.raises(InputError, match=r"4\.png cannot be read as an image"):
        samples.begin(0, [3, 4])[0][1]()
    with pytest.raises(InputError, match=r"5\.png is 90×120 pixels; expected 120×90 by its annotation"):
        samples[0, 5]


# ---- sets ----


def test_objects_are_numbered_by_image_and_every_part_changes_the_fingerprint(
    tmp_path: Path, boxed: Callable[..., BoxedImage]
) -> None:
    box = [(1, 2, 30, 20)]
    some = boxed(tmp_path / "a.png", (60, 40), box, [1]), boxed(tmp_path / "b.png", (60, 40), box, [1], [True])
    data = DetectionSet("x", "train", ("cat", "dog"), some)
    objects = data.objects()
    assert (objects.images.tolist(), objects.labels.tolist()) == ([0, 1], [1, 1])
    assert objects.difficult.tolist() == [False, True]
    assert data.areas().tolist() == [29 * 18] * 2
    first, second = some
    changes = {"difficult": first.difficult, "boxes": second.boxes + 1, "labels": second.labels - 1}
    others = [(second, first), (first,), *((first, second._replace(**{k: v})) for k, v in changes.items())]
    assert len({replace(data, images=images).fingerprint() for images in (some, *others)}) == 6


def raw(path: Path, size: tuple[int, int] = (60, 40)) -> RawImage:
    return RawImage(path, size, [(1, 2, 30, 20)], ["dog"], [False], [522], path.name)


def test_sizes_are_those_of_the_upright_images(tmp_path: Path) -> None:
    turned = Image.new("RGB", (40, 60)).getexif()
    turned[0x0112] = 6  # to be turned by 90°
    Image.new("RGB", (40, 60)).save(tmp_path / "a.jpg", exif=turned)
    Image.new("RGB", (60, 40)).save(tmp_path / "b.png")
    both = [[raw(tmp_path / name)] for name in ("a.jpg", "b.png")]
    assert [len(data) for data in detection_sets(tmp_path, both, ("dog",), ((), ()), crowds=False)] == [1, 1]
    both[1] = [raw(tmp_path / "b.png", (40, 60))]
    with pytest.raises(InputError, match=r"b\.png is 60×40 pixels; expected 40×60 by its annotation"):
        detection_sets(tmp_path, both, ("dog",), ((), ()), crowds=False)


@pytest.mark.parametrize("orientation", range(2, 9))
@pytest.mark.parametrize("drawn_on", ["stored", "upright"])
def test_boxes_turn_with_their_image(tmp_path: Path, orientation: int, drawn_on: str) -> None:
    """The oracle is Pillow; an image on its side tells the axes of one that is only mirrored."""
    images = []
    for name, turn in (("a", orientation), ("b", 6)):
        exif, pixels = Image.Exif(), np.zeros((40, 60, 3), dtype=np.uint8)
        exif[0x0112] = turn
        pixels[5:16, 30:38] = 255
        Image.fromarray(pixels).save(tmp_path / f"{name}.png", exif=exif)
        with Image.open(tmp_path / f"{name}.png") as file:
            drawn = pixels if drawn_on == "stored" else np.asarray(ImageOps.exif_transpose(file))
        rows, columns = np.nonzero(drawn[..., 0])
        box = (columns.min(), rows.min(), columns.max() + 1, rows.max() + 1)
        images.append(RawImage(tmp_path / f"{name}.png", drawn.shape[1::-1], [box], ["dog"], [False], [88], name))
    Image.new("RGB", (60, 40)).save(tmp_path / "c.png")
    data, _ = detection_sets(tmp_path, [images, [raw(tmp_path / "c.png")]], ("dog",), ((), ()), crowds=False)
    for index in range(2):
        image, target = DetectionSamples(data)[0, index]
        assert target["boxes"][0].tolist() == extent(image)
    assert [f"EXIF turns {tmp_path / 'a.png'}, and" in note for note in data.notes] == [True] * (orientation < 5)


def test_a_file_that_is_not_an_image_is_named(tmp_path: Path) -> None:
    (tmp_path / "a.jpg").write_bytes(b"nothing")
    with pytest.raises(InputError, match=r"a\.jpg cannot be read as an image .*: repair or remove it$"):
        detection_sets(tmp_path, [[raw(tmp_path / "a.jpg")]] * 2, ("dog",), ((), ()), crowds=False)
