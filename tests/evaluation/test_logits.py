"""Logits, probabilities and labels: what is accepted, and what is refused."""

import math

import numpy as np
import pytest
import torch

from cutmix.errors import InputError
from cutmix.evaluation.classifier import as_logits, as_numpy, as_probabilities, class_ids, real_numbers


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16, torch.bfloat16])
def test_logits_and_probabilities_become_float64(dtype: torch.dtype) -> None:
    logits = (torch.randn(9, 7, generator=torch.Generator().manual_seed(0)) * 5).to(dtype)
    p = logits.softmax(1)
    assert as_logits(logits).dtype == as_probabilities(p).dtype == np.float64
    np.testing.assert_array_equal(as_logits(logits), logits.double().numpy())
    np.testing.assert_array_equal(as_probabilities(p), p.double().numpy())


def test_lists_and_arrays_are_taken_too() -> None:
    assert as_logits([[1, 2], [3, -4]]).tolist() == [[1, 2], [3, -4]]
    assert as_numpy(torch.arange(3)).tolist() == [0, 1, 2]
    assert as_logits(torch.ones(2, 3, requires_grad=True)).shape == (2, 3)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("classes", [2, 100, 1000])
def test_rounded_probabilities_are_still_probabilities(dtype: torch.dtype, classes: int) -> None:
    logits = 3 * torch.randn(100, classes, generator=torch.Generator().manual_seed(0))
    for p in (logits.to(dtype).softmax(1), logits.softmax(1).to(dtype)):
        assert as_probabilities(p).shape == (100, classes)
        with pytest.raises(InputError, match="probabilities were given; expected logits"):
            as_logits(p)


def test_how_near_to_1_a_sum_is_depends_on_the_dtype() -> None:
    p = np.array([[0.5, 0.505], [0.25, 0.755]])  # 0.5 % away from 1
    assert as_probabilities(torch.tensor(p).bfloat16()).shape == (2, 2)
    assert as_logits(p.astype(np.float32)).shape == (2, 2)
    for exact in (p, p.astype(np.float32), p.astype(np.float16), torch.tensor(p), p.tolist()):
        with pytest.raises(InputError, match="expected probabilities"):
            as_probabilities(exact)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (["a"], "the scores are <U1; expected real numbers"),
        ([1j], "the scores are complex128; expected real numbers"),
        (torch.tensor([1j]), "the scores are complex64; expected real numbers"),
        (None, "the scores are object; expected real numbers"),
        ([[1, 2], [3]], "the scores have rows of different lengths; expected an array"),
    ],
)
def test_what_are_no_numbers_is_refused(values: object, message: str) -> None:
    with pytest.raises(InputError, match=message):
        real_numbers(values, "scores")  # type: ignore[arg-type]


@pytest.mark.parametrize("bad", [np.zeros((0, 3)), np.zeros((4, 1)), np.zeros(4), np.zeros((2, 2, 2))])
def test_shapes_are_refused(bad: np.ndarray) -> None:
    for check, what in ((as_logits, "logits"), (as_probabilities, "probabilities")):
        with pytest.raises(InputError, match=rf"the {what} have the shape \(.*\); expected \(images, classes\), two"):
            check(bad)


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_values_that_are_not_finite_are_counted(bad: float) -> None:
    values = torch.zeros(3, 4)
    values[1, 2] = values[2, 0] = bad
    with pytest.raises(InputError, match="2 of the logits are NaN or infinite"):
        as_logits(values)


def test_probabilities_are_no_logits_and_logits_no_probabilities() -> None:
    logits = torch.randn(6, 5, generator=torch.Generator().manual_seed(0))
    with pytest.raises(InputError, match="probabilities were given; expected logits"):
        as_logits(logits.softmax(1))
    with pytest.raises(
        InputError, match=r"the values range from -.*; expected probabilities, .* apply the softmax to logits first"
    ):
        as_probabilities(logits)
    with pytest.raises(InputError, match="expected probabilities"):
        as_probabilities(logits.abs())  # not negative, but with another sum
    with pytest.raises(InputError, match="expected probabilities"):
        as_probabilities(100 * logits.softmax(1))


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        ([0, 1], r"shape \(2,\); expected 3 class ids"),
        ([0.0, 1.0, 2.0], "the labels are float64"),
        ([0, -1, 2], "labels range from -1 to 2; expected 0 to 3"),
        ([0, 4, 2], "labels range from 0 to 4; expected 0 to 3"),
    ],
)
def test_labels_have_to_fit(labels: list[float], message: str) -> None:
    with pytest.raises(InputError, match=message):
        class_ids(labels, np.zeros((3, 4)))
    assert class_ids(torch.tensor([0, 3, 2]), np.zeros((3, 4))).tolist() == [0, 3, 2]
