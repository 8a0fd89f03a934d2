"""Regularizers of residual branches: stochastic depth, DropBlock and ShakeDrop.

p is always the probability of dropping, as in ``torch.nn.Dropout``; a paper's probability of keeping is 1 − p. As in
Dropout, nothing is dropped in evaluation mode, and random numbers come from the global generator of the input's device.
"""

from typing import Any, Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cutmix.errors import InputError

Decay = Literal["linear", "constant"]


def stochastic_depth(x: Tensor, p: float, training: bool = True) -> Tensor:
    """Set the residual branch of some samples to zero: b · x / (1 − p), with b ~ Bernoulli(1 − p) for each sample.

    The division keeps the expectation, so that evaluation is the identity. Huang et al. drop whole batches, and
    multiply by 1 − p in evaluation instead, which is the same up to a constant factor.

    Args:
        x: Output of a residual branch (N, ...), floating.
        p: Probability of dropping, in [0, 1).
        training: False returns x.

    Source: Huang et al. 2016, eq. 2; the same draws as ``torchvision.ops.stochastic_depth(mode="row")``.
    """
    if not training or p == 0:
        return x
    kept = x.new_empty(len(x), *[1] * (x.ndim - 1)).bernoulli_(1 - p)
    return x * kept.div_(1 - p)


def drop_block(x: Tensor, p: float, block_size: int = 4, training: bool = True) -> Tensor:
    """Set square blocks of each channel of each sample to zero, and scale the rest.

    Every position where the block fits starts a block with probability
    γ = p / block_size² · H W / ((H − block_size + 1) (W − block_size + 1)), and M is 0 in a block and 1 elsewhere:
    x · M · count(M) / count_ones(M), counted over the batch. Since blocks overlap, slightly less than p is dropped.

    Args:
        x: Feature maps (N, C, H, W), floating.
        p: Share to drop, in [0, 1).
        block_size: Side of a block in pixels, odd or even, at most H and W.
        training: False returns x.

    Raises:
        InputError: If the maps are smaller than a block.

    Source: Ghiasi et al. 2018, algorithm 1 and eq. 1, with a mask for every channel as in the authors' code. For odd
    blocks the same draws as ``torchvision.ops.drop_block2d``, which rejects even sizes and shrinks blocks to the map.
    """
    if not training or p == 0:
        return x
    batch, channels, height, width = x.shape
    if min(height, width) < block_size:
        raise InputError(
            f"DropBlock's block of {block_size}×{block_size} is larger than the feature map of {height}×{width}; "
            "give larger images or a smaller block"
        )
    rows, columns = height - block_size + 1, width - block_size + 1
    gamma = p * height * width / (block_size**2 * rows * columns)
    starts = x.new_empty(batch, channels, rows, columns).bernoulli_(gamma)
    implicit = block_size // 2  # of the padding of block_size − 1 on each side, the part that pooling can do itself
    explicit = block_size - 1 - implicit
    kept = 1 - F.max_pool2d(F.pad(starts, [explicit] * 4), block_size, stride=1, padding=implicit)
    scale = kept.numel() / kept.sum(dtype=torch.float32).clamp(min=1)
    return x * kept.mul_(scale.to(x.dtype))


def shake_drop(x: Tensor, p: float, training: bool = True) -> Tensor:
    """Multiply x by b + α − bα, and its gradient by b + β − bβ.

    b ~ Bernoulli(1 − p) is drawn once for the batch, α ~ U[−1, 1] and β ~ U[0, 1] once for each sample. Evaluation
    multiplies by the expectation, E[b + α − bα] = 1 − p.

    Args:
        x: Output of a residual branch (N, ...), floating.
        p: Probability of shaking instead of passing x through, in [0, 1).
        training: False multiplies by the expectation.

    Source: Yamada et al. 2019; b for each batch and α, β for each sample as in owruby/shake-drop_pytorch, which the
    CutMix authors cite; a process here corresponds to one GPU there.
    """
    if p == 0:
        return x
    if not training:
        return x * (1 - p)
    shape = len(x), *[1] * (x.ndim - 1)
    shaken = torch.rand([], device=x.device) < p  # b = 0; drawn on the device, so that nothing waits
    alpha = torch.empty(shape, device=x.device).uniform_(-1, 1)
    beta = torch.empty(shape, device=x.device).uniform_(0, 1)
    return _Scale.apply(x, torch.where(shaken, alpha, 1).to(x.dtype), torch.where(shaken, beta, 1).to(x.dtype))


class _Scale(torch.autograd.Function):
    """Multiply x by one factor and its gradient by another."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, forward_factor: Tensor, backward_factor: Tensor) -> Tensor:
        ctx.save_for_backward(backward_factor)
        return x * forward_factor

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None]:
        (grad,), (backward_factor,) = grads, ctx.saved_tensors
        return grad * backward_factor, None, None


class _Regularizer(nn.Module):
    """A layer with the probability p."""

    def __init__(self, p: float) -> None:
        super().__init__()
        self.p = p

    def extra_repr(self) -> str:
        """Return the arguments, for ``print``."""
        return f"p={self.p:g}"


class StochasticDepth(_Regularizer):
    """``stochastic_depth`` as a layer."""

    def forward(self, x: Tensor) -> Tensor:
        """(N, ...) -> the same shape."""
        return stochastic_depth(x, self.p, self.training)


class DropBlock(_Regularizer):
    """``drop_block`` as a layer."""

    def __init__(self, p: float, block_size: int = 4) -> None:
        super().__init__(p)
        self.block_size = block_size

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) -> the same shape."""
        return drop_block(x, self.p, self.block_size, self.training)

    def extra_repr(self) -> str:
        """Return the arguments, for ``print``."""
        return f"{super().extra_repr()}, block_size={self.block_size}"


