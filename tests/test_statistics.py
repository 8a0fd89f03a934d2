"""Differences, calibration bins, the bootstrap: SciPy, formulas written out and worked cases are the oracles."""

import math

import numpy as np
import pytest
from scipy import stats
from sklearn.metrics import roc_auc_score

from cutmix.errors import InputError
from cutmix.evaluation.calibration import calibration_error
from cutmix.statistics import (
    Reliability,
    auroc_difference,
    bin_edges,
    bootstrap,
    bootstrap_interval,
    chance_error,
    debiased_error,
    ece_difference,
    expected_error,
    holm,
    in_words,
    max_error,
    mcnemar,
    one_hot_bins,
    rate_difference,
    reliability_table,
    too_narrow,
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
    with pytest.raises(InputError, match="1 run of a recipe is given; expected two"):
        welch([20.0], [21.0, 22.0])


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


def test_a_difference_of_shares_ends_at_100_points() -> None:
    found = rate_difference(*outcomes(0, 0, 8, 0))
    assert (found.value, found.high) == (100, 100)
    random = np.random.default_rng(0)
    worse, better = (random.normal(size=3), random.normal(size=3)), (np.full(3, 9.0), random.normal(size=3))
    assert -100 <= auroc_difference(worse, better).low < auroc_difference(worse, better).high <= 100


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
    assert reverse.value == -100
    assert reverse.few  # no spread among five images a side, so an interval of no width
    with pytest.raises(InputError, match="on the same images"):
        auroc_difference((high, low), (high, low[:4]))


@pytest.mark.parametrize(("positives", "negatives"), [(2, 2), (2, 3), (4, 3)])
@pytest.mark.parametrize("constant", [False, True])
def test_areas_without_a_spread_are_compared_by_exchanging_the_runs(
    positives: int, negatives: int, constant: bool
) -> None:
    """p is the share of all exchanges of the runs, image by image, whose areas differ as much as those given."""
    n = positives + negatives
    labels = np.repeat([1, 0], [positives, negatives])
    first = labels * 2.0 - 1
    second = np.zeros(n) if constant else -first

    def gain(exchanged: np.ndarray) -> float:
        runs = np.where(exchanged, second, first), np.where(exchanged, first, second)
        return roc_auc_score(labels, runs[1]) - roc_auc_score(labels, runs[0])

    gains = [gain((number >> np.arange(n)) % 2 == 1) for number in range(2**n)]
    p = np.mean(np.abs(gains) >= abs(gains[0]))
    one, other = ((run[:positives], run[positives:]) for run in (first, second))
    assert auroc_difference(one, other).p == pytest.approx(p)
    assert auroc_difference(one, one).p == 1


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
    assert found.p == pytest.approx(2 / 2001)  # nothing beyond zero in 2000 draws
    assert max(holm([found.p] * 50)) < 0.05  # with 500 draws, no difference among 13 runs could be significant


def test_labels_of_an_image_are_resampled_together(confident: list[tuple[np.ndarray, np.ndarray]]) -> None:
    """An image with the same label ten times says no more than one with it once."""
    repeated = [tuple(np.repeat(each[:, None], 10, axis=1) for each in run) for run in confident]
    once, often = (ece_difference(*runs, draws=200) for runs in (confident, repeated))
    assert vars(often) == pytest.approx(vars(once))


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


# ---- calibration bins ----


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
        less += images / 50 * (stats.foldnorm.mean(gap / deviation, scale=deviation) - gap)
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


# ---- bootstrap ----


def drawn_indices(n: int, draws: int, *seeds: int) -> np.ndarray:
    return bootstrap(lambda *counts: np.stack(counts, 1), *((n, seed) for seed in seeds), draws=draws)


def test_one_seed_gives_one_set_of_resamples() -> None:
    first, again, other = (drawn_indices(50, 130, seed)[:, 0] for seed in (0, 0, 1))
    assert first.shape == (130, 50)
    assert (first.sum(1) == 50).all()
    assert (first == again).all()
    assert (first != other).any()
    assert (drawn_indices(50, 7, 0)[:, 0] == first[:7]).all()


def test_blocks_do_not_change_the_resamples() -> None:
    generator = np.random.default_rng(3)  # the definition, a resample at a time
    expected = [np.bincount(generator.integers(70_000, size=70_000), minlength=70_000) for _ in range(70)]
    assert (drawn_indices(70_000, 70, 3)[:, 0] == np.stack(expected)).all()


def test_two_sides_are_drawn_apart() -> None:
    def both(first: np.ndarray, second: np.ndarray) -> np.ndarray:
        assert (first.shape[1], second.shape[1]) == (20, 30)
        return np.stack([first[:, 0], second[:, 0]], 1)

    pairs = bootstrap(both, (20, 0), (30, 1), draws=4000)
    assert pairs.shape == (4000, 2)
    assert abs(np.corrcoef(pairs.T)[0, 1]) < 0.06


def test_every_image_is_drawn_as_often_as_any_other() -> None:
    counts = drawn_indices(20, 2000, 1)[:, 0].sum(0)
    chi2 = ((counts - 2000) ** 2 / 2000).sum()
    assert 5 < chi2 < 43  # 19 degrees of freedom: outside with probability 0.002


def test_no_resample_is_refused() -> None:
    for draws in (0, 1.5):
        with pytest.raises(InputError, match=f"draws is {draws}: expected at least one resample, a whole number"):
            drawn_indices(3, draws, 0)  # type: ignore[arg-type]


@pytest.mark.parametrize("confidence", [0, 1, 2, 95, -0.5, float("nan")])
def test_a_confidence_is_a_share(confidence: float) -> None:
    with pytest.raises(InputError, match=f"confidence is {confidence}: expected a share between 0 and 1"):
        bootstrap_interval(50.0, np.linspace(40, 60, 201), 200, confidence)


def test_an_unbiased_metric_has_the_percentile_interval() -> None:
    draws = np.linspace(40, 60, 201)
    assert bootstrap_interval(50.0, draws, 200)[:2] == pytest.approx(tuple(np.percentile(draws, [2.5, 97.5])))
    assert bootstrap_interval(50.0, draws, 200, 0.5)[:2] == pytest.approx((45, 55))


def test_a_bias_moves_it_to_the_value_and_the_range_cuts_it() -> None:
    draws = np.linspace(4, 8, 101)
    assert bootstrap_interval(3.0, draws, 200)[:2] == pytest.approx((1.1, 4.9))
    assert bootstrap_interval(1.0, draws, 200)[:2] == pytest.approx((0.0, 2.9))
    assert bootstrap_interval(-1.0, draws, 200, least=-100)[:2] == pytest.approx((-2.9, 0.9))
    assert bootstrap_interval(100.0, np.full(9, 100.0), 200)[:2] == (100.0, 100.0)
    plain = bootstrap_interval(3.0, np.append(draws, np.nan), 200, centred=False)
    assert plain[:2] == pytest.approx((4.1, 7.9))


def test_it_covers_the_mean_as_often_as_it_says() -> None:
    rng, inside = np.random.default_rng(0), 0
    for i in range(300):
        sample = rng.uniform(0, 100, 60)
        draws = bootstrap(lambda counts, sample=sample: counts @ sample / 60, (60, i), draws=200)
        low, high, _ = bootstrap_interval(sample.mean(), draws, 60, 0.9)
        inside += low <= 50 <= high
    assert 250 <= inside <= 289  # 0.9 of 300 is 270, and four standard deviations are 21


def test_an_interval_of_few_images_without_width_is_marked() -> None:
    zeros, ones = np.zeros(50), np.full(50, 100.0)
    assert bootstrap_interval(0.0, zeros, 4) == (0, 0, True)  # an AUROC of 0 from four images
    assert bootstrap_interval(100.0, ones, 4).few
    assert not bootstrap_interval(100.0, ones, 100).few
    one_sided = np.append(np.full(30, 12.23), np.linspace(13, 54.55, 20))  # an AP of 12.23 [12.23, 54.55]
    assert bootstrap_interval(12.23, one_sided, 9, centred=False).few
    assert not bootstrap_interval(0.0, one_sided - 12.23, 9, centred=False).few  # 0 is the end of the range
    assert not bootstrap_interval(50.0, np.linspace(40, 60, 50), 4).few


def test_bootstrap_agrees_with_scipy() -> None:
    sample = np.random.default_rng(0).exponential(size=80)
    ours = bootstrap_interval(sample.mean(), bootstrap(lambda c: c @ sample / 80, (80, 0), draws=9000), 80)
    theirs = stats.bootstrap((sample,), np.mean, n_resamples=9000, method="percentile", rng=1).confidence_interval
    assert ours[:2] == pytest.approx((theirs.low, theirs.high), rel=0.02)


def test_the_mark_of_few_images_is_a_plain_boolean() -> None:
    """It is written as JSON."""
    assert too_narrow(np.float64(1), np.float64(1), np.float64(1), 4) is True
