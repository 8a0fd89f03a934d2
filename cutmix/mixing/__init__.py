"""Mixing a batch: draw, then apply. Torch only."""

from cutmix.mixing.draw import CutoutDraw, Draw
from cutmix.mixing.images import CutMix, Cutout, Mixup, RandomChoice
from cutmix.mixing.protocol import Mix, collate
from cutmix.mixing.smmix import AttentionDraw, SMMix, consistency_loss, fine_grained_loss, smmix_loss
from cutmix.mixing.targets import MixedTargets, MultiTargets, mixed_binary_cross_entropy, mixed_cross_entropy
from cutmix.mixing.variants import (
    CenterGaussianCutMix,
    CompleteLabelCutMix,
    FeatureCutMix,
    FeatureMix,
    FixedSizeCutMix,
    ManifoldMixup,
    MultiCutMix,
    MultiDraw,
    OneHotCutMix,
    ScheduledCutMix,
)

__all__ = [
    "AttentionDraw",
    "CenterGaussianCutMix",
    "CompleteLabelCutMix",
    "CutMix",
    "Cutout",
    "CutoutDraw",
    "Draw",
    "FeatureCutMix",
    "FeatureMix",
    "FixedSizeCutMix",
    "ManifoldMixup",
    "Mix",
    "MixedTargets",
    "Mixup",
    "MultiCutMix",
    "MultiDraw",
    "MultiTargets",
    "OneHotCutMix",
    "RandomChoice",
    "SMMix",
    "ScheduledCutMix",
    "collate",
    "consistency_loss",
    "fine_grained_loss",
    "mixed_binary_cross_entropy",
    "mixed_cross_entropy",
    "smmix_loss",
]
