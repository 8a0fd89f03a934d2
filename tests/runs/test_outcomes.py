"""Selected images against results computed by hand; the difference of two methods against known tests."""

import json
from pathlib import Path

import numpy as np
import pytest
from scipy import stats

from cutmix.errors import InputError
from cutmix.runs.outcomes import (
    ClassCount,
    _errors,
    answers,
    confused_pairs,
    count_by_class,
    crossed_difference,
    doubtful_labels,
    examples,
    label_answers,
    least_sure,
    prior_freedom,
    read_answers,
    seed_difference,
    surest_mistakes,
    surest_wrong_labels,
)
from cutmix.runs.read import read_runs

# Of each class two images; 1 is wrong by a little, 4 is wrong with high probability.
P = np.array([[0.8, 0.1, 0.1], [0.3, 0.4, 0.3], [0.1, 0.7, 0.2], [0.2, 0.6, 0.2], [0.9, 0.05, 0.05], [0.1, 0.2, 0.7]])
LABELS = np.array([0, 0, 1, 1, 2, 2])
MADE = answers({"logits": np.log(P), "labels": LABELS})


def test_probabilities_are_the_softmax() -> None:
    np.testing.assert_allclose(MADE.probabilities, P)
    shifted = answers({"logits": np.log(P).astype(np.float32) + 900, "labels": LABELS})
    np.testing.assert_allclose(shifted.probabilities, P, atol=1e-4)
    assert MADE.classes == ("0", "1", "2")


def test_lists_have_the_surest_mistakes_and_the_smallest_margins_first() -> None:
    assert surest_mistakes(MADE) == [4, 1]
    assert least_sure(MADE)[:3] == [1, 3, 2]  # margins 0.1, 0.4, 0.5 and 0.5
    assert examples({"logits": np.log(P), "labels": LABELS}) == {0: 0, 1: 1, 2: 1, 3: 1, 4: 0, 5: 2}


def test_the_surest_wrong_label_is_predicted_or_missed() -> None:
    """Image 0 has no wrong label; 1 misses one of 0.1, 2 has a wrong one of 0.8 and misses one of 0.3, 3 one of 0.6."""
    p = np.array([[0.9, 0.2, 0.1], [0.9, 0.1, 0.3], [0.8, 0.3, 0.1], [0.1, 0.2, 0.6]])
    labels = np.array([[1, 0, 0], [1, 1, 0], [0, 1, 0], [0, 0, 0]], np.uint8)
    arrays = {"logits": np.log(p / (1 - p)), "labels": labels, "thresholds": np.array([0.5, 0.5, 0.4])}
    assert surest_wrong_labels(label_answers(arrays)) == {1: 1, 2: 0, 3: 2}
    assert [*surest_wrong_labels(label_answers(arrays))] == [1, 2, 3]
    assert examples(arrays) == {1: 1, 2: 0, 3: 2}


def test_a_doubtful_label_reaches_the_threshold_of_another_class() -> None:
    """Thresholds: 0.55, 0.65 and 0.375. Image 4 reaches that of class 0; image 1 reaches none."""
    assert doubtful_labels(MADE) == [4]
    assert doubtful_labels(answers({"logits": np.log(P), "labels": P.argmax(1)})) == []


def test_counts_and_pairs_are_summed_over_runs() -> None:
    assert count_by_class([MADE, MADE]) == {0: ClassCount(2, 4), 1: ClassCount(4, 4), 2: ClassCount(2, 4)}
    assert dict(confused_pairs([MADE, MADE])) == {(0, 1): 2, (2, 0): 2}


def test_a_file_without_logits_is_named(tmp_path: Path) -> None:
    (tmp_path / "predictions").mkdir()
    (tmp_path / "config.json").write_text(json.dumps({"recipe": {"name": "a", "data": "x"}}))
    (run,) = read_runs([tmp_path])
    assert read_answers(run) is None
    np.savez(tmp_path / "predictions/last.npz", logits=np.zeros((2, 3)))
    with pytest.raises(InputError, match=r"last\.npz holds the arrays logits; expected logits and labels"):
        read_answers(run)
    np.savez(tmp_path / "predictions/last.npz", logits=np.zeros(3), labels=np.zeros(3))
    with pytest.raises(InputError, match=r"logits of shape \(3,\) and labels of \(3,\); expected"):
        read_answers(run)


