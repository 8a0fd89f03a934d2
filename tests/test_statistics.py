"""Tests of differences: SciPy, formulas written out by hand and worked cases are the oracles."""

import math
from pathlib import Path

import numpy as np
import pytest
from scipy import stats
from sklearn.metrics import roc_auc_score

from cutmix.errors import InputError
from cutmix.evaluate.calibration import calibration_error
from cutmix.statistics import (
    auroc_difference,
    ece_difference,
    holm,
    in_words,
    mcnemar,
    rate_difference,
    read_outcome,
    welch,
)


def outcomes(both: int, first: int, second: int, neither: int) -> tuple[np.ndarray, np.ndarray]:
    """Two runs of which this many images were got right by both, by one only, and by neither."""
    counts = (both, first, second, neither)
    return np.repeat([True, True, False, False], counts), np.repeat([True, False, True, False], counts)


def exact(first: int, second: int) -> float:
    """The exact test as statsmodels has it: twice the lower tail, at most 1."""
    n = first + second
    return min(1.0, 2 * sum(math.comb(n, i) for i in range(min(first, second) + 1)) / 2**n)


@pytest.mark.parametrize(("first", "second"), [(1, 8), (8, 1), (0, 5), (5, 5), (0, 0), (0, 1), (40, 65), (310, 388)])
def test_mcnemar_is_the_exact_binomial_test(first: int, second: int) -> None:
    found = mcnemar(*outcomes(70, first, second, 20))
    assert (found.first, found.second) == (first, second)
    assert found.p == pytest.approx(exact(first, second), rel=1e-9)


def test_mcnemar_worked_case() -> None:
    assert mcnemar(*outcomes(59, 6, 16, 80)).p == pytest.approx(0.05248, abs=1e-5)  # 22 discordant, by a binomial table
    assert mcnemar(*outcomes(0, 1, 8, 0)).p == 2 * (1 + 9) / 2**9


def test_mcnemar_needs_the_same_images() -> None:
    with pytest.raises(InputError, match="3 and 4 images"):
        mcnemar(np.ones(3, bool), np.ones(4, bool))


def test_mcnemar_holds_its_level_under_the_null() -> None:
    random = np.random.default_rng(0)
    right = random.random((2, 2000, 200)) < 0.7  # two runs that err equally often, independently
    rejected = sum(mcnemar(one, other).p < 0.05 for one, other in zip(*right, strict=True))
    assert 0.02 * 2000 < rejected <= 0.05 * 2000 + 3 * (2000 * 0.05 * 0.95) ** 0.5


def test_holm_worked_case() -> None:
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.6, 0.5]) == [1.0, 1.0]
    assert holm([0.2]) == [0.2]
    assert holm([]) == []


def test_holm_is_between_the_raw_values_and_bonferroni() -> None:
    p = np.random.default_rng(0).random(50) ** 3
    adjusted = np.array(holm(list(p)))
    assert (adjusted >= p).all()
    assert (adjusted <= np.minimum(1, p * 50)).all()
    assert (np.diff(adjusted[p.argsort()]) >= 0).all()


def test_welch_is_its_formula() -> None:
    first, second = [20.52, 20.10, 19.72], [23.0, 23.3, 23.1, 22.6]
    parts = [np.var(values, ddof=1) / len(values) for values in (first, second)]
    t = (np.mean(first) - np.mean(second)) / sum(parts) ** 0.5
    freedom = sum(parts) ** 2 / (parts[0] ** 2 / 2 + parts[1] ** 2 / 3)
    assert welch(first, second) == pytest.approx(2 * stats.t.sf(abs(t), freedom))


def test_welch_without_spread_or_runs() -> None:
    assert welch([20.0, 20.0], [21.0, 21.0]) is None
    assert welch([20.0, 20.0], [21.0, 22.0]) is None
    with pytest.raises(InputError, match="two runs of each"):
        welch([20.0], [21.0, 22.0])


