"""CutMix and its relatives for any PyTorch training loop, a trainer, and an evaluation with intervals.

mix = cutmix.CutMix(alpha=1.0, seed=0)
for images, labels in loader:
    images, targets = mix(images, labels)
    loss = cutmix.mixed_cross_entropy(model(images), targets)
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from cutmix.errors import InputError
from cutmix.version import __version__

if TYPE_CHECKING:
    from cutmix.mixing import (
        AttentionDraw,
        CenterGaussianCutMix,
        CompleteLabelCutMix,
        CutMix,
        Cutout,
        CutoutDraw,
        Draw,
        FeatureCutMix,
        FeatureMix,
        FixedSizeCutMix,
        ManifoldMixup,
        Mix,
        MixedTargets,
        Mixup,
        MultiCutMix,
        MultiDraw,
        MultiTargets,
        OneHotCutMix,
        RandomChoice,
        ScheduledCutMix,
        SMMix,
        collate,
        mixed_binary_cross_entropy,
        mixed_cross_entropy,
    )
    from cutmix.models import WithTokenHead, create_model

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
    "InputError",
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
    "WithTokenHead",
    "__version__",
    "collate",
    "create_model",
    "mixed_binary_cross_entropy",
    "mixed_cross_entropy",
]


_OF_MODELS = ("WithTokenHead", "create_model")


def __getattr__(name: str) -> Any:
    """Import torch only when a name that needs it is used; ``cutmix --help`` needs none."""
    if name not in __all__:
        raise AttributeError(f"module 'cutmix' has no attribute '{name}'")
    value = getattr(import_module("cutmix.models" if name in _OF_MODELS else "cutmix.mixing"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return __all__
