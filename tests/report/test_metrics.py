"""The table of metrics: it has every one that the suites record, and says what each is."""

from contextlib import nullcontext
from typing import get_args

import pytest
import torch
from torch import nn

from cutmix.config.options import Convention
from cutmix.evaluation.calibration import calibration_suite
from cutmix.evaluation.classifier import Classifier
from cutmix.evaluation.ood import ood_suite
from cutmix.evaluation.robustness import robustness_suite
from cutmix.report.metrics import METRICS, metric_of, name_of
from cutmix.report.page import at_in_words, in_255ths
from cutmix.runs.record import Record

OF_OTHER_DATA = {
    "robustness": {
        "apgd_err", "apgd_max_perturbation", "corruption_err", "corruption_mean_err", "mean_corruption_err",
        "corruption_ce", "mean_corruption_ce",
    },
    "localization": {
        "top1_loc", "gt_known_loc", "top1_cls", "max_box_acc", "max_box_acc_v2", "center_max_box_acc",
        "center_max_box_acc_v2",
    },
}  # fmt: skip


def test_every_metric_of_the_suites_is_defined_and_no_other() -> None:
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(256, (24, 3, 8, 8), generator=generator, dtype=torch.uint8)
    network = nn.Sequential(nn.Flatten(), nn.Linear(192, 3)).eval().requires_grad_(False)
    labels = torch.randint(3, (24,), generator=generator)
    classifier = Classifier(network, (0.5,) * 3, (0.25,) * 3, images, labels, ("a", "b", "c"), "x", nullcontext(), 8)
    suites = {
        "calibration": calibration_suite(classifier, draws=4),
        "robustness": robustness_suite(classifier, pairs=20, pgd_images=8, pgd_steps=2),
        "ood": ood_suite(classifier, ("uniform", "gaussian"), conventions=get_args(Convention), draws=4),
    }
    for suite in (*suites, "localization"):
        recorded = {name_of(record) for record in suites[suite].records} if suite in suites else set()
        known = {name for name, metric in METRICS.items() if metric.suite == suite}
        assert recorded | OF_OTHER_DATA.get(suite, set()) == known


@pytest.mark.parametrize("name", METRICS)
def test_a_definition_is_a_few_plain_sentences(name: str) -> None:
    metric = METRICS[name]
    assert metric.definition.endswith(".")
    assert metric.definition[0].isupper()
    assert 40 <= len(metric.definition) <= 420
    assert "  " not in metric.definition
    assert len([other for other in METRICS.values() if other.label == metric.label]) == 1
    if metric.suite == "robustness" and metric.check:
        assert "Holds if" in metric.definition


def test_a_better_direction_is_that_of_the_name() -> None:
    for name, metric in METRICS.items():
        if name.endswith(("_err", "ece", "mce", "nll", "brier")) and metric.better:
            assert metric.better == "lower"
        if "acc" in name or name.startswith("ood_a"):
            assert metric.better in ("higher", "")


@pytest.mark.parametrize(
    ("record", "name"),
    [
        (Record(metric="ece", value=1.0), "ece"),
        (Record(metric="ood_auroc", value=1.0, convention="exact", score="max-softmax"), "ood_auroc"),
        (Record(metric="ood_auroc", value=1.0, convention="exact", score="energy"), "ood_auroc_energy"),
        (Record(metric="ood_tnr95", value=1.0, convention="mahalanobis", score="max-softmax"), "ood_tnr95_mahalanobis"),
        (Record(metric="mce", value=1.0), "mce"),
    ],
)
def test_a_record_has_one_definition(record: Record, name: str) -> None:
    assert name_of(record) == name
    assert name in METRICS


def test_a_metric_that_is_not_known_has_its_own_name() -> None:
    assert metric_of("new_err").label == "new err"
    assert metric_of("new_err").definition == ""


@pytest.mark.parametrize(
    ("value", "said"), [(8 / 255, "8/255"), (0.0, "0/255"), (1.0, "1"), (0.01, "2.55/255"), (8 / 255 + 1e-8, "8/255")]
)
def test_a_change_of_a_pixel_in_words(value: float, said: str) -> None:
    assert in_255ths(value) == said


def test_where_something_was_metricd() -> None:
    said = [("fgsm_err", 8 / 255), ("occlusion_center_err", 16.0), ("between_mixup_err", 0.25), ("corruption_err", 3.0)]
    assert [at_in_words(METRICS[name], at).replace("\u00a0", " ") for name, at in said] == [
        "ε = 8/255", "side 16 px", "λ = 0.25", "severity 3"
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("name", "value", "at", "holds"),
    [
        ("fgsm_max_perturbation", 8 / 255 + 5e-7, 8 / 255, True),
        ("fgsm_max_perturbation", 9 / 255, 8 / 255, False),
        ("fgsm_zero_gradients", 0.0, None, True),
        ("fgsm_zero_gradients", 0.1, None, False),
        ("same_classes_twice", 1.0, None, True),
        ("same_classes_twice", 0.0, None, False),
    ],
)
def test_checks_hold_or_fail(name: str, value: float, at: float | None, holds: bool) -> None:
    assert METRICS[name].holds(Record(metric=name, value=value, at=at)) is holds
