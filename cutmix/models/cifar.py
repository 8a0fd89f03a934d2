"""The residual networks for CIFAR: 3×3 stem, three stages of 16, 32 and 64 channels.

Source: He et al. 2016 §4.2, with the shortcut, block and initialisation of the CutMix authors' ``resnet.py``,
whose names of parameters are kept (they are torchvision's too) so that their checkpoints load.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class PooledClassifier(nn.Module):
    """Logits = fc(mean over positions of ``forward_features``); the methods have the names of timm's.

    A network of it makes ``fc`` and ``num_features``, its width, and says its ``forward_features``.
    """

    num_features: int
    fc: nn.Linear

    def forward_features(self, x: Tensor) -> Tensor:
        """Images (N, in_chans, H, W) -> feature maps (N, num_features, h, w)."""
        raise NotImplementedError

    def forward_head(self, x: Tensor) -> Tensor:
        """(N, num_features, h, w) -> logits (N, num_classes)."""
        return self.fc(x.mean((2, 3)))

    def forward(self, x: Tensor) -> Tensor:
        """Images (N, in_chans, H, W) -> logits (N, num_classes)."""
        return self.forward_head(self.forward_features(x))

    def get_classifier(self) -> nn.Linear:
        """The layer that depends on the number of classes."""
        return self.fc


class _Residual(nn.Module):
    """ReLU(drop_path(residual(x)) + shortcut(x)): ``cutmix.models.regularizers`` fills ``drop_path``."""

    expansion: int
    downsample: nn.Sequential | None

    def __init__(self) -> None:
        super().__init__()
        self.drop_path: nn.Module = nn.Identity()

    def residual(self, x: Tensor) -> Tensor:
        raise NotImplementedError

    def forward(self, x: Tensor) -> Tensor:
        shortcut = x if self.downsample is None else self.downsample(x)
        return F.relu(self.drop_path(self.residual(x)) + shortcut, inplace=True)


class BasicBlock(_Residual):
    """Two 3×3 convolutions; the first one strides."""

    expansion = 1

    def __init__(self, in_channels: int, width: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, width, 3, stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.downsample = _downsample(in_channels, width, stride)

    def residual(self, x: Tensor) -> Tensor:
        """(N, in_channels, H, W) -> (N, width, H/stride, W/stride), before the shortcut is added."""
        x = F.relu(self.bn1(self.conv1(x)), inplace=True)
        return self.bn2(self.conv2(x))


class Bottleneck(_Residual):
    """1×1 down to ``width``, 3×3 that strides, 1×1 up to four times ``width``."""

    expansion = 4

    def __init__(self, in_channels: int, width: int, stride: int) -> None:
        super().__init__()
        out_channels = width * self.expansion
        self.conv1 = nn.Conv2d(in_channels, width, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, stride, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.conv3 = nn.Conv2d(width, out_channels, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(out_channels)
        self.downsample = _downsample(in_channels, out_channels, stride)

    def residual(self, x: Tensor) -> Tensor:
        """(N, in_channels, H, W) -> (N, 4 width, H/stride, W/stride), before the shortcut is added."""
        x = F.relu(self.bn1(self.conv1(x)), inplace=True)
        x = F.relu(self.bn2(self.conv2(x)), inplace=True)
        return self.bn3(self.conv3(x))


class CifarResNet(PooledClassifier):
    """Stem, three stages and a linear classifier on the global average; takes any image size.

    Args:
        block: ``BasicBlock`` (depth 6n + 2) or ``Bottleneck`` (depth 9n + 2).
        blocks: Blocks in each stage, n.
        num_classes: Outputs.
        in_chans: Channels of the images.
    """

    def __init__(
        self, block: type[BasicBlock] | type[Bottleneck], blocks: int, num_classes: int, in_chans: int = 3
    ) -> None:
        super().__init__()
        self.num_classes = num_classes
        self.num_features = 64 * block.expansion
        self.conv1 = nn.Conv2d(in_chans, 16, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(16)
        self.layer1 = _stage(block, 16, 16, blocks, stride=1)
        self.layer2 = _stage(block, 16 * block.expansion, 32, blocks, stride=2)
        self.layer3 = _stage(block, 32 * block.expansion, 64, blocks, stride=2)
        self.fc = nn.Linear(self.num_features, num_classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):  # N(0, 2 / (k · k · c_out)); the rest is PyTorch's default
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def stem(self, x: Tensor) -> Tensor:
        """(N, in_chans, H, W) -> (N, 16, H, W)."""
        return F.relu(self.bn1(self.conv1(x)), inplace=True)

    def forward_features(self, x: Tensor) -> Tensor:
        """(N, in_chans, H, W) -> (N, num_features, H/4, W/4), odd sizes rounded up."""
        x = self.stem(x)
        for stage in (self.layer1, self.layer2, self.layer3):
            x = stage(x)
        return x


def _stage(
    block: type[BasicBlock] | type[Bottleneck], in_channels: int, width: int, blocks: int, stride: int
) -> nn.Sequential:
    first = block(in_channels, width, stride)
    return nn.Sequential(first, *(block(width * block.expansion, width, 1) for _ in range(blocks - 1)))


def _downsample(in_channels: int, out_channels: int, stride: int) -> nn.Sequential | None:
    """Option B: a 1×1 convolution where the shape changes, the identity elsewhere."""
    if stride == 1 and in_channels == out_channels:
        return None
    convolution = nn.Conv2d(in_channels, out_channels, 1, stride, bias=False)
    return nn.Sequential(convolution, nn.BatchNorm2d(out_channels))


# ---- pyramidnet ----
# PyramidNet for CIFAR: a residual network whose width grows a little with every block.


class PyramidBottleneck(nn.Module):
    """BN - 1×1 - BN - ReLU - 3×3 that strides - BN - ReLU - 1×1 up to four times ``width`` - BN, plus the shortcut.

    The shortcut has no weights: average pooling where the block strides, zeros for the channels that x has not.
    ``drop_path`` is applied to the residual branch before the addition; ``cutmix.models.regularizers`` fills it.
    """

    expansion = 4

    def __init__(self, in_channels: int, width: int, stride: int) -> None:
        super().__init__()
        out_channels = width * self.expansion
        self.bn1 = nn.BatchNorm2d(in_channels)
        self.conv1 = nn.Conv2d(in_channels, width, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, stride, padding=1, bias=False)
        self.bn3 = nn.BatchNorm2d(width)
        self.conv3 = nn.Conv2d(width, out_channels, 1, bias=False)
        self.bn4 = nn.BatchNorm2d(out_channels)
        self.downsample = nn.Identity() if stride == 1 else nn.AvgPool2d(stride, ceil_mode=True)
        self.drop_path: nn.Module = nn.Identity()

    def residual(self, x: Tensor) -> Tensor:
        """(N, in_channels, H, W) -> (N, 4 width, H/stride, W/stride), before the shortcut is added."""
        x = self.conv1(self.bn1(x))
        x = self.conv2(F.relu(self.bn2(x), inplace=True))
        x = self.conv3(F.relu(self.bn3(x), inplace=True))
        return self.bn4(x)

    def forward(self, x: Tensor) -> Tensor:
        """(N, in_channels, H, W) -> (N, 4 width, H/stride, W/stride), odd sizes rounded up."""
        return _AddToFirstChannels.apply(self.drop_path(self.residual(x)), self.downsample(x))


class _AddToFirstChannels(torch.autograd.Function):
    """``out[:, :c] += shortcut`` with c the shortcut's channels; its gradient is a view, where autograd's own copies.

    On a CPU this takes 0.6 of the time of ``out + F.pad(shortcut, ...)``, and no memory.
    """

    @staticmethod
    def forward(ctx: Any, out: Tensor, shortcut: Tensor) -> Tensor:
        ctx.channels = shortcut.shape[1]
        ctx.mark_dirty(out)
        out[:, : ctx.channels].add_(shortcut)
        return out

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor]:
        (grad,) = grads
        return grad, grad[:, : ctx.channels]


class PyramidNet(PooledClassifier):
    """Stem, three stages of bottlenecks and a linear classifier on the global average; takes any image size.

    Block k of the 3n has the width D_k = round(16 + k · α̃ / 3n).

    Args:
        blocks: Blocks in each stage, n; the depth is 9n + 2.
        alpha: How many channels the last block is wider than the stem, α̃.
        num_classes: Outputs.
        in_chans: Channels of the images.
    """

    def __init__(self, blocks: int, alpha: float, num_classes: int, in_chans: int = 3) -> None:
        super().__init__()
        widths = [round(16 + k * alpha / (3 * blocks)) for k in range(1, 3 * blocks + 1)]
        channels = [16, *(width * PyramidBottleneck.expansion for width in widths)]
        layers = [
            PyramidBottleneck(channels[k], width, stride=2 if k in (blocks, 2 * blocks) else 1)
            for k, width in enumerate(widths)
        ]
        self.num_classes = num_classes
        self.num_features = channels[-1]
        self.conv1 = nn.Conv2d(in_chans, 16, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(16)
        self.layer1 = nn.Sequential(*layers[:blocks])
        self.layer2 = nn.Sequential(*layers[blocks : 2 * blocks])
        self.layer3 = nn.Sequential(*layers[2 * blocks :])
        self.bn_final = nn.BatchNorm2d(self.num_features)
        self.fc = nn.Linear(self.num_features, num_classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):  # N(0, 2 / (k · k · c_out)); the rest is PyTorch's default
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def stem(self, x: Tensor) -> Tensor:
        """(N, in_chans, H, W) -> (N, 16, H, W), without a ReLU."""
        return self.bn1(self.conv1(x))

    def forward_features(self, x: Tensor) -> Tensor:
        """(N, in_chans, H, W) -> (N, num_features, H/4, W/4), odd sizes rounded up."""
        x = self.stem(x)
        for stage in (self.layer1, self.layer2, self.layer3):
            x = stage(x)
        return F.relu(self.bn_final(x), inplace=True)
