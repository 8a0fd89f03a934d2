"""A classifier for every suite of ``cutmix evaluate``: the model, its decoded images, and its outputs, checked."""

import contextlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property, partial
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import ArrayLike
from PIL import Image
from torch import Tensor, nn

from cutmix.config.recipe import FILE_SIZE
from cutmix.data import ArraySet, FileSet, ImageSet
from cutmix.data.decode import in_threads, read_same_size
from cutmix.data.image_files import Decoder, ResizeAndCrop
from cutmix.data.loaders import Upload
from cutmix.data.transforms import Interpolation, normalize, resize
from cutmix.errors import InputError
from cutmix.runs.record import Record
from cutmix.runtime.device import check_memory


class SuiteResult(NamedTuple):
    """The records, per-sample arrays and figures of a suite."""

    records: list[Record]  # one for each metric, without the fields that all suites share
    arrays: dict[str, np.ndarray]  # per-sample results, from which the metrics can be computed again
    figures: Mapping[str, bytes] = MappingProxyType({})  # PNG files by name


class PixelModel(nn.Module):
    """A model behind its normalization and resize: maps pixels (n, C, H, W) in [0, 1] to logits (n, K), in float32."""

    mean: Tensor
    std: Tensor

    def __init__(
        self, network: nn.Module, mean: tuple[float, ...], std: tuple[float, ...], image_size: int | None = None
    ) -> None:
        super().__init__()
        self.network = network
        self.image_size = image_size
        device = next((parameter.device for parameter in network.parameters()), None)
        for name, values in (("mean", mean), ("std", std)):
            self.register_buffer(name, torch.tensor(values, dtype=torch.float32, device=device))
        conv = next((p for p in network.parameters() if p.ndim == 4 and p.shape[1] > 1), None)
        last = conv is not None and conv.is_contiguous(memory_format=torch.channels_last) and not conv.is_contiguous()
        self.memory_format = torch.channels_last if last else torch.contiguous_format

    def forward(self, pixels: Tensor) -> Tensor:
        """(n, C, H, W) float32 in [0, 1] -> (n, K) float32."""
        images = normalize(pixels * 255, self.mean, self.std)  # of n / 255 exactly as of bytes by the test loader
        if self.image_size is not None:
            images = resize(images, self.image_size)
        return self.network(images.contiguous(memory_format=self.memory_format)).float()


@dataclass(frozen=True, eq=False)
class Classifier:
    """A model and the images that it is evaluated on."""

    # maps normalized images (n, C, H, W) to logits (n, K); in eval mode, on the device to compute on
    network: nn.Module
    mean: tuple[float, ...]
    std: tuple[float, ...]
    images: Tensor  # (N, C, H, W) uint8, resized and cropped as in a test
    labels: Tensor  # class ids, (N,) int64
    classes: tuple[str, ...]
    data: str  # name of the data set
    # context of the forward passes that need no gradient, in the run's precision
    autocast: contextlib.AbstractContextManager[Any]
    batch_size: int = 256
    seed: int = 0
    image_size: int | None = None  # side to which small images are resized before the network; None keeps their size
    # resizes and crops arrays (n, C, h, w) uint8 of a data set as ``images`` were; None where these are as they were
    cut: Callable[[Tensor], Tensor] | None = None

    def __len__(self) -> int:
        return len(self.images)

    @property
    def device(self) -> torch.device:
        """The device of the network."""
        return next(self.network.parameters()).device

    def pixels(self, index: Tensor | slice) -> Tensor:
        """Return some images as (n, C, H, W) float32 in [0, 1] on the device."""
        return self._upload([self.images[index]])[0].float() / 255

    @cached_property
    def _upload(self) -> Upload:
        return Upload(self.device)

    @cached_property
    def exact(self) -> PixelModel:
        """The model for pixels in [0, 1] and gradients, in float32 whatever the run's precision."""
        with torch.inference_mode(False):  # its tensors must serve gradients, even if inference asks for it first
            return PixelModel(self.network, self.mean, self.std, self.image_size).eval()

    @torch.inference_mode()
    def logits(self, pixels: Tensor) -> Tensor:
        """Return the logits (n, K) float32 of pixels (n, C, H, W) in [0, 1], in the run's precision.

        Values that are not finite are counted on the device, so that no batch waits for a GPU; :meth:`check` refuses
        them after the last batch.
        """
        with self.autocast:
            logits = self.exact(pixels)
        self._nonfinite.add_(logits.isfinite().logical_not_().sum())
        return logits

    @cached_property
    def _nonfinite(self) -> Tensor:
        return torch.zeros((), dtype=torch.int64, device=self.device)

    @torch.inference_mode()
    def check(self) -> None:
        """Raise an InputError if a logit since the last call was not finite: ``argmax`` would turn NaN into a class."""
        count = int(self._nonfinite)
        self._nonfinite.zero_()
        refuse_nonfinite(count, "logits")

    def predict(self, change: Callable[[Tensor], Tensor] | None = None) -> Tensor:
        """Return the logits (N, K) float32 of all images on the CPU; ``change`` alters each batch (n, C, H, W)."""
        batches = []
        for start in range(0, len(self), self.batch_size):
            pixels = self.pixels(slice(start, start + self.batch_size))
            batches.append(self.logits(change(pixels) if change else pixels))
        logits = torch.cat(batches).cpu()
        self.check()
        return logits


