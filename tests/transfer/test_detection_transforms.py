"""Augmented samples: seeds, boxes that follow their pixels, and what batches are made of."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader

from cutmix.errors import InputError
from cutmix.transfer.detection_data import (
    DetectionSamples,
    DetectionSet,
    collate,
    faster_rcnn_transform,
    make_picture,
    ssd_transform,
)

WHITE = 250


@pytest.fixture
def white_boxes(tmp_path: Path) -> DetectionSet:
    """Pictures, black but for one white object in each; the last has a difficult object besides, and one has none."""
    rng = np.random.default_rng(0)
    pictures = []
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
        pictures.append(make_picture(path, (120, 90), boxes, labels, [False, True][: len(boxes)], path.name))
    return DetectionSet("white", "train", ("a", "b", "c"), tuple(pictures))


def extent(image: Tensor) -> list[int]:
    """Return the edges of what is white."""
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


def test_the_canvas_has_the_mean_colour(white_boxes: DetectionSet) -> None:
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


def test_difficult_objects_are_left_out_unless_wanted(white_boxes: DetectionSet) -> None:
    assert len(DetectionSamples(white_boxes)[0, 11][1]["labels"]) == 1
    assert len(DetectionSamples(white_boxes, keep_difficult=True)[0, 11][1]["labels"]) == 2


def test_a_picture_without_objects_stays(white_boxes: DetectionSet) -> None:
    for transform in (None, faster_rcnn_transform(), ssd_transform(64)):
        image, target = DetectionSamples(white_boxes, transform)[0, 10]
        assert image.shape[0] == 3
        assert (target["boxes"].shape, target["labels"].shape) == ((0, 4), (0,))


def test_batches_are_lists(white_boxes: DetectionSet) -> None:
    loader = DataLoader(DetectionSamples(white_boxes), batch_sampler=[[(0, 1), (0, 10)]], collate_fn=collate)
    images, targets = next(iter(loader))
    assert [image.shape for image in images] == [(3, 90, 120)] * 2
    assert [len(target["labels"]) for target in targets] == [1, 0]


def test_an_unreadable_picture_is_an_error_as_a_value(white_boxes: DetectionSet) -> None:
    white_boxes.pictures[4].path.write_bytes(b"no picture")
    Image.new("RGB", (90, 120)).save(white_boxes.pictures[5].path)
    samples = DetectionSamples(white_boxes, faster_rcnn_transform())
    error = collate([samples[0, i] for i in (3, 4)])
    assert isinstance(error, InputError)
    assert "4.png cannot be read as an image" in str(error)
    assert "5.png is 90×120 pixels, but its annotation says 120×90" in str(samples[0, 5])
