"""Crop, flip and normalise a whole batch on its device; and the transforms of image files."""

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Generator, Tensor

from cutmix.errors import InputError

PaddingMode = Literal["constant", "reflect"]
Interpolation = Literal["bilinear", "bicubic"]
AutoAugmentPolicy = Literal["none", "imagenet", "cifar10", "svhn", "rand-m9-mstd0.5-inc1"]


@dataclass(frozen=True, eq=False)
class CropFlip:
    """A drawn crop and flip for each of n images, applied without a loop and without waiting for the device.

    Args:
        offsets: (n, 2) int64: top and left of the crop inside the padded image, each in [0, 2 · padding].
        flips: (n,) bool: mirror left and right, after the crop.
        padding: Pixels added at each border.
        padding_mode: "constant" pads with black, "reflect" mirrors without repeating the border.
    """

    offsets: Tensor
    flips: Tensor
    padding: int
    padding_mode: PaddingMode = "constant"

    def __len__(self) -> int:
        return len(self.flips)

    def __getitem__(self, index: slice) -> "CropFlip":
        return CropFlip(self.offsets[index], self.flips[index], self.padding, self.padding_mode)

    def to(self, device: torch.device | str) -> "CropFlip":
        """Return the same draw on another device."""
        return CropFlip(self.offsets.to(device), self.flips.to(device), self.padding, self.padding_mode)

    def apply(self, images: Tensor) -> Tensor:
        """Crop and flip images that are on the draw's device.

        Every output pixel is fetched once from the padded batch; the index is shared by the channels.

        Args:
            images: (n, C, H, W), any dtype.

        Returns:
            New images of the same shape and dtype.
        """
        n, channels, height, width = images.shape
        across = torch.arange(width, device=images.device)
        rows = self.offsets[:, :1] + torch.arange(height, device=images.device)
        cols = self.offsets[:, 1:] + torch.where(self.flips[:, None], width - 1 - across, across)
        if self.padding_mode == "reflect":
            rows, cols = _reflect(rows - self.padding, height), _reflect(cols - self.padding, width)
        elif self.padding:
            images = F.pad(images, (self.padding,) * 4)
        pixels = (rows * images.shape[3])[:, :, None] + cols[:, None, :]
        index = pixels.view(n, 1, height * width).expand(-1, channels, -1)
        return images.flatten(2).gather(2, index).view(n, channels, height, width)


def draw_crop_flip(
    n: int, padding: int, flip: bool, generator: Generator, padding_mode: PaddingMode = "constant"
) -> CropFlip:
    """Draw a random crop of the padded image and, with ``flip``, a mirroring in half of the cases, n times.

    Args:
        n: Number of images.
        padding: Pixels added at each border; 0 crops nothing.
        flip: Whether to mirror at all.
        generator: On the CPU; the only source of randomness.
        padding_mode: "constant" or "reflect".

    Raises:
        InputError: ``padding`` is negative or the mode unknown.

    Source: the crop and flip of the paper's CIFAR training (padding 4, zeros), as ``torchvision.transforms`` has them.
    """
    if padding < 0 or padding_mode not in ("constant", "reflect"):
        raise InputError(
            f"padding is {padding} and its mode '{padding_mode}': expected 0 or more, and 'constant' or 'reflect'"
        )
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
    """Return (images / 255 − mean) / std, channel by channel.

    Args:
        images: (n, C, H, W) uint8; or float32 of the same range, which is overwritten.
        mean: C values in [0, 1].
        std: C values, positive; tensors on the images' device save a copy.
        channels_last: The memory format of the result.

    Returns:
        (n, C, H, W) float32.
    """
    mean = torch.as_tensor(mean, dtype=torch.float32, device=images.device)
    std = torch.as_tensor(std, dtype=torch.float32, device=images.device)
    scale, shift = (1 / (255 * std)).view(-1, 1, 1), (-mean / std).view(-1, 1, 1)
    result = images.float().mul_(scale).add_(shift)
    # reordered last: arithmetic with a factor for each channel is several times slower on channels_last memory
    return result.contiguous(memory_format=torch.channels_last) if channels_last else result


