"""Batches: their samples on every process, and their augmentation on the device.

Order and augmentation are functions of the seed, the epoch and the position.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
import torch
import torch.nn.functional as F
from torch import Generator, Tensor

from cutmix.config.recipe import check_policy
from cutmix.errors import InputError
from cutmix.runtime.seeding import derive_seed

WINDOW = 16
"""Shards that are read at a time, in random order: disks and networks read few places faster than many."""

_INDEX_BITS = 32


class TrainOrder:
    """The samples of this rank in each batch, shuffled by the seed and the epoch.

    All ranks have equally many: the last ones are filled up from the start of the epoch's order. The batches of a rank
    differ by one sample at most, and none is a single sample, which batch normalization cannot take. ``balance`` are
    class ids (size,), of which each class is drawn equally often; ``repeats`` is the number of copies of a sample in a
    row. Neither changes the number of samples in an epoch. ``shards`` are the shard of each sample, (size,), if they
    are read a few shards at a time.

    Source: Hoffer et al. 2020, "Augment your batch", and Berman et al. 2019, for ``repeats``; timm's
    ``RepeatAugSampler`` gives the copies to different processes, here they are in one batch.
    """

    def __init__(
        self, size: int, batch_size: int, seed: int, rank: int, world_size: int, balance: Tensor | None = None,
        repeats: int = 1, shards: np.ndarray | None = None,
    ) -> None:  # fmt: skip
        number = None if shards is None else np.unique(shards, return_inverse=True)[1]
        self.shards = None if number is None or number.max() < WINDOW else number.astype(np.uint16)
        self.size, self.batch_size, self.seed, self.repeats = size, batch_size, seed, repeats
        self.members = [] if balance is None else [(balance == label).nonzero()[:, 0] for label in balance.unique()]
        self.rank, self.world_size = rank, world_size
        own = batch_size // world_size
        self.bounds = _divide(max(math.ceil(size / world_size), min(2, own, size)), own)
        self.steps = len(self.bounds) - 1

    def indices(self, epoch: int) -> Tensor:
        """Return the epoch's order, repeated until the last batch is full."""
        generator = torch.Generator().manual_seed(derive_seed(self.seed, "order", epoch))
        order = self._balanced(generator) if self.members else None
        if self.shards is not None:
            order = self._in_windows(torch.arange(self.size) if order is None else order, generator)
        elif order is None:
            order = torch.randperm(self.size, generator=generator)
        if self.repeats > 1:
            order = order.repeat_interleave(self.repeats)[: self.size]
        length = max(self.steps * self.batch_size, self.bounds[-1] * self.world_size)
        rounds, rest = divmod(length, self.size)
        return torch.cat([*[order] * rounds, order[:rest]])

    def draws(self, epoch: int) -> Tensor:
        """Return the epoch's order; if samples repeat, each index includes the number of its earlier draws.

        A repeated image is thus augmented differently each time; ``split_draw`` splits a draw.
        """
        indices = self.indices(epoch)
        return indices + (_repeats(indices) << _INDEX_BITS) if self.members or self.repeats > 1 else indices

    def _in_windows(self, order: Tensor, generator: torch.Generator) -> Tensor:
        """Return the samples in a random order that goes through ``WINDOW`` random shards at a time."""
        assert self.shards is not None
        window = (torch.randperm(int(self.shards.max()) + 1, generator=generator) // WINDOW).numpy().astype(np.uint16)
        of = window[self.shards[order.numpy()]]
        parts = order[np.argsort(of, kind="stable")].split(np.bincount(of).tolist())
        return torch.cat([part[torch.randperm(len(part), generator=generator)] for part in parts])  # each in the cache

    def _balanced(self, generator: torch.Generator) -> Tensor:
        """Return equally many samples of each class, one more of some; none again before all others of its class."""
        share, rest = divmod(self.size, len(self.members))
        more = torch.randperm(len(self.members), generator=generator) < rest
        drawn = []
        for own, extra in zip(self.members, more.tolist(), strict=True):
            rounds = math.ceil((share + extra) / len(own))
            shuffled = [own[torch.randperm(len(own), generator=generator)] for _ in range(rounds)]
            drawn.append(torch.cat([own[:0], *shuffled])[: share + extra])
        return torch.cat(drawn)[torch.randperm(self.size, generator=generator)]

    def batch(self, step: int) -> slice:
        """Return the positions of a batch of all ranks in the epoch's order."""
        return slice(self.bounds[step] * self.world_size, self.bounds[step + 1] * self.world_size)

    def share(self, step: int) -> slice:
        """Return this rank's positions in the epoch's order."""
        first, share = self.batch(step).start, self.bounds[step + 1] - self.bounds[step]
        return slice(first + self.rank * share, first + (self.rank + 1) * share)


def _divide(count: int, size: int) -> list[int]:
    """Return the bounds of the batches of one rank: as few as possible of at most ``size``, as equal as possible."""
    steps = math.ceil(count / size)
    if size > 1:
        steps = max(min(steps, count // 2), 1)  # batches of two, and one of three
    return [step * count // steps for step in range(steps + 1)]


class TestOrder:
    """The samples of this rank in each batch, in their order: r, r + world_size, and so on."""

    def __init__(self, size: int, batch_size: int, rank: int, world_size: int) -> None:
        self.all = torch.arange(rank, size, world_size)
        self.batch_size = batch_size // world_size
        self.steps = math.ceil(len(self.all) / self.batch_size)

    def indices(self, epoch: int) -> Tensor:
        """Return this rank's indices, the same in every epoch."""
        return self.all

    def draws(self, epoch: int) -> Tensor:
        """Return ``indices``: no sample is repeated."""
        return self.all

    def share(self, step: int) -> slice:
        """Return the positions of a batch in them."""
        return slice(step * self.batch_size, (step + 1) * self.batch_size)


def _repeats(indices: Tensor) -> Tensor:
    """Return the number of earlier occurrences of each value, (n,) int64."""
    ordered, order = indices.sort(stable=True)
    before = torch.empty_like(order)
    before[order] = torch.arange(len(order)) - torch.searchsorted(ordered, ordered)
    return before


def split_draw(draw: int) -> tuple[int, tuple[int, ...]]:
    """Return the index of a draw, and the number of earlier draws of the sample in the epoch: () for none."""
    index, repeats = draw & ((1 << _INDEX_BITS) - 1), draw >> _INDEX_BITS
    return index, (repeats,) if repeats else ()


PaddingMode = Literal["constant", "reflect"]
Interpolation = Literal["bilinear", "bicubic"]

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


@dataclass(frozen=True)
class Augment:
    """The augmentation of training images. The defaults change nothing but the size of image files."""

    image_size: int | None = None  # height and width of the batches in pixels; None keeps an array set's own size
    crop_padding: int = 0  # array sets: pixels added at each border before the random crop; 0 does not crop
    # array sets: "constant" pads with black, "reflect" mirrors without repeating the border
    padding_mode: PaddingMode = "constant"
    flip: bool = False  # mirror half of the images
    # file sets: smallest and largest share of the image's area that the random crop covers
    crop_scale: tuple[float, float] = (0.08, 1.0)
    squash: bool = False  # file sets: resize each image to a square, whatever its shape, and do not resize the crop
    crop_fraction: float = 0.875  # file sets, with ``squash``: the random crop's share of the square's side, in (0, 1]
    interpolation: Interpolation = "bilinear"  # file sets: interpolation of the resize
    # "none", "imagenet", "cifar10", "svhn", "trivial" or timm's name of a RandAugment: the policy, applied before
    # the crop of an array set (as its authors have it) and after that of a file
    auto_augment: str = "none"
    color_jitter: float = 0.0  # largest change of brightness, contrast and saturation, in [0, 1]; see ``draw_color``
    lighting: float = 0.0  # standard deviation of the noise along ImageNet's principal colours; see ``draw_color``
    random_erasing: float = 0.0  # probability of an erased rectangle, in [0, 1]; see ``erase``

    def __post_init__(self) -> None:
        if self.crop_padding < 0 or self.padding_mode not in get_args(PaddingMode):
            raise InputError(
                f"crop_padding is {self.crop_padding} and padding_mode '{self.padding_mode}'; expected 0 or more, and "
                "'constant' or 'reflect'"
            )
        if not 0 < self.crop_scale[0] <= self.crop_scale[1] <= 1:
            raise InputError(f"crop_scale is {self.crop_scale}; expected two shares, 0 < least ≤ largest ≤ 1")
        check_crop_fraction(self.crop_fraction)
        check_policy(self.auto_augment)


def check_crop_fraction(value: float) -> None:
    """Refuse a share of the resized side that is no share."""
    if not 0 < value <= 1:
        raise InputError(f"crop_fraction is {value}; expected a share above 0, at most 1")


# ---- batches on their device ----


@dataclass(frozen=True, eq=False)
class CropFlip:
    """A drawn crop and flip for each of n images, applied without a loop and without waiting for the device."""

    offsets: Tensor  # (n, 2) int64: top and left of the crop inside the padded image, each in [0, 2 · padding]
    flips: Tensor  # (n,) bool: mirror left and right, after the crop
    padding: int  # pixels added at each border
    padding_mode: PaddingMode = "constant"  # "constant" pads with black, "reflect" mirrors without repeating the border

    def __len__(self) -> int:
        return len(self.flips)

    def __getitem__(self, index: slice) -> "CropFlip":
        return CropFlip(self.offsets[index], self.flips[index], self.padding, self.padding_mode)

    def to(self, device: torch.device | str) -> "CropFlip":
        """Return the same draw on another device."""
        return CropFlip(self.offsets.to(device), self.flips.to(device), self.padding, self.padding_mode)

    def apply(self, images: Tensor) -> Tensor:
        """Return images (n, C, H, W), which are on the draw's device, cropped and flipped, of the same dtype."""
        size = (images.shape[2], images.shape[3])
        if self.padding_mode == "reflect":
            return crop_and_flip(images, self.offsets - self.padding, self.flips, size)
        padded = F.pad(images, (self.padding,) * 4) if self.padding else images
        return crop_and_flip(padded, self.offsets, self.flips, size)


def crop_and_flip(images: Tensor, offsets: Tensor, flips: Tensor, size: tuple[int, int]) -> Tensor:
    """Cut a rectangle of height and width ``size`` out of each image (n, C, H, W) and mirror some of the rectangles.

    There is no loop over the images: every output pixel is fetched once, by an index that the channels share. Beyond
    the border, the image is mirrored. ``offsets`` (n, 2) int64 are top and left.
    """
    (n, channels, *sides), (height, width) = images.shape, size
    across = torch.arange(width, device=images.device)
    rows = offsets[:, :1] + torch.arange(height, device=images.device)
    cols = offsets[:, 1:] + torch.where(flips[:, None], width - 1 - across, across)
    rows, cols = _reflect(rows, sides[0]), _reflect(cols, sides[1])
    pixels = (rows * sides[1])[:, :, None] + cols[:, None, :]
    index = pixels.view(n, 1, height * width).expand(-1, channels, -1)
    return images.flatten(2).gather(2, index).view(n, channels, height, width)


def _reflect(position: Tensor, size: int) -> Tensor:
    """Fold positions from beyond the border back inside, the border itself not repeated."""
    return (size - 1) - ((size - 1) - position.abs()).abs()


def draw_crop_flip(
    n: int, padding: int, flip: bool, generator: Generator, padding_mode: PaddingMode = "constant"
) -> CropFlip:
    """Draw a random crop of the padded image and, with ``flip``, a mirroring in half of the cases, n times.

    Source: the crop and flip of the paper's CIFAR training (padding 4, zeros), as ``torchvision.transforms`` has them.
    """
    offsets = torch.randint(0, 2 * padding + 1, (n, 2), generator=generator)
    flips = torch.rand(n, generator=generator) < (0.5 if flip else 0.0)
    return CropFlip(offsets, flips, padding, padding_mode)


def normalize(
    images: Tensor,
    mean: Tensor | Sequence[float],
    std: Tensor | Sequence[float],
    *,
    channels_last: bool = False,
) -> Tensor:
    """Return (images / 255 − mean) / std, channel by channel, (n, C, H, W) float32.

    ``images`` are uint8; or float32 of the same range, which is overwritten. Mean and std are for pixels in [0, 1]; as
    tensors on the images' device they save a copy.
    """
    mean = torch.as_tensor(mean, dtype=torch.float32, device=images.device)
    std = torch.as_tensor(std, dtype=torch.float32, device=images.device)
    scale, shift = (1 / (255 * std)).view(-1, 1, 1), (-mean / std).view(-1, 1, 1)
    result = images.float().mul_(scale).add_(shift)
    # reordered last: arithmetic with a factor for each channel is several times slower on channels_last memory
    return result.contiguous(memory_format=torch.channels_last) if channels_last else result


def denormalize(images: Tensor, mean: Sequence[float], std: Sequence[float]) -> Tensor:
    """Return normalized images (n, C, H, W), on any device, as pixels in [0, 1] on the CPU, for drawing."""
    shift, scale = (torch.tensor(values).view(-1, 1, 1) for values in (mean, std))
    return (images.float().cpu() * scale + shift).clamp(0, 1)


def drawable(pixels: Tensor) -> np.ndarray:
    """Return pixels (n, C, H, W) in [0, 1] as matplotlib draws them, (n, H, W, 3): three channels, or one as grey."""
    shown = pixels[:, :3] if pixels.shape[1] > 2 else pixels[:, :1].expand(-1, 3, -1, -1)
    return shown.permute(0, 2, 3, 1).cpu().numpy()


def resize(images: Tensor, size: int) -> Tensor:
    """Resize float images (n, C, H, W) to (n, C, size, size): bilinear, antialiased; the same object if it fits."""
    if images.shape[2:] == (size, size) or not len(images):
        return images
    return F.interpolate(images, (size, size), mode="bilinear", antialias=True, align_corners=False)


# Principal components of ImageNet's pixels, taken as 0 to 1: Krizhevsky et al. 2012.
_EIGENVALUES = (0.2175, 0.0188, 0.0045)
_EIGENVECTORS = (-0.5675, 0.7192, 0.4009), (-0.5808, -0.0045, -0.8140), (-0.5836, -0.6948, 0.4203)


@dataclass(frozen=True, eq=False)
class ColorDraw:
    """Colours drawn for n images, applied without a loop over them and without waiting for the device.

    Each image is moved three times towards another image, in an order of its own: brightness towards black, contrast
    towards its mean grey, saturation towards its grey image: x + a (target − x). Lighting then adds one colour, the
    principal components of ImageNet's pixels with random weights. Nothing is clipped.
    """

    order: Tensor  # (n, 3) int64, a permutation of 0 brightness, 1 contrast, 2 saturation for each image
    amounts: Tensor  # (n, 3) float32, the a of each step in that order; below 0 moves away from the target
    light: Tensor  # (n, 3) float32, the added colour, in units of the whole range

    def __len__(self) -> int:
        return len(self.order)

    def __getitem__(self, index: slice) -> "ColorDraw":
        return ColorDraw(self.order[index], self.amounts[index], self.light[index])

    def apply(self, images: Tensor) -> Tensor:
        """Change the colours of images (n, 3, H, W) uint8; return float32 in the same units, not clipped."""
        order, amounts, light = (
            part.to(images.device, non_blocking=True) for part in (self.order, self.amounts, self.light)
        )
        result = images.float()
        for step in range(3):
            what = order[:, step].view(-1, 1, 1, 1)
            red, green, blue = result.split(1, dim=1)
            grey = 0.299 * red + 0.587 * green + 0.114 * blue
            target = torch.where(what == 2, grey, torch.where(what == 1, grey.mean((2, 3), keepdim=True), 0.0))
            result = torch.lerp(result, target, amounts[:, step].view(-1, 1, 1, 1))
        return result.add_(255 * light[:, :, None, None])


def erase(images: Tensor, probability: float, generator: Generator) -> Tensor:
    """Set a random rectangle of some normalized images to 0, their mean colour, in place and without a loop.

    Its area is uniform in [2 %, 33 %] of the image, its aspect ratio log-uniform in [0.3, 3.3], cut to the image.

    Source: Zhong et al. 2020, "Random Erasing Data Augmentation"; ranges as ``torchvision.transforms.RandomErasing``.
    """
    n, _, height, width = images.shape
    u = torch.rand(5, n, generator=generator)
    area = height * width * (0.02 + 0.31 * u[1])
    ratio = torch.exp(math.log(0.3) + (math.log(3.3) - math.log(0.3)) * u[2])
    inside = []
    for length, own, place in ((height, (area * ratio).sqrt(), u[3]), (width, (area / ratio).sqrt(), u[4])):
        own = own.round().clamp(max=length)
        start = (place * (length - own + 1)).floor()
        position = torch.arange(length)
        inside.append((position >= start[:, None]) & (position < (start + own)[:, None]))
    chosen = (u[0] < probability)[:, None]
    rows, columns = (side.to(images.device, non_blocking=True) for side in (inside[0] & chosen, inside[1]))
    return images.masked_fill_(rows[:, None, :, None] & columns[:, None, None, :], 0.0)


def draw_color(n: int, jitter: float, lighting: float, generator: Generator) -> ColorDraw:
    """Draw colours for n images: every a ~ U[−jitter, jitter], every principal component's weight ~ N(0, lighting²).

    The paper's code has a jitter of 0.4 and a lighting of 0.1.

    Source: ``ColorJitter`` and ``Lighting`` in the CutMix authors' ``utils.py``; the paper does not mention them.
    """
    order = torch.rand((n, 3), generator=generator).argsort(1)
    amounts = (2 * torch.rand((n, 3), generator=generator) - 1) * jitter
    components = torch.randn((n, 3), generator=generator) * lighting * torch.tensor(_EIGENVALUES)
    return ColorDraw(order, amounts, components @ torch.tensor(_EIGENVECTORS).T)
