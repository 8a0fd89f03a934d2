"""Altered test images: partly hidden (occlusion), pairs as one image (in-between samples), published corrupted sets.

Source of occlusion and in-between samples: Yun et al. 2019 §4.4 and Fig. 5. The paper fills hidden pixels with zeros
and does not say in which space: both black pixels and the mean of the data set, which is zero after the normalization,
are evaluated.

Source of CIFAR-10-C, CIFAR-100-C and ImageNet-C: Hendrycks and Dietterich 2019. The released files are read, as newly
made corruptions are not comparable. AlexNet's errors are those of the authors' code. The mean is over the 15
corruptions of the benchmark, without its extra ones.
"""

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from scipy.stats import norm
from torch import Tensor

from cutmix.data.decode import read_same_size
from cutmix.data.folder import EXTENSIONS
from cutmix.data.loaders import Upload
from cutmix.errors import InputError
from cutmix.evaluation.classification import Proportion, mean_interval, wilson_interval
from cutmix.evaluation.classifier import Classifier, SuiteResult
from cutmix.runs.record import Record
from cutmix.runtime.files import regular
from cutmix.runtime.seeding import derive_seed


def centred_square(height: int, width: int, side: int) -> tuple[slice, slice]:
    """Return the rows and columns of the centred square, from ⌊(H − side)/2⌋ and ⌊(W − side)/2⌋ on."""
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
    """Return images (n, C, H, W) with the centred square filled or, with ``boundary``, all pixels outside it."""
    if len(fill) != images.shape[1]:
        raise InputError(f"fill has {len(fill)} values; expected {images.shape[1]}, one for each channel")
    rows, columns = centred_square(images.shape[2], images.shape[3], side)
    color = torch.tensor(fill, dtype=images.dtype).view(-1, 1, 1).to(images.device, non_blocking=True)
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
    """Return the predicted classes of all images at all sides of the square, in one pass over the images.

    Where nothing is hidden, the clean predictions (N,) are used; where everything is hidden, one blank image is
    predicted. The result maps ("center" or "boundary", "black" or "mean") to classes (S, N) int64 on the CPU.
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
    """Return pairs of two different images, (count, 2) int64, all equally likely, with replacement."""
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
    """Return the predicted classes of all pairs (P, 2) for L weights λ of Mixup and S sides of CutMix's hole.

    Where the mix is one of the two images, its clean prediction is used. The results, for Mixup (L, P) and for CutMix
    (S, P), are int64 on the CPU.
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
    """Return whether each class (..., P) is neither that of the first nor of the second image of its pair (P, 2)."""
    return (predicted != labels[pairs[:, 0]]) & (predicted != labels[pairs[:, 1]])


def wrong(predicted: Tensor, labels: Tensor, pairs: Tensor, shares: Sequence[float]) -> Tensor:
    """Return whether each class (G, P) is not that of the image with the larger share, of equal shares the first."""
    larger = [0 if share >= 0.5 else 1 for share in shares]
    return predicted != labels[pairs.T[larger]]


def pairs_interval(cases: Tensor, pairs: Tensor) -> Proportion:
    """Return the share of pairs (P, 2) for which a case (P,) bool is true, with a 95 % interval over the images.

    Pairs that share an image depend on each other. The variance of the share is the sum over two pairs with a common
    image of the product of their deviations, / P², at least that of independent pairs. The interval is Wilson's for as
    many independent pairs as have that variance; where all pairs agree, for as many as there are images.

    Source: Aronow, Samii and Assenova (2015), "Cluster-robust variance estimation for dyadic data".
    """
    count, images, share = len(pairs), int(pairs.max()) + 1, float(cases.double().mean())
    deviation = cases.double() - share
    low, high = pairs.sort(1).values.unbind(1)
    by_image = torch.zeros(images, dtype=torch.float64)
    by_image.index_add_(0, low, deviation).index_add_(0, high, deviation)
    _, pair = torch.unique(low * images + high, return_inverse=True)
    by_pair = torch.zeros(len(pair), dtype=torch.float64).index_add_(0, pair, deviation)  # counted with both images
    variance = float((by_image**2).sum() - (by_pair**2).sum()) / count**2
    alone = share * (1 - share)
    n = alone / max(variance, alone / count) if alone else float(min(count, len(pairs.unique())))
    z = float(norm.ppf(0.975))
    middle, half = share + z**2 / (2 * n), z * (alone / n + z**2 / (4 * n**2)) ** 0.5
    low_end, high_end = ((middle + side * half) / (1 + z**2 / n) for side in (-1, 1))
    low_end, high_end = low_end if share > 0 else 0.0, high_end if share < 1 else 1.0  # exactly, without rounding
    return Proportion(100 * share, 100 * max(low_end, 0.0), 100 * min(high_end, 1.0), count)


