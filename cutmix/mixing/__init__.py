"""Mixing a batch: draw, then apply. Torch only."""

from cutmix.mixing.images import CutMix, Cutout, Mixup, RandomChoice
from cutmix.mixing.mix import CutoutDraw, Draw
from cutmix.mixing.targets import MixedTargets, mixed_binary_cross_entropy, mixed_cross_entropy

__all__ = [
    "CutMix",
    "Cutout",
    "CutoutDraw",
    "Draw",
    "MixedTargets",
    "Mixup",
    "RandomChoice",
    "mixed_binary_cross_entropy",
    "mixed_cross_entropy",
]
