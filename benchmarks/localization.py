"""Time of MaxBoxAccV2 beside OpenCV at one threshold after the other; that the results are equal is checked first.

    python benchmarks/localization.py [--json FILE] [--quick] [--maps N]

The maps resemble class activation maps: normal noise on a coarse grid, enlarged bicubically. OpenCV's side does what
wsolevaluation does at each of 1,000 thresholds: threshold, contours, their boxes, the IoU with the true box. Both sides
use one thread.
"""

import cv2
import numpy as np
import torch
import torch.nn.functional as F

from cutmix.evaluation.boxes import best_thresholds, level_iou
from cutmix.evaluation.localization import normalize_maps
from measuring import Row, arguments, in_turns, medians, report, versions

IOU = (0.3, 0.5, 0.7)
THRESHOLDS = np.arange(0, 1, 0.001)


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--maps", type=int, default=200, help="maps of each kind; default 200")
    args = parser.parse_args()
    args.threads = 1
    cv2.setNumThreads(1)
    n, rounds = (20, 1) if args.quick else (args.maps, 5)
    found = (row(grid, n, rounds) for grid in (7, 14, 28))
    report("MaxBoxAccV2", found, args, versions("opencv-python-headless"))


def row(grid: int, n: int, rounds: int) -> Row:
    """Time both sides on n maps of one size."""
    maps, boxes = drawn(grid, 224, n)
    accuracies: dict[str, tuple[float, ...]] = {}

    def ours() -> None:
        table, peaks = level_iou(maps, boxes, ("all",))
        accuracies["ours"] = best_thresholds(table["all"], peaks, IOU).accuracies

    def peer() -> None:
        accuracies["peer"] = tuple((100 * by_opencv(maps, boxes).max(1) / n).tolist())

    ms = medians(in_turns({"ours": ours, "peer": peer}, rounds))
    if accuracies["ours"] != accuracies["peer"]:
        raise SystemExit(f"{grid}×{grid}: {accuracies['ours']} is not OpenCV's {accuracies['peer']}")
    at = f"{n} maps of {grid}×{grid}, to 224×224"
    return Row("MaxBoxAccV2, a map", "ms", ms["ours"] / n, "OpenCV", ms["peer"] / n, 0.3, at)


def drawn(grid: int, side: int, n: int) -> tuple[np.ndarray, list[np.ndarray]]:
    """Return maps in [0, 1] and one true box for each."""
    generator = torch.Generator().manual_seed(grid)
    coarse = torch.randn(n, 1, grid, grid, generator=generator)
    maps = normalize_maps(F.interpolate(coarse, (side, side), mode="bicubic")[:, 0]).numpy()
    corners = torch.randint(0, side, (n, 2, 2), generator=generator).sort(1).values.numpy()
    return maps, list(np.concatenate([corners[:, 0], corners[:, 1] + 1], axis=1)[:, None])


def by_opencv(maps: np.ndarray, boxes: list[np.ndarray]) -> np.ndarray:
    """Return the number of correct maps at each IoU and threshold, (number of IoUs, 1000), with inclusive boxes."""
    hits = np.zeros((len(IOU), len(THRESHOLDS)), dtype=np.int64)
    height, width = maps.shape[1:]
    for cam, box in zip(maps, boxes, strict=True):
        grey, true = (cam.astype(np.float64) * 255).astype(np.uint8), box[0] - [0, 0, 1, 1]
        area = (true[2:] - true[:2] + 1).prod()
        best = np.empty(len(THRESHOLDS))
        for t, threshold in enumerate(THRESHOLDS):
            _, binary = cv2.threshold(grey, int(threshold * grey.max()), 255, cv2.THRESH_BINARY)
            outlines = cv2.findContours(binary, cv2.RETR_TREE, cv2.CHAIN_APPROX_SIMPLE)[0]
            found = np.array([cv2.boundingRect(outline) for outline in outlines])
            found[:, 2:] = np.minimum(found[:, :2] + found[:, 2:], (width - 1, height - 1))
            sides = np.minimum(found[:, 2:], true[2:]) - np.maximum(found[:, :2], true[:2]) + 1
            inner = sides.clip(0).prod(1)
            best[t] = (inner / ((found[:, 2:] - found[:, :2] + 1).prod(1) + area - inner)).max()
        hits += best >= np.array(IOU)[:, None]
    return hits


if __name__ == "__main__":
    main()