def resize(images: Tensor, size: int) -> Tensor:
    """Resize float images (n, C, H, W) to (n, C, size, size): bilinear, antialiased; the same object if it fits."""
    if images.shape[2:] == (size, size) or not len(images):
        return images
    return F.interpolate(images, (size, size), mode="bilinear", antialias=True, align_corners=False)


def train_transform(
    image_size: int,
    crop_scale: tuple[float, float],
    flip: bool,
    policy: AutoAugmentPolicy = "none",
    *,
    squash_to: int | None = None,
    interpolation: Interpolation = "bilinear",
) -> Callable[[Image.Image], Tensor]:
    """Return torchvision's random resized crop, flip and AutoAugment: from RGB to (3, image_size, image_size) uint8.

    With ``squash_to``, images become squares of that side, whatever their shape, and are cropped without resizing. It
    draws from PyTorch's global generator, as torchvision does; the loader sets it for each sample. ``interpolation`` is
    that of resizing, and of timm's RandAugment.
    """
    from torchvision.transforms import v2  # slow to import; array sets do not need it

    how: dict[str, Any] = {"interpolation": v2.InterpolationMode(interpolation), "antialias": True}
    crop: v2.Transform = v2.RandomResizedCrop(image_size, scale=crop_scale, **how)
    if squash_to:
        crop = v2.Compose([v2.Resize((squash_to, squash_to), **how), v2.RandomCrop(image_size)])
    augment = [] if policy == "none" else [auto_augment(policy, interpolation)]
    return v2.Compose([crop, v2.RandomHorizontalFlip(0.5 if flip else 0.0), *augment, v2.PILToTensor()])


def auto_augment(policy: AutoAugmentPolicy, interpolation: Interpolation | None = None) -> Callable[[Any], Any]:
    """Return torchvision's AutoAugment, or timm's RandAugment, for one RGB image or one (C, H, W) uint8 tensor.

    It draws from PyTorch's global generator.

    Args:
        policy: The data set whose policy it is, or timm's name of a RandAugment, but not "none".
        interpolation: How RandAugment turns and shifts a photograph, filled up with ImageNet's mean, as timm trains;
            None draws one of both each time, and fills up with grey.

    Raises:
        InputError: If there is no such policy.

    Source: Cubuk et al. 2019 and 2020.
    """
    from torchvision.transforms import v2

    known = [name for name in get_args(AutoAugmentPolicy) if name != "none"]
    if policy not in known:
        raise InputError(f"the policy of AutoAugment is '{policy}': expected one of {', '.join(known)}")
    if policy.startswith("rand-"):
        return _timm_rand_augment(policy, interpolation)
    return v2.AutoAugment(v2.AutoAugmentPolicy(policy))


def _posterize(image: Image.Image, bits: int, **_: Any) -> Image.Image:
    """Keep the highest bits of each value, from none (black) to all eight."""
    return image.point(lambda value: value & ~(2 ** (8 - min(max(bits, 0), 8)) - 1))


def _timm_rand_augment(policy: str, interpolation: Interpolation | None) -> Callable[[Any], Any]:
    """Return timm's RandAugment, which DeiT trains with; its draws follow from PyTorch's global generator."""
    from timm.data.auto_augment import rand_augment_transform
    from torchvision.transforms import v2

    settings: dict[str, Any] = {}
    if interpolation:
        settings = {"interpolation": Image.Resampling[interpolation.upper()], "img_mean": (124, 116, 104)}
    augment = rand_augment_transform(policy, settings)
    for op in augment.ops:
        if op.name.startswith("Posterize"):  # which timm may ask for no bits at all, and Pillow 12 refuses
            op.aug_fn = _posterize

    def change(image: Any) -> Any:
        picture = v2.functional.to_pil_image(image) if isinstance(image, Tensor) else image
        seed = int(torch.randint(2**31, ()))
        before, numpy_before = random.getstate(), np.random.get_state()  # noqa: NPY002 - timm draws from both
        random.seed(seed)
        np.random.seed(seed)  # noqa: NPY002
        try:
            picture = augment(picture)
        finally:
            random.setstate(before)
            np.random.set_state(numpy_before)  # noqa: NPY002
        return v2.functional.pil_to_tensor(picture) if isinstance(image, Tensor) else picture

    return change


