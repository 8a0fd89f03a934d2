"""How long a suite will take: the passes that its parts need, times what one takes."""

import time
from collections.abc import Sequence
from typing import NamedTuple

from cutmix.evaluate.attacks import loss_gradient
from cutmix.evaluate.classifier import Classifier
from cutmix.runtime.progress import duration

_TIMED = 64  # images that are timed


class Work(NamedTuple):
    """What a part of a suite needs.

    Attributes:
        part: Its name.
        passes: Images through the network, in the classifier's precision.
        gradients: Images whose gradient is taken, in float32.
    """

    part: str
    passes: int
    gradients: int = 0


def expected_duration(classifier: Classifier, work: Sequence[Work]) -> str:
    """Return about how long each part will take, from one batch without and one with its gradient, as a sentence."""
    seconds = dict(zip(work, expected_seconds(work, *time_passes(classifier)), strict=True))
    parts = ", ".join(f"{each.part} {duration(taken)}" for each, taken in seconds.items())
    return f"{len(classifier):,} images: about {duration(sum(seconds.values()))} ({parts})"


def expected_seconds(work: Sequence[Work], a_pass: float, a_gradient: float) -> list[float]:
    """Return the seconds of each part, from those that an image takes."""
    return [each.passes * a_pass + each.gradients * a_gradient for each in work]


def time_passes(classifier: Classifier) -> tuple[float, float]:
    """Return the seconds that an image takes, and its gradient; the network has been warmed up before."""
    part = slice(min(_TIMED, classifier.batch_size))
    pixels, labels = classifier.pixels(part), classifier.labels[part].to(classifier.device)
    clock = time.perf_counter()
    classifier.logits(pixels).argmax(1).cpu()  # which waits for a GPU
    a_pass = time.perf_counter() - clock
    clock = time.perf_counter()
    loss_gradient(classifier.exact().eval(), pixels, labels).cpu()
    return a_pass / len(pixels), (time.perf_counter() - clock) / len(pixels)
