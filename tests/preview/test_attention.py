"""The picture of what SMMix does."""

import io

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from torch import Tensor, nn

from cutmix import InputError
from cutmix.mixing.smmix import SMMix
from cutmix.preview import attention as attention_preview
from cutmix.preview.attention import attention_picture

CLASSES = ("price $1$ \\frac", "猫", "tabby, a cat", "a name that is far too long to be shown")


def network(in_chans: int = 3) -> nn.Module:
    torch.manual_seed(0)
    shape = {"img_size": (16, 24), "patch_size": 4, "embed_dim": 24, "num_heads": 3, "depth": 1, "num_classes": 4}
    return timm.create_model("vit_tiny_patch16_224", in_chans=in_chans, **shape)


def picture(images: Tensor, seed: int = 0) -> np.ndarray:
    channels = images.shape[1]
    png = attention_picture(
        network(channels), images, torch.arange(len(images)) % 4, classes=CLASSES, mean=(0.5,) * channels,
        std=(0.5,) * channels, seed=seed,
    )  # fmt: skip
    image = Image.open(io.BytesIO(png))
    assert image.format == "PNG"
    return np.asarray(image.convert("RGB")).astype(int)


@pytest.mark.parametrize(("n", "channels"), [(2, 1), (5, 3)])
def test_a_column_for_each_image(n: int, channels: int) -> None:
    pixels = picture(torch.randn(n, channels, 16, 24))
    assert pixels.shape == (round(120 * 6.3), round(120 * max(1 + 1.7 * n, 5)), 3)


def test_a_seed_gives_the_same_picture_and_leaves_the_global_generator_alone() -> None:
    images = torch.randn(3, 3, 16, 24)
    state = torch.get_rng_state()
    first = attention_picture(
        net := network(), images, torch.arange(3), classes=CLASSES, mean=(0.5,) * 3, std=(0.5,) * 3
    )
    torch.set_rng_state(state)
    again = attention_picture(net, images, torch.arange(3), classes=CLASSES, mean=(0.5,) * 3, std=(0.5,) * 3)
    assert first == again
    assert torch.equal(torch.get_rng_state(), state)
    assert not np.array_equal(picture(images, seed=0), picture(images, seed=1))


def test_squares_cover_the_share_that_the_caption_says(monkeypatch: pytest.MonkeyPatch) -> None:
    attention = torch.rand(2, 4, 6, generator=torch.Generator().manual_seed(1))
    monkeypatch.setattr(attention_preview, "predict_and_attend", lambda *_: (None, attention))
    images = torch.zeros(2, 3, 16, 24)
    images[0, :, :, :] = torch.tensor([1.0, -1.0, -1.0])[:, None, None]  # red
    images[1, :, :, :] = torch.tensor([-1.0, -1.0, 1.0])[:, None, None]  # blue
    sides = {seed: SMMix(1.0, seed=seed).draw(attention).side for seed in range(20)}
    counts = {}
    for side in (1, 3):
        seed = next(seed for seed, found in sides.items() if found == side)
        pixels = picture(images, seed)
        red, blue = ((np.abs(pixels - colour).sum(2) < 30) for colour in ((255, 0, 0), (0, 0, 255)))
        half = pixels.shape[1] // 2
        mixed = blue[:, :half].sum()  # of the left column, only the pasted square is blue
        counts[side] = mixed / (mixed + red[pixels.shape[0] * 2 // 5 :, :half].sum())
    assert counts[1] == pytest.approx(1 / 24, abs=0.03)
    assert counts[3] == pytest.approx(9 / 24, abs=0.05)


def test_what_it_refuses() -> None:
    with pytest.raises(InputError, match="the batch has 1 image"):
        picture(torch.randn(1, 3, 16, 24))
