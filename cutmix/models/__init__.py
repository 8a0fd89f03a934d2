"""Models: those of the paper that timm does not have, and timm's by their names."""

from cutmix.models.cifar import CifarResNet, PyramidNet
from cutmix.models.create import create_model, pretrained_normalization, weights_normalization

__all__ = [
    "CifarResNet",
    "PyramidNet",
    "create_model",
    "pretrained_normalization",
    "weights_normalization",
]