# ---- predictions of changed images ----

_Job = tuple[Tensor, Callable[..., Tensor]]  # the row for the classes, and the change of the images


def _predict(classifier: Classifier, jobs: Sequence[_Job], *indices: Tensor) -> None:
    """Fill each job's row with the classes of its images, made from those at the indices; each is fetched once."""
    for start in range(0, len(indices[0]), classifier.batch_size):
        part = slice(start, start + classifier.batch_size)
        images = [classifier.pixels(index[part]) for index in indices]
        for row, change in jobs:
            row[part] = classifier.logits(change(*images)).argmax(1)
    classifier.check()


ALEXNET_ERR = {
    "gaussian_noise": 88.6428, "shot_noise": 89.4468, "impulse_noise": 92.2640, "defocus_blur": 81.9880,
    "glass_blur": 82.6268, "motion_blur": 78.5948, "zoom_blur": 79.8360, "snow": 86.6816, "frost": 82.6572,
    "fog": 81.9324, "brightness": 56.4592, "contrast": 85.3204, "elastic_transform": 64.6056, "pixelate": 71.7840,
    "jpeg_compression": 60.6500,
}  # fmt: skip
"""Top-1 error of AlexNet on ImageNet-C in per cent, mean over the severities, for each of the 15 corruptions."""

CORRUPTIONS = tuple(ALEXNET_ERR)
SEVERITIES = (1, 2, 3, 4, 5)


class Corrupted(NamedTuple):
    """A corrupted data set that fits a classifier; its images are read when they are evaluated."""

    labels: Tensor  # class ids of the N images, (N,) int64
    # returns the images (n, C, H, W) uint8 of a corruption, a severity counted from 0, and a slice of the N
    read: Callable[[int, int, slice], Tensor]
    relative: bool  # whether it is ImageNet-C, for which AlexNet's errors are known


def open_corrupted(classifier: Classifier, folder: Path) -> Corrupted:
    """Open a corrupted data set and check that its image size and classes fit a classifier.

    The folder holds ``labels.npy`` and one npy file for each corruption (CIFAR-C: 5 × N images, uint8, NHWC, by rising
    severity), or ``CORRUPTION/SEVERITY/CLASS/`` folders of images (ImageNet-C), which are not resized.
    """
    if (folder / "labels.npy").is_file():
        return _open_arrays(classifier, folder)
    if (folder / CORRUPTIONS[0]).is_dir():
        return _open_folders(classifier, folder)
    raise InputError(
        f"{folder} holds neither labels.npy nor {CORRUPTIONS[0]}/; expected CIFAR-C or ImageNet-C as published"
    )


def corruption_error(classifier: Classifier, corrupted: Corrupted) -> SuiteResult:
    """Evaluate a classifier on a corrupted data set.

    The records, in per cent, are ``corruption_err`` (of each corruption, at each severity), ``corruption_mean_err`` (of
    each, mean over the severities), ``mean_corruption_err`` and, for ImageNet-C, ``corruption_ce`` (of each, relative
    to AlexNet) and ``mean_corruption_ce``. The intervals of means are over images: all versions of an image are one
    sample.
    """
    n, labels, upload = len(corrupted.labels), corrupted.labels.to(classifier.device), Upload(classifier.device)
    found = torch.empty(len(CORRUPTIONS), len(SEVERITIES), n, dtype=torch.bool, device=classifier.device)
    for corruption, severity in np.ndindex(found.shape[:2]):
        for start in range(0, n, classifier.batch_size):
            part = slice(start, min(start + classifier.batch_size, n))
            pixels = upload([corrupted.read(corruption, severity, part)])[0].float() / 255
            found[corruption, severity, part] = classifier.logits(pixels).argmax(1) != labels[part]
    classifier.check()
    missed = found.cpu()
    return SuiteResult(_records(missed, relative=corrupted.relative), {"corruption_right": (~missed).numpy()})


def _records(missed: Tensor, *, relative: bool) -> list[Record]:
    """Return the records of the wrong predictions, (15, 5, N) bool."""
    records = []
    for name, corrupted in zip(CORRUPTIONS, missed, strict=True):
        for severity, cases in zip(SEVERITIES, corrupted, strict=True):
            records.append(rate("corruption_err", cases, of=name, at=float(severity)))
    errors = 100 * missed.double().mean(1)  # of each corruption and image
    alexnet = torch.tensor(list(ALEXNET_ERR.values()), dtype=torch.float64)[:, None]
    kinds = {"corruption_mean_err": ("mean_corruption_err", errors)}
    if relative:
        kinds["corruption_ce"] = ("mean_corruption_ce", 100 * errors / alexnet)
    for metric, (mean, values) in kinds.items():
        most = 100.0 if values is errors else np.inf  # of AlexNet's error, a classifier may have more than all
        records += [_mean(metric, row, most, of=name) for name, row in zip(CORRUPTIONS, values, strict=True)]
        records.append(_mean(mean, values.mean(0), most))
    return records


