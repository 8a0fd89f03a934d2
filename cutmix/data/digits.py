"""The digits that come with scikit-learn: 1,797 real scans, 8×8, nothing to download."""

import numpy as np
import torch
from torch import Tensor


def read_digits(split: str) -> tuple[Tensor, Tensor, tuple[str, ...]]:
    """Read one split: 1,000 scans to train and 797 to test, stratified, the same in every run.

    Returns:
        images (N, 1, 8, 8) uint8, the 17 grey levels spread over 0 to 255; labels (N,) int64; the class names.

    Source: the test part of the UCI "Optical Recognition of Handwritten Digits", as ``sklearn.datasets`` has it.
    """
    from sklearn.datasets import load_digits  # a second to import: only who asks for it waits
    from sklearn.model_selection import train_test_split

    digits = load_digits()
    train, test = train_test_split(
        np.arange(len(digits.target)), train_size=1000, stratify=digits.target, random_state=0
    )
    index = np.sort(train if split == "train" else test)
    images = np.rint(digits.images[index] * (255 / 16)).astype(np.uint8)
    labels = digits.target[index].astype(np.int64)
    return torch.from_numpy(images).unsqueeze(1), torch.from_numpy(labels), tuple("0123456789")
