"""Scores in float64, intervals, and the suite on classifiers with known confidence."""

import contextlib
import decimal
import json
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.metrics import roc_auc_score
from torch import Tensor, nn

from cutmix.data.outliers import SEVEN, open_outliers
from cutmix.errors import InputError
from cutmix.evaluation.classifier import Classifier, SuiteResult
from cutmix.evaluation.ood import (
    energy,
    log_max_softmax,
    max_softmax,
    odin_temperature,
    ood_metrics,
    ood_suite,
)
from cutmix.evaluation.ood_conventions import OodMetrics, Sides, statistic_of
from cutmix.statistics import bootstrap_interval


def intervals(
    id_scores: np.ndarray, ood_scores: np.ndarray, convention: str = "exact", *, draws: int = 1000,
    confidence: float = 0.95, seed: int = 0,
) -> tuple[OodMetrics, OodMetrics]:  # fmt: skip
    """Return the ends of the intervals of all metrics, as the suite computes them."""
    sides, statistic = Sides(id_scores, ood_scores), statistic_of(convention, 10)
    drawn = sides.resampled(statistic, draws, seed, "out")
    values = statistic(sides.counts())
    ends = [bootstrap_interval(*pair, sides.fewest, confidence) for pair in zip(values, drawn.T, strict=True)]
    return OodMetrics(*(end.low for end in ends)), OodMetrics(*(end.high for end in ends))


# ---- scores ----


def test_scores_are_torchs_in_float64() -> None:
    logits = torch.randn(200, 10, generator=torch.Generator().manual_seed(0)) * 4
    exact = logits.double()
    np.testing.assert_allclose(max_softmax(logits), exact.softmax(1).amax(1), rtol=1e-13)
    np.testing.assert_allclose(log_max_softmax(logits), exact.log_softmax(1).amax(1), atol=1e-12)
    np.testing.assert_allclose(energy(logits), exact.logsumexp(1), rtol=1e-14)
    np.testing.assert_allclose(odin_temperature(logits), (exact / 1000).softmax(1).amax(1), rtol=1e-13)
    np.testing.assert_allclose(odin_temperature(logits, 1.0), max_softmax(logits), rtol=1e-13)
    assert all(score(logits).dtype == np.float64 for score in (max_softmax, log_max_softmax, energy, odin_temperature))


def test_sure_scores_stay_apart_where_the_probability_is_1() -> None:
    logits = np.array([[gap, 0.0, 0.0] for gap in (30, 36, 38, 40, 100, 700)])
    assert len(np.unique(max_softmax(logits))) < 6
    assert (np.diff(log_max_softmax(logits)) > 0).all()
    with decimal.localcontext(prec=400):
        exact = [float(-(1 + 2 * decimal.Decimal(-gap).exp()).ln()) for gap in (30, 36, 38, 40, 100, 700)]
    np.testing.assert_allclose(log_max_softmax(logits), exact, rtol=1e-13)
    assert torch.tensor(logits).float().softmax(1).amax(1).unique().tolist() == [1.0]


def test_two_classes_with_the_same_logit_are_even() -> None:
    assert max_softmax([[3.0, 3.0]]) == pytest.approx([0.5])


@pytest.mark.parametrize("score", [max_softmax, log_max_softmax, energy, odin_temperature])
def test_scores_refuse_what_are_no_logits(score) -> None:
    for bad, message in (
        ([[0.25, 0.75]], "probabilities were given; expected logits"),
        ([[math.nan, 0.75]], "1 of the logits are NaN or infinite"),
        ([[1.0], [2.0]], "two classes or more"),
        (np.zeros((0, 3)), r"the logits have the shape \(0, 3\)"),
    ):
        with pytest.raises(InputError, match=message):
            score(bad)
    with pytest.raises(InputError, match="temperature is 0; expected a number above 0"):
        odin_temperature([[1.0, 2.0]], 0)


# ---- intervals ----


def test_tensors_and_half_precision_are_taken() -> None:
    x, y = torch.tensor([0.5, 0.75, 1.0]).bfloat16(), torch.tensor([0.25, 0.5])
    assert ood_metrics(x, y) == ood_metrics([0.5, 0.75, 1.0], [0.25, 0.5])


