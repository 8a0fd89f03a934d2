"""Networks: the paper's for CIFAR here, everything else timm's."""

from cutmix.models.attention import WithTokenHead, predict_and_attend
from cutmix.models.cifar import CifarResNet, PyramidNet
from cutmix.models.create import create_model, pretrained_normalization

__all__ = [
    "CifarResNet",
    "PyramidNet",
    "WithTokenHead",
    "create_model",
    "predict_and_attend",
    "pretrained_normalization",
]
