"""Residual networks for CIFAR: ResNet and PyramidNet, with a 3×3 stem and three stages, for images of any size.

Names of parameters, shortcuts and initialization are those of the CutMix authors' code (and torchvision's, where it has
the network), so that their checkpoints load.

Source: He et al. 2016 §4.2; Han et al. 2017 (PyramidNet); ``resnet.py`` and ``pyramidnet.py`` of the CutMix authors.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class PooledClassifier(nn.Module):
    """A network that ends in global average pooling and a linear layer, with timm's names for its parts.

    A subclass defines ``forward_features``, ``fc`` and the number of its feature maps, ``num_features``.
    """

    num_features: int
    fc: nn.Linear

    def forward_features(self, x: Tensor) -> Tensor:
        """Map images (N, in_chans, H, W) to feature maps (N, num_features, h, w)."""
        raise NotImplementedError

    def forward_head(self, x: Tensor) -> Tensor:
        """Map feature maps (N, num_features, h, w) to logits (N, num_classes)."""
        return self.fc(x.mean((2, 3)))

    def forward(self, x: Tensor) -> Tensor:
        """Map images (N, in_chans, H, W) to logits (N, num_classes)."""
        return self.forward_head(self.forward_features(x))

    def get_classifier(self) -> nn.Linear:
        """Return the layer that depends on the number of classes."""
        return self.fc


class CifarResNet(PooledClassifier):
    """ResNet with stages of 16, 32 and 64 channels, times the expansion of its blocks.

    It has n ``blocks`` in each stage: the depth is 6n + 2 with ``BasicBlock``, 9n + 2 with ``Bottleneck``.
    """

    layer1: nn.Sequential
    layer2: nn.Sequential
    layer3: nn.Sequential

    def __init__(
        self, block: "type[BasicBlock] | type[Bottleneck]", blocks: int, num_classes: int, in_chans: int = 3
    ) -> None:
        super().__init__()
        self.num_classes = num_classes
        self.num_features = 64 * block.expansion
        self.conv1 = nn.Conv2d(in_chans, 16, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(16)
        channels = 16
        for stage, width in enumerate((16, 32, 64), start=1):
            layers = [block(channels, width, 1 if stage == 1 else 2)]
            channels = width * block.expansion
            layers += [block(channels, width, 1) for _ in range(blocks - 1)]
            self.add_module(f"layer{stage}", nn.Sequential(*layers))
        self.fc = nn.Linear(self.num_features, num_classes)
        _initialize(self)

    def stem(self, x: Tensor) -> Tensor:
        """Map images (N, in_chans, H, W) to (N, 16, H, W)."""
        return F.relu(self.bn1(self.conv1(x)), inplace=True)

    def forward_features(self, x: Tensor) -> Tensor:
        """Map images to feature maps (N, num_features, H/4, W/4), odd sizes rounded up."""
        return self.layer3(self.layer2(self.layer1(self.stem(x))))


class PyramidNet(PooledClassifier):
    """Additive PyramidNet: block k of the 3n has the width D_k = round(16 + k · α̃ / 3n); the depth is 9n + 2."""

    layer1: nn.Sequential
    layer2: nn.Sequential
    layer3: nn.Sequential

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
        for stage in (1, 2, 3):
            self.add_module(f"layer{stage}", nn.Sequential(*layers[(stage - 1) * blocks : stage * blocks]))
        self.bn_final = nn.BatchNorm2d(self.num_features)
        self.fc = nn.Linear(self.num_features, num_classes)
        _initialize(self)

    def stem(self, x: Tensor) -> Tensor:
        """Map images (N, in_chans, H, W) to (N, 16, H, W), without a ReLU."""
        return self.bn1(self.conv1(x))

    def forward_features(self, x: Tensor) -> Tensor:
        """Map images to feature maps (N, num_features, H/4, W/4), odd sizes rounded up."""
        x = self.layer3(self.layer2(self.layer1(self.stem(x))))
        return F.relu(self.bn_final(x), inplace=True)


class _Block(nn.Module):
    """A residual branch and a shortcut; ``cutmix.models.regularizers`` fills ``drop_path``, at the branch's end."""

    expansion: int

    def __init__(self) -> None:
        super().__init__()
        self.drop_path: nn.Module = nn.Identity()

    def residual(self, x: Tensor) -> Tensor:
        """Map (N, in_channels, H, W) to (N, expansion · width, H/stride, W/stride), before the shortcut is added."""
        raise NotImplementedError


class _ResNetBlock(_Block):
    """ReLU(drop_path(residual(x)) + shortcut(x)), with a 1×1 convolution as the shortcut where the shape changes."""

    downsample: nn.Sequential | None

    def forward(self, x: Tensor) -> Tensor:
        shortcut = x if self.downsample is None else self.downsample(x)
        return F.relu(self.drop_path(self.residual(x)) + shortcut, inplace=True)


class BasicBlock(_ResNetBlock):
    """Two 3×3 convolutions; the first strides."""

    expansion = 1

    def __init__(self, in_channels: int, width: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, width, 3, stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.downsample = _convolution_shortcut(in_channels, width, stride)

    def residual(self, x: Tensor) -> Tensor:
        """See ``_Block``."""
        x = F.relu(self.bn1(self.conv1(x)), inplace=True)
        return self.bn2(self.conv2(x))


class Bottleneck(_ResNetBlock):
    """1×1 down to ``width``, 3×3 with the stride, 1×1 up to four times ``width``."""

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
        self.downsample = _convolution_shortcut(in_channels, out_channels, stride)

    def residual(self, x: Tensor) -> Tensor:
        """See ``_Block``."""
        x = F.relu(self.bn1(self.conv1(x)), inplace=True)
        x = F.relu(self.bn2(self.conv2(x)), inplace=True)
        return self.bn3(self.conv3(x))


class PyramidBottleneck(_Block):
    """BN – 1×1 – BN – ReLU – 3×3 with the stride – BN – ReLU – 1×1 up to four times ``width`` – BN, plus the shortcut.

    The shortcut has no weights: average pooling where the block strides, zeros for the channels that x lacks.
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

    def residual(self, x: Tensor) -> Tensor:
        """See ``_Block``."""
        x = self.conv1(self.bn1(x))
        x = self.conv2(F.relu(self.bn2(x), inplace=True))
        x = self.conv3(F.relu(self.bn3(x), inplace=True))
        return self.bn4(x)

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, in_channels, H, W) to (N, 4 · width, H/stride, W/stride), odd sizes rounded up."""
        out, shortcut = self.drop_path(self.residual(x)), self.downsample(x)
        if self.training:
            return _AddToFirstChannels.apply(out, shortcut)
        out[:, : shortcut.shape[1]] += shortcut  # the same sum, which every exporter can trace
        return out


class _AddToFirstChannels(torch.autograd.Function):
    """``out[:, :c] += shortcut`` for the c channels of the shortcut; its gradient is a view, autograd's own is a copy.

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


def _convolution_shortcut(in_channels: int, out_channels: int, stride: int) -> nn.Sequential | None:
    """Return He et al.'s option B: a 1×1 convolution where the shape changes, None for the identity elsewhere."""
    if stride == 1 and in_channels == out_channels:
        return None
    convolution = nn.Conv2d(in_channels, out_channels, 1, stride, bias=False)
    return nn.Sequential(convolution, nn.BatchNorm2d(out_channels))


def _initialize(model: nn.Module) -> None:
    """Draw the convolutions from N(0, 2 / (k · k · c_out)); the other layers keep PyTorch's default."""
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
