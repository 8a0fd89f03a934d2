"""What every suite of ``cutmix evaluate`` measures: a network with its normalisation, and each image decoded once."""

import contextlib
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from cutmix.data import ArraySet, FileSet, ImageSet
from cutmix.data.decode import read_same_size
from cutmix.data.transforms import Interpolation, ResizeAndCrop, resize
from cutmix.evaluate.attacks import loss_gradient
from cutmix.evaluate.logits import check_finite
from cutmix.runs.record import Record
from cutmix.runtime.progress import duration


class Suite(NamedTuple):
    """What a suite found.

    Attributes:
        records: One for each metric; what they say of the run is added by ``cutmix evaluate``.
        arrays: What came out for each sample, from which the measures can be computed again.
        pictures: PNG files by their names.
    """

    records: list[Record]
    arrays: dict[str, np.ndarray]
    pictures: Mapping[str, bytes] = MappingProxyType({})


class PixelModel(nn.Module):
    """The network behind its normalisation: pixels (n, C, H, W) in [0, 1] to logits (n, K), in float32.

    Args:
        network: Maps normalised images to logits.
        mean: Of each channel, in [0, 1].
        std: Of each channel, positive.
        image_size: Side to which images are resized after their normalisation; None keeps theirs.
    """

    scale: Tensor
    shift: Tensor

    def __init__(
        self, network: nn.Module, mean: tuple[float, ...], std: tuple[float, ...], image_size: int | None = None
    ) -> None:
        super().__init__()
        self.network = network
        self.image_size = image_size
        # The factors of ``normalize``: pixels that are n / 255 give the very logits of a test.
        center, spread = (torch.tensor(values, dtype=torch.float32) for values in (mean, std))
        self.register_buffer("scale", (1 / (255 * spread)).view(-1, 1, 1))
        self.register_buffer("shift", (-center / spread).view(-1, 1, 1))
        parameter = next(network.parameters(), None)
        conv = next((p for p in network.parameters() if p.ndim == 4 and p.shape[1] > 1), None)
        last = conv is not None and conv.is_contiguous(memory_format=torch.channels_last) and not conv.is_contiguous()
        self.memory_format = torch.channels_last if last else torch.contiguous_format
        if parameter is not None:
            self.to(parameter.device)

    def forward(self, pixels: Tensor) -> Tensor:
        """(n, C, H, W) float32 in [0, 1] -> (n, K) float32."""
        images = pixels * 255 * self.scale + self.shift
        if self.image_size is not None:
            images = resize(images, self.image_size)
        return self.network(images.contiguous(memory_format=self.memory_format)).float()


@dataclass(frozen=True, eq=False)
class Classifier:
    """A network and the images that it is measured on.

    Args:
        network: Maps normalised images (n, C, H, W) to logits (n, K); in eval mode, on the device of the measurement.
        mean: Of each channel, pixels in [0, 1].
        std: Of each channel, pixels in [0, 1].
        images: (N, C, H, W) uint8, as they are shown in a test: resized and cropped.
        labels: Class ids, (N,) int64.
        classes: Names of the classes.
        data: Name of the set.
        autocast: Context of the forward passes that do not need a gradient: the run's own arithmetic.
        batch_size: Images at a time.
        seed: Of everything that is drawn.
        image_size: Side to which small images are resized before the network; None keeps theirs.
    """

    network: nn.Module
    mean: tuple[float, ...]
    std: tuple[float, ...]
    images: Tensor
    labels: Tensor
    classes: tuple[str, ...]
    data: str
    autocast: contextlib.AbstractContextManager[Any]
    batch_size: int = 256
    seed: int = 0
    image_size: int | None = None

    def __len__(self) -> int:
        return len(self.images)

    @property
    def device(self) -> torch.device:
        """Where the network computes."""
        return next(self.network.parameters()).device

    def pixels(self, index: Tensor | slice) -> Tensor:
        """Return some images as (n, C, H, W) float32 in [0, 1] on the device."""
        return self.images[index].to(self.device, non_blocking=True).float() / 255

    def exact(self) -> PixelModel:
        """Return the network for pixels in [0, 1], in float32 whatever the run's precision, for gradients."""
        return self._pixel_model

    @cached_property
    def _pixel_model(self) -> PixelModel:
        with torch.inference_mode(False):  # its tensors are to serve gradients, whoever asks for it first
            return PixelModel(self.network, self.mean, self.std, self.image_size).eval()

    @torch.inference_mode()
    def logits(self, pixels: Tensor) -> Tensor:
        """Return the logits (n, K) float32 of pixels (n, C, H, W) in [0, 1], in the run's precision.

        Raises:
            InputError: If one is not finite: of NaN, ``argmax`` would make a class like any other.
        """
        with self.autocast:
            logits = self.exact()(pixels)
        check_finite(logits, "logits of a batch")
        return logits

    def predict(self, change: Callable[[Tensor], Tensor] | None = None) -> Tensor:
        """Return the logits (N, K) float32 of all images on the CPU, each batch of pixels changed before."""
        batches = []
        for start in range(0, len(self), self.batch_size):
            pixels = self.pixels(slice(start, start + self.batch_size))
            batches.append(self.logits(change(pixels) if change else pixels).cpu())
        return torch.cat(batches)


def decode(
    data: ImageSet,
    image_size: int | None,
    crop_fraction: float,
    squash: bool = False,
    interpolation: Interpolation = "bilinear",
) -> ArraySet:
    """Return a set as one tensor: an array set is that already, photographs are decoded, resized and cropped.

    Args:
        data: The set.
        image_size: Side of the squares that photographs are cropped to.
        crop_fraction: Their share of the resized short side.
        squash: Resize both sides alike, whatever the shape.
        interpolation: How photographs are resized.

    Raises:
        InputError: If a file cannot be read.
    """
    if not isinstance(data, FileSet):
        return data
    side = image_size or 224
    images = read_same_size(data.paths, side, side, ResizeAndCrop(side, crop_fraction, squash, interpolation))
    return ArraySet(data.name, data.split, data.classes, data.labels, data.mean, data.std, images, data.skipped)


# ---- forecast ----
# How long a suite will take: the passes that its parts need, times what one takes.

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
