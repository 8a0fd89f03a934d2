"""The figures, by what is drawn where."""

import contextlib
import io
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from cutmix.errors import InputError
from cutmix.evaluation.classifier import Classifier
from cutmix.evaluation.localization import _mixed, box_gallery, mixed_maps
from cutmix.models import create_model


@pytest.fixture(scope="module")
def drawn() -> Classifier:
    torch.manual_seed(0)
    network = create_model("resnet20", 3).eval().requires_grad_(False)
    images = torch.randint(256, (8, 3, 16, 16), dtype=torch.uint8)
    return Classifier(
        network, (0.5,) * 3, (0.25,) * 3, images, torch.arange(8) % 3, ("a cat", "$dog$", "x" * 40), "drawn",
        contextlib.nullcontext(), 4,
    )  # fmt: skip


def pixels(png: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(png)).convert("RGB")).astype(int)


def test_boxes_are_red_and_green(drawn: Classifier) -> None:
    boxes = [np.array([[2, 3, 9, 12], [10, 1, 15, 6]])] * 8
    png = box_gallery(drawn, boxes)  # all eight images, in two rows
    assert png.startswith(b"\x89PNG")
    canvas = pixels(png)
    red, green, blue = canvas[..., 0], canvas[..., 1], canvas[..., 2]
    assert ((red > 240) & (green < 20) & (blue < 20)).sum() > 500
    assert ((red < 20) & (green > 240) & (blue < 20)).sum() > 100
    assert box_gallery(drawn, boxes) == png


def test_a_pair_is_mixed_by_halves_and_quarters(drawn: Classifier) -> None:
    pair = drawn.pixels(torch.tensor([0, 1]))
    inputs = _mixed(drawn, pair)
    torch.testing.assert_close(inputs["Mixup"], (pair[0] + pair[1]) / 2)
    patch = (slice(None), slice(4, 12), slice(4, 12))
    assert torch.equal(inputs["CutMix"][patch], pair[1][patch])
    assert (inputs["CutMix"] != pair[0]).sum() == (pair[0] != pair[1])[patch].sum()
    assert (inputs["Cutout"][patch] == 0.5).all()
    assert mixed_maps(drawn, 0, 1).startswith(b"\x89PNG")


def test_grey_images_are_drawn_too() -> None:
    torch.manual_seed(0)
    network = create_model("resnet20", 2, in_chans=1).eval().requires_grad_(False)
    images, labels = torch.randint(256, (2, 1, 12, 20), dtype=torch.uint8), torch.arange(2)
    grey = Classifier(network, (0.5,), (0.5,), images, labels, ("a", "b"), "grey", contextlib.nullcontext())
    assert box_gallery(grey, [np.array([[0, 0, 5, 5]])] * 2).startswith(b"\x89PNG")
    assert mixed_maps(grey, 1, 0).startswith(b"\x89PNG")


def test_wrong_input_is_one_sentence(drawn: Classifier) -> None:
    boxes = [np.array([[2, 3, 9, 12]])] * 8
    with pytest.raises(InputError, match="there are 8 images and boxes of 7 images"):
        box_gallery(drawn, boxes[1:])
    with pytest.raises(InputError, match="the image is 8; expected 0 to 7"):
        mixed_maps(drawn, 0, 8)
    with pytest.raises(InputError, match="images 0 and 3 are both of a cat; expected two classes"):
        mixed_maps(drawn, 0, 3)


def test_maps_below_zero_are_drawn_as_nothing(drawn: Classifier) -> None:
    torch.manual_seed(0)
    network = create_model("resnet20", 3).eval().requires_grad_(False)
    network.get_classifier().weight.fill_(-1)  # of features that are not negative
    below = replace(drawn, network=network)
    assert box_gallery(below, [np.array([[2, 3, 9, 12]])] * 8).startswith(b"\x89PNG")
    assert mixed_maps(below, 0, 1).startswith(b"\x89PNG")
