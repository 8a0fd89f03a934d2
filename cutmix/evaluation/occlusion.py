"""Occlusion and in-between samples: predictions for images that are partly hidden, and for pairs shown as one image.

Source: Yun et al. 2019 §4.4 and Fig. 5. The paper fills hidden pixels with zeros and does not say in which space: both
black pixels and the mean of the data set, which is zero after the normalization, are evaluated.
"""

from collections.abc import Callable, Sequence
from functools import partial

import torch
from torch import Tensor

from cutmix.errors import InputError
from cutmix.evaluation.classifier import Classifier
from cutmix.runtime.seeding import derive_seed


def centred_square(height: int, width: int, side: int) -> tuple[slice, slice]:
    """Return the rows and columns of the centred square: from ⌊(H − s)/2⌋ on, and likewise for the columns.

    Args:
        height: H, in pixels.
        width: W, in pixels.
        side: s, from 0 to min(H, W) pixels.

    Raises:
        InputError: If the square does not fit.
    """
    if not 0 <= side <= min(height, width):
        raise InputError(f"side is {side} pixels; expected 0 to {min(height, width)} in images of {height}×{width}")
    top, left = (height - side) // 2, (width - side) // 2
    return slice(top, top + side), slice(left, left + side)


def side_grid(images: Tensor, steps: int) -> list[int]:
    """Return the sides 0, S/steps, …, S, rounded, where S is the smaller side of the images (N, C, H, W)."""
    smallest = min(images.shape[2:])
    return sorted({round(smallest * step / steps) for step in range(steps + 1)})


# ---- occlusion ----


def occlude(images: Tensor, side: int, fill: Sequence[float], *, boundary: bool = False) -> Tensor:
    """Return images with the centred square filled, or with everything but the square filled.

    Args:
        images: (n, C, H, W), not modified.
        side: Side of the square, in pixels.
        fill: Value of each channel, in the unit of the images.
        boundary: Fill the pixels outside the square instead of those inside.

    Raises:
        InputError: If the square does not fit, or the fill has another number of channels.
    """
    if len(fill) != images.shape[1]:
        raise InputError(f"fill has {len(fill)} values; expected {images.shape[1]}, one for each channel")
    rows, columns = centred_square(images.shape[2], images.shape[3], side)
    color = torch.tensor(fill, dtype=images.dtype, device=images.device).view(-1, 1, 1)
    if boundary:
        result = color.expand_as(images).clone()
        result[..., rows, columns] = images[..., rows, columns]
    else:
        result = images.clone()
        result[..., rows, columns] = color
    return result


def occlusion_passes(height: int, width: int, sides: Sequence[int]) -> int:
    """Return the number of passes over all images of H×W pixels that ``occlusion_classes`` makes."""
    shown = [share for side in sides for share in (side**2, height * width - side**2)]
    return 2 * sum(0 < share < height * width for share in shown)


def occlusion_classes(classifier: Classifier, clean: Tensor, sides: Sequence[int]) -> dict[tuple[str, str], Tensor]:
    """Return the predicted classes of all images at all sides, in one pass over the images.

    Where nothing is hidden the clean predictions are taken; where everything is hidden one blank image is predicted.

    Args:
        classifier: Model and images.
        clean: Predicted classes of the unchanged images, (N,) int64.
        sides: S sides of the square, in pixels.

    Returns:
        For ("center" or "boundary", "black" or "mean"): (S, N) int64 on the CPU.

    Raises:
        InputError: If a square does not fit, or a logit is not finite.
    """
    channels, height, width = classifier.images.shape[1:]
    for side in sides:
        centred_square(height, width, side)
    fills = {"black": (0.0,) * channels, "mean": classifier.mean}
    found = {
        (where, fill): torch.empty(len(sides), len(classifier), dtype=torch.int64, device=classifier.device)
        for where in ("center", "boundary") for fill in fills
    }  # fmt: skip
    jobs: list[_Job] = []
    for (where, fill), classes in found.items():
        for row, side in zip(classes, sides, strict=True):
            shown = height * width - side**2 if where == "center" else side**2
            if shown == height * width:
                row.copy_(clean)
            elif shown == 0:
                blank = torch.tensor(fills[fill], device=classifier.device).view(1, -1, 1, 1)
                row.copy_(classifier.logits(blank.expand(1, -1, height, width)).argmax(1))
            else:
                jobs.append((row, partial(occlude, side=side, fill=fills[fill], boundary=where == "boundary")))
    _predict(classifier, jobs, torch.arange(len(classifier)))
    return {key: classes.cpu() for key, classes in found.items()}


# ---- in-between samples ----


