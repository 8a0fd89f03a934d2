"""Resamples are seeded and uniform; the interval covers what it should."""

import numpy as np
import pytest

from cutmix.errors import InputError
from cutmix.statistics import bootstrap_interval, resamples


def test_the_same_stream_gives_the_same_resamples() -> None:
    first, again, other = (np.stack(list(resamples(50, 130, *stream))) for stream in ((0, "a"), (0, "a"), (0, "b")))
    assert first.shape == (130, 50)
    assert (first == again).all()
    assert (first != other).any()
    assert (np.stack(list(resamples(50, 64, 0, "a"))) == first[:64]).all()


def test_every_image_is_drawn_as_often_as_any_other() -> None:
    counts = np.bincount(np.concatenate(list(resamples(20, 2000, 1))), minlength=20)
    chi2 = ((counts - 2000) ** 2 / 2000).sum()
    assert len(counts) == 20
    assert 5 < chi2 < 43  # 19 degrees of freedom: outside with probability 0.002


def test_no_resample_is_refused() -> None:
    for draws in (0, 1.5):
        with pytest.raises(InputError, match=f"draws is {draws}: expected at least one resample, a whole number"):
            next(resamples(3, draws, 0))  # type: ignore[arg-type]


@pytest.mark.parametrize("confidence", [0, 1, 2, 95, -0.5, float("nan")])
def test_a_confidence_is_a_share(confidence: float) -> None:
    with pytest.raises(InputError, match=f"confidence is {confidence}: expected a share between 0 and 1"):
        bootstrap_interval(50.0, np.linspace(40, 60, 201), confidence)


def test_of_an_unbiased_measure_it_is_the_percentile_interval() -> None:
    draws = np.linspace(40, 60, 201)
    assert bootstrap_interval(50.0, draws, 0.95) == pytest.approx(tuple(np.percentile(draws, [2.5, 97.5])))
    assert bootstrap_interval(50.0, draws, 0.5) == pytest.approx((45, 55))


def test_a_bias_moves_it_to_the_value_and_the_range_cuts_it() -> None:
    draws = np.linspace(4, 8, 101)
    assert bootstrap_interval(3.0, draws, 0.95) == pytest.approx((1.1, 4.9))
    assert bootstrap_interval(1.0, draws, 0.95) == pytest.approx((0.0, 2.9))
    assert bootstrap_interval(-1.0, draws, 0.95, least=-100) == pytest.approx((-2.9, 0.9))
    assert bootstrap_interval(100.0, np.full(9, 100.0), 0.95) == (100.0, 100.0)


def test_it_covers_the_mean_as_often_as_it_says() -> None:
    rng, inside = np.random.default_rng(0), 0
    for i in range(300):
        sample = rng.uniform(0, 100, 60)
        draws = np.array([sample[index].mean() for index in resamples(60, 200, i)])
        low, high = bootstrap_interval(sample.mean(), draws, 0.9)
        inside += low <= 50 <= high
    assert 250 <= inside <= 289  # 0.9 of 300 is 270, and four standard deviations are 21