def test_of_equal_logits_the_lowest_class_counts(tmp_path: Path) -> None:
    logits = np.array([[1, 1, 0], [1, 1, 0], [0, 0, 2]], np.float32)
    np.savez(tmp_path / "last.npz", logits=logits, labels=np.array([0, 1, 2]))
    assert read_outcome(tmp_path / "last.npz").right.tolist() == [True, False, True]


def test_what_is_no_predictions_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "last.npz"
    arrays = {
        "of shape": {"logits": np.zeros((3, 2)), "labels": np.zeros(4)},
        "labels": {"logits": np.zeros((3, 2))},
        "pickle": {"logits": np.array([{}, {}]), "labels": np.zeros(2)},
    }
    for reason, content in arrays.items():
        np.savez(path, **content)
        with pytest.raises(InputError, match=reason):
            read_outcome(path)
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(InputError, match="cannot be read"):
        read_outcome(path)
    with pytest.raises(InputError, match="absent"):
        read_outcome(tmp_path / "absent.npz")


@pytest.mark.parametrize(
    ("p", "said"),
    [
        (0.0001, "p < 0.001"),
        (0.0494, "p = 0.049"),
        (0.05, "not significant (p = 0.050)"),
        (1.0, "not significant (p = 1.000)"),
    ],
)
def test_a_difference_that_is_not_significant_says_so(p: float, said: str) -> None:
    assert in_words(p) == said


def test_a_difference_of_rates_has_agresti_and_mins_interval() -> None:
    found = rate_difference(*outcomes(59, 6, 16, 80))
    cells = np.array([59, 6, 16, 80]) + 0.5  # their adjustment, then Wald's interval for matched pairs
    n = cells.sum()
    middle = (cells[2] - cells[1]) / n
    half = 1.959964 * math.sqrt(((cells[1] + cells[2]) - (cells[2] - cells[1]) ** 2 / n) / n**2)
    assert found.value == pytest.approx(100 * 10 / 161)
    assert (found.low, found.high) == pytest.approx((100 * (middle - half), 100 * (middle + half)), rel=1e-6)
    assert found.p == mcnemar(*outcomes(59, 6, 16, 80)).p
    other = rate_difference(*outcomes(59, 16, 6, 80))
    assert (other.value, other.low, other.high) == pytest.approx((-found.value, -found.high, -found.low))


def test_the_interval_of_equal_runs_has_a_width_and_holds_0() -> None:
    found = rate_difference(*outcomes(70, 0, 0, 30))
    assert found.low < found.value == 0 < found.high
    assert found.p == 1
    with pytest.raises(InputError, match="no images"):
        rate_difference(np.zeros(0, bool), np.zeros(0, bool))


def test_the_interval_of_rates_covers_as_often_as_it_says() -> None:
    random = np.random.default_rng(0)
    cell = random.choice(4, p=(0.6, 0.12, 0.05, 0.23), size=(2000, 150))  # the true difference is 0.05 - 0.12
    found = [rate_difference((row == 0) | (row == 1), (row == 0) | (row == 2)) for row in cell]
    covered = sum(one.low <= -7 <= one.high for one in found)
    assert 0.94 * 2000 <= covered <= 0.975 * 2000


@pytest.fixture(scope="module")
def scores() -> list[tuple[np.ndarray, np.ndarray]]:
    """Two runs' scores of the same 300 and 200 images, correlated and with ties."""
    random = np.random.default_rng(1)
    common = random.normal(size=500) + np.repeat([1.0, 0.0], [300, 200])
    runs = [np.round(common + random.normal(size=500) * spread, 1) for spread in (0.6, 1.1)]
    return [(run[:300], run[300:]) for run in runs]


def test_a_difference_of_areas_is_scikit_learns(scores: list[tuple[np.ndarray, np.ndarray]]) -> None:
    labels = np.repeat([1, 0], [300, 200])
    areas = [roc_auc_score(labels, np.concatenate(run)) for run in scores]
    assert auroc_difference(*scores).value == pytest.approx(100 * (areas[1] - areas[0]))


