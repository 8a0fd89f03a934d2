"""Robustness: attacks with the checks that an honest report of them needs, occlusion, and in-between samples.

Source: Yun et al. 2019 §4.4, Table 11 and Fig. 5. The checks follow Carlini et al. 2019, "On evaluating adversarial
robustness".
"""

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from cutmix.errors import InputError
from cutmix.evaluate.attacks import apgd, check_eps, fgsm, loss_gradient, pgd, step
from cutmix.evaluate.classification import wilson_interval
from cutmix.evaluate.classifier import Classifier, Suite, Work, expected_duration
from cutmix.evaluate.corruptions import corruption_error, open_corrupted
from cutmix.evaluate.occlusion import (
    between_classes,
    between_passes,
    draw_pairs,
    neither,
    occlusion_classes,
    occlusion_passes,
    side_grid,
    wrong,
)
from cutmix.runs.record import Record
from cutmix.runtime.seeding import derive_seed

__all__ = ["apgd", "fgsm", "pgd", "robustness_suite"]

SWEEP = tuple(k / 255 for k in (0, 1, 2, 4, 8, 16, 32, 64))
LAMBDAS = (0.0, 0.25, 0.5, 0.75, 1.0)
MOST_PAIRS, PAIRS_AN_IMAGE = 50_000, 5  # the paper's pairs of the 10,000 test images of CIFAR-100
_ROUNDING = 1e-6  # what float32 may add to a largest change of ε
_NO_CLAIM = "single-step FGSM on an undefended network is no claim of robustness: read it beside PGD and the checks"


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
    say: Callable[[str], None] | None = None,
) -> Suite:
    """Measure a classifier under attacks, under occlusion and between its images.

    Args:
        classifier: What is measured. Gradients are float32, all other passes in its own precision.
        eps: ε of the attacks, in [0, 1].
        sweep: Further ε for FGSM.
        pgd_images: Images for PGD and APGD, drawn with the classifier's seed; all, if there are no more.
        pgd_steps: Steps of PGD; APGD has twice as many.
        apgd: Attack with APGD too, which needs the package pyautoattack.
        occlusion_sides: Sides of the square, in pixels; None is every eighth of the image's, whatever its size.
        lams: Weights of the first image in Mixup.
        between_sides: Sides of CutMix's hole, in pixels; None is every quarter of the image's.
        pairs: In-between pairs; None is five for each image, at most 50,000.
        corruptions: Folder of a published corrupted set, measured by ``corruption_error``.
        say: Is told first how long all but the corrupted set will take.

    Returns:
        Records of ``clean_err``; ``fgsm_err`` (at ε), ``noise_err``, ``pgd_err`` and what checks them;
        ``occlusion_center_err`` and ``occlusion_boundary_err`` (of "black" or "mean", at the side of the square);
        ``between_mixup_neither``, ``between_mixup_err`` (at λ), ``between_cutmix_neither``, ``between_cutmix_err`` (at
        the hole's side). ``neither``: the predicted class is neither image's. ``err``: it is not that of the image
        with the larger share of the pixels; of equal shares the first image counts. Then those of the corrupted set.

    Raises:
        InputError: If an argument is out of its range, or the network gives no finite, differentiable logits.
    """
    opened = open_corrupted(classifier, corruptions) if corruptions else None  # a wrong folder is seen before any pass
    clean, labels = classifier.predict().argmax(1), classifier.labels.cpu()
    occlusion_sides = side_grid(classifier.images, 8) if occlusion_sides is None else occlusion_sides
    between_sides = side_grid(classifier.images, 4) if between_sides is None else between_sides
    pairs = min(MOST_PAIRS, PAIRS_AN_IMAGE * len(classifier)) if pairs is None else pairs
    drawn = draw_pairs(len(classifier), pairs, classifier.seed)
    if say:
        size = classifier.images.shape[2], classifier.images.shape[3]
        say(expected_duration(classifier, [
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
    records = [_rate("clean_err", clean != labels)]
    arrays = {"labels": labels.numpy(), "clean_right": (clean == labels).numpy()}
    for part in parts:
        records += part.records
        arrays |= part.arrays
    return Suite(records, arrays)


# ---- attacks ----


def _attacks(
    classifier: Classifier, clean: Tensor, eps: float, sweep: Sequence[float], images: int, steps: int, with_apgd: bool
) -> Suite:
    """Attack all images with FGSM and noise, some with PGD, and check the attacks."""
    epsilons = sorted({eps, *sweep})
    for each in epsilons:
        check_eps(each)
    if with_apgd:  # what it needs is missed now, not after minutes
        _attack(classifier, torch.arange(1), partial(apgd, eps=eps, steps=1))
    fooled, largest, zero = _fgsm_sweep(classifier, clean, epsilons)
    main = epsilons.index(eps)
    index = _some(classifier, images)
    few = "all images" if len(index) == len(classifier) else f"{len(index):,} images, drawn with seed {classifier.seed}"
    wrong_noise = _noise(classifier, eps)
    against: dict[str, tuple[partial[Tensor], float]] = {
        "pgd": (partial(pgd, eps=eps, steps=steps), eps),
        "pgd_unbounded": (partial(pgd, eps=1.0, steps=steps), 1.0),
    }
    if with_apgd:
        against["apgd"] = (partial(apgd, eps=eps, steps=2 * steps), eps)
    strong = {name: _attack(classifier, index, attack) for name, (attack, _) in against.items()}

    records = [_rate("fgsm_err", cases, at=at) for cases, at in zip(fooled, epsilons, strict=True)]
    records[main] = replace(records[main], note=_NO_CLAIM)
    records.append(_rate("noise_err", wrong_noise, at=eps))
    if int(wrong_noise.sum()) > int(fooled[main].sum()):
        note = "random noise fools the network more often than FGSM: its gradients are of no use"
        records[-1] = replace(records[-1], note=note)
    records += [
        _rate(f"{name}_err", strong[name][0], at=at, steps=attack.keywords["steps"], note=few)
        for name, (attack, at) in against.items()
    ]
    same = {"clean": (clean != classifier.labels.cpu())[index], "fgsm": fooled[main][index]}
    same |= {name: cases for name, (cases, _) in strong.items() if name != "pgd_unbounded"}
    records.append(_rate("fgsm_subset_err", same["fgsm"], at=eps, note=f"{few}, those of PGD"))
    worst = torch.stack(list(same.values())).any(0)
    records.append(_rate("worst_case_err", worst, at=eps, note=f"{few}; wrong under any of {', '.join(same)}"))
    records += [
        *(_largest("fgsm", value, at, len(classifier)) for value, at in zip(largest, epsilons, strict=True)),
        *(_largest(name, strong[name][1], at, len(index)) for name, (_, at) in against.items()),
        _zero_gradients(zero),
        _not_weaker(same["pgd"], same["fgsm"], eps),
        _monotone(fooled, epsilons),
        _reaches_all(strong["pgd_unbounded"][0]),
        _repeats(classifier, clean),
    ]
    arrays = {
        "fgsm_right": ~fooled[main], "fgsm_sweep_right": ~fooled, "noise_right": ~wrong_noise, "zero_gradient": zero,
        "pgd_index": index, **{f"{name}_right": ~cases for name, (cases, _) in strong.items()},
    }  # fmt: skip
    return Suite(records, {"fgsm_sweep_eps": np.array(epsilons), **{k: v.numpy() for k, v in arrays.items()}})


def _attack_work(classifier: Classifier, epsilons: set[float], images: int, steps: int, with_apgd: bool) -> Work:
    """Return what ``_attacks`` needs; of APGD the most that it may."""
    n, some = len(classifier), min(images, len(classifier))
    steps_of = [steps, steps, *([2 * steps + 2] if with_apgd else [])]
    passes = n * (sum(eps > 0 for eps in epsilons) + 1) + some * len(steps_of) + min(n, classifier.batch_size)
    return Work("attacks", passes, n + some * sum(steps_of))


def _fgsm_sweep(classifier: Classifier, clean: Tensor, epsilons: Sequence[float]) -> tuple[Tensor, list[float], Tensor]:
    """Return who is wrong at each ε (E, N), the largest change at each ε, and who has no gradient at all (N,).

    The gradient is the same for every ε, and computed once.
    """
    model, labels = classifier.exact().eval(), classifier.labels.to(classifier.device)
    fooled = torch.empty(len(epsilons), len(classifier), dtype=torch.bool, device=classifier.device)
    largest = torch.zeros(len(epsilons), device=classifier.device)
    zero = torch.empty(len(classifier), dtype=torch.bool, device=classifier.device)
    for start in range(0, len(classifier), classifier.batch_size):
        part = slice(start, start + classifier.batch_size)
        pixels = classifier.pixels(part)
        gradient = loss_gradient(model, pixels, labels[part])
        zero[part] = (gradient == 0).flatten(1).all(1)
        for i, eps in enumerate(epsilons):
            if eps == 0:
                fooled[i, part] = clean[part].to(labels.device) != labels[part]
                continue
            attacked = step(pixels, gradient, eps)
            largest[i] = torch.maximum(largest[i], (attacked - pixels).abs().max())
            fooled[i, part] = classifier.logits(attacked).argmax(1) != labels[part]
    return fooled.cpu(), largest.tolist(), zero.cpu()


def _noise(classifier: Classifier, eps: float) -> Tensor:
    """Return who is wrong, (N,), when every pixel changes by +ε or −ε at random."""
    generator = torch.Generator().manual_seed(derive_seed(classifier.seed, "robustness", "noise"))

    def change(pixels: Tensor) -> Tensor:
        return step(pixels, torch.rand(pixels.shape, generator=generator).to(pixels.device) - 0.5, eps)

    return classifier.predict(change).argmax(1) != classifier.labels.cpu()


def _attack(classifier: Classifier, index: Tensor, attack: Callable[..., Tensor]) -> tuple[Tensor, float]:
    """Attack some images; return who is wrong, and the largest change of a pixel."""
    model, fooled, largest = classifier.exact().eval(), [], 0.0
    for number, part in enumerate(index.split(classifier.batch_size)):
        pixels = classifier.pixels(part)
        labels = classifier.labels[part].to(classifier.device)
        attacked = attack(model, pixels, labels, seed=derive_seed(classifier.seed, "robustness", number))
        largest = max(largest, float((attacked - pixels).abs().max()))
        fooled.append(classifier.logits(attacked).argmax(1) != labels)
    return torch.cat(fooled).cpu(), largest


def _some(classifier: Classifier, count: int) -> Tensor:
    """Return the sorted indices of some images."""
    if count < 1:
        raise InputError(f"{count} images are to be attacked by PGD: expected at least 1")
    generator = torch.Generator().manual_seed(derive_seed(classifier.seed, "robustness", "subset"))
    return torch.randperm(len(classifier), generator=generator)[:count].sort().values


# ---- checks of the attacks ----


def _largest(attack: str, value: float, eps: float, n: int) -> Record:
    record = _check(f"{attack}_max_perturbation", value, n, at=eps)
    return record if value <= eps + _ROUNDING else replace(record, note="the attack goes beyond ε: its error is void")


def _zero_gradients(zero: Tensor) -> Record:
    record = _rate("fgsm_zero_gradients", zero)
    if not bool(zero.any()):
        return record
    return replace(
        record, note="without a gradient an image cannot be attacked: its right answer is no sign of robustness"
    )


def _not_weaker(by_pgd: Tensor, by_fgsm: Tensor, eps: float) -> Record:
    strong, weak = int(by_pgd.sum()), int(by_fgsm.sum())
    record = _check("pgd_not_weaker_than_fgsm", strong >= weak, len(by_pgd), at=eps)
    if strong >= weak:
        return record
    return replace(
        record, note=f"PGD fools {strong:,} and FGSM {weak:,} images: gradients mislead, or steps are too few"
    )


def _monotone(fooled: Tensor, epsilons: Sequence[float]) -> Record:
    """Check that the error nowhere falls as ε grows, however little."""
    errors = [100 * float(cases.double().mean()) for cases in fooled]
    record = _check("fgsm_sweep_monotone", errors == sorted(errors), fooled.shape[1])
    if errors == sorted(errors):
        return record
    fall, i = max((errors[i] - errors[i + 1], i) for i in range(len(errors) - 1))
    where = f"from ε = {epsilons[i]:.4g} to {epsilons[i + 1]:.4g}"
    return replace(
        record, note=f"the error falls by {fall:.2f} points {where}: one step is not the strongest attack there"
    )


def _reaches_all(fooled: Tensor) -> Record:
    record = _check("unbounded_attack_fools_all", bool(fooled.all()), len(fooled), at=1.0)
    if bool(fooled.all()):
        return record
    left = int((~fooled).sum())
    return replace(record, note=f"PGD without a bound leaves {left:,} images right: the gradients mislead")


def _repeats(classifier: Classifier, clean: Tensor) -> Record:
    part = slice(classifier.batch_size)
    again = classifier.logits(classifier.pixels(part)).argmax(1).cpu()
    same = torch.equal(again, clean[part])
    record = _check("same_classes_twice", same, len(again))
    return record if same else replace(record, note="the network says another class when it is asked again")


# ---- occlusion and in-between samples ----


def _occlusion(classifier: Classifier, clean: Tensor, sides: Sequence[int]) -> Suite:
    labels = classifier.labels.cpu()
    records, arrays = [], {"occlusion_sides": np.array(sides)}
    for (where, fill), classes in occlusion_classes(classifier, clean, sides).items():
        missed = classes != labels
        for at, cases in zip(sides, missed, strict=True):
            records.append(_rate(f"occlusion_{where}_err", cases, at=float(at), of=fill))
        arrays[f"occlusion_{where}_{fill}_right"] = (~missed).numpy()
    return Suite(records, arrays)


def _between(
    classifier: Classifier, clean: Tensor, pairs: Tensor, lams: Sequence[float], sides: Sequence[int]
) -> Suite:
    labels, (height, width) = classifier.labels.cpu(), classifier.images.shape[2:]
    mixup, cutmix = between_classes(classifier, clean, pairs, lams, sides)
    holes = [1 - side**2 / (height * width) for side in sides]
    records, arrays = [], {"between_pairs": pairs.numpy()}
    for name, classes, grid, shares in (("mixup", mixup, lams, lams), ("cutmix", cutmix, sides, holes)):
        outcomes = {"neither": neither(classes, labels, pairs), "err": wrong(classes, labels, pairs, shares)}
        for what, missed in outcomes.items():
            for at, cases in zip(grid, missed, strict=True):
                records.append(_rate(f"between_{name}_{what}", cases, at=float(at)))
            arrays[f"between_{name}_{what}"] = missed.numpy()
        arrays[f"between_{name}_at"] = np.array(grid)
    note = "an image is in several pairs, which the interval takes as independent"
    return Suite([replace(record, note=note) for record in records], arrays)


# ---- records ----


def _rate(metric: str, cases: Tensor, **more: Any) -> Record:
    """Return the record of a share of samples, in per cent."""
    share = wilson_interval(int(cases.sum()), len(cases))
    return Record(metric=metric, **share._asdict(), suite="robustness", **more)


def _check(metric: str, value: float, n: int, **more: Any) -> Record:
    """Return the record of a value without an interval; a check that holds is 1."""
    return Record(metric=metric, value=value, n=n, suite="robustness", **more)
