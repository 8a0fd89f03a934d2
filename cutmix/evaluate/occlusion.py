"""Occlusion: the error when a centred square of the image, or all but that square, is hidden.

Source: Yun et al. 2019 §4.4 and Fig. 5 (center and boundary occlusion). The paper fills with zeros and does not say in
which space: black pixels and the data set's mean, which is zero after the normalisation, are both measured.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from cutmix.errors import InputError
from cutmix.evaluate.classifier import Classifier


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
