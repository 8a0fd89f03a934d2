"""Time of the intervals of out-of-distribution detection, beside a bootstrap that sorts every draw.

    python benchmarks/ood.py [--json FILE] [--quick]

AUROC alone is what scikit-learn computes a draw; here the six measures are computed together.
"""

import argparse
import json
import os
import time
from pathlib import Path
from typing import Any

import numpy as np
from sklearn.metrics import roc_auc_score

from cutmix.evaluate.ood import bootstrap_ood

TARGET = 2.0  # seconds for 10,000 + 10,000 scores and 1,000 draws on two cores


def measure_ood(n: int = 10_000, draws: int = 1000, peer_draws: int = 20) -> dict[str, Any]:
    """Return seconds of ``draws`` resamples of n + n scores: wall and processor time, and scikit-learn's share of it.

    The peer sorts every resample; it is timed for a few and scaled up.
    """
    rng = np.random.default_rng(0)
    inside, outside = rng.beta(6, 2, n), rng.beta(4, 3, n)
    bootstrap_ood(inside, outside, draws=10)
    wall, processor = time.perf_counter(), time.process_time()
    low, high = bootstrap_ood(inside, outside, draws=draws)
    wall, processor = time.perf_counter() - wall, time.process_time() - processor
    truth, started = np.repeat([1, 0], n), time.process_time()
    for _ in range(peer_draws):
        scores = np.concatenate([side[rng.integers(n, size=n)] for side in (inside, outside)])
        roc_auc_score(truth, scores)
    peer = (time.process_time() - started) * draws / peer_draws
    return {
        "scores": 2 * n, "draws": draws, "seconds": wall, "processor_seconds": processor, "target_seconds": TARGET,
        "sklearn_auroc_processor_seconds": peer, "auroc": [low.auroc, high.auroc],
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, help="also write the figures to this file")
    parser.add_argument("--quick", action="store_true", help="few draws: does it run?")
    args = parser.parse_args()
    found = measure_ood(draws=20, peer_draws=2) if args.quick else measure_ood()
    found |= {"cores": os.cpu_count(), "load": os.getloadavg(), "numpy": np.__version__}
    print(json.dumps(found, indent=1))
    if args.json:
        args.json.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
