"""Paired differences: their value is that of the measures, their spread that of the resampled sets written out."""

import numpy as np
import pytest
from scipy import stats

from cutmix.errors import InputError
from cutmix.report.paired import caption_difference, precision_difference
from cutmix.transfer.average_precision import RIGHT, WRONG, Detections, Judged, Objects, judge, voc_average_precision
from cutmix.transfer.caption_scores import ImageScores, image_scores, score_captions

IMAGES = 60


def scene(noise: int, seed: int = 0) -> tuple[Detections, Objects]:
    """Objects that do not depend on the seed, and detections as far from them as the noise says."""
    fixed, random = np.random.default_rng(7), np.random.default_rng(seed)
    corner = fixed.integers(0, 300, (200, 2))
    boxes = np.hstack((corner, corner + fixed.integers(20, 90, (200, 2)))).astype(float)
    objects = Objects(fixed.integers(0, IMAGES, 200), fixed.integers(0, 3, 200), boxes, np.zeros(200, bool))
    near = random.integers(0, 200, 500)
    moved = boxes[near] + random.integers(-noise, noise + 1, (500, 4))
    moved[:, 2:] = np.maximum(moved[:, 2:], moved[:, :2] + 1)
    return Detections(objects.images[near], objects.labels[near], random.random(500), moved), objects


def test_the_value_is_the_difference_of_the_precisions() -> None:
    (first, objects), (second, _) = scene(15), scene(5)
    one, other = (voc_average_precision(found, objects, 3).mean for found in (first, second))
    found = precision_difference(judge(first, objects), judge(second, objects), IMAGES)
    assert found.value == pytest.approx(100 * (other - one))
    assert 0 < found.low < found.value < found.high
    assert found.p < 0.05
    turned = precision_difference(judge(second, objects), judge(first, objects), IMAGES)
    assert (turned.value, turned.low, turned.high) == pytest.approx((-found.value, -found.high, -found.low))


def test_a_run_does_not_differ_from_itself() -> None:
    found, objects = scene(10)
    judged = judge(found, objects)
    same = precision_difference(judged, judged, IMAGES, draws=20)
    assert (same.value, same.low, same.high, same.p) == (0, 0, 0, 1)


def test_pairs_are_sharper_than_two_runs_apart() -> None:
    (first, objects), (second, _) = scene(12), scene(12)
    second = second._replace(scores=np.where(np.arange(500) < 25, 0.01, second.scores))  # the same but for some
    paired = precision_difference(judge(first, objects), judge(second, objects), IMAGES)
    draws = np.random.default_rng(0)
    apart = []
    for _ in range(200):  # each run on images of its own
        values = []
        for found in (first, second):
            chosen = draws.integers(0, IMAGES, IMAGES)
            number = {image: np.flatnonzero(chosen == image) for image in range(IMAGES)}
            rows = [(i, new) for i in range(500) for new in number[found.images[i]]]
            there = [(i, new) for i in range(200) for new in number[objects.images[i]]]
            index, images = (np.array(x) for x in zip(*rows, strict=True))
            truth, places = (np.array(x) for x in zip(*there, strict=True))
            again = Detections(images, *(column[index] for column in found[1:]))
            values.append(voc_average_precision(again, Objects(places, *(c[truth] for c in objects[1:])), 3).mean)
        apart.append(100 * (values[1] - values[0]))
    assert paired.high - paired.low < 0.7 * np.subtract(*np.percentile(apart, [97.5, 2.5]))


def test_resamples_without_objects_are_no_evidence() -> None:
    """Of three images one has an object, which only the second run finds: no resample is for or against it."""
    none, image = np.zeros(0, int), np.array([0])
    judged = [
        Judged(image, image, np.ones(1), np.array([verdict], np.int8), image, image) for verdict in (WRONG, RIGHT)
    ]
    found = precision_difference(*judged, images=3, draws=500)
    assert (found.value, found.low, found.high) == pytest.approx((100, 100, 100))
    generator = np.random.default_rng(0)
    with_it = sum((generator.integers(3, size=3) == 0).any() for _ in range(500))
    assert 300 < with_it < 400  # of 500: 1 - (2/3)³
    assert found.p == pytest.approx(2 / (with_it + 1))
    same = precision_difference(judged[0], judged[0], images=3)
    assert (same.value, same.low, same.high, same.p) == (0, 0, 0, 1)
    empty = Judged(none, none, np.ones(0), none.astype(np.int8), none, none)
    with pytest.raises(InputError, match="no objects"):
        precision_difference(empty, empty, images=3)


def captions(words: list[str], seed: int) -> dict[str, str]:
    random = np.random.default_rng(seed)
    return {f"{i:02}": " ".join(random.choice(words, 6)) for i in range(40)}


@pytest.fixture
def pair() -> tuple[dict[str, str], dict[str, str], dict[str, list[str]]]:
    words = ["a", "dog", "runs", "on", "grass", "red"]
    references = {name: [text, f"{text} today"] for name, text in captions(words, 0).items()}
    half = {name: text if int(name) % 2 else several[0] for (name, text), several in
            zip(captions(words, 1).items(), references.values(), strict=True)}  # fmt: skip
    return captions(words, 2), half, references


@pytest.mark.parametrize("score", ["bleu_1", "bleu_4", "rouge_l", "cider_d"])
def test_the_value_is_the_difference_of_the_scores(pair: tuple, score: str) -> None:
    first, second, references = pair
    one, other = (image_scores(candidates, references) for candidates in (first, second))
    found = caption_difference(one, other, score)
    expected = score_captions(second, references)[score] - score_captions(first, references)[score]
    assert found.value == pytest.approx(100 * expected)
    assert found.low < found.value < found.high


def test_of_a_mean_the_interval_is_students(pair: tuple) -> None:
    first, second, references = pair
    one, other = (image_scores(candidates, references) for candidates in (first, second))
    interval = stats.ttest_rel(other.rouge_l, one.rouge_l).confidence_interval()
    found = caption_difference(one, other, "rouge_l", draws=4000)
    assert (found.low, found.high) == pytest.approx((100 * interval.low, 100 * interval.high), rel=0.05)


def test_other_images_are_refused() -> None:
    found, objects = scene(5)
    judged = judge(found, objects)
    with pytest.raises(InputError, match="different objects"):
        precision_difference(judged, judged._replace(object_labels=judged.object_labels[::-1]), IMAGES)
    scores = ImageScores((), np.ones((3, 10), int), np.ones(3), np.ones(3))
    for first, second in ((scores, ImageScores((), np.ones((2, 10), int), np.ones(2), np.ones(2))),):
        with pytest.raises(InputError, match="3 and 2 images"):
            caption_difference(first, second, "rouge_l")