def decode(
    data: ImageSet, image_size: int | None, crop_fraction: float, squash: bool, interpolation: Interpolation,
    decoder: Decoder,
) -> ArraySet:  # fmt: skip
    """Return a data set as one tensor: arrays unchanged, files resized and cropped to ``image_size`` or 224."""
    if not isinstance(data, FileSet):
        return data
    side = image_size or FILE_SIZE
    check_memory(len(data) * data.in_chans * side**2, f"--image-size is {side}: decoding {len(data):,} images")
    cut = ResizeAndCrop(side, crop_fraction, squash, interpolation, data.in_chans)
    images = read_same_size(data.paths, side, side, partial(cut.read, decoder=decoder), data.in_chans)
    return ArraySet(data.name, data.split, data.classes, data.labels, data.mean, data.std, images, data.skipped)


def cut_arrays(
    images: Tensor, image_size: int | None, crop_fraction: float, squash: bool, interpolation: Interpolation
) -> Tensor:
    """Return images (n, C, h, w) uint8 as ``decode`` returns those of files, (n, C, image_size, image_size)."""
    n, channels, side = len(images), images.shape[1], image_size or FILE_SIZE
    check_memory(n * channels * side**2, f"--image-size is {side}: resizing {n:,} images")
    cut = ResizeAndCrop(side, crop_fraction, squash, interpolation, channels)
    result = images.new_empty((n, channels, side, side))

    def read(index: int) -> None:
        pixels = images[index].permute(1, 2, 0).numpy()
        shown = pixels[..., 0] if channels == 1 else pixels
        result[index] = cut(Image.fromarray(shown) if channels in (1, 3) else pixels)

    in_threads(read, range(n))
    return result


# ---- outputs, converted to float64 ----


def as_logits(logits: ArrayLike | Tensor) -> np.ndarray:
    """Return finite logits of two classes or more as (N, K) float64; refuse probabilities."""
    z = _matrix(logits, "logits")
    if z.min() >= 0 and _sum_to_one(z, logits):
        raise InputError("probabilities were given; expected logits, the model's output before the softmax")
    return z


def as_probabilities(probabilities: ArrayLike | Tensor) -> np.ndarray:
    """Return probabilities of two classes or more as (N, K) float64; refuse logits."""
    p = _matrix(probabilities, "probabilities")
    if p.min() < 0 or not _sum_to_one(p, probabilities):
        raise InputError(
            f"the values range from {p.min():.4g} to {p.max():.4g}; expected probabilities, which sum to 1 in each "
            "row: apply the softmax to logits first"
        )
    return p


def class_ids(labels: ArrayLike | Tensor, of: np.ndarray) -> np.ndarray:
    """Return the labels (N,) of logits or probabilities (N, K), checked to be integers from 0 to K − 1."""
    ids = as_numpy(labels)
    if ids.shape != (len(of),) or not np.issubdtype(ids.dtype, np.integer):
        raise InputError(f"the labels are {ids.dtype} of shape {ids.shape}; expected {len(of)} class ids, integers")
    if ids.min() < 0 or ids.max() >= of.shape[1]:
        raise InputError(
            f"the labels range from {ids.min()} to {ids.max()}; expected 0 to {of.shape[1] - 1}, as there are "
            f"{of.shape[1]} classes"
        )
    return ids


def as_numpy(values: ArrayLike | Tensor) -> np.ndarray:
    """Return an array on the CPU; floating-point tensors, bfloat16 among them, become float64."""
    if isinstance(values, Tensor):
        values = values.detach().cpu()
        return (values.double() if values.is_floating_point() else values).numpy()
    return np.asarray(values)


def real_numbers(values: ArrayLike | Tensor, what: str) -> np.ndarray:
    """Return an array on the CPU as float64; refuse other types and rows of different lengths."""
    try:
        array = as_numpy(values)
    except ValueError:
        raise InputError(f"the {what} have rows of different lengths; expected an array") from None
    if array.dtype.kind not in "biuf":
        raise InputError(f"the {what} are {array.dtype}; expected real numbers")
    return array.astype(np.float64)


def check_finite(values: np.ndarray | Tensor, what: str) -> None:
    """Raise an InputError with the number of values that are not finite, if there are any."""
    finite = values.isfinite() if isinstance(values, Tensor) else np.isfinite(values)
    refuse_nonfinite(int((~finite).sum()), what)


def refuse_nonfinite(count: int, what: str) -> None:
    """Raise an InputError if a count of values that are not finite is above 0."""
    if count:
        raise InputError(f"{count:,} of the {what} are NaN or infinite; expected finite numbers")


def _matrix(values: ArrayLike | Tensor, what: str) -> np.ndarray:
    array = real_numbers(values, what)
    if array.ndim != 2 or not len(array) or array.shape[1] < 2:
        raise InputError(f"the {what} have the shape {array.shape}; expected (images, classes), two classes or more")
    check_finite(array, what)
    return array


def _sum_to_one(rows: np.ndarray, given: ArrayLike | Tensor) -> bool:
    """Return whether each row sums to 1 within the precision of the numbers that were given."""
    kind = given.dtype if isinstance(given, Tensor) else np.asarray(given).dtype
    eps = 0.0
    if isinstance(kind, torch.dtype):
        eps = torch.finfo(kind).eps if kind.is_floating_point else 0.0
    elif kind.kind == "f":
        eps = float(np.finfo(kind).eps)
    return bool(np.allclose(rows.sum(1), 1, rtol=0, atol=max(1e-3, 2 * eps)))  # bfloat16 was seen 2.8e-3 away
