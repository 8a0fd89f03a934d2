"""Boxes and their overlap against torchvision, arithmetic and the shapes on which definitions differ."""

from collections.abc import Callable
from itertools import pairwise

import numpy as np
import pytest
import torch
from torchvision.ops import box_iou as torchvision_iou

from cutmix.errors import InputError
from cutmix.evaluation.boxes import best_iou, box_from_map, box_iou, padded_boxes


def random_boxes(n: int, side: int = 50, seed: int = 0) -> np.ndarray:
    corners = np.random.default_rng(seed).integers(0, side, (n, 2, 2))
    return np.concatenate([corners.min(1), corners.max(1) + 1], axis=1)


def drawn(*parts: tuple[slice, slice], side: int = 100) -> np.ndarray:
    """Return a map that is 1 in these rows and columns, 0 elsewhere."""
    cam = np.zeros((side, side), dtype=np.float32)
    for rows, columns in parts:
        cam[rows, columns] = 1
    return cam


def opencv_box(cam: np.ndarray, threshold: float = 0.15) -> np.ndarray:
    """Return the box of the contour that encloses the largest area, as the benchmark takes it."""
    cv2 = pytest.importorskip("cv2")
    above = cam > threshold * cam.max() if cam.max() > 0 else np.zeros(cam.shape, dtype=bool)
    outlines = cv2.findContours(above.astype(np.uint8), cv2.RETR_TREE, cv2.CHAIN_APPROX_SIMPLE)[0]
    x, y, width, height = cv2.boundingRect(max(outlines, key=cv2.contourArea)) if outlines else (0, 0, 0, 0)
    return np.array([x, y, x + width, y + height])


def test_iou_is_torchvisions() -> None:
    a, b = random_boxes(40), random_boxes(30, seed=1)
    expected = torchvision_iou(torch.from_numpy(a).double(), torch.from_numpy(b).double()).numpy()
    np.testing.assert_allclose(box_iou(a[:, None], b), expected, rtol=1e-12)
    assert np.diagonal(box_iou(a[:, None], a)).tolist() == [1] * 40


def test_iou_of_empty_boxes_is_zero() -> None:
    assert box_iou(np.zeros(4), np.zeros(4)) == 0
    assert box_iou(np.zeros(4), np.array([0, 0, 5, 5])) == 0
    assert box_iou(np.array([0, 0, 2, 2]), np.array([2, 0, 4, 2])) == 0  # an edge in common has no area


def test_best_iou_is_over_the_boxes_of_the_image() -> None:
    boxes = [random_boxes(n, seed=n) for n in (1, 4, 2)]
    predicted = random_boxes(3, seed=9)
    expected = [max(box_iou(p, own)) for p, own in zip(predicted, boxes, strict=True)]
    np.testing.assert_array_equal(best_iou(predicted, boxes), expected)
    assert padded_boxes(3, boxes).shape == (3, 4, 4)


@pytest.mark.parametrize("box_of", [box_from_map, opencv_box])
def test_the_box_is_tight_around_what_is_above_the_threshold(box_of: Callable[..., np.ndarray]) -> None:
    cam = np.array([[-3, 0, 0, 0, 0], [0, 2, 10, 2, 0], [0, 0, 2, 1.5, 0], [0, 0, 0, 0, 2]], dtype=np.float32)
    assert box_of(cam, 0.15).tolist() == [1, 1, 4, 3]  # above 1.5, which is not above itself
    assert box_of(cam, 0.5).tolist() == [2, 1, 3, 2]
    assert box_of(cam, 0).tolist() == [1, 1, 5, 4]
    assert box_of(np.ones((4, 6)), 0.15).tolist() == [0, 0, 6, 4]
    for nothing in (np.zeros((4, 6)), np.full((4, 6), -1.0)):
        assert box_of(nothing, 0.15).tolist() == [0, 0, 0, 0]


def test_the_box_does_not_depend_on_the_scale_of_the_map() -> None:
    cam = np.random.default_rng(0).normal(size=(20, 30))
    assert box_from_map(cam).tolist() == box_from_map(1000 * cam).tolist()
    larger = np.stack([box_from_map(cam, t) for t in (0, 0.1, 0.2, 0.5, 0.9)])
    areas = [int(np.prod(box[2:] - box[:2])) for box in larger]
    assert all(small <= large for large, small in pairwise(areas))


LINE = drawn((slice(10, 11), slice(20, 80)), (slice(50, 56), slice(50, 56)))
DIAGONAL = drawn((slice(10, 20), slice(10, 20)), (slice(20, 30), slice(20, 30)), (slice(60, 73), slice(60, 73)))


