"""Each convention against a loop written from its definition; "exact" and "openood" against scikit-learn."""

import math

import numpy as np
import pytest
from scipy.integrate import trapezoid
from sklearn.metrics import auc, average_precision_score, precision_recall_curve, roc_auc_score

from cutmix.errors import InputError
from cutmix.evaluation.ood import ood_metrics
from cutmix.evaluation.ood_conventions import OodMetrics, Sides, auroc, mahalanobis_tnr95_auroc

RNG = np.random.default_rng(0)
SMOOTH = RNG.beta(5, 2, 60), RNG.beta(3, 3, 45)
TIED = (RNG.beta(5, 2, 60) * 6).round() / 6, (RNG.beta(3, 3, 45) * 6).round() / 6
SURE = (
    np.where(RNG.random(90) < 0.67, 1.0, RNG.uniform(0.2, 1, 90)),
    np.where(RNG.random(80) < 0.3, 1.0, RNG.uniform(0.2, 1, 80)),
)  # most ID scores are exactly 1, as those of an over-confident network in float32
APART = np.array([0.8, 0.9, 1.0]), np.array([0.2, 0.3])
SETS = {"smooth": SMOOTH, "tied": TIED, "sure": SURE, "apart": APART, "swapped": APART[::-1], "single": ([0.5], [0.5])}


def loop_exact(x: np.ndarray, y: np.ndarray) -> OodMetrics:
    thresholds = sorted({*x, *y})
    best = max(t for t in thresholds if np.mean(x >= t) >= 0.95)
    wins = (x[:, None] > y).sum() + (x[:, None] == y).sum() / 2
    accuracy = max((np.mean(x >= t) + np.mean(y < t)) / 2 for t in [*thresholds, math.inf])
    truth, scores = np.r_[np.ones(len(x)), np.zeros(len(y))], np.r_[x, y]
    ties = (np.isin(x, y).sum() + np.isin(y, x).sum()) / len(scores)
    aupr = average_precision_score(truth, scores), average_precision_score(1 - truth, -scores)
    return OodMetrics(*(100 * v for v in (np.mean(y < best), wins / len(x) / len(y), accuracy, *aupr, ties)))


def loop_grid(x: np.ndarray, y: np.ndarray, start: float, end: float, steps: int, low: float, high: float, tail: bool):
    """Go through the thresholds of ODIN's program, or of the one of 2018 made from it."""
    total, fpr_sum, area, before, error, area_in, recall_before = 0, 0.0, 0.0, 1.0, 1.0, 0.0, 1.0
    up = np.arange(start, end, (end - start) / steps)
    rates = [np.concatenate([f(up[i : i + 5000, None]) for i in range(0, len(up), 5000)]) for f in (
        lambda t: (x >= t).mean(1), lambda t: (x < t).mean(1), lambda t: (y > t).mean(1), lambda t: (y >= t).mean(1)
    )]  # fmt: skip
    for tpr, fnr, fpr, fpr_tied in zip(*(rate.tolist() for rate in rates), strict=True):
        if low <= tpr <= high:
            total, fpr_sum = total + 1, fpr_sum + fpr
        area, before = area + (before - fpr) * tpr, fpr
        error = min(error, (fnr + fpr) / 2)
        if tpr + fpr_tied > 0:
            precision = tpr / (tpr + fpr_tied)
            area_in, recall_before = area_in + (recall_before - tpr) * precision, tpr
    area_in += recall_before * precision
    area += fpr * tpr if tail else 0
    down, area_out, recall_before = np.arange(end, start, -(end - start) / steps), 0.0, 1.0
    tp, fp = (np.concatenate([(z < down[i : i + 5000, None]).mean(1) for i in range(0, len(down), 5000)])
              for z in (y, x))  # fmt: skip
    for recall, false in zip(tp.tolist(), fp.tolist(), strict=True):
        if recall + false == 0:
            break
        precision = recall / (recall + false)
        area_out, recall_before = area_out + (recall_before - recall) * precision, recall
    area_out += recall_before * precision
    return (fpr_sum / total if total else None), area, 1 - error, area_in, area_out


