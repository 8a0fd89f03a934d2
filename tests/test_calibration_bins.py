"""Bins are (low, high], those of equal mass part no ties, and the two corrections for noise are simulated."""

import numpy as np
import pytest
from scipy.stats import foldnorm

from cutmix.errors import InputError
from cutmix.statistics import (
    Reliability,
    bin_edges,
    chance_error,
    debiased_error,
    expected_error,
    max_error,
    one_hot_bins,
    reliability_table,
)


def table_of(confidence: np.ndarray, right: np.ndarray, bins: int, adaptive: bool = False) -> Reliability:
    edges = bin_edges(confidence, bins, adaptive)
    return reliability_table(edges, one_hot_bins(confidence, edges).T @ np.stack([right * 0 + 1, confidence, right], 1))


def test_a_bound_belongs_to_the_bin_below_it() -> None:
    confidence = np.array([0.2, 0.2 + 1e-12, 0.4, 1.0, 1.0 + 1e-9, 1e-9])
    index = one_hot_bins(confidence, bin_edges(confidence, 5, False)).argmax(1)
    assert index.tolist() == [0, 1, 1, 4, 4, 0]


@pytest.mark.parametrize(("n", "bins"), [(1, 15), (7, 3), (15, 15), (100, 15), (1000, 7)])
def test_bins_of_equal_mass_differ_by_one_image(n: int, bins: int) -> None:
    confidence = np.random.default_rng(0).uniform(0.1, 1, n)
    images = table_of(confidence, np.ones(n), bins, adaptive=True).images
    assert images.sum() == n
    assert images.max() - images.min() <= 1


def test_bins_of_equal_mass_keep_ties_together_whatever_the_order() -> None:
    rng = np.random.default_rng(0)
    confidence, right = np.full(1000, 0.9), np.r_[np.ones(600), np.zeros(400)]
    for _ in range(5):
        order = rng.permutation(1000)
        table = table_of(confidence[order], right[order], 15, adaptive=True)
        assert sorted(table.images)[-2:] == [0, 1000]
        assert expected_error(table) == pytest.approx(30)
        assert max_error(table) == pytest.approx(30)


def test_an_empty_bin_counts_nothing() -> None:
    table = table_of(np.array([0.95, 0.95, 0.35]), np.array([1.0, 0.0, 1.0]), 10)
    assert table.images.tolist() == [0, 0, 0, 1, 0, 0, 0, 0, 0, 2]
    assert np.isnan(table.accuracy[0])
    assert table.accuracy[[3, 9]].tolist() == [1, 0.5]
    assert (table.low[3], table.high[3]) == pytest.approx((0.3, 0.4))
    assert expected_error(table) == pytest.approx(100 * (0.65 + 2 * 0.45) / 3)
    assert max_error(table) == pytest.approx(65)


def test_no_bin_is_refused() -> None:
    with pytest.raises(InputError, match=r"bins is 1\.5: expected at least one, a whole number"):
        bin_edges(np.array([0.5]), 1.5, False)  # type: ignore[arg-type]
    with pytest.raises(InputError, match="bins is 0: expected at least one"):
        bin_edges(np.ones(3), 0, False)


def test_debiased_error_takes_off_what_scipys_folded_normal_says() -> None:
    table = table_of(np.array([0.9] * 40 + [0.6] * 10), np.r_[np.ones(30), np.zeros(10), np.ones(5), np.zeros(5)], 10)
    plain, less = expected_error(table), 0.0
    for images, gap, accuracy in ((40, 0.15, 0.75), (10, 0.1, 0.5)):
        deviation = np.sqrt(accuracy * (1 - accuracy) / images)
        less += images / 50 * (foldnorm.mean(gap / deviation, scale=deviation) - gap)
    assert debiased_error(table) == pytest.approx(plain - 100 * less)
    certain = table_of(np.full(10, 0.8), np.ones(10), 10)  # no noise: all right
    assert debiased_error(certain) == pytest.approx(20)


def test_chance_is_what_a_calibrated_classifier_has_and_the_debiased_error_has_less() -> None:
    rng = np.random.default_rng(0)
    plain, debiased, chance = [], [], []
    for _ in range(200):
        confidence = rng.uniform(0.2, 1, 600)
        table = table_of(confidence, (rng.random(600) < confidence).astype(float), 15)
        plain.append(expected_error(table))
        debiased.append(debiased_error(table))
        chance.append(chance_error(confidence, bin_edges(confidence, 15, False)))
    assert np.mean(plain) == pytest.approx(np.mean(chance), rel=0.05)
    assert np.mean(plain) > 4
    assert abs(np.mean(debiased)) < 0.7 * np.mean(plain)
