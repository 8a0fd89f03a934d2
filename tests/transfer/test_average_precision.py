"""Average precision against cases worked out by hand, the reference's loop written out, and COCO's program."""

import math
from typing import Any

import numpy as np
import pytest
import torch

from cutmix.errors import InputError
from cutmix.transfer.average_precision import (
    Detections,
    Objects,
    inclusive,
    judge,
    precision_of,
    tally,
    voc_average_precision,
    voc_interval,
)


def detections(*rows: tuple[int, int, float, tuple[float, ...]]) -> Detections:
    images, labels, scores, boxes = zip(*rows, strict=True) if rows else ((), (), (), ())
    return Detections(
        np.array(images, dtype=np.int64), np.array(labels, dtype=np.int64), np.array(scores, dtype=np.float64),
        np.array(boxes, dtype=np.float64).reshape(-1, 4),
    )  # fmt: skip


def objects(*rows: tuple[int, int, tuple[float, ...]], difficult: tuple[int, ...] = ()) -> Objects:
    images, labels, boxes = zip(*rows, strict=True)
    hard = np.isin(np.arange(len(rows)), difficult)
    return Objects(np.array(images), np.array(labels), np.array(boxes, dtype=np.float64), hard)


def random_scene(
    seed: int, *, images: int = 40, classes: int = 5, n: int = 1200, m: int = 250
) -> tuple[Detections, Objects]:
    """Objects with some difficult ones, and detections near them: moved, of a wrong class, or twice."""
    rng = np.random.default_rng(seed)
    corner = rng.integers(0, 300, (m, 2))
    boxes = np.hstack((corner, corner + rng.integers(5, 120, (m, 2)))).astype(np.float64)
    truth = Objects(rng.integers(0, images, m), rng.integers(0, classes, m), boxes, rng.random(m) < 0.2)
    near = rng.integers(0, m, n)
    moved = truth.boxes[near] + rng.integers(-12, 13, (n, 4))
    moved[:, 2:] = np.maximum(moved[:, 2:], moved[:, :2] + 1)
    label = np.where(rng.random(n) < 0.8, truth.labels[near], rng.integers(0, classes, n))
    found = Detections(truth.images[near], label, rng.permutation(n) / n, moved)
    return found, truth


def written_out(found: Detections, truth: Objects, label: int, iou: float, plus_one: bool, interpolation: str) -> float:
    """The definition as a loop over detections, for one class."""
    one = 1.0 if plus_one else 0.0
    taken: set[int] = set()
    right, wrong = 0, 0
    recalls, precisions = [], []
    own = [i for i in range(len(truth.labels)) if truth.labels[i] == label]
    asked = sum(not truth.difficult[i] for i in own)
    rows = [i for i in range(len(found.labels)) if found.labels[i] == label]
    for row in sorted(rows, key=lambda i: -found.scores[i]):
        best, which = -math.inf, -1
        x0, y0, x1, y1 = found.boxes[row]
        for i in own:
            if truth.images[i] != found.images[row]:
                continue
            a0, b0, a1, b1 = truth.boxes[i]
            width = max(min(x1, a1) - max(x0, a0) + one, 0.0)
            height = max(min(y1, b1) - max(y0, b0) + one, 0.0)
            area = (x1 - x0 + one) * (y1 - y0 + one) + (a1 - a0 + one) * (b1 - b0 + one) - width * height
            if width * height / area > best:
                best, which = width * height / area, i
        if best > iou and truth.difficult[which]:
            pass
        elif best > iou and which not in taken:
            taken.add(which)
            right += 1
        else:
            wrong += 1
        recalls.append(right / asked)
        precisions.append(right / max(right + wrong, 2.0**-52))
    if interpolation == "all-point":
        area, before = 0.0, 0.0
        for i, recall in enumerate(recalls):
            area += (recall - before) * max(precisions[i:])
            before = recall
        return area
    grid = [i * 0.1 for i in range(11)] if interpolation == "11-point" else [i / 10 for i in range(11)]
    total = 0.0
    for t in grid:
        total += max((p for r, p in zip(recalls, precisions, strict=True) if r >= t), default=0.0) / 11
    return total


