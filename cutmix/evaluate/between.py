"""In-between samples: what a network says of images that are two images at once.

Source: Yun et al. 2019 §4.4 and Fig. 5: 50,000 random pairs of test images, mixed by Mixup with λ from 0 to 1 and by
CutMix with a centred hole from 0 to the whole image. Plotted there is how often the predicted class is neither of the
two. The step of λ and of the hole is not given.
"""

from collections.abc import Sequence
from functools import partial

import torch
from torch import Tensor

from cutmix.errors import InputError
from cutmix.evaluate.classifier import Classifier
from cutmix.evaluate.occlusion import centred_square
from cutmix.runtime.seeding import derive_seed


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
