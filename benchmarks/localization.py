"""Speed of MaxBoxAccV2 beside OpenCV at one threshold after the other, in one run; and whether the numbers are equal.

    python benchmarks/localization.py [--json FILE] [--maps N] [--sample N]

The maps are like CAMs: normal noise on a coarse grid, enlarged bicubically. OpenCV's side is what wsolevaluation does
at each of 1,000 thresholds: threshold, contours, their boxes, the IoU with the true box. It takes a minute or more for
1,000 maps, so --sample measures it on the first few, and the time of a map is compared. The sides take turns in blocks
of maps, one thread each. A row passes when the ratio is at most the target and the accuracies are equal.
"""

import argparse
import json
import os
import platform
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from rich.console import Console
from rich.table import Table

import cutmix
from cutmix.evaluate.localization import normalize_maps
from cutmix.evaluate.max_box import best_thresholds, level_iou

IOU = (0.3, 0.5, 0.7)
THRESHOLDS = np.arange(0, 1, 0.001)
TARGET = 0.3


@dataclass(frozen=True)
class Row:
    """Milliseconds a map on each side, and whether the accuracies of the maps that both have seen are equal."""

    maps: str
    n: int
    ours_ms: float
    peer: str
    sample: int
    peer_ms: float
    target: float
    equal: bool

    @property
    def ratio(self) -> float:
        """Our time as a share of the peer's."""
        return self.ours_ms / self.peer_ms


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, help="also write the rows, hardware and versions to this file")
    parser.add_argument("--maps", type=int, default=1000, help="maps of each kind")
    parser.add_argument("--sample", type=int, help="maps of each kind that OpenCV sees; all without this")
    args = parser.parse_args()
    torch.set_num_threads(1)
    cv2.setNumThreads(1)
    where: dict[str, object] = {
        "device": processor(),
        "cores": os.cpu_count(),
        "threads": 1,
        "versions": {"cutmix": cutmix.__version__}
        | {name: version(name) for name in ("torch", "numpy", "opencv-python-headless")},
        "load_before": os.getloadavg(),
    }
    rows = [compare(grid, 224, args.maps, args.sample or args.maps) for grid in (7, 14, 28)]
    where["load_after"] = os.getloadavg()
    show(rows, where)
    if args.json:
        record = {"circumstances": where, "rows": [asdict(row) | {"ratio": row.ratio} for row in rows]}
        args.json.write_text(json.dumps(record, indent=1) + "\n")


def compare(grid: int, side: int, n: int, sample: int, block: int = 10) -> Row:
    """Measure both sides on blocks of maps in turn, as seconds of this process on any processor."""
    maps, boxes = drawn(grid, side, n)
    ours, peer = 0.0, 0.0
    tables, peaks, hits = [], [], np.zeros((len(IOU), len(THRESHOLDS)), dtype=np.int64)
    for start in range(0, n, block):
        part = slice(start, min(start + block, n))
        taken, (table, peak) = timed(partial(level_iou, maps[part], boxes[part], ("all",)))
        ours += taken
        tables.append(table["all"])
        peaks.append(peak)
        if start < sample:
            some = slice(start, min(start + block, sample))
            taken, found = timed(partial(by_opencv, maps[some], boxes[some]))
            peer += taken
            hits += found
    every, tops = np.concatenate(tables), np.concatenate(peaks)
    taken, _ = timed(partial(best_thresholds, every, tops, IOU))
    seen = best_thresholds(every[:sample], tops[:sample], IOU)
    equal = seen.accuracies == tuple((100 * hits.max(1) / sample).tolist())
    per_map = 1000 * (ours + taken) / n, 1000 * peer / sample
    return Row(f"{grid}×{grid} to {side}×{side}", n, per_map[0], "OpenCV", sample, per_map[1], TARGET, equal)


def drawn(grid: int, side: int, n: int) -> tuple[np.ndarray, list[np.ndarray]]:
    """Return maps in [0, 1] and one true box for each."""
    generator = torch.Generator().manual_seed(grid)
    coarse = torch.randn(n, 1, grid, grid, generator=generator)
    maps = normalize_maps(F.interpolate(coarse, (side, side), mode="bicubic")[:, 0]).numpy()
    corners = torch.randint(0, side, (n, 2, 2), generator=generator).sort(1).values.numpy()
    return maps, list(np.concatenate([corners[:, 0], corners[:, 1] + 1], axis=1)[:, None])


def by_opencv(maps: np.ndarray, boxes: list[np.ndarray]) -> np.ndarray:
    """Return how many maps are right at each IoU and threshold, (number of IoUs, 1000), on inclusive boxes."""
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


def timed(call: Callable[[], Any]) -> tuple[float, Any]:
    """Return the seconds of processor that a call takes, which others on the machine do not add to, and its result."""
    start = time.process_time()
    result = call()
    return time.process_time() - start, result


def processor() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    names = [line.split(":")[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def show(rows: list[Row], where: dict[str, object]) -> None:
    """Print the rows as a table."""
    table = Table("maps", "n", "ours, ms", "beside", "n", "ms", "ratio", "target", "same numbers", "")
    table.title = "MaxBoxAccV2, processor time a map"
    for row in rows:
        verdict = "yes" if row.ratio <= row.target and row.equal else "NO"
        numbers = f"{row.ours_ms:.2f}", row.peer, str(row.sample), f"{row.peer_ms:.2f}", f"{row.ratio:.3f}"
        table.add_row(row.maps, str(row.n), *numbers, f"≤ {row.target}", "yes" if row.equal else "NO", verdict)
    Console(width=max(120, Console().width)).print(table, where)


if __name__ == "__main__":
    main()
