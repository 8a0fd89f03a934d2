"""Occlusion: the error when a centred square of the image, or all but that square, is hidden.

Source: Yun et al. 2019 §4.4 and Fig. 5 (center and boundary occlusion). The paper fills with zeros and does not say in
which space: black pixels and the data set's mean, which is zero after the normalisation, are both measured.
"""

from collections.abc import Sequence
from functools import partial

import torch
from torch import Tensor

from cutmix.errors import InputError
from cutmix.evaluate.classifier import Classifier
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
        raise InputError(
            f"the hole's side is {side} pixels, but the images are {height}×{width}: expected 0 to {min(height, width)}"
        )
    top, left = (height - side) // 2, (width - side) // 2
    return slice(top, top + side), slice(left, left + side)


def occlude(images: Tensor, side: int, fill: Sequence[float], *, boundary: bool = False) -> Tensor:
    """Return the images with the centred square filled, or with everything but the square filled.

    Args:
        images: (n, C, H, W), left as they are.
        side: Of the square, in pixels.
        fill: The value of each channel, in the unit of the images.
        boundary: Fill what lies outside the square.

    Raises:
        InputError: If the square does not fit, or the fill has another number of channels.
    """
    if len(fill) != images.shape[1]:
        raise InputError(f"the fill has {len(fill)} values, but the images have {images.shape[1]} channels")
    rows, columns = centred_square(images.shape[2], images.shape[3], side)
    color = torch.tensor(fill, dtype=images.dtype, device=images.device).view(-1, 1, 1)
    if boundary:
        result = color.expand_as(images).clone()
        result[..., rows, columns] = images[..., rows, columns]
    else:
        result = images.clone()
        result[..., rows, columns] = color
    return result


def side_grid(images: Tensor, steps: int) -> list[int]:
    """Return the sides 0, S/steps, …, S, rounded, where S is the smaller side of the images (N, C, H, W)."""
    smallest = min(images.shape[2:])
    return sorted({round(smallest * step / steps) for step in range(steps + 1)})


def occlusion_passes(height: int, width: int, sides: Sequence[int]) -> int:
    """Return how often ``occlusion_classes`` shows the network all images of H×W pixels."""
    seen = [share for side in sides for share in (side**2, height * width - side**2)]
    return 2 * sum(0 < share < height * width for share in seen)


def occlusion_classes(classifier: Classifier, clean: Tensor, sides: Sequence[int]) -> dict[tuple[str, str], Tensor]:
    """Return the predicted classes of all images at all sides, in one pass over the images.

    Where nothing is hidden the clean classes are taken; where everything is hidden all images are the same one.

    Args:
        classifier: What is measured.
        clean: Its classes of the images as they are, (N,) int64.
        sides: S sides of the square, in pixels.

    Returns:
        For "center" and "boundary", each with "black" and "mean", (S, N) int64 on the CPU.

    Raises:
        InputError: If a square does not fit.
    """
    channels, height, width = classifier.images.shape[1:]
    for side in sides:
        centred_square(height, width, side)
    fills = {"black": (0.0,) * channels, "mean": classifier.mean}
    found = {
        (where, fill): torch.empty(len(sides), len(classifier), dtype=torch.int64, device=classifier.device)
        for where in ("center", "boundary") for fill in fills
    }  # fmt: skip
    jobs = []
    for (where, fill), classes in found.items():
        for row, side in zip(classes, sides, strict=True):
            seen = height * width - side**2 if where == "center" else side**2
            if seen == height * width:
                row.copy_(clean)
            elif seen == 0:
                blank = torch.tensor(fills[fill], device=classifier.device).view(1, -1, 1, 1)
                row.copy_(classifier.logits(blank.expand(1, -1, height, width)).argmax(1))
            else:
                jobs.append((row, side, fills[fill], where == "boundary"))
    for start in range(0, len(classifier), classifier.batch_size):
        part = slice(start, start + classifier.batch_size)
        pixels = classifier.pixels(part)
        for row, side, color, boundary in jobs:
            row[part] = classifier.logits(occlude(pixels, side, color, boundary=boundary)).argmax(1)
    return {key: classes.cpu() for key, classes in found.items()}


# ---- between ----
# In-between samples: what a network says of images that are two images at once.


def draw_pairs(n: int, count: int, seed: int) -> Tensor:
    """Return ordered pairs of two different images, each pair as likely as any other; a pair may come up again.

    Args:
        n: Number of images, at least 2.
        count: Number of pairs, at least 1.
        seed: Of the draw.

    Returns:
        (count, 2) int64, indices of the images.

    Raises:
        InputError: If there are too few images or pairs.
    """
    if n < 2 or count < 1:
        raise InputError(f"{count} pairs of {n} images cannot be drawn: expected at least 1 pair of at least 2 images")
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
    """Return how often ``between_classes`` shows the network all pairs of images of H×W pixels."""
    return sum(share not in (0, 1) for share in (*lams, *(side**2 / (height * width) for side in sides)))


def between_classes(
    classifier: Classifier, clean: Tensor, pairs: Tensor, lams: Sequence[float], sides: Sequence[int]
) -> tuple[Tensor, Tensor]:
    """Return the predicted classes of all pairs for all λ and all holes; each pair is fetched once.

    Where one image is all there is, its clean class is taken.

    Args:
        classifier: What is measured.
        clean: Its classes of the images as they are, (N,) int64.
        pairs: (P, 2) int64, indices of the images.
        lams: L weights of the first image in Mixup, in [0, 1].
        sides: S sides of the hole through which CutMix shows the second image, in pixels.

    Returns:
        Of Mixup (L, P), of CutMix (S, P), int64 on the CPU.

    Raises:
        InputError: If a λ is outside [0, 1] or a hole does not fit.
    """
    height, width = classifier.images.shape[2:]
    for lam in lams:
        if not 0 <= lam <= 1:
            raise InputError(f"λ is {lam}: expected a share from 0 to 1")
    for side in sides:
        centred_square(height, width, side)
    ways = [(lam, partial(blend, lam=lam)) for lam in lams]
    ways += [(1 - side**2 / (height * width), partial(fill_hole, side=side)) for side in sides]
    found = torch.empty(len(ways), len(pairs), dtype=torch.int64, device=classifier.device)
    jobs = []
    for row, (share, mix) in zip(found, ways, strict=True):
        if share in (0, 1):
            row.copy_(clean[pairs[:, 0 if share == 1 else 1]])
        else:
            jobs.append((row, mix))
    for start in range(0, len(pairs), classifier.batch_size):
        part = slice(start, start + classifier.batch_size)
        first, second = (classifier.pixels(index) for index in pairs[part].unbind(1))
        for row, mix in jobs:
            row[part] = classifier.logits(mix(first, second)).argmax(1)
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
    """Return whether the class is not that of the image with the larger share; of equal shares the first counts.

    Args:
        predicted: (G, P) int64.
        labels: Class ids of the images, (N,) int64.
        pairs: (P, 2) int64.
        shares: G shares of the first image.
    """
    larger = [0 if share >= 0.5 else 1 for share in shares]
    return predicted != labels[pairs.T[larger]]
