"""The drawn record of a mix: who is whose partner, which pixels move, and the weight that follows from them."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from cutmix.mixing.paste import blend, compose, fill_boxes, paste_boxes
from cutmix.mixing.targets import MixedTargets, Targets


@dataclass(frozen=True, eq=False)
class Draw:
    """What was drawn for one batch. Applying it is deterministic and can be repeated on anything of the same batch.

    Transforms draw it; ``from_boxes``, ``from_lam`` and ``from_mask`` build it by hand. All of its tensors are small,
    live on the CPU and are moved without waiting when they are applied.

    Attributes:
        partner: Index of the sample that each sample is mixed with, (N,) int64.
        lam: Weight of the own label, (N,) float32 in [0, 1]; computed from the pixels that stay.
        boxes: Half-open x1, y1, x2, y2 in pixels, (1, 4) or (N, 4) int64, where the partner's pixels go; or None.
        mask: (H, W) or (N, H, W), bool or floating, 1 where the own pixels stay; or None.
        size: Height and width that boxes or mask were drawn for; None for a blend, which fits any shape.
    """

    partner: Tensor
    lam: Tensor
    boxes: Tensor | None = None
    mask: Tensor | None = None
    size: tuple[int, int] | None = None

    @classmethod
    def from_boxes(cls, partner: Tensor, boxes: Tensor | Sequence, size: Sequence[int]) -> "Draw":
        """Build a CutMix draw from known boxes.

        Args:
            partner: (N,) integer indices into the batch; any indices, not only a permutation.
            boxes: (4,), (1, 4) or (N, 4) integers, half-open x1, y1, x2, y2.
            size: Height and width of the images.

        Raises:
            ValueError: If a partner is not in the batch, or a box is not inside the image.
        """
        partner, (height, width) = _partners(partner), size
        boxes = torch.as_tensor(boxes, device="cpu")
        if boxes.is_floating_point() or boxes.shape not in ((4,), (1, 4), (len(partner), 4)):
            raise ValueError(
                f"boxes are {boxes.dtype} {tuple(boxes.shape)}; expected integers of shape (1, 4) or "
                f"({len(partner)}, 4)"
            )
        boxes = boxes.long().reshape(-1, 4)
        x1, y1, x2, y2 = boxes.unbind(1)
        if not bool(((x1 >= 0) & (x1 <= x2) & (x2 <= width) & (y1 >= 0) & (y1 <= y2) & (y2 <= height)).all()):
            raise ValueError(f"a box of {boxes.tolist()} is not inside {height}×{width} pixels as x1, y1, x2, y2")
        return cls(partner, kept_share(boxes, height, width, len(partner)), boxes=boxes, size=(height, width))

    @classmethod
    def from_lam(cls, partner: Tensor, lam: Tensor | float) -> "Draw":
        """Build a Mixup draw from known weights.

        Args:
            partner: (N,) integer indices into the batch.
            lam: Weight of the own sample, one number or (N,), in [0, 1].

        Raises:
            ValueError: If a partner is not in the batch, or a weight not in [0, 1].
        """
        partner = _partners(partner)
        lam = torch.as_tensor(lam, dtype=torch.float32, device="cpu")
        if lam.shape not in ((), (1,), partner.shape) or not bool(((lam >= 0) & (lam <= 1)).all()):
            raise ValueError(f"lam is {lam.tolist()}; expected one number or {len(partner)} numbers in [0, 1]")
        return cls(partner, lam.expand(len(partner)).contiguous())

    @classmethod
    def from_mask(cls, partner: Tensor, mask: Tensor) -> "Draw":
        """Build a draw from a mask of any form.

        Args:
            partner: (N,) integer indices into the batch.
            mask: (H, W) or (N, H, W), bool or floating in [0, 1]; 1 where the own pixels stay.

        Raises:
            ValueError: If a partner is not in the batch, or the mask has another shape, dtype or range.
        """
        partner, mask = _partners(partner), mask.cpu()
        if mask.ndim not in (2, 3) or (mask.ndim == 3 and len(mask) not in (1, len(partner))):
            raise ValueError(f"mask is {tuple(mask.shape)}; expected (H, W) or ({len(partner)}, H, W)")
        if mask.dtype != torch.bool and not (mask.is_floating_point() and bool(((mask >= 0) & (mask <= 1)).all())):
            raise ValueError("mask must be bool, or floating with values in [0, 1]")
        share = mask.double().mean((-2, -1)).float().reshape(-1)
        height, width = mask.shape[-2:]
        return cls(partner, share.expand(len(partner)).contiguous(), mask=mask, size=(height, width))

    def apply(self, x: Tensor, inplace: bool = False) -> Tensor:
        """Mix a batch: images, feature maps, segmentation masks, video.

        Args:
            x: (N, ..., H, W) of any dtype, device and memory format; the last two dimensions are the ones that were
                drawn for (a blend takes any (N, ...)).
            inplace: Write into ``x`` and return it, using one spare image of memory on the CPU.

        Raises:
            ValueError: If ``x`` is another batch size or spatial size than was drawn for, or if it is to be written
                into and elements of it share memory, as after ``expand``.
        """
        check_fits(x, len(self.partner), self.size)
        if inplace:
            check_writable(x)
        if self.boxes is not None:
            return paste_boxes(x, self.partner, self.boxes, inplace=inplace)
        if self.mask is not None:
            return compose(x, self.partner, self.mask, inplace=inplace)
        return blend(x, self.partner, self.lam, inplace=inplace)

    def targets(self, labels: Tensor) -> Targets:
        """Mix labels as the pixels were mixed.

        Args:
            labels: Class ids (N,) of an integer dtype; or multi-label or soft targets (N, K) of any dtype.

        Returns:
            ``MixedTargets`` for class ids; (N, K) floating for (N, K).

        Raises:
            ValueError: If there is not one label a sample, or class ids are not integers.
        """
        check_labels(labels, len(self.partner))
        partner = self.partner.to(labels.device, non_blocking=True)
        lam = self.lam.to(labels.device, non_blocking=True)
        if labels.ndim == 1:
            return MixedTargets(labels, labels.index_select(0, partner), lam)
        soft = labels if labels.dtype == torch.float64 else labels.float()
        return torch.lerp(soft.index_select(0, partner), soft, lam[:, None].to(soft.dtype))


@dataclass(frozen=True, eq=False)
class CutoutDraw:
    """Holes drawn for one batch; the interface of ``Draw`` with labels untouched.

    Attributes:
        partner: Every sample's own index, (N,) int64.
        lam: Ones, (N,) float32.
        boxes: The holes, half-open x1, y1, x2, y2 in pixels, (1, 4) or (N, 4) int64.
        size: Height and width that the holes were drawn for.
    """

    partner: Tensor
    lam: Tensor
    boxes: Tensor
    size: tuple[int, int]

    def apply(self, x: Tensor, inplace: bool = False) -> Tensor:
        """Set the holes of a batch (N, ..., H, W) to zero; see ``Draw.apply``."""
        check_fits(x, len(self.partner), self.size)
        if inplace:
            check_writable(x)
        return fill_boxes(x, self.boxes, inplace=inplace)

    def targets(self, labels: Tensor) -> Tensor:
        """Return the labels as they are, once they have been seen to fit."""
        check_labels(labels, len(self.partner))
        return labels


def kept_share(boxes: Tensor, height: int, width: int, n: int) -> Tensor:
    """Return λ = 1 − (x2 − x1)(y2 − y1) / (H W), the share of own pixels, (n,) float32."""
    x1, y1, x2, y2 = boxes.unbind(1)
    area = ((x2 - x1) * (y2 - y1)).double()
    return (1 - area / max(height * width, 1)).float().expand(n).contiguous()


def check_fits(x: Tensor, n: int, size: tuple[int, int] | None) -> None:
    """Raise ValueError unless ``x`` is the batch that was drawn for."""
    if x.ndim == 0 or len(x) != n:
        raise ValueError(f"the draw is for a batch of {n}, but x is {tuple(x.shape)}")
    if size is not None and (x.ndim < 3 or tuple(x.shape[-2:]) != size):
        raise ValueError(f"the draw is for {size[0]}×{size[1]} pixels, but x is {tuple(x.shape)}")


def check_writable(x: Tensor) -> None:
    """Raise ValueError if two elements of ``x`` may share memory: writing one would change the other."""
    if x.is_contiguous():
        return
    end = 0  # of what the dimensions of smaller strides reach
    for stride, length in sorted(zip(x.stride(), x.shape, strict=True)):
        if length > 1:
            if stride <= end:
                raise ValueError(f"x has strides {x.stride()}, so elements share memory; clone it to mix in place")
            end += stride * (length - 1)


def check_labels(labels: Tensor, n: int) -> None:
    """Raise ValueError unless there is one label for each of ``n`` samples, of a dtype that can be meant."""
    if labels.ndim not in (1, 2):
        raise ValueError(
            f"labels are {tuple(labels.shape)}; expected class ids (N,) or multi-label targets (N, K); "
            "segmentation masks are mixed by draw.apply"
        )
    if len(labels) != n:
        raise ValueError(f"there are {len(labels)} labels for {n} images; expected one a sample")
    if labels.ndim == 1 and (labels.is_floating_point() or labels.is_complex() or labels.dtype == torch.bool):
        raise ValueError(f"class ids are {labels.dtype}; expected an integer dtype, or targets of shape (N, K)")


def _partners(partner: Tensor | Sequence[int]) -> Tensor:
    partner = torch.as_tensor(partner, device="cpu")
    if partner.ndim != 1 or partner.is_floating_point() or partner.dtype == torch.bool:
        raise ValueError(f"partner is {partner.dtype} {tuple(partner.shape)}; expected integers of shape (N,)")
    if partner.numel() and not 0 <= int(partner.min()) <= int(partner.max()) < len(partner):
        raise ValueError(f"partner is {partner.tolist()}; expected indices from 0 to {len(partner) - 1}")
    return partner.long()