def test_interval_is_that_of_resampled_scores() -> None:
    rng = np.random.default_rng(0)
    x, y = rng.normal(1, 1, 300).round(1), rng.normal(0, 1, 200).round(1)
    low, high = intervals(x, y, draws=2000)
    value, drawn = ood_metrics(x, y), []
    for _ in range(300):
        i, j = rng.integers(300, size=300), rng.integers(200, size=200)
        drawn.append(ood_metrics(x[i], y[j]))
    for a, b, c, spread in list(zip(low, high, value, np.array(drawn).T, strict=True))[:5]:
        assert a < c < b
        assert b - a == pytest.approx(np.ptp(np.percentile(spread, [2.5, 97.5])), rel=0.25)
    deviation = (high.auroc - low.auroc) / 2 / 1.96 / 100  # Hanley and McNeil's (1982) from the data's own parts
    placements = (x[:, None] > y).astype(float) + (x[:, None] == y) / 2
    delong = placements.mean(1).var(ddof=1) / 300 + placements.mean(0).var(ddof=1) / 200
    assert deviation == pytest.approx(math.sqrt(delong), rel=0.08)


def test_interval_depends_on_the_seed_alone_and_has_every_convention() -> None:
    rng = np.random.default_rng(0)
    x, y = rng.beta(6, 2, 80), rng.beta(4, 3, 60)
    for name in ("exact", "odin", "confident", "mahalanobis", "openood"):
        ends = intervals(x, y, name, draws=5)
        assert np.array_equal(ends, intervals(x, y, name, draws=5), equal_nan=True)
        assert ends[0].auroc <= ood_metrics(x, y, name, num_classes=10).auroc <= ends[1].auroc
    assert intervals(x, y, draws=5, seed=1) != intervals(x, y, draws=5)
    wide, narrow = intervals(x, y, draws=200), intervals(x, y, draws=200, confidence=0.5)
    assert wide[0].auroc < narrow[0].auroc < narrow[1].auroc < wide[1].auroc


# ---- the suite ----


class Brightness(nn.Module):
    """More confident for dark images: logits (1 − mean) · scale and 0."""

    def __init__(self, scale: float = 5.0) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.tensor(scale), requires_grad=False)

    def forward(self, images: Tensor) -> Tensor:
        dark = (1 - images.mean((1, 2, 3))) * self.scale
        return torch.stack([dark, torch.zeros_like(dark), -dark.abs()], 1)