def _mean(metric: str, values: Tensor, most: float, **more: Any) -> Record:
    """Return the record of a mean over images, at most ``most``."""
    ends, n = mean_interval(values.numpy(), most), len(values)
    return Record(metric=metric, value=float(values.mean()), **ends._asdict(), n=n, suite="robustness", **more)


def rate(metric: str, cases: Tensor, **more: Any) -> Record:
    """Return the record of a share of samples, in per cent."""
    share = wilson_interval(int(cases.sum()), len(cases))
    return Record(metric=metric, **share._asdict(), suite="robustness", **more)


# ---- CIFAR-C ----


def _open_arrays(classifier: Classifier, folder: Path) -> Corrupted:
    labels = _labels(classifier, folder / "labels.npy")
    n = len(labels)
    channels, *sides = classifier.images.shape[1:]
    if classifier.cut:
        sides = [*_load(folder / f"{CORRUPTIONS[0]}.npy", None).shape[1:3]]
    shape = (len(SEVERITIES) * n, *sides, channels)
    sets = [_load(folder / f"{name}.npy", shape) for name in CORRUPTIONS]

    def read(corruption: int, severity: int, part: slice) -> Tensor:
        chosen = sets[corruption][severity * n + part.start : severity * n + part.stop]
        images = torch.from_numpy(np.array(chosen.transpose(0, 3, 1, 2)))
        return classifier.cut(images) if classifier.cut else images

    return Corrupted(labels, read, relative=False)


def _labels(classifier: Classifier, path: Path) -> Tensor:
    """Return the labels (N,) int64, which the file repeats for each severity."""
    labels = _load(path, None)
    if labels.ndim != 1 or not len(labels) or len(labels) % len(SEVERITIES) or labels.dtype.kind not in "iu":
        raise InputError(f"{path} is {labels.shape} {labels.dtype}; expected one class id for each of 5 × N images")
    rows = torch.from_numpy(labels.astype(np.int64)).view(len(SEVERITIES), -1)
    if not bool((rows == rows[0]).all()):
        raise InputError(f"{path} has different labels for different severities; expected the same images five times")
    if int(rows.min()) < 0 or int(rows.max()) + 1 != len(classifier.classes):
        raise InputError(
            f"{path} has classes {int(rows.min())} to {int(rows.max())}; expected the model's, 0 to "
            f"{len(classifier.classes) - 1}"
        )
    return rows[0]


def _load(path: Path, shape: tuple[int, ...] | None) -> np.ndarray:
    """Map an array into memory, which has to be uint8 if its shape is given."""
    try:
        array = np.load(regular(path), mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        reason = "no such file" if isinstance(error, FileNotFoundError) else " ".join(str(error).split())
        raise InputError(f"{path} cannot be read as an array: {reason}") from None
    if shape and (array.shape != shape or array.dtype != np.uint8):
        raise InputError(f"{path} is {array.shape} {array.dtype}; expected {shape} uint8")
    return array


# ---- ImageNet-C ----


def _open_folders(classifier: Classifier, folder: Path) -> Corrupted:
    folders = [folder / name / str(severity) for name in CORRUPTIONS for severity in SEVERITIES]
    if missing := [path for path in folders if not path.is_dir()]:
        raise InputError(f"{missing[0]} does not exist; expected 15 corruptions of 5 severities")
    names = _images(folders[0])
    found = {name.split("/")[0] for name in names}
    if differing := found ^ set(classifier.classes):
        raise InputError(f"{folders[0]} and the model differ in class '{min(differing)}'; expected the same classes")
    number = {name: index for index, name in enumerate(classifier.classes)}
    labels = torch.tensor([number[name.split("/")[0]] for name in names])
    if other := next((path for path in folders if _images(path) != names), None):
        raise InputError(f"{other} and {folders[0]} hold different images; expected the same file names")

    def read(corruption: int, severity: int, part: slice) -> Tensor:
        path = folders[corruption * len(SEVERITIES) + severity]
        return read_same_size([path / name for name in names[part]], *classifier.images.shape[2:])

    return Corrupted(labels, read, relative=True)


def _images(folder: Path) -> list[str]:
    """Return CLASS/FILE of every image in the class folders, sorted."""
    files = (path for path in folder.glob("*/*") if path.suffix.lower() in EXTENSIONS)
    return sorted(path.relative_to(folder).as_posix() for path in files)
