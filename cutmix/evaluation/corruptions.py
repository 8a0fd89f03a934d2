"""Error on the published corrupted sets: CIFAR-10-C, CIFAR-100-C and ImageNet-C.

Source: Hendrycks and Dietterich 2019. The released files are read, as newly made corruptions are not comparable.
AlexNet's errors are those of the authors' code. The mean is over the 15 corruptions of the benchmark, without its extra
ones.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from scipy.stats import norm
from torch import Tensor

from cutmix.data.decode import read_same_size
from cutmix.data.folder import EXTENSIONS
from cutmix.errors import InputError
from cutmix.evaluation.classification import wilson_interval
from cutmix.evaluation.classifier import Classifier, SuiteResult
from cutmix.runs.record import Record
from cutmix.statistics import too_narrow

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
    """A corrupted data set that fits a classifier; its images are read when they are evaluated.

    Attributes:
        labels: Class ids of the N images, (N,) int64.
        read: Returns the images (n, C, H, W) uint8 of a corruption, a severity counted from 0, and a slice of the N.
        relative: Whether it is ImageNet-C, for which AlexNet's errors are known.
    """

    labels: Tensor
    read: Callable[[int, int, slice], Tensor]
    relative: bool


def open_corrupted(classifier: Classifier, folder: Path) -> Corrupted:
    """Open a corrupted data set and check that it fits a classifier.

    Args:
        classifier: Model and images; the size of the images and the classes have to agree with the data set.
        folder: Holds ``labels.npy`` and one npy file for each corruption (CIFAR-C: 5 × N images, uint8, NHWC, by rising
            severity), or ``CORRUPTION/SEVERITY/CLASS/`` folders of images (ImageNet-C), which are not resized.

    Raises:
        InputError: If files are missing, damaged, of another shape, or do not fit the classifier.
    """
    if (folder / "labels.npy").is_file():
        return _open_arrays(classifier, folder)
    if (folder / CORRUPTIONS[0]).is_dir():
        return _open_folders(classifier, folder)
    raise InputError(
        f"{folder} holds neither labels.npy nor {CORRUPTIONS[0]}/; expected CIFAR-C or ImageNet-C as published"
    )


def corruption_error(classifier: Classifier, corrupted: Corrupted) -> SuiteResult:
    """Evaluate a classifier on a corrupted data set; see ``open_corrupted``.

    Returns:
        Records of ``corruption_err`` (of each corruption, at each severity), ``corruption_mean_err`` (of each, mean
        over the severities), ``mean_corruption_err`` and, for ImageNet-C, ``corruption_ce`` (of each, relative to
        AlexNet) and ``mean_corruption_ce``, in per cent. The intervals of means are over images: the versions of one
        are one sample.

    Raises:
        InputError: If an image cannot be read or has another size, or a logit is not finite.
    """
    n = len(corrupted.labels)
    missed = torch.empty(len(CORRUPTIONS), len(SEVERITIES), n, dtype=torch.bool)
    for corruption, severity in np.ndindex(missed.shape[:2]):
        for start in range(0, n, classifier.batch_size):
            part = slice(start, min(start + classifier.batch_size, n))
            pixels = corrupted.read(corruption, severity, part).to(classifier.device).float() / 255
            classes = classifier.logits(pixels).argmax(1).cpu()
            missed[corruption, severity, part] = classes != corrupted.labels[part]
    classifier.check()
    return SuiteResult(_records(missed, relative=corrupted.relative), {"corruption_right": (~missed).numpy()})


def _records(missed: Tensor, *, relative: bool) -> list[Record]:
    """Return the records of who is wrong, (15, 5, N)."""
    records = []
    for name, corrupted in zip(CORRUPTIONS, missed, strict=True):
        for severity, cases in zip(SEVERITIES, corrupted, strict=True):
            share = wilson_interval(int(cases.sum()), len(cases))
            records.append(_record("corruption_err", *share, of=name, at=float(severity)))
    errors = 100 * missed.double().mean(1)  # of each corruption and image
    alexnet = torch.tensor(list(ALEXNET_ERR.values()), dtype=torch.float64)[:, None]
    kinds = {"corruption_mean_err": ("mean_corruption_err", errors)}
    if relative:
        kinds["corruption_ce"] = ("mean_corruption_ce", 100 * errors / alexnet)
    for one, (mean, values) in kinds.items():
        for name, row in zip(CORRUPTIONS, values, strict=True):
            records.append(_mean(one, row, of=name))
        records.append(_mean(mean, values.mean(0)))
    return records


def _mean(metric: str, values: Tensor, **more: Any) -> Record:
    """Return the record of a mean over images, with its normal 95 % interval."""
    mean, n = float(values.mean()), len(values)
    if n < 2:
        return _record(metric, mean, None, None, n, **more)
    half = norm.ppf(0.975) * float(values.std()) / n**0.5
    low, high = max(mean - half, 0.0), mean + half
    return _record(metric, mean, low, high, n, few=too_narrow(mean, low, high, n, least=0.0), **more)


def _record(metric: str, value: float, low: float | None, high: float | None, n: int, **more: Any) -> Record:
    return Record(metric=metric, value=value, low=low, high=high, n=n, suite="robustness", **more)


# ---- CIFAR-C ----


def _open_arrays(classifier: Classifier, folder: Path) -> Corrupted:
    labels = _labels(classifier, folder / "labels.npy")
    n = len(labels)
    channels, height, width = classifier.images.shape[1:]
    shape = (len(SEVERITIES) * n, height, width, channels)
    sets = [_load(folder / f"{name}.npy", shape) for name in CORRUPTIONS]

    def read(corruption: int, severity: int, part: slice) -> Tensor:
        images = sets[corruption][severity * n + part.start : severity * n + part.stop]
        return torch.from_numpy(np.array(images.transpose(0, 3, 1, 2)))

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
        array = np.load(path, mmap_mode="r", allow_pickle=False)
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
