"""Time of Pascal VOC's average precision and its interval on one synthetic set, with COCO's program for scale.

    python benchmarks/average_precision.py [--detections N] [--json FILE] [--quick]

The set has N detections in 20 classes on 5,000 images with 2.5 objects each, the size of VOC2007's test set. COCO's
program matches at ten thresholds, ten times the work.
"""

import sys
from collections.abc import Callable, Iterator
from functools import partial

import numpy as np

from cutmix.errors import InputError
from cutmix.transfer.average_precision import (
    Detections,
    Objects,
    voc_average_precision,
    voc_interval,
)
from cutmix.transfer.detection_task import coco_metrics
from measuring import Row, arguments, in_turns, medians, report, versions

IMAGES, CLASSES, OBJECTS = 5000, 20, 12_500
LIMIT = 5000.0  # milliseconds, for 100,000 detections


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--detections", type=int, default=100_000)
    args = parser.parse_args()
    count = 1000 if args.quick else args.detections
    about = {"detections": count, "classes": CLASSES, "images": IMAGES, **versions("faster-coco-eval")}
    report("Average precision of detections", rows(count, 1 if args.quick else 5), args, about)


def rows(count: int, rounds: int) -> Iterator[Row]:
    """Yield a row per method; the interval and COCO's program take long and run one round."""
    found, truth = made_up(count)
    mean = partial(voc_average_precision, found, truth, CLASSES)
    at, most = f"{count:,} detections", "limit"
    ms = medians(in_turns({"11-point": mean, "all-point": partial(mean, interpolation="all-point")}, rounds))
    yield Row("11-point", "ms", ms["11-point"], most, LIMIT, 1.0, at)
    yield Row("all-point", "ms", ms["all-point"], "11-point", ms["11-point"], at=at)
    once: dict[str, Callable[[], object]] = {
        "interval of 1,000 resamples": partial(voc_interval, found, truth, CLASSES, IMAGES),
        "COCO's program": partial(coco_metrics, found, truth, CLASSES, IMAGES),
    }
    for what, call in once.items():
        try:
            (taken,) = in_turns({what: call}, 1)[what]
        except InputError as error:
            print(error, file=sys.stderr)
        else:
            yield Row(what, "ms", taken, "11-point", ms["11-point"], at=at)


def made_up(count: int) -> tuple[Detections, Objects]:
    """Return detections scattered around objects, a fifth of them of another class, and the objects."""
    rng = np.random.default_rng(0)
    corner = rng.uniform(0, 300, (OBJECTS, 2))
    boxes = np.hstack((corner, corner + rng.uniform(10, 200, (OBJECTS, 2))))
    images, labels = rng.integers(0, IMAGES, OBJECTS), rng.integers(0, CLASSES, OBJECTS)
    truth = Objects(images, labels, boxes, rng.random(OBJECTS) < 0.2)
    near = rng.integers(0, OBJECTS, count)
    moved = boxes[near] + rng.normal(0, 15, (count, 4))
    moved[:, 2:] = np.maximum(moved[:, 2:], moved[:, :2] + 1)
    label = np.where(rng.random(count) < 0.8, labels[near], rng.integers(0, CLASSES, count))
    return Detections(images[near], label, rng.random(count), moved), truth


if __name__ == "__main__":
    main()
