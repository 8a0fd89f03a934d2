"""Verdicts worked out by hand, and that they alone make up a precision."""

import numpy as np

from cutmix.transfer.average_precision import (
    LEFT_OUT,
    RIGHT,
    WRONG,
    Detections,
    Objects,
    inclusive,
    judge,
    precision_of,
    tally,
    voc_average_precision,
)

A, B, FAR = (0.0, 0.0, 9.0, 9.0), (20.0, 0.0, 29.0, 9.0), (50.0, 50.0, 60.0, 60.0)


def test_by_hand() -> None:
    # Image 0: A and B are there, B difficult; image 1: A of class 1. By falling score, of class 0: A right, A again
    # wrong (taken), far away wrong, B left out twice; A in image 1 wrong, for there it is of class 1.
    objects = Objects(np.array([0, 0, 1]), np.array([0, 0, 1]), np.array([A, B, A]), np.array([False, True, False]))
    rows = [(0, 0, 0.5, B, LEFT_OUT), (0, 0, 0.9, A, RIGHT), (1, 0, 0.4, A, WRONG), (0, 0, 0.8, A, WRONG),
            (0, 0, 0.6, FAR, WRONG), (0, 0, 0.3, B, LEFT_OUT), (1, 1, 0.1, A, RIGHT)]  # fmt: skip
    images, labels, scores, boxes, expected = zip(*rows, strict=True)
    found = Detections(np.array(images), np.array(labels), np.array(scores), np.array(boxes))
    judged = judge(found, objects)
    assert judged.verdicts.tolist() == list(expected)
    assert judged.verdicts.dtype == np.int8
    assert (judged.object_images.tolist(), judged.object_labels.tolist()) == ([0, 1], [0, 1])


def test_equal_scores_keep_their_order() -> None:
    objects = Objects(np.zeros(1, int), np.zeros(1, int), np.array([A]), np.zeros(1, bool))
    found = Detections(np.zeros(3, int), np.zeros(3, int), np.full(3, 0.5), np.array([A, A, A]))
    assert judge(found, objects).verdicts.tolist() == [RIGHT, WRONG, WRONG]


def test_verdicts_are_all_that_a_precision_needs() -> None:
    random = np.random.default_rng(0)
    corner = random.integers(0, 200, (80, 2))
    boxes = np.hstack((corner, corner + random.integers(5, 90, (80, 2)))).astype(float)
    objects = Objects(random.integers(0, 9, 80), random.integers(0, 3, 80), boxes, random.random(80) < 0.2)
    near = random.integers(0, 80, 400)
    moved = boxes[near] + random.integers(-6, 7, (400, 4))
    moved[:, 2:] = np.maximum(moved[:, 2:], moved[:, :2] + 1)
    found = Detections(objects.images[near], objects.labels[near], random.random(400), moved)
    whole = voc_average_precision(found, objects, 3)
    judged = judge(found, objects)
    assert precision_of(tally(judged, 3)).per_class.tolist() == whole.per_class.tolist()
    order = random.permutation(400)
    shuffled = judged._replace(**{name: getattr(judged, name)[order] for name in judged._fields[:4]})
    assert precision_of(tally(shuffled, 3)).per_class.tolist() == whole.per_class.tolist()
    assert (judged.verdicts == RIGHT).sum() <= (~objects.difficult).sum()


def test_inclusive_boxes_end_one_pixel_earlier() -> None:
    found = Detections(np.zeros(1, int), np.zeros(1, int), np.ones(1), np.array([[0, 0, 10, 10]]))
    assert inclusive(found).boxes.tolist() == [[0, 0, 9, 9]]
