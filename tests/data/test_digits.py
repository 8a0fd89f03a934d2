"""scikit-learn's digits: nothing lost, nothing in both splits."""

import torch
from sklearn.datasets import load_digits

from cutmix.data.opening import open_data


def test_the_splits_are_the_whole_set_once() -> None:
    train, test = open_data("digits", "train"), open_data("digits", "test")
    assert (len(train), len(test)) == (1000, 797)
    scans = load_digits()
    original = torch.from_numpy(scans.images).flatten(1)
    ours = torch.cat([train.images, test.images]).flatten(1)
    assert ours.dtype == torch.uint8
    back = (ours.double() * 16 / 255).round()
    assert sorted(map(tuple, back.tolist())) == sorted(map(tuple, original.tolist()))
    assert ours.max() == 255
    assert torch.cat([train.labels, test.labels]).bincount().tolist() == [sum(scans.target == k) for k in range(10)]


def test_stratified_and_the_same_every_time() -> None:
    first, again = open_data("digits", "train", seed=1), open_data("digits", "train", seed=2)
    assert torch.equal(first.images, again.images)
    share = first.labels.bincount() / 1000
    whole = torch.from_numpy(load_digits().target).bincount() / 1797
    assert (share - whole).abs().max() < 0.001


def test_constants_are_those_of_the_training_split() -> None:
    data = open_data("digits", "train")
    pixels = data.images / 255
    assert abs(pixels.mean() - data.mean[0]) < 1e-4
    assert abs(pixels.std() - data.std[0]) < 1e-4
