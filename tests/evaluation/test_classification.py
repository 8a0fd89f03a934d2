"""Errors and intervals against scikit-learn, torch.topk, the formula written out, and published figures."""

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy import stats
from sklearn.metrics import log_loss, top_k_accuracy_score
from torch import Tensor, nn

from cutmix.data import ArraySet, FileSet
from cutmix.errors import InputError
from cutmix.evaluation.classification import (
    LabelledLogits,
    classification_error,
    error_records,
    mean_interval,
    mean_loss,
    predict,
    predictions_arrays,
    true_class_rank,
    wilson_interval,
)
from cutmix.runtime.device import World

ALONE = World(0, 1, torch.device("cpu"))


def random_predictions(n: int = 500, k: int = 12) -> LabelledLogits:
    generator = torch.Generator().manual_seed(0)
    return LabelledLogits(torch.randn(n, k, generator=generator), torch.randint(k, (n,), generator=generator))


@pytest.mark.parametrize(("name", "k"), [("top1_err", 1), ("top5_err", 5)])
def test_errors_are_those_of_scikit_learn_and_topk(name: str, k: int) -> None:
    logits, labels = random_predictions()
    error = classification_error(LabelledLogits(logits, labels))[name]
    sklearn = top_k_accuracy_score(labels, logits, k=k, labels=np.arange(12))
    assert error.value == pytest.approx(100 * (1 - sklearn))
    hit = (logits.topk(k).indices == labels[:, None]).any(1)
    assert error.value == pytest.approx(100 * (1 - hit.double().mean().item()))
    assert error.n == 500


def test_ties_are_broken_by_the_index_as_argmax_does() -> None:
    logits = torch.tensor([[1.0, 1.0, 0.0], [1.0, 1.0, 0.0], [0.0, 0.0, 0.0], [0.0, 0.0, 0.0]])
    labels = torch.tensor([0, 1, 0, 2])
    assert true_class_rank(logits, labels).tolist() == [0, 1, 0, 2]
    right = logits.argmax(1) == labels
    assert (
        classification_error(LabelledLogits(logits, labels))["top1_err"].value == 100 * (~right).double().mean().item()
    )
    constant = LabelledLogits(torch.zeros(100, 10), torch.arange(100) % 10)  # a network that has collapsed
    errors = classification_error(constant)
    assert (errors["top1_err"].value, errors["top5_err"].value) == (90, 50)


def test_five_classes_have_no_top_5_error() -> None:
    assert set(classification_error(LabelledLogits(torch.zeros(3, 5), torch.zeros(3, dtype=torch.int64)))) == {
        "top1_err"
    }


