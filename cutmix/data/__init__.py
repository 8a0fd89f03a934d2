"""Data sets, transforms and loaders: from files to normalized batches on the device."""

from cutmix.data.loaders import test_loader, train_loader
from cutmix.data.opening import is_small, open_data, open_splits
from cutmix.data.sets import ArraySet, FileSet, ImageSet, Splits
from cutmix.data.transforms import Augment, CropFlip, draw_crop_flip, normalize

__all__ = [
    "ArraySet",
    "Augment",
    "CropFlip",
    "FileSet",
    "ImageSet",
    "Splits",
    "draw_crop_flip",
    "is_small",
    "normalize",
    "open_data",
    "open_splits",
    "test_loader",
    "train_loader",
]