# ---- difference of two methods ----


def simulate(rng: np.random.Generator, seeds: int, images: int, effect: float) -> tuple[np.ndarray, np.ndarray]:
    """Draw errors of two methods: images of different difficulty, and seeds that move each method."""
    hard = rng.normal(0, 1.5, images)
    levels = rng.normal(0, 0.15, (2, seeds, 1)) + np.array([effect, 0.0]).reshape(2, 1, 1)
    own = rng.normal(0, 0.4, (2, 1, images))  # some images suit one method, whatever the seed
    wrong = rng.random((2, seeds, images)) < 1 / (1 + np.exp(-(hard + levels + own)))
    return wrong[0], wrong[1]


@pytest.mark.parametrize(("seeds", "images"), [(3, 200), (5, 80), (2, 400)])
def test_the_interval_covers_no_difference_about_as_often_as_it_says(seeds: int, images: int) -> None:
    rng = np.random.default_rng(seeds)
    found = [crossed_difference(*simulate(rng, seeds, images, 0.0)) for _ in range(800)]
    covered = sum(one.low <= 0 <= one.high for one in found)
    assert covered / 800 >= 0.935
    assert sum(one.p < 0.05 for one in found) == pytest.approx(800 - covered, abs=2)


@pytest.mark.parametrize("spread", [0.0, 1.0, 2.0])
@pytest.mark.parametrize("seeds", [2, 3, 5])
def test_small_p_values_are_as_rare_as_they_say(seeds: int, spread: float) -> None:
    """Of 10,000 images, with a spread of some points over seeds: drawn as the mean squares of the two-way layout."""
    rng, images, draws, both = np.random.default_rng(seeds), 10_000, 20_000, 33.0**2
    of_seeds, of_images = both + images * spread**2, both + seeds * 20.0**2
    total = of_seeds + of_images - both
    means = rng.normal(0, (total / (seeds * images)) ** 0.5, draws)
    squares = [
        expected * rng.chisquare(df, draws) / df
        for expected, df in (
            (of_seeds, seeds - 1), (of_images, images - 1), (both, (seeds - 1) * (images - 1)),
        )
    ]  # fmt: skip
    errors = np.array([_errors(*each, seeds, images) for each in zip(*squares, strict=True)])
    p = (2 * stats.t.sf(np.abs(means)[:, None] / errors[..., 0], errors[..., 1])).max(1)
    for level in (0.05, 0.01, 0.001):
        assert (p < level).mean() < 1.3 * level + 3 * (level / draws) ** 0.5


@pytest.mark.parametrize(("images", "differing"), [(100, 5), (8, 8), (8, 0)])
def test_one_seed_of_few_images_is_mcnemars_exact_test(images: int, differing: int) -> None:
    """All differ one way: Student's t has p = 0 and no width for 8 of 8, and p = 0.025 for 5 of 100."""
    method = (np.arange(images) < differing)[None]
    found = crossed_difference(method, np.zeros_like(method))
    assert found.value == 100 * differing / images
    assert found.p == pytest.approx(2 * 0.5**differing if differing else 1)
    assert found.low < found.value <= found.high


@pytest.mark.parametrize("images", [5, 6, 40, 200])
def test_one_seed_finds_what_mcnemars_test_finds_in_four_of_five_cases(images: int) -> None:
    """Without a differing image, Student's t would have found a difference of 0 points."""
    found = crossed_difference(np.zeros((1, images), bool), np.zeros((1, images), bool)).detectable
    differing = np.arange(images + 1)
    settled = np.array([stats.binomtest(int(n), int(n)).pvalue < 0.05 if n else False for n in differing])
    power = stats.binom.pmf(differing, images, found / 100) @ settled
    assert power == pytest.approx(0.8) if images > 5 else (found == 100 and not settled.any())


@pytest.mark.parametrize("seeds", [1, 3])
@pytest.mark.parametrize("size", [1.0, 0.5])
def test_images_that_all_differ_alike_are_a_sign_test(seeds: int, size: float) -> None:
    """They have no spread, which gave p = 0 and an interval of no width, also of 3 images."""
    for images in (1, 3, 8):
        found = crossed_difference(np.zeros((seeds, images)), np.full((seeds, images), size))
        assert found.p == pytest.approx(stats.binomtest(images, images).pvalue)
        assert found.low == found.value == -100 * size
        assert found.high > found.low + 20 * size
        assert 100 * size * 0.8 < found.detectable <= 100


