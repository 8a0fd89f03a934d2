"""Robustness: attacks with the checks of Carlini et al. 2019, occlusion, in-between samples, and published corruptions.

Source: Yun et al. 2019 §4.4, Table 11 and Fig. 5; Carlini et al. 2019, "On evaluating adversarial robustness".
"""

import time
from collections.abc import Callable, Sequence
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from cutmix.data.sets import random_subset
from cutmix.errors import InputError
from cutmix.evaluation.attacks import (
    apgd,
    ascend,
    check_eps,
    check_gradients,
    check_steps,
    checked_gradient,
    loss_gradient,
    step,
    uniform,
)
from cutmix.evaluation.classifier import Classifier, SuiteResult
from cutmix.evaluation.occlusion import (
    between_classes,
    between_passes,
    corruption_error,
    draw_pairs,
    neither,
    occlusion_classes,
    occlusion_passes,
    open_corrupted,
    pairs_interval,
    rate,
    side_grid,
    wrong,
)
from cutmix.runs.record import Record
from cutmix.runtime.device import check_memory
from cutmix.runtime.seeding import derive_seed
from cutmix.runtime.terminal import duration

SWEEP = tuple(k / 255 for k in (0, 1, 2, 4, 8, 16, 32, 64))
LAMBDAS = (0.0, 0.25, 0.5, 0.75, 1.0)
MOST_PAIRS, PAIRS_AN_IMAGE = 50_000, 5  # the paper's pairs of the 10,000 test images of CIFAR-100
_ROUNDING = 1e-6  # of a change of ε in float32
_NO_CLAIM = "single-step FGSM on an undefended model does not show robustness: read it beside PGD and the checks"


def robustness_suite(
    classifier: Classifier,
    *,
    eps: float = 8 / 255,
    sweep: Sequence[float] = SWEEP,
    pgd_images: int = 1000,
    pgd_steps: int = 10,
    apgd: bool = False,
    occlusion_sides: Sequence[int] | None = None,
    lams: Sequence[float] = LAMBDAS,
    between_sides: Sequence[int] | None = None,
    pairs: int | None = None,
    corruptions: Path | None = None,
    logits: Tensor | None = None,
    log: Callable[[str], None] | None = None,
) -> SuiteResult:
    """Evaluate a classifier under attacks, under occlusion, on mixed pairs of images and on published corruptions.

    Gradients are float32, all other passes in the run's precision. PGD, and APGD with twice the steps, attack
    ``pgd_images`` images drawn with the classifier's seed. Defaults: occlusion at every eighth of the side, CutMix's
    hole at every quarter, five pairs for each image and at most 50,000. ``logits`` are those of the classifier's
    images, (N, K), if they are known; ``log`` is called first, with the expected duration of everything but the
    corrupted data set.

    The records are defined in ``report/metrics.py``. Attacks have their ε in ``at``, occlusion the side of the
    hidden square (center) or of the visible one (boundary), mixed pairs λ or the side of the hole.
    """
    opened = open_corrupted(classifier, corruptions) if corruptions else None  # a wrong folder fails before any pass
    clean = (classifier.predict() if logits is None else logits).argmax(1)
    labels = classifier.labels.cpu()
    occlusion_sides = side_grid(classifier.images, 8) if occlusion_sides is None else occlusion_sides
    between_sides = side_grid(classifier.images, 4) if between_sides is None else between_sides
    pairs = min(MOST_PAIRS, PAIRS_AN_IMAGE * len(classifier)) if pairs is None else pairs
    rows = 2 + len(lams) + len(between_sides)
    check_memory(8.0 * rows * pairs, f"--pairs is {pairs}: the predicted classes of so many")
    drawn = draw_pairs(len(classifier), pairs, classifier.seed)
    _check_classifier(classifier)
    if log:
        size = classifier.images.shape[2], classifier.images.shape[3]
        log(expected_duration(classifier, [
            _attack_work(classifier, {eps, *sweep}, pgd_images, pgd_steps, apgd),
            Work("occlusion", len(classifier) * occlusion_passes(*size, occlusion_sides)),
            Work("in between", pairs * between_passes(*size, lams, between_sides)),
        ]))  # fmt: skip
    corrupted = [corruption_error(classifier, opened)] if opened else []  # first: a file may be damaged
    parts = [
        _attacks(classifier, clean, eps, sweep, pgd_images, pgd_steps, apgd),
        _occlusion(classifier, clean, occlusion_sides),
        _between(classifier, clean, drawn, lams, between_sides),
        *corrupted,
    ]
    records = [rate("clean_err", clean != labels)]
    arrays = {"labels": labels.numpy(), "clean_right": (clean == labels).numpy()}
    for part in parts:
        records += part.records
        arrays |= part.arrays
    return SuiteResult(records, arrays)


