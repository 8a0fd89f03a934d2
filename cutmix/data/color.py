"""Colour jitter and lighting of a whole batch on its device, as the paper's ImageNet code has them."""

from dataclasses import dataclass

import torch
from torch import Generator, Tensor

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
