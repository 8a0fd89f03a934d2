"""Speed of Pascal VOC's average precision and of its interval, and COCO's program for scale, on one made-up set.

    python benchmarks/average_precision.py [--detections N] [--json FILE]

The set has N detections in 20 classes on 5,000 pictures with 2.5 objects each, as VOC2007 has for tests. COCO's program
does ten times the matching, at ten thresholds, so that its time is for scale and no peer's.
"""

import argparse
import json
import os
import platform
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.table import Table

from cutmix.errors import InputError
from cutmix.transfer.average_precision import Detections, Objects, voc_average_precision, voc_interval
from cutmix.transfer.coco_precision import coco_average_precision

IMAGES, CLASSES, OBJECTS = 5000, 20, 12_500
TARGET = 5.0  # seconds, for 100,000 detections


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--detections", type=int, default=100_000)
    parser.add_argument("--json", type=Path, help="also write the seconds and circumstances to this file")
    args = parser.parse_args()
    found, truth = made_up(args.detections)
    rows = {
        "11-point": seconds(lambda: voc_average_precision(found, truth, CLASSES)),
        "all-point": seconds(lambda: voc_average_precision(found, truth, CLASSES, interpolation="all-point")),
        "interval of 1,000 resamples": seconds(lambda: voc_interval(found, truth, CLASSES, IMAGES), rounds=1),
    }
    try:
        rows["COCO's program"] = seconds(lambda: coco_average_precision(found, truth, CLASSES, IMAGES), rounds=1)
    except InputError as error:
        print(error)
    where = {"cpu": platform.processor() or platform.machine(), "numpy": np.__version__, "load": os.getloadavg()}
    table = Table("what", "seconds", title=f"{args.detections:,} detections, {CLASSES} classes, {IMAGES:,} pictures")
    for what, time_taken in rows.items():
        table.add_row(what, f"{time_taken:.3f}")
    Console().print(table)
    verdict = "below" if rows["11-point"] < TARGET else "NOT below"
    print(f"11-point: {verdict} the target of {TARGET:g} s; {where}")
    if args.json:
        args.json.write_text(json.dumps({"circumstances": where, "seconds": rows}, indent=1) + "\n")


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


def seconds(work: Callable[[], object], rounds: int = 5) -> float:
    """Return the median time of a few calls, after one that does not count where there are several."""
    times = []
    for _ in range(rounds + (rounds > 1)):
        start = time.perf_counter()
        work()
        times.append(time.perf_counter() - start)
    return statistics.median(times[rounds > 1 :])


if __name__ == "__main__":
    main()
