"""The forecast counts the very passes that the suite then makes."""

import contextlib
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from cutmix.evaluation import attacks, robustness
from cutmix.evaluation.classifier import Classifier
from cutmix.evaluation.robustness import Work, expected_duration, robustness_suite, time_passes


def make_classifier(n: int, height: int = 9, width: int = 8) -> Classifier:
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (n, 1, height, width), generator=generator, dtype=torch.uint8)
    torch.manual_seed(0)
    network = nn.Sequential(nn.Flatten(), nn.Linear(height * width, 3)).eval().requires_grad_(False)
    labels = torch.randint(3, (n,), generator=generator)
    return Classifier(
        network, (0.5,), (0.25,), images, labels, ("a", "b", "c"), "toy", contextlib.nullcontext(), batch_size=8
    )


@pytest.mark.parametrize("options", [{}, {"pgd_images": 10, "pairs": 30, "pgd_steps": 3, "sweep": (0.0, 0.1)}])
def test_the_passes_are_those_that_are_made(monkeypatch: pytest.MonkeyPatch, options: dict[str, Any]) -> None:
    classifier = make_classifier(20)
    work: list[Work] = []
    counts = {"passes": 0, "gradients": 0}
    logits, gradient = Classifier.logits, attacks.loss_gradient

    def counted_logits(self: Classifier, pixels: Tensor) -> Tensor:
        counts["passes"] += len(pixels)
        return logits(self, pixels)

    def counted_gradient(model: nn.Module, pixels: Tensor, labels: Tensor) -> Tensor:
        counts["gradients"] += len(pixels)
        return gradient(model, pixels, labels)

    def begin(_: Classifier, parts: list[Work]) -> str:
        work.extend(parts)
        counts.update(passes=0, gradients=0)  # what was before is no part of the forecast
        return ""

    monkeypatch.setattr(Classifier, "logits", counted_logits)
    for module in (attacks, robustness):
        monkeypatch.setattr(module, "loss_gradient", counted_gradient)
    monkeypatch.setattr(robustness, "_check_classifier", lambda _: None)  # one more batch, whatever the images
    monkeypatch.setattr(robustness, "expected_duration", begin)
    robustness_suite(classifier, log=lambda text: None, **options)
    assert [part.part for part in work] == ["attacks", "occlusion", "in between"]
    blanks = 2 * 1  # of 9×8 pixels the largest square is not everything; the smallest is nothing, black and mean
    assert counts["passes"] == sum(part.passes for part in work) + blanks
    assert counts["gradients"] == sum(part.gradients for part in work)


def test_seconds_are_passes_times_those_of_one() -> None:
    assert [work.seconds(0.5, 2.0) for work in (Work("a", 100, 10), Work("b", 50))] == [70.0, 25.0]


def test_five_batches_are_timed_after_a_first_one(monkeypatch: pytest.MonkeyPatch) -> None:
    taken = iter([16.0, 8.0, 800.0, 24.0, 16.0, 40.0, 80.0, 48.0, 40.0, 4000.0])  # seconds of 8 images
    clock = {"now": 0.0, "calls": 0}

    def perf_counter() -> float:
        clock["calls"] += 1
        clock["now"] += next(taken) if clock["calls"] % 2 == 0 else 0.0
        return clock["now"]

    passes: list[int] = []
    logits = Classifier.logits
    monkeypatch.setattr(Classifier, "logits", lambda self, x: passes.append(len(x)) or logits(self, x))
    monkeypatch.setattr("time.perf_counter", perf_counter)
    assert time_passes(make_classifier(20)) == [(1.0, 5.0), (2.0, 6.0), (100.0, 500.0)]
    assert passes == [8] * 6


def test_the_sentence_has_a_range_and_names_the_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    times = [(0.4, 1.5), (0.5, 2.0), (1.0, 4.0)]
    monkeypatch.setattr("cutmix.evaluation.robustness.time_passes", lambda _: times)
    sentence = expected_duration(make_classifier(20), [Work("attacks", 1200, 600), Work("occlusion", 100)])
    assert sentence == "20 images: about 31 min, 24 min to 62 min (attacks 30 min, occlusion 50 s)"