@pytest.mark.parametrize("plus_one", [True, False])
@pytest.mark.parametrize("interpolation", ["11-point", "exact 11-point", "all-point"])
@pytest.mark.parametrize("iou", [0.5, 0.6])
def test_equals_the_definition_written_out(plus_one: bool, interpolation: Any, iou: float) -> None:
    found, truth = random_scene(0)
    result = voc_average_precision(found, truth, 5, iou=iou, plus_one=plus_one, interpolation=interpolation)
    expected = [written_out(found, truth, label, iou, plus_one, interpolation) for label in range(5)]
    assert 0.2 < result.mean < 0.9
    if interpolation == "all-point":
        np.testing.assert_allclose(result.per_class, expected, rtol=1e-12)
    else:
        assert result.per_class.tolist() == expected  # to the last bit


def test_by_hand_matching() -> None:
    # One image, one class, two objects: A = 0..9 × 0..9 and B = 20..29 × 0..9; five detections by falling score:
    #   .9 on A                       right            recall 1/2, precision 1/1
    #   .8 on A again                 A is taken       wrong: 1/2, 1/2
    #   .7 far away                   wrong            1/2, 1/3
    #   .6 on B                       right            2/2, 2/4
    #   .5 in another image, on A's place: wrong     2/2, 2/5
    # max{p : r ≥ t} is 1 for t = 0, …, .5 (6 recalls) and 1/2 for .6, …, 1 (5): AP = (6 + 2.5) / 11;
    # the area is 1/2 · 1 + 1/2 · 1/2 = 3/4.
    a, b = (0, 0, 9, 9), (20, 0, 29, 9)
    truth = objects((0, 0, a), (0, 0, b))
    found = detections((0, 0, 0.6, b), (0, 0, 0.8, a), (1, 0, 0.5, a), (0, 0, 0.9, a), (0, 0, 0.7, (50, 50, 60, 60)))
    result = voc_average_precision(found, truth, 1)
    assert result.per_class[0] == pytest.approx(8.5 / 11)
    assert voc_average_precision(found, truth, 1, interpolation="all-point").per_class[0] == 0.75
    assert (result.recall[0], result.objects[0], result.detections[0]) == (1, 2, 5)


def test_by_hand_the_second_best_object_is_not_taken() -> None:
    # Objects A = 0..9 and B = 2..11 (all ten pixels high) overlap by 8/12. The second detection overlaps A fully and B
    # by 2/3: Pascal VOC has it take A, which is gone, so that it is wrong; COCO would give it B. AP = 1/2 · 1 (area).
    a, b = (0, 0, 9, 9), (2, 0, 11, 9)
    found = detections((0, 0, 0.9, a), (0, 0, 0.8, a))
    result = voc_average_precision(found, objects((0, 0, a), (0, 0, b)), 1, interpolation="all-point")
    assert result.per_class[0] == 0.5


def test_by_hand_difficult_objects_count_neither_way() -> None:
    # A is difficult, B is not. Two detections of A come first and are left out; then B is found: AP = 1. Were A an
    # ordinary object, precision would be 1, 1/2, 2/3 and the area 1/2 · 1 + 1/2 · 2/3 = 5/6.
    a, b = (0, 0, 9, 9), (20, 0, 29, 9)
    found = detections((0, 0, 0.9, a), (0, 0, 0.8, a), (0, 0, 0.7, b))
    hard = voc_average_precision(found, objects((0, 0, a), (0, 0, b), difficult=(0,)), 1, interpolation="all-point")
    assert (hard.per_class[0], hard.objects[0]) == (1.0, 1)
    plain = voc_average_precision(found, objects((0, 0, a), (0, 0, b)), 1, interpolation="all-point")
    assert plain.per_class[0] == pytest.approx(5 / 6)


