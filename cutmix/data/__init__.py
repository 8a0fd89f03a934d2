"""Data sets, transforms and loaders: from what lies on the disk to normalised batches on the device."""

from cutmix.data.loaders import test_loader, train_loader
from cutmix.data.sets import ArraySet, FileSet, ImageSet, is_small, open_data
from cutmix.data.transforms import Augment, CropFlip, draw_crop_flip, normalize

__all__ = [
    "ArraySet",
    "Augment",
    "CropFlip",
    "FileSet",
    "ImageSet",
    "draw_crop_flip",
    "is_small",
    "normalize",
    "open_data",
    "test_loader",
    "train_loader",
]