class ShakeDrop(_Regularizer):
    """``shake_drop`` as a layer."""

    def forward(self, x: Tensor) -> Tensor:
        """(N, ...) -> the same shape."""
        return shake_drop(x, self.p, self.training)


# Attributes of a block for the regularizers of its residual branches: one of a ResNet, two of a transformer.
_SLOTS = ("drop_path", "drop_path1", "drop_path2")


def regularize(
    model: nn.Module,
    *,
    stochastic_depth: float = 0.0,
    shake_drop: float = 0.0,
    drop_block: float = 0.0,
    block_size: int = 4,
    decay: Decay = "linear",
) -> nn.Module:
    """Add regularizers to the end of a model's residual branches, replacing existing ones.

    Every block of the CIFAR ResNets, of PyramidNet, PVT and timm's models has a ``drop_path``, which is applied to its
    residual branch before the shortcut is added. Regularizers have no parameters: the names of the weights stay.

    Stochastic depth and ShakeDrop grow linearly with depth. Block l of L drops with p_l = p · l / L in convolutional
    networks, and with p_l = p · (l − 1) / (L − 1) in transformers, as DeiT and PVT do (``linspace(0, p, L)``). CaiT's
    class-attention blocks drop nothing. DropBlock is in the last two stages: with p in the last stage and p / 4 in the
    stage before. The CutMix paper describes neither its place nor a schedule; the stages and the 4 are those of Ghiasi
    et al. for ResNet-50, who also drop after the inner convolutions and on the shortcut, and let p grow during
    training; here there is one mask for each block, and p is constant.

    Args:
        model: A model of ``create_model``, changed in place.
        stochastic_depth: p of stochastic depth in the last block, in [0, 1); 0 leaves it out. The paper: 0.25.
        shake_drop: p of ShakeDrop in the last block, in [0, 1); 0 leaves it out. The paper: 0.5.
        drop_block: p of DropBlock, in [0, 1); 0 leaves it out. The paper: 0.1.
        block_size: Side of DropBlock's block in pixels of the feature map.
        decay: "linear", as above, or "constant": p in every block.

    Returns:
        The same model; unchanged, with the regularizers that it has, if all three are 0.

    Raises:
        InputError: A value is out of range, stochastic depth and ShakeDrop are both given, or the model has no residual
            blocks with a ``drop_path``.

    Source: Huang et al. 2016 §3 and eq. 4, Yamada et al. 2019, Ghiasi et al. 2018 §4.1 and the authors' code; for
    transformers the authors' code of DeiT, PVT and CaiT.
    """
    for name, p in (("stochastic_depth", stochastic_depth), ("shake_drop", shake_drop), ("drop_block", drop_block)):
        if not 0 <= p < 1:
            raise InputError(f"{name} is {p}; expected a probability of dropping in [0, 1)")
    if block_size < 1:
        raise InputError(f"block_size is {block_size}; expected a number of pixels of at least 1")
    if decay not in get_args(Decay):
        raise InputError(f"decay is {decay!r}; expected one of {', '.join(get_args(Decay))}")
    if stochastic_depth and shake_drop:
        raise InputError("stochastic_depth and shake_drop are both given; ShakeDrop replaces stochastic depth")
    if not (stochastic_depth or shake_drop or drop_block):
        return model
    blocks = _residual_blocks(model)
    if drop_block and any(hasattr(block, "attn") for block in blocks.values()):
        raise InputError(f"{type(model).__name__} has tokens; DropBlock needs feature maps, as a ResNet has them")
    stages = list(dict.fromkeys(_stage(name) for name in blocks))
    block_p = dict(zip(stages[:-3:-1], (drop_block, drop_block / 4), strict=False))
    for share, (name, block) in zip(_shares(list(blocks.values()), decay), blocks.items(), strict=True):
        layers: list[nn.Module] = []
        if block_p.get(_stage(name)):
            layers.append(DropBlock(block_p[_stage(name)], block_size))
        if stochastic_depth:
            layers.append(StochasticDepth(share * stochastic_depth))
        if shake_drop:
            layers.append(ShakeDrop(share * shake_drop))
        for slot in _SLOTS:
            if hasattr(block, slot):
                setattr(block, slot, nn.Sequential(*layers))
    return model


def _residual_blocks(model: nn.Module) -> dict[str, nn.Module]:
    """Return the blocks that take regularizers by name, in their order, without CaiT's class-attention blocks."""
    blocks = {
        name: module
        for name, module in model.named_modules()
        if any(hasattr(module, slot) for slot in _SLOTS) and _stage(name) != "blocks_token_only"
    }
    if not blocks:
        raise InputError(
            f"{type(model).__name__} has no residual blocks with a drop_path for stochastic depth, ShakeDrop or "
            "DropBlock; expected a ResNet, PyramidNet or transformer"
        )
    return blocks


def _shares(blocks: list[nn.Module], decay: Decay) -> list[float]:
    """Return each block's share of the last block's probability."""
    count = len(blocks)
    if decay == "constant":
        return [1.0] * count
    if hasattr(blocks[0], "attn"):
        return [block / max(count - 1, 1) for block in range(count)]
    return [block / count for block in range(1, count + 1)]


def _stage(block_name: str) -> str:
    """Return the name of a block's stage: ``layer3`` of ``layer3.11``."""
    return block_name.rpartition(".")[0]