def loop_mahalanobis(x: np.ndarray, y: np.ndarray) -> tuple[float, ...]:
    """Merge both sorted lists: an OOD sample goes first only if it is lower."""
    known, novel, tp, fp = sorted(x), sorted(y), [len(x)], [len(y)]
    while known or novel:
        ood_first = bool(novel) and (not known or novel[0] < known[0])
        (novel if ood_first else known).pop(0)
        tp.append(len(known))
        fp.append(len(novel))
    tpr, tnr = np.array(tp) / len(x), 1 - np.array(fp) / len(y)
    place = np.abs(tpr - 0.95).argmin()
    area = -trapezoid([0, *tnr, 1], [1, *tpr, 0])
    pairs = [(0.5, 1.0), *((t / (t + f), t / len(x)) for t, f in zip(tp, fp, strict=True) if t + f), (0.0, 0.0)]
    area_in = -trapezoid(*zip(*pairs, strict=True))
    lost = [(len(y) - f, len(x) - t) for t, f in zip(tp, fp, strict=True)]
    pairs = [(0.0, 0.0), *((t / (t + f), t / len(y)) for t, f in lost if t + f), (0.5, 1.0)]
    return tnr[place], area, ((tpr + tnr) / 2).max(), area_in, trapezoid(*zip(*pairs, strict=True))


@pytest.mark.parametrize("name", SETS)
def test_exact_is_the_definition(name: str) -> None:
    x, y = map(np.asarray, SETS[name])
    assert ood_metrics(x, y) == pytest.approx(loop_exact(x, y), abs=1e-9)


@pytest.mark.parametrize("n", [1, 7, 19, 20, 21, 40, 100, 999])
def test_tnr_needs_95_per_cent_and_not_less(n: int) -> None:
    x, y = np.arange(n) + 0.5, np.arange(n)
    assert ood_metrics(x, y).tnr95 == pytest.approx(loop_exact(x, y).tnr95)


@pytest.mark.parametrize("name", ["smooth", "tied", "sure"])
def test_odin_is_its_loop(name: str) -> None:
    x, y = SETS[name]
    x = np.r_[x, x[:40]][:100]  # TPR 0.95 exactly, which the window of ±0.0005 needs
    fpr, *rest = loop_grid(x, y, 1 / 10, 1.0, 100_000, 0.9495, 0.9505, tail=True)
    found = ood_metrics(x, y, "odin", num_classes=10)
    assert found[1:5] == pytest.approx([100 * value for value in rest])
    assert found.tnr95 == pytest.approx(math.nan if fpr is None else 100 * (1 - fpr), nan_ok=True)


@pytest.mark.parametrize("name", ["smooth", "tied", "sure", "apart"])
def test_confident_is_its_loop(name: str) -> None:
    x, y = SETS[name]
    ends = min(*x, *y), max(*x, *y)
    fpr, *rest = loop_grid(x, y, *ends, 200_000, 0.94, 0.96, tail=False)
    found = ood_metrics(x, y, "confident")
    assert found[:5] == pytest.approx([100 * value for value in (1 - (1 if fpr is None else fpr), *rest)], abs=1e-6)


@pytest.mark.parametrize("name", SETS)
def test_mahalanobis_is_its_loop(name: str) -> None:
    x, y = SETS[name]
    assert ood_metrics(x, y, "mahalanobis")[:5] == pytest.approx([100 * v for v in loop_mahalanobis(x, y)], abs=1e-9)