def test_by_hand_plus_one_decides() -> None:
    # Of 0..9 × 0..9 and 0..4 × 0..9, pixels counted: 50 / 100, not above 0.5, so wrong. Of 0..9 and 0..5: 60 / 100 with
    # the +1; without it 5 · 9 / 81 = 0.556, right too. Of 0..9 and 0..4.6: (5.6 · 10) / 100 = 0.56, but without the +1
    # 4.6 / 9 = 0.511; of 0..4.2: 0.52 against 4.2 / 9 = 0.467: right with the +1 and wrong without.
    truth = objects((0, 0, (0, 0, 9, 9)))
    for right, with_one, without in ((4, 0, 0), (4.2, 1, 0), (4.6, 1, 1), (5, 1, 1)):
        found = detections((0, 0, 1.0, (0, 0, right, 9)))
        assert voc_average_precision(found, truth, 1, plus_one=True).mean == pytest.approx(with_one)
        assert voc_average_precision(found, truth, 1, plus_one=False).mean == pytest.approx(without)


def test_by_hand_the_references_recalls() -> None:
    # 10 objects, 3 found, nothing wrong: recall 3/10 at precision 1. i / 10 has 0, .1, .2, .3 at or below it: 4/11.
    # The reference's fourth recall is 0.30000000000000004 and misses it: 3/11.
    truth = objects(*((i, 0, (0, 0, 9, 9)) for i in range(10)))
    found = detections(*((i, 0, 0.9 - i / 10, (0, 0, 9, 9)) for i in range(3)))
    assert round(100 * voc_average_precision(found, truth, 1).mean, 2) == 27.27
    assert round(100 * voc_average_precision(found, truth, 1, interpolation="exact 11-point").mean, 2) == 36.36
    assert voc_average_precision(found, truth, 1, interpolation="all-point").mean == pytest.approx(0.3)


def test_classes_without_objects_or_detections() -> None:
    truth = objects((0, 0, (0, 0, 9, 9)), (0, 1, (0, 0, 9, 9)), (0, 2, (0, 0, 9, 9)), difficult=(2,))
    found = detections((0, 0, 0.9, (0, 0, 9, 9)), (0, 3, 0.9, (0, 0, 9, 9)))
    result = voc_average_precision(found, truth, 4)
    assert result.per_class[:2] == pytest.approx([1, 0])  # found, and not found
    assert np.isnan(result.per_class[2:]).all()  # difficult ones only, and none at all
    assert result.mean == pytest.approx(0.5)
    assert voc_average_precision(detections(), truth, 4).mean == 0


def test_the_order_of_the_rows_changes_nothing() -> None:
    found, truth = random_scene(1)
    order = np.random.default_rng(0).permutation(len(found.scores))
    shuffled = Detections(*(column[order] for column in found))
    first, second = (voc_average_precision(x, truth, 5) for x in (found, shuffled))
    assert first.per_class.tolist() == second.per_class.tolist()


def test_half_open_boxes_are_the_pixels_of_inclusive_ones() -> None:
    found, truth = random_scene(2)
    edges = [part._replace(boxes=np.add(part.boxes, (0, 0, 1, 1))) for part in (found, truth)]
    expected = voc_average_precision(found, truth, 5).per_class.tolist()
    assert voc_average_precision(*edges, 5, plus_one=False).per_class.tolist() == expected
    assert voc_average_precision(inclusive(edges[0]), inclusive(edges[1]), 5).per_class.tolist() == expected


def apart(seed: int) -> tuple[Detections, Objects]:
    """Objects that do not overlap, none difficult, so that VOC's and COCO's matching agree."""
    rng = np.random.default_rng(seed)
    images, classes, across = 12, 4, 6
    corner = np.stack(np.meshgrid(np.arange(across), np.arange(across)), -1).reshape(-1, 2) * 100.0
    count = len(corner)
    boxes = np.tile(np.hstack((corner, corner + 60)), (images, 1))
    truth = Objects(
        np.repeat(np.arange(images), count), rng.integers(0, classes, images * count), boxes,
        np.zeros(images * count, dtype=bool),
    )  # fmt: skip
    near = rng.integers(0, len(boxes), 600)
    moved = boxes[near] + rng.uniform(-15, 15, (600, 4))
    label = np.where(rng.random(600) < 0.8, truth.labels[near], rng.integers(0, classes, 600))
    return Detections(truth.images[near], label, rng.permutation(600) / 600, moved), truth