# ---- expected duration ----

_TIMED_IMAGES, _REPEATS = 64, 5


class Work(NamedTuple):
    """The work of a part of the suite."""

    part: str
    passes: int  # number of images through the network, in the run's precision
    gradients: int = 0  # number of images with a gradient, in float32

    def seconds(self, a_pass: float, a_gradient: float) -> float:
        """Return the duration, from the seconds of a pass and of a gradient of one image."""
        return self.passes * a_pass + self.gradients * a_gradient


def expected_duration(classifier: Classifier, work: Sequence[Work]) -> str:
    """Return a sentence with the expected duration of each part, and the range of the total on a busy machine.

    A batch is timed five times: the expectation is from the medians, the range from the fastest and the slowest.
    """
    fastest, median, slowest = time_passes(classifier)
    parts = ", ".join(f"{each.part} {duration(each.seconds(*median))}" for each in work)
    low, middle, high = (sum(each.seconds(*times) for each in work) for times in (fastest, median, slowest))
    return f"{len(classifier):,} images: about {duration(middle)}, {duration(low)} to {duration(high)} ({parts})"


def time_passes(classifier: Classifier) -> list[tuple[float, float]]:
    """Return the seconds of one image and of its gradient: the fastest, the median and the slowest of five batches."""
    part = slice(min(_TIMED_IMAGES, classifier.batch_size))
    pixels, labels = classifier.pixels(part), classifier.labels[part].to(classifier.device)
    steps = (
        lambda: classifier.logits(pixels).argmax(1).cpu(),  # the copy waits for a GPU
        lambda: loss_gradient(classifier.exact, pixels, labels).cpu(),
    )
    times: list[list[float]] = []
    for run in steps:
        run()  # the first of its kind allocates memory and chooses kernels
        taken = []
        for _ in range(_REPEATS):
            clock = time.perf_counter()
            run()
            taken.append((time.perf_counter() - clock) / len(pixels))
        times.append(sorted(taken))
    classifier.check()
    return [(times[0][i], times[1][i]) for i in (0, _REPEATS // 2, -1)]


# ---- attacks ----


def _attacks(
    classifier: Classifier, clean: Tensor, eps: float, sweep: Sequence[float], images: int, steps: int, with_apgd: bool
) -> SuiteResult:
    """Attack all images with FGSM and noise and a subset with PGD, and check the attacks."""
    epsilons = sorted({eps, *sweep})
    for each in epsilons:
        check_eps(each)
    check_steps(steps)
    if with_apgd:  # a missing package fails now, not after minutes
        apgd(classifier.exact, classifier.pixels(slice(1)), classifier.labels[:1].to(classifier.device), eps, steps=1)
    fgsm, zero = _fgsm_sweep(classifier, clean, epsilons)
    main, index = fgsm[epsilons.index(eps)], _subset(classifier, images)
    noise = _noise(classifier, eps)
    strong = {
        "pgd": _attack(classifier, index, ascend, eps, steps),
        "pgd_unbounded": _attack(classifier, index, ascend, 1.0, steps),
    }
    if with_apgd:
        strong["apgd"] = _attack(classifier, index, _apgd, eps, 2 * steps)
    subset = {"clean": (clean != classifier.labels.cpu())[index], "fgsm": main.fooled[index]}
    subset |= {name: each.fooled for name, each in strong.items() if name != "pgd_unbounded"}
    few = "all images" if len(index) == len(classifier) else f"{len(index):,} images, drawn with seed {classifier.seed}"
    useless = "random noise fools the model more often than FGSM: its gradients are useless"
    records = [
        *(rate("fgsm_err", each.fooled, at=each.eps, note=_NO_CLAIM if each is main else None) for each in fgsm),
        rate("noise_err", noise, at=eps, note=useless if int(noise.sum()) > int(main.fooled.sum()) else None),
        *(rate(f"{name}_err", a.fooled, at=a.eps, steps=a.steps, note=few) for name, a in strong.items()),
        rate("fgsm_subset_err", subset["fgsm"], at=eps, note=f"{few}, those of PGD"),
        rate(
            "worst_case_err", torch.stack(list(subset.values())).any(0), at=eps,
            note=f"{few}; wrong under any of {', '.join(subset)}",
        ),
        *(_largest("fgsm", each) for each in fgsm),
        *(_largest(name, each) for name, each in strong.items()),
        _zero_gradients(zero),
        _not_weaker(subset["pgd"], subset["fgsm"], eps),
        _monotone(fgsm),
        _reaches_all(strong["pgd_unbounded"].fooled),
        _repeats(classifier, clean),
    ]  # fmt: skip
    arrays = {
        "fgsm_right": ~main.fooled, "fgsm_sweep_right": ~torch.stack([each.fooled for each in fgsm]),
        "noise_right": ~noise, "zero_gradient": zero, "pgd_index": index,
        **{f"{name}_right": ~each.fooled for name, each in strong.items()},
    }  # fmt: skip
    return SuiteResult(records, {"fgsm_sweep_eps": np.array(epsilons), **{k: v.numpy() for k, v in arrays.items()}})


class _Attacked(NamedTuple):
    """An attack on n images."""

    eps: float
    fooled: Tensor  # which images are wrong, (n,) bool on the CPU
    largest: float  # the largest change of a pixel
    steps: int = 1


def _attack_work(classifier: Classifier, epsilons: set[float], images: int, steps: int, with_apgd: bool) -> Work:
    """Return the work of ``_attacks``, with the most that APGD may take."""
    n, some = len(classifier), min(images, len(classifier))
    steps_of = [steps, steps, *([2 * steps + 2] if with_apgd else [])]
    passes = n * (sum(eps > 0 for eps in epsilons) + 1) + some * len(steps_of) + min(n, classifier.batch_size)
    return Work("attacks", passes, n + some * sum(steps_of))


def _check_classifier(classifier: Classifier) -> None:
    """Refuse a model without finite, differentiable logits for every label, on the first batch and all labels."""
    part = slice(classifier.batch_size)
    labels = classifier.labels[part].to(classifier.device)
    checked_gradient(classifier.exact, classifier.pixels(part), labels)
    classes = classifier.logits(classifier.pixels(slice(1))).shape[1]
    low, high = int(classifier.labels.min()), int(classifier.labels.max())
    if low < 0 or high >= classes:
        raise InputError(f"the labels range from {low} to {high}; expected 0 to {classes - 1}")


def _fgsm_sweep(classifier: Classifier, clean: Tensor, epsilons: Sequence[float]) -> tuple[list[_Attacked], Tensor]:
    """Return FGSM at each ε, from one gradient, and which images have no gradient at all, (N,)."""
    model, labels = classifier.exact, classifier.labels.to(classifier.device)
    clean = clean.to(classifier.device)
    fooled = torch.empty(len(epsilons), len(classifier), dtype=torch.bool, device=classifier.device)
    largest = torch.zeros(len(epsilons), device=classifier.device)
    zero = torch.empty(len(classifier), dtype=torch.bool, device=classifier.device)
    finite = torch.ones((), dtype=torch.bool, device=classifier.device)
    for start in range(0, len(classifier), classifier.batch_size):
        part = slice(start, start + classifier.batch_size)
        pixels = classifier.pixels(part)
        gradient = loss_gradient(model, pixels, labels[part])
        finite &= gradient.isfinite().all()
        zero[part] = (gradient == 0).flatten(1).all(1)
        for i, eps in enumerate(epsilons):
            if eps == 0:
                fooled[i, part] = clean[part] != labels[part]
                continue
            attacked = step(pixels, gradient, eps)
            largest[i] = torch.maximum(largest[i], (attacked - pixels).abs().max())
            fooled[i, part] = classifier.logits(attacked).argmax(1) != labels[part]
    classifier.check()
    check_gradients(finite)
    return [_Attacked(*each) for each in zip(epsilons, fooled.cpu(), largest.tolist(), strict=True)], zero.cpu()


def _noise(classifier: Classifier, eps: float) -> Tensor:
    """Return which images are wrong, (N,), when every pixel changes by +ε or −ε at random."""
    seeds = (derive_seed(classifier.seed, "robustness", "noise", image) for image in range(len(classifier)))

    def change(pixels: Tensor) -> Tensor:
        return step(pixels, uniform(pixels, list(islice(seeds, len(pixels)))) - 0.5, eps)

    return classifier.predict(change).argmax(1) != classifier.labels.cpu()


def _apgd(
    model: nn.Module, images: Tensor, labels: Tensor, eps: float, steps: int, seeds: Sequence[int]
) -> tuple[Tensor, Tensor]:
    """Return the images attacked by APGD, in the form of ``ascend``, with one start for all."""
    return apgd(model, images, labels, eps, steps=steps, seed=seeds[0]), torch.ones((), dtype=torch.bool)


def _attack(
    classifier: Classifier, index: Tensor, attack: Callable[..., tuple[Tensor, Tensor]], eps: float, steps: int
) -> _Attacked:
    """Attack a subset of the images."""
    model, fooled, largest, finite = classifier.exact, [], [], []
    owned = classifier.labels[index].to(classifier.device).split(classifier.batch_size)
    for part, labels in zip(index.split(classifier.batch_size), owned, strict=True):
        pixels = classifier.pixels(part)
        seeds = [derive_seed(classifier.seed, "robustness", image) for image in part.tolist()]
        attacked, gradients = attack(model, pixels, labels, eps, steps, seeds)
        finite.append(gradients.to(pixels.device))
        largest.append((attacked - pixels).abs().max())
        fooled.append(classifier.logits(attacked).argmax(1) != labels)
    classifier.check()
    check_gradients(torch.stack(finite).all())
    return _Attacked(eps, torch.cat(fooled).cpu(), float(torch.stack(largest).max()), steps)


def _subset(classifier: Classifier, count: int) -> Tensor:
    """Return the sorted indices of a random subset."""
    if count < 1:
        raise InputError(f"pgd_images is {count}; expected at least 1")
    return random_subset(len(classifier), count, derive_seed(classifier.seed, "robustness", "subset"))


# ---- checks of the attacks ----


def _largest(name: str, attack: _Attacked) -> Record:
    note = "the attack exceeds ε: its error is invalid" if attack.largest > attack.eps + _ROUNDING else None
    return _check(f"{name}_max_perturbation", attack.largest, len(attack.fooled), at=attack.eps, note=note)


def _zero_gradients(zero: Tensor) -> Record:
    note = "an image without a gradient cannot be attacked: its right prediction does not show robustness"
    return rate("fgsm_zero_gradients", zero, note=note if bool(zero.any()) else None)


def _not_weaker(by_pgd: Tensor, by_fgsm: Tensor, eps: float) -> Record:
    strong, weak = int(by_pgd.sum()), int(by_fgsm.sum())
    note = f"PGD fools {strong:,} and FGSM {weak:,} images: the gradients are misleading, or the steps too few"
    return _check("pgd_not_weaker_than_fgsm", strong >= weak, len(by_pgd), at=eps, note=note if strong < weak else None)


def _monotone(sweep: Sequence[_Attacked]) -> Record:
    """Check that the error never falls as ε grows."""
    errors, n = [100 * float(each.fooled.double().mean()) for each in sweep], len(sweep[0].fooled)
    if errors == sorted(errors):
        return _check("fgsm_sweep_monotone", True, n)
    fall, i = max((errors[i] - errors[i + 1], i) for i in range(len(errors) - 1))
    where = f"from ε = {sweep[i].eps:.4g} to {sweep[i + 1].eps:.4g}"
    note = f"the error falls by {fall:.2f} points {where}: one step is not the strongest attack there"
    return _check("fgsm_sweep_monotone", False, n, note=note)


def _reaches_all(fooled: Tensor) -> Record:
    left = int((~fooled).sum())
    note = f"PGD without a bound leaves {left:,} images right: the gradients are misleading"
    return _check("unbounded_attack_fools_all", not left, len(fooled), at=1.0, note=note if left else None)


def _repeats(classifier: Classifier, clean: Tensor) -> Record:
    part = slice(classifier.batch_size)
    again = classifier.logits(classifier.pixels(part)).argmax(1).cpu()
    same = torch.equal(again, clean[part])
    note = "the model predicts other classes for the same images"
    return _check("same_classes_twice", same, len(again), note=None if same else note)


# ---- occlusion and in-between samples ----


def _occlusion(classifier: Classifier, clean: Tensor, sides: Sequence[int]) -> SuiteResult:
    labels = classifier.labels.cpu()
    records, arrays = [], {"occlusion_sides": np.array(sides)}
    for (where, fill), classes in occlusion_classes(classifier, clean, sides).items():
        missed = classes != labels
        for at, cases in zip(sides, missed, strict=True):
            records.append(rate(f"occlusion_{where}_err", cases, at=float(at), of=fill))
        arrays[f"occlusion_{where}_{fill}_right"] = (~missed).numpy()
    return SuiteResult(records, arrays)


def _between(
    classifier: Classifier, clean: Tensor, pairs: Tensor, lams: Sequence[float], sides: Sequence[int]
) -> SuiteResult:
    labels, (height, width) = classifier.labels.cpu(), classifier.images.shape[2:]
    mixup, cutmix = between_classes(classifier, clean, pairs, lams, sides)
    holes = [1 - side**2 / (height * width) for side in sides]
    records, arrays = [], {"between_pairs": pairs.numpy()}
    note = "random pairs; the interval is over the images, each of which is in several pairs"
    for name, classes, grid, shares in (("mixup", mixup, lams, lams), ("cutmix", cutmix, sides, holes)):
        outcomes = {"neither": neither(classes, labels, pairs), "err": wrong(classes, labels, pairs, shares)}
        for what, missed in outcomes.items():
            for at, cases in zip(grid, missed, strict=True):
                share = pairs_interval(cases, pairs)
                records.append(
                    Record(
                        metric=f"between_{name}_{what}", **share._asdict(), at=float(at), suite="robustness", note=note
                    )
                )
            arrays[f"between_{name}_{what}"] = missed.numpy()
        arrays[f"between_{name}_at"] = np.array(grid)
    return SuiteResult(records, arrays)


# ---- records ----


def _check(metric: str, value: float, n: int, **more: Any) -> Record:
    """Return the record of a value without an interval; a check that holds is 1."""
    return Record(metric=metric, value=value, n=n, suite="robustness", **more)
