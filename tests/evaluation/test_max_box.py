"""MaxBoxAcc against the benchmark's definition, written out with OpenCV one threshold after the other."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from cutmix.errors import InputError
from cutmix.evaluation.boxes import box_from_map, box_iou, level_iou, max_box_accuracy

V2 = (0.3, 0.5, 0.7)
THRESHOLDS = np.arange(0, 1, 0.001)


def cams(n: int, grid: int = 7, side: int = 40) -> np.ndarray:
    generator = torch.Generator().manual_seed(grid)
    maps = F.interpolate(torch.randn(n, 1, grid, grid, generator=generator), (side, side), mode="bicubic")[:, 0]
    maps = maps - maps.amin((1, 2), keepdim=True)
    return (maps / maps.amax((1, 2), keepdim=True)).double().numpy()


def true_boxes(n: int, side: int = 40) -> list[np.ndarray]:
    draws = np.random.default_rng(0)
    corners = [np.sort(draws.integers(0, side, (draws.integers(1, 4), 2, 2)), axis=1) for _ in range(n)]
    return [np.concatenate([c[:, 0], c[:, 1] + 1], axis=1) for c in corners]


def benchmark(maps: np.ndarray, boxes: list[np.ndarray], iou: tuple[float, ...], contours: str) -> list[float]:
    """Return the accuracies as BoxEvaluator of wsolevaluation computes them, on inclusive boxes."""
    cv2 = pytest.importorskip("cv2")
    right = np.zeros((len(iou), len(THRESHOLDS)))
    height, width = maps.shape[1:]
    for cam, own in zip(maps, boxes, strict=True):
        grey, true = (cam * 255).astype(np.uint8), own - [0, 0, 1, 1]
        for t, threshold in enumerate(THRESHOLDS):
            _, binary = cv2.threshold(grey, int(threshold * grey.max()), 255, cv2.THRESH_BINARY)
            outlines = cv2.findContours(binary, cv2.RETR_TREE, cv2.CHAIN_APPROX_SIMPLE)[0]
            if contours == "largest" and outlines:
                outlines = [max(outlines, key=cv2.contourArea)]
            corners = [cv2.boundingRect(outline) for outline in outlines]
            found = [[x, y, min(x + w, width - 1), min(y + h, height - 1)] for x, y, w, h in corners] or [[0] * 4]
            best = 0.0
            for a in np.array(found):
                for b in true:
                    low, high = np.maximum(a[:2], b[:2]), np.minimum(a[2:], b[2:])
                    inner = np.maximum(0, high - low + 1).prod()
                    union = (a[2:] - a[:2] + 1).prod() + (b[2:] - b[:2] + 1).prod() - inner
                    best = max(best, inner / union)
            for k, least in enumerate(iou):
                right[k, t] += best >= least
    return (100 * right.max(1) / len(maps)).tolist()


def contour_boxes(grey: np.ndarray, level: int) -> np.ndarray:
    """Return the boxes of all contours of what exceeds a level, enlarged as the benchmark does."""
    cv2 = pytest.importorskip("cv2")
    outlines = cv2.findContours((grey > level).astype(np.uint8), cv2.RETR_TREE, cv2.CHAIN_APPROX_SIMPLE)[0]
    boxes = np.array([cv2.boundingRect(outline) for outline in outlines])
    boxes[:, 2:] = np.minimum(boxes[:, :2] + boxes[:, 2:] + 1, grey.shape[::-1])
    return boxes


def test_max_box_acc_v2_is_the_benchmarks() -> None:
    maps, boxes = cams(6), true_boxes(6)
    maps[5, 5:35, 5:35] = 0  # a hole with a large outline
    expected = benchmark(maps, boxes, V2, "all")
    ours = max_box_accuracy(maps, boxes, V2, "all")
    assert list(ours.accuracies) == expected
    assert ours.value == pytest.approx(np.mean(expected))


def test_max_box_acc_is_the_benchmarks_on_smooth_maps() -> None:
    maps, boxes = cams(8, grid=5), true_boxes(8)
    assert list(max_box_accuracy(maps, boxes, V2).accuracies) == benchmark(maps, boxes, V2, "largest")


@pytest.mark.parametrize("kind", ["smooth", "noise", "plateaus"])
def test_every_contour_is_opencvs(kind: str) -> None:
    pytest.importorskip("cv2")
    draws, boxes = np.random.default_rng(0), true_boxes(3, side=24)
    maps = {
        "smooth": cams(3, 9, 24),
        "noise": draws.random((3, 24, 24)),
        "plateaus": draws.integers(0, 4, (3, 24, 24)) / 3,
    }
    ours, peaks = level_iou(maps[kind], boxes, ("all",))
    for i, peak in enumerate(peaks):
        grey = (maps[kind][i] * 255).astype(np.uint8)
        theirs = [max(box_iou(box, boxes[i]).max() for box in contour_boxes(grey, level)) for level in range(peak)]
        np.testing.assert_array_equal(ours["all"][i, :peak], theirs)


def test_the_largest_component_is_that_of_box_from_map() -> None:
    maps, boxes = cams(3), true_boxes(3)
    tables, peaks = level_iou(maps, boxes, ("largest",))
    for i, cam in enumerate((maps * 255).astype(np.uint8)):
        for threshold in (0, 0.2, 0.5, 0.71, 0.99):
            box = box_from_map(cam, threshold)
            box[2:] = np.minimum(box[2:] + 1, 40)  # the benchmark's are one pixel larger
            assert tables["largest"][i, int(threshold * peaks[i])] == box_iou(box, boxes[i]).max()


def test_the_contour_of_a_hole_is_a_box_of_version_2_alone() -> None:
    ring = np.zeros((1, 140, 140))
    ring[0, 10:131, 10:131] = 1
    ring[0, 25:116, 25:116] = 0
    around_the_hole = [np.array([[24, 24, 118, 118]])]  # outline 24 … 116, and the benchmark's pixel
    assert max_box_accuracy(ring, around_the_hole, (1.0,), "all").value == 100
    assert max_box_accuracy(ring, around_the_hole, (1.0,), "largest").value == 0
    ring[0, 25:116, :25] = 0  # now the hole opens to the border, and is none
    assert max_box_accuracy(ring, around_the_hole, (1.0,), "all").value == 0


@pytest.mark.parametrize("contours", ["largest", "all"])
def test_the_true_box_as_its_map_is_always_found(contours: str) -> None:
    boxes = [np.array([[3, 4, 20, 30]]), np.array([[0, 0, 40, 40]]), np.array([[10, 20, 40, 25]])]
    maps = np.zeros((3, 40, 40))
    for cam, ((x0, y0, x1, y1),) in zip(maps, boxes, strict=True):
        cam[y0:y1, x0:x1] = 1
    assert max_box_accuracy(maps, boxes, V2, contours).accuracies == (100, 100, 100)  # type: ignore[arg-type]
    assert max_box_accuracy(1 - maps, boxes, (0.9,), "largest").value < 100


def test_each_iou_has_a_threshold_of_its_own_and_its_hits() -> None:
    maps, boxes = cams(30), true_boxes(30)
    both = max_box_accuracy(maps, boxes, V2)
    for k, least in enumerate(V2):
        alone = max_box_accuracy(maps, boxes, (least,))
        assert (both.accuracies[k], both.thresholds[k]) == (alone.value, alone.thresholds[0])
        assert both.accuracies[k] == 100 * both.hits[k].mean()
        fixed = max_box_accuracy(maps, boxes, (least,), thresholds=[both.thresholds[k]])
        assert fixed.value == alone.value
    assert max_box_accuracy(maps, boxes, 0.7).accuracies == both.accuracies[2:]
    assert both.accuracies[0] >= both.accuracies[1] >= both.accuracies[2]
    assert max_box_accuracy(maps, boxes, V2, "all").value >= both.value


def test_maps_in_several_batches_and_float32_give_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    maps, boxes = cams(10), true_boxes(10)
    whole = max_box_accuracy(maps, boxes, V2, "all")
    monkeypatch.setattr("cutmix.evaluation.boxes._BATCH", 3 * 1600)
    parts = max_box_accuracy(maps, boxes, V2, "all")
    np.testing.assert_array_equal(whole.hits, parts.hits)
    maps32 = maps.astype(np.float32)
    expected = max_box_accuracy(maps32.astype(np.float64), boxes, V2, "all")
    np.testing.assert_array_equal(max_box_accuracy(maps32, boxes, V2, "all").hits, expected.hits)


def test_a_map_of_zeros_has_the_benchmarks_pixel_in_the_corner() -> None:
    nothing = np.zeros((2, 8, 8))
    boxes = [np.array([[0, 0, 1, 2]]), np.array([[4, 4, 8, 8]])]
    assert max_box_accuracy(nothing, boxes, (0.5,)).hits.tolist() == [[True, False]]


def test_wrong_input_is_one_sentence() -> None:
    maps, boxes = cams(2), true_boxes(2)
    with pytest.raises(InputError, match="there are 2 maps and boxes of 1 images"):
        max_box_accuracy(maps, boxes[:1])
    with pytest.raises(InputError, match=r"the threshold is 1\.0; expected a share"):
        max_box_accuracy(maps, boxes, thresholds=[0.1, 1.0])
    with pytest.raises(InputError, match="no threshold is given"):
        max_box_accuracy(maps, boxes, thresholds=[])
    with pytest.raises(InputError, match=r"not numbers in \[0, 1\]"):
        max_box_accuracy(maps * 2, boxes)
    with pytest.raises(InputError, match=r"not numbers in \[0, 1\]"):
        max_box_accuracy(np.full((2, 40, 40), np.nan), boxes)
    with pytest.raises(InputError, match="expected 'largest' or 'all'"):
        max_box_accuracy(maps, boxes, contours="outer")  # type: ignore[arg-type]
    with pytest.raises(InputError, match="expected one or more numbers"):
        max_box_accuracy(maps, boxes, iou=(50,))
    with pytest.raises(InputError, match="a box of image 1 reaches outside its map of 40×40"):
        max_box_accuracy(maps, [boxes[0], np.array([[0, 0, 41, 40]])])
    with pytest.raises(InputError, match=r"image 1 has the true box \[5\.0, 5\.0, 2\.0, 2\.0\]; expected finite"):
        max_box_accuracy(maps, [boxes[0], np.array([[5, 5, 2, 2]])])
    with pytest.raises(InputError, match=r"iou is 1\.5; expected one or more numbers"):
        max_box_accuracy(maps, boxes, iou=1.5)
    with pytest.raises(InputError, match=r"expected \(N, height, width\)"):
        max_box_accuracy(maps[0], boxes)
    with pytest.raises(InputError, match=r"the maps have the shape \(2, 0, 40\)"):
        max_box_accuracy(maps[:, :0], boxes)
    with pytest.raises(InputError, match="no maps"):
        max_box_accuracy(np.empty((0, 4, 4)), [])