@pytest.mark.parametrize("interpolation", ["11-point", "exact 11-point"])
@pytest.mark.parametrize("iou", [0.5, 0.6])
def test_equals_cocos_program_read_at_eleven_recalls(interpolation: Any, iou: float) -> None:
    program = pytest.importorskip("faster_coco_eval")
    found, truth = apart(0)
    coco, answers = program.COCO(), program.COCO()
    shared = {"images": [{"id": i} for i in range(12)], "categories": [{"id": i} for i in range(1, 5)]}

    def records(part: Any, **more: Any) -> list[dict[str, Any]]:
        size = part.boxes[:, 2:] - part.boxes[:, :2]
        return [
            {"id": i + 1, "image_id": int(part.images[i]), "category_id": int(part.labels[i]) + 1, "iscrowd": 0,
             "bbox": [*part.boxes[i, :2].tolist(), *size[i].tolist()], "area": float(size[i].prod()),
             **{name: float(column[i]) for name, column in more.items()}}
            for i in range(len(part.labels))
        ]  # fmt: skip

    coco.dataset = shared | {"annotations": records(truth)}
    answers.dataset = shared | {"annotations": records(found, score=found.scores)}
    coco.createIndex()
    answers.createIndex()
    evaluation = program.COCOeval_faster(coco, answers, "bbox")
    evaluation.params.iouThrs = np.array([iou])
    evaluation.params.recThrs = np.arange(0, 1.1, 0.1) if interpolation == "11-point" else np.arange(11) / 10
    evaluation.params.maxDets = [1000]
    evaluation.params.areaRng, evaluation.params.areaRngLbl = [[0, 1e10]], ["all"]
    evaluation.evaluate()
    evaluation.accumulate()
    expected = evaluation.eval["precision"][0, :, :, 0, 0].mean(0)
    result = voc_average_precision(found, truth, 4, iou=iou, interpolation=interpolation, plus_one=False)
    assert 0.1 < result.mean < 0.9
    np.testing.assert_allclose(result.per_class, expected, atol=1e-9)


def test_interval_holds_the_value_and_shrinks_with_the_set() -> None:
    few, many = (random_scene(3, images=n, n=30 * n, m=6 * n) for n in (20, 320))
    widths = []
    for images, scene in ((20, few), (320, many)):
        value = 100 * voc_average_precision(*scene, 5).mean
        low, high, few = voc_interval(*scene, 5, images, resamples=200)
        assert low < value < high
        assert not few
        assert (low, high, few) == voc_interval(*scene, 5, images, resamples=200)  # its seed's alone
        widths.append(high - low)
    assert 2 < widths[0] / widths[1] < 8  # 4 for independent images