def test_delong_is_its_definition(scores: list[tuple[np.ndarray, np.ndarray]]) -> None:
    wins = [(p[:, None] > n) + (p[:, None] == n) / 2 for p, n in scores]  # every pair of images, one by one
    gain = wins[1] - wins[0]
    deviation = math.sqrt(gain.mean(1).var(ddof=1) / 300 + gain.mean(0).var(ddof=1) / 200)
    found = auroc_difference(*scores)
    assert found.high - found.low == pytest.approx(200 * 1.959964 * deviation, rel=1e-6)
    assert found.p == pytest.approx(2 * stats.norm.sf(abs(gain.mean()) / deviation))


def test_delong_agrees_with_a_bootstrap(scores: list[tuple[np.ndarray, np.ndarray]]) -> None:
    random, labels = np.random.default_rng(2), np.repeat([1, 0], [300, 200])
    drawn = []
    for _ in range(400):
        index = np.concatenate([random.integers(300, size=300), 300 + random.integers(200, size=200)])
        areas = [roc_auc_score(labels, np.concatenate(run)[index]) for run in scores]
        drawn.append(100 * (areas[1] - areas[0]))
    found = auroc_difference(*scores)
    assert np.std(drawn) == pytest.approx((found.high - found.low) / (2 * 1.96), rel=0.1)
    assert np.percentile(drawn, [2.5, 97.5]) == pytest.approx((found.low, found.high), abs=0.6)


def test_delong_at_its_ends() -> None:
    low, high = np.arange(5.0), np.arange(10.0, 15.0)
    same = auroc_difference((high, low), (high, low))
    assert (same.value, same.low, same.high, same.p) == (0, 0, 0, 1)
    reverse = auroc_difference((high, low), (low, high))
    assert (reverse.value, reverse.p) == (-100, 0)
    with pytest.raises(InputError, match="on the same images"):
        auroc_difference((high, low), (high, low[:4]))


@pytest.fixture(scope="module")
def confident() -> list[tuple[np.ndarray, np.ndarray]]:
    """Confidences and answers of a calibrated and of an over-confident run, on the same 2,000 images."""
    random = np.random.default_rng(3)
    truth = random.uniform(0.3, 1, size=2000)
    right = random.random(2000) < truth
    return [(truth, right), (truth**0.4, right)]


def test_a_difference_of_ece_is_that_of_the_suite(confident: list[tuple[np.ndarray, np.ndarray]]) -> None:
    errors = []
    for confidence, right in confident:  # two classes more, so that the confidence is the largest probability
        p = np.stack([confidence, (1 - confidence) / 3, (1 - confidence) / 3, (1 - confidence) / 3], 1)
        errors.append(calibration_error(p, np.where(right, p.argmax(1), (p.argmax(1) + 1) % 4)))
    found = ece_difference(*confident)
    top = [p for p, _ in confident]
    assert all((each > 0.25).all() for each in top)
    assert found.value == pytest.approx(errors[1] - errors[0])
    assert found.low < found.value < found.high
    assert found.p == pytest.approx(2 / 501)  # nothing beyond zero in 500 draws


def test_equal_runs_have_no_difference_of_ece(confident: list[tuple[np.ndarray, np.ndarray]]) -> None:
    found = ece_difference(confident[0], confident[0])
    assert (found.value, found.low, found.high, found.p) == (0, 0, 0, 1)
    assert ece_difference(*confident, draws=50) == ece_difference(*confident, draws=50)
    with pytest.raises(InputError, match="2000 and 3 images"):
        ece_difference(confident[0], (np.ones(3), np.ones(3, bool)))


def test_the_difference_of_ece_holds_its_level() -> None:
    random = np.random.default_rng(4)
    rejected = 0
    for _ in range(100):  # two runs that are as well calibrated, on images of their own confidences
        p = random.uniform(0.5, 1, size=(2, 400))
        rejected += ece_difference(*((one, random.random(400) < one) for one in p), draws=100).p < 0.05
    assert rejected <= 12