@pytest.mark.parametrize(("count", "n"), [(0, 10), (10, 10), (1, 3), (217, 797), (10800, 50000)])
def test_interval_is_wilsons_formula(count: int, n: int) -> None:
    z, p = 1.959963984540054, count / n
    centre = (p + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    interval = wilson_interval(count, n)
    assert (interval.low, interval.high) == pytest.approx((100 * (centre - half), 100 * (centre + half)), abs=1e-9)
    assert 0 <= interval.low <= interval.value <= interval.high <= 100


def test_a_confidence_is_a_share() -> None:
    with pytest.raises(InputError, match="confidence is 95: expected a share between 0 and 1"):
        wilson_interval(1, 2, 95)


@pytest.mark.parametrize(
    ("per_cent", "n", "low", "high"),
    [(21.60, 50_000, 21.24, 21.96), (14.47, 10_000, 13.79, 15.17)],
)
def test_intervals_of_the_papers_numbers(per_cent: float, n: int, low: float, high: float) -> None:
    interval = wilson_interval(round(per_cent * n / 100), n)
    assert (round(interval.low, 2), round(interval.high, 2)) == (low, high)


@pytest.mark.parametrize("label", [-1, 12])
def test_a_label_without_a_logit_is_refused(label: int) -> None:
    logits, labels = random_predictions()
    labels[7] = label
    with pytest.raises(InputError, match=r"labels range from -?\d+ to \d+; expected 0 to 11"):
        classification_error(LabelledLogits(logits, labels))


def test_mean_loss_is_scikit_learns() -> None:
    logits, labels = random_predictions()
    expected = log_loss(labels, logits.double().softmax(1), labels=np.arange(12))
    assert mean_loss(LabelledLogits(logits, labels)) == pytest.approx(expected)


def test_records_hold_metric_value_interval_and_n() -> None:
    predictions = random_predictions()
    records, narrow = error_records(predictions), classification_error(predictions, confidence=0.9)
    assert [record.metric for record in records] == ["top1_err", "top5_err"]
    for record, error in zip(records, narrow.values(), strict=True):
        assert record.low < error.low < record.value < error.high < record.high
        assert (record.confidence, record.n) == (0.95, 500)


def test_predict_sees_eval_mode_and_leaves_the_mode() -> None:
    model = nn.Sequential(nn.Flatten(), nn.Dropout(0.9), nn.Linear(4, 3))
    images, labels = torch.randn(7, 1, 2, 2), torch.arange(7) % 3
    batches = list(zip(images.split(3), labels.split(3), strict=True))
    for mode in (True, False):
        predictions = predict(model.train(mode), batches, ALONE)
        assert model.training is mode
        torch.testing.assert_close(predictions.logits, model[2](images.flatten(1)).detach())
        assert torch.equal(predictions.labels, labels)
    shared = ("set", "test", ("a", "b", "über"), labels, (0.5,), (0.5,))
    arrays = predictions_arrays(predictions, ArraySet(*shared, images.mul(9).byte()))
    assert {name: (array.shape, array.dtype) for name, array in arrays.items()} == {
        "logits": ((7, 3), np.float32),
        "labels": ((7,), np.int64),
        "classes": ((3,), np.dtype("<U4")),
    }
    files = FileSet(*shared, tuple(Path(f"/data/test/{name}/{name}.png") for name in "abcabca"))
    assert predictions_arrays(predictions, files)["files"].tolist()[:2] == ["a/a.png", "b/b.png"]


def test_half_precision_logits_are_kept_as_float32() -> None:
    batches = [(torch.ones(2, 4), torch.zeros(2, dtype=torch.int64))]
    autocast = torch.autocast("cpu", torch.bfloat16)
    assert predict(nn.Linear(4, 3), batches, ALONE, autocast=autocast).logits.dtype == torch.float32


@pytest.mark.parametrize(
    ("batches", "message"),
    [
        ([], "the test set is empty"),
        ([(torch.full((2, 4), math.nan), torch.zeros(2, dtype=torch.int64))], "6 of the logits are NaN or infinite"),
    ],
)
def test_an_empty_test_set_is_refused(batches: list[tuple[Tensor, Tensor]], message: str) -> None:
    with pytest.raises(InputError, match=message):
        predict(nn.Linear(4, 3), batches, ALONE)


@pytest.mark.parametrize("size", [2, 3])
def test_shares_of_several_processes_are_put_in_order(monkeypatch: pytest.MonkeyPatch, size: int) -> None:
    images, labels = torch.randn(7, 4), torch.arange(7) % 3
    model = nn.Linear(4, 3)
    shares: list[Any] = []
    gather = "cutmix.evaluation.classification.gather_first"
    monkeypatch.setattr(gather, lambda share, world: shares.append(share) or [share])
    for rank in range(size):
        own = [(images[rank::size], labels[rank::size])]
        predict(model, own, ALONE)
    monkeypatch.setattr(gather, lambda share, world: shares)
    predictions = predict(model, [(images, labels)], World(0, size, torch.device("cpu")))
    torch.testing.assert_close(predictions.logits, model(images).detach())
    assert torch.equal(predictions.labels, labels)


def test_the_interval_of_a_mean_is_scipys() -> None:
    values = np.random.default_rng(0).uniform(0, 100, 12)
    assert mean_interval(values)[:2] == pytest.approx(stats.norm.interval(0.95, values.mean(), stats.sem(values)))
    assert mean_interval(np.array([0.0, 100.0])) == (0, 100, False)  # ends at the ends of the range
    assert mean_interval(np.array([50.0, 250.0]), np.inf).high > 250
    assert np.isnan(mean_interval(np.array([50.0])).low)
