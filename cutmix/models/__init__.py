"""Networks: the paper's for CIFAR here, everything else timm's."""

from cutmix.models.create import create_model, pretrained_normalization
from cutmix.models.pyramidnet import PyramidNet
from cutmix.models.resnet import CifarResNet

__all__ = ["CifarResNet", "PyramidNet", "create_model", "pretrained_normalization"]