@pytest.mark.parametrize("n", range(1, 62))
def test_the_short_way_to_mahalanobis_is_the_long_one(n: int) -> None:
    x, y = TIED[0][:n], TIED[1][: n // 2 + 1]
    short = mahalanobis_tnr95_auroc(Sides(np.asarray(x), np.asarray(y)).counts())
    assert short == pytest.approx([100 * v for v in loop_mahalanobis(x, y)[:2]], abs=1e-9)


@pytest.mark.parametrize("name", SETS)
def test_openood_has_ood_as_the_positive_class(name: str) -> None:
    x, y = map(np.asarray, SETS[name])
    found, truth, scores = ood_metrics(x, y, "openood"), np.r_[np.zeros(len(x)), np.ones(len(y))], np.r_[x, y]
    lowest = min(t for t in scores if np.mean(y <= t) >= 0.95)
    assert found.tnr95 == pytest.approx(100 * np.mean(x > lowest))
    assert found.auroc == pytest.approx(100 * roc_auc_score(truth, -scores))
    for value, curve in ((found.aupr_in, (1 - truth, scores)), (found.aupr_out, (truth, -scores))):
        precision, recall, _ = precision_recall_curve(*curve)
        assert value == pytest.approx(100 * auc(recall, precision))
    mirrored = ood_metrics(-y, -x)
    assert found.tnr95 == pytest.approx(mirrored.tnr95)


def test_ties_move_the_conventions_apart_and_nothing_else_does() -> None:
    rng = np.random.default_rng(1)
    x, y = rng.beta(9, 1.5, 4000), rng.beta(2, 2, 4000)
    smooth = [ood_metrics(x, y, name, num_classes=100) for name in ("exact", "odin", "confident", "mahalanobis")]
    assert np.ptp([m.auroc for m in smooth]) < 0.02
    assert np.ptp([m.tnr95 for m in smooth]) < 0.5
    assert abs(ood_metrics(x, y, "openood").tnr95 - smooth[0].tnr95) > 5  # another number
    x, y = (np.where(rng.random(4000) < share, 1.0, z) for share, z in ((0.67, x), (0.33, y)))
    exact, odin, confident, mahalanobis = (
        ood_metrics(x, y, name, num_classes=100) for name in ("exact", "odin", "confident", "mahalanobis")
    )
    tied = 100 * np.mean(x == 1) * np.mean(y == 1)
    assert mahalanobis.auroc == pytest.approx(exact.auroc - tied / 2, abs=1e-6)  # ties are lost
    assert odin.auroc == pytest.approx(exact.auroc + tied / 2, abs=0.02)  # ties are won
    # the piece left of the last threshold is not counted: all OOD at 1 times all ID at 1
    assert confident.auroc == pytest.approx(odin.auroc - tied, abs=0.02)
    assert exact.ties == pytest.approx(50 * (np.mean(x == 1) + np.mean(y == 1)), abs=1e-9)


def test_no_threshold_near_95_per_cent() -> None:
    x, y = np.array([0.5, 0.5, 0.5, 0.9]), np.array([0.2, 0.3])  # TPR is 1 or 0.25
    assert ood_metrics(x, y, "confident").tnr95 == 0  # its authors' "corner case"
    assert math.isnan(ood_metrics(x, y, "odin", num_classes=10).tnr95)
    assert ood_metrics(x, y).tnr95 == 100


def test_a_monotone_change_of_the_scores_changes_nothing() -> None:
    for name in ("exact", "mahalanobis", "openood"):
        x, y = TIED
        assert ood_metrics(np.log(x + 1), np.log(y + 1), name) == ood_metrics(x, y, name)


def test_a_resample_of_counts_is_a_resample_of_scores() -> None:
    x, y = map(np.asarray, TIED)
    i, j = np.array([3] * 10 + [*range(50)]), np.arange(5, 40)
    counts = Sides(x, y).counts(np.bincount(i, minlength=len(x)), np.bincount(j, minlength=len(y)))
    assert auroc(counts) == pytest.approx(ood_metrics(x[i], y[j]).auroc)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (([], [0.1]), r"the in-distribution scores have the shape \(0,\); expected \(N,\), one for each image"),
        (([0.1], [[0.1]]), r"the out-of-distribution scores have the shape \(1, 1\)"),
        (([0.1, math.nan], [0.1]), "1 of the in-distribution scores are NaN or infinite"),
        (([0.1], [math.inf]), "1 of the out-of-distribution scores are NaN or infinite"),
        ((["a"], [0.1]), "the in-distribution scores are <U1; expected real numbers"),
        (([0.1], [1j]), "the out-of-distribution scores are complex128; expected real numbers"),
        (([0.1], [0.2], "ours"), "the convention is 'ours'; expected one of exact, odin, confident"),
        (([0.1], [0.2], "odin"), "num_classes is None; expected at least 2, as ODIN's thresholds are 1/K to 1"),
        (([0.1], [0.1], "confident"), "all scores are equal; the convention 'confident' expects"),
    ],
)
def test_wrong_input_is_one_sentence(arguments: tuple, message: str) -> None:
    with pytest.raises(InputError, match=message):
        ood_metrics(*arguments)


def test_odin_refuses_what_are_no_probabilities() -> None:
    with pytest.raises(InputError, match="the scores range from -3 to 12; the convention 'odin' expects probabilities"):
        ood_metrics([12.0], [-3.0], "odin", num_classes=10)