def test_transform(
    image_size: int, crop_fraction: float, squash: bool, interpolation: Interpolation
) -> Callable[[Image.Image], Tensor]:
    """Return the deterministic transform: short side to image_size / crop_fraction, then the central square.

    ``squash`` brings both sides to image_size / crop_fraction, whatever the shape.
    """
    from torchvision.transforms import v2

    side = round(image_size / crop_fraction)
    shrink = v2.Resize((side, side) if squash else side, v2.InterpolationMode(interpolation), antialias=True)
    return v2.Compose([shrink, v2.CenterCrop(image_size), v2.PILToTensor()])


def _reflect(position: Tensor, size: int) -> Tensor:
    """Fold positions from beyond the border back inside, the border itself not repeated."""
    return (size - 1) - ((size - 1) - position.abs()).abs()


# ---- color ----
# Colour jitter and lighting of a whole batch on its device, as the paper's ImageNet code has them.

# Principal components of ImageNet's pixels, taken as 0 to 1: Krizhevsky et al. 2012.
_EIGENVALUES = (0.2175, 0.0188, 0.0045)
_EIGENVECTORS = (-0.5675, 0.7192, 0.4009), (-0.5808, -0.0045, -0.8140), (-0.5836, -0.6948, 0.4203)


@dataclass(frozen=True, eq=False)
class ColorDraw:
    """Colours drawn for n images, applied without a loop over them and without waiting for the device.

    Three times an image is moved towards another one, in an order of its own: brightness towards black, contrast
    towards its mean grey, saturation towards its grey image: x + a (target − x). Lighting then adds one colour, the
    principal components of ImageNet's pixels with random weights. Nothing is clipped.

    Attributes:
        order: (n, 3) int64, a permutation of 0 brightness, 1 contrast, 2 saturation for each image.
        amounts: (n, 3) float32, the a of each of them in that order; below 0 moves away from the target.
        light: (n, 3) float32, the colour that is added, in units of the whole range.
    """

    order: Tensor
    amounts: Tensor
    light: Tensor

    def __len__(self) -> int:
        return len(self.order)

    def __getitem__(self, index: slice) -> "ColorDraw":
        return ColorDraw(self.order[index], self.amounts[index], self.light[index])

    def apply(self, images: Tensor) -> Tensor:
        """Change the colours of a batch.

        Args:
            images: (n, 3, H, W) uint8.

        Returns:
            (n, 3, H, W) float32, in the units of the images, and not clipped to 0 to 255.
        """
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


def draw_color(n: int, jitter: float, lighting: float, generator: Generator) -> ColorDraw:
    """Draw colours for n images: every a ~ U[−jitter, jitter], every principal component's weight ~ N(0, lighting²).

    Args:
        n: Number of images.
        jitter: Largest change of brightness, contrast and saturation, in [0, 1]; 0.4 in the paper's code.
        lighting: Standard deviation, at least 0; 0.1 in the paper's code.
        generator: On the CPU; the only source of randomness.

    Source: ``ColorJitter`` and ``Lighting`` in the CutMix authors' ``utils.py``; the paper does not mention them.
    """
    order = torch.rand((n, 3), generator=generator).argsort(1)
    amounts = (2 * torch.rand((n, 3), generator=generator) - 1) * jitter
    components = torch.randn((n, 3), generator=generator) * lighting * torch.tensor(_EIGENVALUES)
    return ColorDraw(order, amounts, components @ torch.tensor(_EIGENVECTORS).T)
