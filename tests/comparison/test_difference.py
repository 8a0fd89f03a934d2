"""The interval over seeds and images covers what it should, and ends where known tests begin."""

import numpy as np
import pytest
from scipy import stats

from cutmix.comparison.difference import crossed_difference


def simulate(rng: np.random.Generator, seeds: int, images: int, effect: float) -> tuple[np.ndarray, np.ndarray]:
    """Draw errors of two methods: images of different difficulty, and seeds that move each method."""
    hard = rng.normal(0, 1.5, images)
    levels = rng.normal(0, 0.15, (2, seeds, 1)) + np.array([effect, 0.0]).reshape(2, 1, 1)
    own = rng.normal(0, 0.4, (2, 1, images))  # some images suit one method, whatever the seed
    wrong = rng.random((2, seeds, images)) < 1 / (1 + np.exp(-(hard + levels + own)))
    return wrong[0], wrong[1]


@pytest.mark.parametrize(("seeds", "images", "least"), [(3, 200, 0.935), (5, 80, 0.935), (2, 400, 0.91)])
def test_the_interval_covers_no_difference_about_as_often_as_it_says(seeds: int, images: int, least: float) -> None:
    rng = np.random.default_rng(seeds)
    found = [crossed_difference(*simulate(rng, seeds, images, 0.0)) for _ in range(800)]
    covered = sum(one.low <= 0 <= one.high for one in found)
    assert covered / 800 >= least
    assert sum(one.p < 0.05 for one in found) == pytest.approx(800 - covered, abs=2)


def test_one_seed_is_the_paired_t_test() -> None:
    method, baseline = simulate(np.random.default_rng(1), 1, 300, 0.3)
    theirs = stats.ttest_rel(method[0] * 100.0, baseline[0] * 100.0)
    ours = crossed_difference(method, baseline)
    assert ours.p == pytest.approx(theirs.pvalue)
    assert (ours.low, ours.high) == pytest.approx(tuple(theirs.confidence_interval()))
    assert ours.over_seeds is None


def test_images_without_differences_of_their_own_are_the_t_test_over_seeds() -> None:
    """Every image of a seed differs alike: then the seeds are all that is random."""
    method = np.array([[True] * 50, [False] * 50, [True] * 50, [True] * 50])
    ours = crossed_difference(method, np.zeros_like(method))
    theirs = stats.ttest_1samp([100.0, 0.0, 100.0, 100.0], 0.0)
    assert ours.p == pytest.approx(theirs.pvalue)
    assert ours.df == pytest.approx(3)


def test_components_are_found() -> None:
    rng = np.random.default_rng(3)
    seeds, images = 200, 300
    a, b = rng.normal(0, 0.05, (seeds, 1)), rng.normal(0, 0.1, (1, images))
    method = rng.random((seeds, images)) < 0.4 + a + b
    found = crossed_difference(method, np.zeros_like(method))
    assert found.over_seeds == pytest.approx(5, rel=0.2)
    assert found.over_images == pytest.approx(10, rel=0.2)


def test_equal_methods_differ_by_nothing() -> None:
    same = np.array([[True, False, True], [True, True, False]])
    found = crossed_difference(same, same)
    assert (found.value, found.low, found.high, found.p) == (0, 0, 0, 1)
    assert found.seeds_needed() is None


def test_more_seeds_are_needed_where_chance_is_not_excluded() -> None:
    rng = np.random.default_rng(5)
    assert crossed_difference(*simulate(rng, 3, 4000, 2.0)).seeds_needed() == 3
    for _ in range(20):
        found = crossed_difference(*simulate(rng, 3, 1000, 0.1))
        needed = found.seeds_needed()
        assert (needed == 3) == (found.p < 0.05)
        assert found.detectable > found.high - found.value
