"""Tests of differences: SciPy, formulas written out by hand and worked cases are the oracles."""

import math
from pathlib import Path

import numpy as np
import pytest
from scipy import stats

from cutmix.errors import InputError
from cutmix.statistics import holm, in_words, mcnemar, read_outcome, welch


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