def test_one_seed_is_the_paired_t_test() -> None:
    method, baseline = (side.astype(float) for side in simulate(np.random.default_rng(1), 1, 300, 0.3))
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


def test_a_metric_over_seeds_is_the_paired_t_test() -> None:
    method, baseline = [3.0, 5.0, 4.5, 6.0], [2.0, 4.5, 4.0, 4.0]
    theirs = stats.ttest_rel(method, baseline)
    ours = seed_difference(method, baseline)
    assert (ours.value, ours.seeds) == (pytest.approx(1.0), 4)
    assert ours.p == pytest.approx(theirs.pvalue)
    assert (ours.low, ours.high) == pytest.approx(tuple(theirs.confidence_interval()))
    assert ours.detectable > ours.high - ours.value
    assert seed_difference([1.0, 2.0], [1.0, 2.0]).p == 1


@pytest.mark.parametrize("count", [2, 3, 5, 40])
def test_the_detectable_difference_is_found_in_four_of_five_cases(count: int) -> None:
    rng = np.random.default_rng(count)
    gains = rng.normal(size=count)
    detectable = seed_difference(list(gains), [0.0] * count).detectable / float(stats.sem(gains)) / count**0.5
    found = stats.ttest_1samp(rng.normal(detectable, 1, (100_000, count)), 0.0, axis=1).pvalue < 0.05
    assert float(found.mean()) == pytest.approx(0.8, abs=0.006)


@pytest.mark.parametrize(("method", "baseline"), [([1.0], [2.0]), ([1.0, 2.0], [1.0])])
def test_one_seed_or_other_seeds_are_refused(method: list[float], baseline: list[float]) -> None:
    with pytest.raises(InputError, match="expected two or more, the same for both"):
        seed_difference(method, baseline)


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


def test_few_images_have_an_interval_too() -> None:
    """Satterthwaite's degrees of freedom fall below 1 here, where SciPy searches for the detectable one forever."""
    random = np.random.default_rng(0)
    for _ in range(300):
        images = int(random.integers(2, 6))
        method, baseline = (random.random((3, images)) < 0.5 for _ in range(2))
        found = crossed_difference(method, baseline)
        assert found.df >= 1
        assert found.detectable < np.inf
        gains = 100 * (method.mean(1) - baseline.mean(1))
        alone = stats.t.interval(0.95, 2, gains.mean(), stats.sem(gains)) if np.ptp(gains) else (found.value,) * 2
        assert found.low <= max(alone[0], -100) + 1e-9
        assert found.high >= min(alone[1], 100) - 1e-9


def test_more_seeds_are_needed_where_chance_is_not_excluded() -> None:
    rng = np.random.default_rng(5)
    assert crossed_difference(*simulate(rng, 3, 4000, 2.0)).seeds_needed() == 3
    for _ in range(20):
        found = crossed_difference(*simulate(rng, 3, 1000, 0.1))
        needed = found.seeds_needed()
        assert (needed == 3) == (found.p < 0.05)
        assert found.detectable > found.high - found.value


@pytest.mark.parametrize(("freedom", "prior"), [(1, 2.0), (2, 4.0), (4, 10.0), (2, np.inf)])
def test_prior_freedom_is_that_of_drawn_variances(freedom: int, prior: float) -> None:
    rng = np.random.default_rng(0)
    true = np.ones(50_000) if prior == np.inf else prior / rng.chisquare(prior, 50_000)
    found = prior_freedom(3 * true * rng.chisquare(freedom, 50_000) / freedom, freedom)
    assert found > 50 if prior == np.inf else found == pytest.approx(prior, rel=0.1)


def test_prior_freedom_of_few_and_of_wild_variances() -> None:
    assert prior_freedom(np.array([1.0]), 2) == prior_freedom(np.ones(5), 2) == np.inf
    assert prior_freedom(np.array([1e-300, 1e300]), 2) == pytest.approx(0, abs=0.01)
