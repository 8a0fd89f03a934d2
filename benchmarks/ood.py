"""Time of the intervals of out-of-distribution detection, beside a bootstrap that sorts every draw.

    python benchmarks/ood.py [--json FILE] [--quick]

Our side computes six metrics together; the peer is scikit-learn's AUROC alone, timed for some of the draws.
"""

from collections.abc import Iterator

import numpy as np
from sklearn.metrics import roc_auc_score

from cutmix.evaluation.ood_conventions import Sides, exact
from cutmix.statistics import bootstrap_interval
from measuring import Row, arguments, in_turns, medians, report, versions

LIMIT = 2000.0  # milliseconds for 10,000 + 10,000 scores and 1,000 draws on two cores


def rows(n: int, draws: int, peer_draws: int, rounds: int) -> Iterator[Row]:
    """Yield the interval for n + n scores, beside the peer and beside its limit."""
    rng = np.random.default_rng(0)
    inside, outside, truth = rng.beta(6, 2, n), rng.beta(4, 3, n), np.repeat([1, 0], n)

    def peer() -> None:
        for _ in range(peer_draws):
            scores = np.concatenate([side[rng.integers(n, size=n)] for side in (inside, outside)])
            roc_auc_score(truth, scores)

    def ours() -> None:
        sides = Sides(inside, outside)
        drawn = sides.resampled(exact, draws, 0, "out")
        for value, spread in zip(exact(sides.counts()), drawn.T, strict=True):
            bootstrap_interval(value, spread, n)

    ms = medians(in_turns({"ours": ours, "peer": peer}, rounds))
    what, at = "interval of six metrics", f"{2 * n:,} scores, {draws:,} draws"
    yield Row(what, "ms", ms["ours"], "limit", LIMIT, 1.0, at)
    yield Row(what, "ms", ms["ours"], "scikit-learn's AUROC alone", ms["peer"] * draws / peer_draws, at=at)


def main() -> None:
    args = arguments(__doc__).parse_args()
    found = rows(10_000, 20, 2, 1) if args.quick else rows(10_000, 1000, 20, 3)
    report("Intervals of out-of-distribution detection", found, args, versions("scikit-learn"))


if __name__ == "__main__":
    main()