@pytest.mark.parametrize(
    ("cam", "by_pixels", "by_area"),
    [
        (LINE, [20, 10, 80, 11], [50, 50, 56, 56]),  # 60 pixels beat 36; a line's contour has no area
        (DIAGONAL, [10, 10, 30, 30], [10, 10, 30, 30]),  # 200 pixels that touch at a corner beat 169
    ],
)
def test_where_definitions_differ(cam: np.ndarray, by_pixels: list[int], by_area: list[int]) -> None:
    assert box_from_map(cam).tolist() == by_pixels
    assert opencv_box(cam).tolist() == by_area


def test_a_ring_has_fewer_pixels_than_a_square_that_it_encloses_more_than() -> None:
    cam = drawn((slice(5, 60), slice(5, 60)))
    cam[10:55, 10:55] = 0  # 55² − 45² = 1,000 pixels around 2,025
    cam[62:96, 62:96] = 1  # 1,156 pixels
    assert box_from_map(cam).tolist() == [62, 62, 96, 96]
    assert opencv_box(cam).tolist() == [5, 5, 60, 60]


def test_equal_components_give_the_first_from_above() -> None:
    assert box_from_map(drawn((slice(60, 70), slice(0, 10)), (slice(20, 30), slice(50, 60)))).tolist() == [
        50,
        20,
        60,
        30,
    ]


def test_on_cams_the_box_is_nearly_always_opencvs() -> None:
    generator = torch.Generator().manual_seed(0)
    coarse = torch.randn(150, 1, 7, 7, generator=generator)
    cams = torch.nn.functional.interpolate(coarse, (56, 56), mode="bicubic")[:, 0].numpy()
    same = [np.array_equal(box_from_map(cam, 0.3), opencv_box(cam, 0.3)) for cam in cams]
    assert np.mean(same) > 0.97


def test_wrong_input_is_one_sentence() -> None:
    cam = np.eye(4)
    for threshold in (-0.1, 1.0, float("nan")):
        with pytest.raises(InputError, match=r"expected a share of the maximum in \[0, 1\)"):
            box_from_map(cam, threshold)
    with pytest.raises(InputError, match=r"expected \(height, width\)"):
        box_from_map(cam[None])
    with pytest.raises(InputError, match=r"the map has the shape \(0, 4\)"):
        box_from_map(np.ones((0, 4)))
    with pytest.raises(InputError, match="there are 2 predicted boxes and boxes of 3 images"):
        best_iou(random_boxes(2), [random_boxes(1)] * 3)
    with pytest.raises(InputError, match="image 1 has no box"):
        best_iou(random_boxes(2), [random_boxes(1), np.empty((0, 4))])


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_a_map_that_is_not_finite_has_no_box(value: float) -> None:
    cam = np.where(np.eye(8) > 0, value, 0.5)
    with pytest.raises(InputError, match="8 of the map's values are NaN or infinite"):
        box_from_map(cam)


IMPOSSIBLE = [[5, 5, 2, 8], [5, 5, 8, 2], [np.nan, 0, 5, 5], [0, 0, 5, np.inf]]


@pytest.mark.parametrize("box", IMPOSSIBLE)
def test_impossible_boxes_are_refused(box: list[float]) -> None:
    predicted, boxes = random_boxes(3), [random_boxes(2)] * 3
    assert best_iou(np.zeros((3, 4)), boxes).tolist() == [0] * 3  # no box is found: none of the impossible
    boxes[1] = np.array([[1, 2, 3, 4], box])
    with pytest.raises(InputError, match=r"image 1 has the true box \[.*\]; expected finite x0, y0, x1, y1"):
        padded_boxes(3, boxes)
    predicted = predicted.astype(float)
    predicted[2] = box
    with pytest.raises(InputError, match=r"image 2 has the predicted box \[.*\]; expected finite x0, y0, x1, y1"):
        best_iou(predicted, [random_boxes(2)] * 3)


def test_rows_of_other_than_four_numbers_are_refused() -> None:
    with pytest.raises(InputError, match=r"the boxes of image 1 have the shape \(1, 5\); expected \(B, 4\)"):
        padded_boxes(2, [random_boxes(1), np.zeros((1, 5))])
    with pytest.raises(InputError, match=r"the boxes of image 0 have the shape \(8,\); expected \(B, 4\)"):
        padded_boxes(1, [np.arange(8)])
    with pytest.raises(InputError, match=r"the predicted boxes have the shape \(2, 5\); expected \(N, 4\)"):
        best_iou(np.zeros((2, 5)), [random_boxes(1)] * 2)