def classifier(data: str = "toy", n: int = 60, shape: tuple[int, int, int] = (3, 8, 8)) -> Classifier:
    images = torch.randint(0, 120, (n, *shape), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    channels = shape[0]
    return Classifier(
        Brightness().eval(), (0.0,) * channels, (1.0,) * channels, images, torch.zeros(n, dtype=torch.int64),
        ("dark", "light", "none"), data, contextlib.nullcontext(), 16, 0,
    )  # fmt: skip


@pytest.fixture
def nothing_at_hand(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("CUTMIX_DATA", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.usefixtures("nothing_at_hand")
def test_suite_evaluates_the_data_sets_that_are_found_and_records_the_others() -> None:
    subject = classifier()
    records, arrays, *_ = ood_suite(subject, draws=50)
    json.dumps([record.to_json() for record in records], allow_nan=False)
    not_run = {record.of: record.note for record in records if record.value is None}
    assert set(not_run) == set(SEVEN) - {"uniform", "gaussian"}
    assert all(note.startswith("not run: ") and "was not found in" in note for note in not_run.values())
    uniform = torch.cat(list(open_outliers("uniform", (3, 8, 8), count=60).batches(7)))
    scores = log_max_softmax(subject.predict()), log_max_softmax(subject.logits(uniform))
    np.testing.assert_allclose(arrays["max-softmax/id"], scores[0], atol=1e-6)
    np.testing.assert_allclose(arrays["max-softmax/uniform"], scores[1], atol=1e-6)
    truth = np.r_[np.ones(60), np.zeros(60)]
    for score in ("max-softmax", "energy", "odin-temperature"):
        (record,) = [r for r in records if (r.of, r.metric, r.score, r.convention) == (
            "uniform", "ood_auroc", score, "exact")]  # fmt: skip
        expected = roc_auc_score(truth, np.r_[arrays[f"{score}/id"], arrays[f"{score}/uniform"]])
        assert record.value == pytest.approx(100 * expected)
        assert record.low <= record.value <= record.high
        assert (record.n, record.suite, record.confidence) == (120, "ood", 0.95)
    for convention in ("exact", "mahalanobis"):
        found = {r.metric: r for r in records if (r.of, r.score, r.convention) == (
            "gaussian", "max-softmax", convention)}  # fmt: skip
        expected = ood_metrics(arrays["max-softmax/id"], arrays["max-softmax/gaussian"], convention)
        names = expected._fields if convention == "exact" else ("tnr95", "auroc")
        assert set(found) == {f"ood_{name}" for name in names}
        for name in names:
            assert found[f"ood_{name}"].value == pytest.approx(getattr(expected, name))
            assert (found[f"ood_{name}"].chosen_on is not None) == (name == "detection_acc")


@pytest.mark.usefixtures("nothing_at_hand")
def test_the_mean_is_that_of_the_sets_and_says_which() -> None:
    records = ood_suite(classifier(), draws=50).records
    by_set = {}
    for record in records:
        if record.value is not None:
            key = record.metric, record.score, record.convention
            by_set.setdefault(key, {})[record.of] = record
    for of in by_set.values():
        mean = of["mean of 2 sets"]
        assert mean.value == pytest.approx((of["uniform"].value + of["gaussian"].value) / 2)
        assert mean.low <= mean.value <= mean.high
        assert mean.n == 180
        assert mean.note == "the mean of uniform, gaussian, not of the paper's seven sets"


def test_named_sets_are_a_folder_and_a_data_set(nothing_at_hand: Path) -> None:
    (nothing_at_hand / "white").mkdir()
    for i in range(5):
        Image.new("RGB", (20, 10), "white").save(nothing_at_hand / "white" / f"{i}.png")
    records, arrays, *_ = ood_suite(classifier(), ["white", "digits"], draws=20)
    auroc = {r.of: r for r in records if (r.metric, r.score, r.convention) == (
        "ood_auroc", "max-softmax", "exact")}  # fmt: skip
    assert set(auroc) == {"white", "digits", "mean of 2 sets"}
    assert auroc["white"].value == 100  # the lowest confidence of all
    assert auroc["white"].n == 65
    assert len(arrays["energy/white"]) == 5
    assert len(arrays["energy/digits"]) == 60


@pytest.mark.usefixtures("nothing_at_hand")
def test_a_set_that_was_named_has_to_be_there() -> None:
    with pytest.raises(InputError, match="lsun-crop was not found in"):
        ood_suite(classifier(), ["lsun-crop"], draws=5)
    with pytest.raises(InputError, match="outliers is empty; expected"):
        ood_suite(classifier(), [], draws=5)


@pytest.mark.usefixtures("nothing_at_hand")
@pytest.mark.parametrize("data", ["tiny-imagenet-200", "imagenet", "imagenet-sample-256"])
def test_in_distribution_data_is_not_an_outlier(data: str) -> None:
    records = ood_suite(classifier(data), draws=5).records
    notes = {r.of: r.note for r in records if r.value is None}
    for name in ("tiny-imagenet-crop", "tiny-imagenet-resize"):
        assert notes[name] == f"not run: {name} is in-distribution for this classifier ({data})"


@pytest.mark.usefixtures("nothing_at_hand")
def test_grey_classifiers_and_their_own_logits() -> None:
    subject = classifier("digits", shape=(1, 8, 8))

    def run(subject: Classifier, **options: object) -> SuiteResult:
        return ood_suite(subject, ["uniform", "digits"], draws=5, **options)

    records, arrays, *_ = run(subject, logits=subject.predict())
    assert {r.of: r.n for r in records} == {"uniform": 120, "digits": 0}
    assert records == run(subject).records
    assert (arrays["energy/uniform"] != run(replace(subject, seed=1)).arrays["energy/uniform"]).any()