def test_a_resample_is_the_set_with_images_repeated() -> None:
    found, truth = random_scene(4)
    counts = np.random.default_rng(0).integers(0, 3, 40)
    weighted = precision_of(tally(judge(found, truth), 5), "11-point", counts)

    def repeated(part: Any) -> Any:
        copies = [(part.images == image).nonzero()[0] for image in range(40) for _ in range(counts[image])]
        number = np.repeat(np.arange(len(copies)), [len(rows) for rows in copies])
        return type(part)(*(column[np.concatenate(copies)] for column in part))._replace(images=number)

    again = voc_average_precision(repeated(found), repeated(truth), 5)
    assert again.objects.tolist() == weighted.objects.tolist()
    # copies of an image have equal scores; they are one step of the curve there and several here, of rising precision
    np.testing.assert_allclose(again.per_class, weighted.per_class, atol=0.02)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda f, t: (f._replace(scores=f.scores[1:]), t), "detections have columns of shapes"),
        (lambda f, t: (f._replace(scores=f.scores * math.nan), t), "detections have values that are not finite"),
        (lambda f, t: (f._replace(labels=f.labels + 5), t), "labels of the detections go from 5 to 9"),
        (lambda f, t: (f, t._replace(labels=t.labels - 1)), "labels of the objects go from -1 to 3"),
        (lambda f, t: (f._replace(boxes=f.boxes[:, [2, 3, 0, 1]]), t), "a detected box ends before it begins"),
        (lambda f, t: (f, t._replace(boxes=t.boxes[:, [2, 3, 0, 1]])), "an object's box has no area"),
        (
            lambda f, t: (f, t._replace(difficult=np.ones_like(t.difficult))),
            "every object is difficult",
        ),
        (lambda f, t: (f, t._replace(difficult=t.difficult + 0.5)), "the difficult flags are not all 0 or 1"),
        (lambda f, t: (f, t._replace(difficult=[None] * len(t.labels))), "the difficult flags are not all 0 or 1"),
        (lambda f, t: (f._replace(images=f.images + 0.5), t), "images of the detections are not all whole numbers"),
        (lambda f, t: (f, t._replace(labels=t.labels * math.nan)), "labels of the objects are not all whole numbers"),
        (
            lambda f, t: (f._replace(scores=["x"] * len(f.scores)), t),
            r"scores cannot be converted to an array \(could",
        ),
        (lambda f, t: (f._replace(boxes=[[1, 2, 3, 4], [5]]), t), "boxes of the detections cannot be converted to an"),
    ],
)
def test_what_cannot_be_measured_is_refused(change: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        voc_average_precision(*change(*random_scene(0)), 5)


def as_types(scene: Any, ids: Any, values: Any, flags: Any) -> Any:
    """Return the scene with its columns as other types of arrays, or none."""
    found, truth = scene
    columns = ids(found.images), ids(found.labels), values(found.scores), values(found.boxes)
    return Detections(*columns), Objects(
        ids(truth.images), ids(truth.labels), values(truth.boxes), flags(truth.difficult)
    )


@pytest.mark.parametrize(
    "types",
    [
        (np.uint8, np.float64, np.uint8),
        (np.float32, np.float64, np.float32),
        (np.int32, np.float64, np.int64),
        (np.ndarray.tolist, np.ndarray.tolist, np.ndarray.tolist),
        (torch.from_numpy, torch.from_numpy, torch.from_numpy),
        (lambda x: torch.from_numpy(x).float(), torch.from_numpy, lambda x: torch.from_numpy(x).int()),
    ],
)
def test_whatever_the_columns_are_the_numbers_are_those_of_arrays(types: Any) -> None:
    scene = random_scene(5)
    expected = voc_average_precision(*scene, 5)
    assert 0 < expected.mean < 1
    assert scene[1].difficult.any()
    result = voc_average_precision(*as_types(scene, *types), 5)
    assert all(np.array_equal(a, b, equal_nan=True) for a, b in zip(expected, result, strict=True))
    assert voc_interval(*as_types(scene, *types), 5, 40, resamples=9) == voc_interval(*scene, 5, 40, resamples=9)


def test_boxes_in_bytes_do_not_overflow_and_none_found_may_be_an_empty_list() -> None:
    box = np.array([[200, 200, 255, 255]], np.uint8)
    truth = Objects(np.zeros(1, np.uint8), np.zeros(1, np.uint8), box, np.zeros(1, np.uint8))
    found = Detections(truth.images, truth.labels, np.ones(1, np.float32), box)
    assert voc_average_precision(found, truth, 1).mean == pytest.approx(1)
    assert voc_average_precision(Detections([], [], [], []), truth, 1).mean == 0  # type: ignore[arg-type]


def test_wrong_definitions_are_refused() -> None:
    scene: Any = random_scene(0)
    with pytest.raises(InputError, match="interpolation is '10-point'"):
        voc_average_precision(*scene, 5, interpolation="10-point")  # type: ignore[arg-type]
    with pytest.raises(InputError, match=r"iou 1\.0"):
        voc_average_precision(*scene, 5, iou=1.0)
    with pytest.raises(InputError, match="images is 39"):
        voc_interval(*scene, 5, 39)