def draw_pairs(n: int, count: int, seed: int) -> Tensor:
    """Return ordered pairs of two different images, all equally likely; a pair may occur more than once.

    Args:
        n: Number of images, at least 2.
        count: Number of pairs, at least 1.
        seed: Seed of the draw.

    Returns:
        (count, 2) int64, indices of the images.

    Raises:
        InputError: If there are too few images or pairs.
    """
    if n < 2 or count < 1:
        raise InputError(f"{count} pairs of {n} images cannot be drawn; expected at least 1 pair of at least 2 images")
    generator = torch.Generator().manual_seed(derive_seed(seed, "between", "pairs"))
    first = torch.randint(n, (count,), generator=generator)
    return torch.stack([first, (first + 1 + torch.randint(n - 1, (count,), generator=generator)) % n], 1)


def blend(first: Tensor, second: Tensor, lam: float) -> Tensor:
    """Return λ·first + (1 − λ)·second."""
    return lam * first + (1 - lam) * second


def fill_hole(first: Tensor, second: Tensor, side: int) -> Tensor:
    """Return the first images with the second ones in the centred square."""
    rows, columns = centred_square(first.shape[2], first.shape[3], side)
    result = first.clone()
    result[..., rows, columns] = second[..., rows, columns]
    return result


def between_passes(height: int, width: int, lams: Sequence[float], sides: Sequence[int]) -> int:
    """Return the number of passes over all pairs of images of H×W pixels that ``between_classes`` makes."""
    return sum(share not in (0, 1) for share in (*lams, *(side**2 / (height * width) for side in sides)))


def between_classes(
    classifier: Classifier, clean: Tensor, pairs: Tensor, lams: Sequence[float], sides: Sequence[int]
) -> tuple[Tensor, Tensor]:
    """Return the predicted classes of all pairs for all λ and all holes, in one pass over the pairs.

    Where the result is one of the two images, its clean prediction is taken.

    Args:
        classifier: Model and images.
        clean: Predicted classes of the unchanged images, (N,) int64.
        pairs: (P, 2) int64, indices of the images.
        lams: L weights of the first image in Mixup, in [0, 1].
        sides: S sides of the hole through which CutMix shows the second image, in pixels.

    Returns:
        For Mixup (L, P) and for CutMix (S, P), int64 on the CPU.

    Raises:
        InputError: If a λ is outside [0, 1], a hole does not fit, or a logit is not finite.
    """
    height, width = classifier.images.shape[2:]
    for lam in lams:
        if not 0 <= lam <= 1:
            raise InputError(f"λ is {lam}; expected a share from 0 to 1")
    for side in sides:
        centred_square(height, width, side)
    mixes: list[tuple[float, Callable[..., Tensor]]] = [(lam, partial(blend, lam=lam)) for lam in lams]
    mixes += [(1 - side**2 / (height * width), partial(fill_hole, side=side)) for side in sides]
    found = torch.empty(len(mixes), len(pairs), dtype=torch.int64, device=classifier.device)
    jobs: list[_Job] = []
    for row, (share, mix) in zip(found, mixes, strict=True):
        if share in (0, 1):
            row.copy_(clean[pairs[:, 0 if share == 1 else 1]])
        else:
            jobs.append((row, mix))
    _predict(classifier, jobs, *pairs.unbind(1))
    mixup, cutmix = found.cpu().split([len(lams), len(sides)])
    return mixup, cutmix


def neither(predicted: Tensor, labels: Tensor, pairs: Tensor) -> Tensor:
    """Return whether the class is neither that of the first nor that of the second image.

    Args:
        predicted: (..., P) int64.
        labels: Class ids of the images, (N,) int64.
        pairs: (P, 2) int64.
    """
    return (predicted != labels[pairs[:, 0]]) & (predicted != labels[pairs[:, 1]])


def wrong(predicted: Tensor, labels: Tensor, pairs: Tensor, shares: Sequence[float]) -> Tensor:
    """Return whether the class is not that of the image with the larger share; with equal shares the first counts.

    Args:
        predicted: (G, P) int64.
        labels: Class ids of the images, (N,) int64.
        pairs: (P, 2) int64.
        shares: G shares of the first image.
    """
    larger = [0 if share >= 0.5 else 1 for share in shares]
    return predicted != labels[pairs.T[larger]]


# ---- predictions of changed images ----

_Job = tuple[Tensor, Callable[..., Tensor]]  # where the classes go, and what makes the images


def _predict(classifier: Classifier, jobs: Sequence[_Job], *indices: Tensor) -> None:
    """Fill each job's row with the classes of its images, made from those at the indices; each is fetched once."""
    for start in range(0, len(indices[0]), classifier.batch_size):
        part = slice(start, start + classifier.batch_size)
        images = [classifier.pixels(index[part]) for index in indices]
        for row, change in jobs:
            row[part] = classifier.logits(change(*images)).argmax(1)
    classifier.check()
