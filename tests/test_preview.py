"""The figures of what mixing does."""

import io
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from torch import Tensor, nn

from cutmix import preview
from cutmix.config.options import PreviewOptions
from cutmix.data import open_data
from cutmix.errors import InputError
from cutmix.mixing import CutMix, MixedTargets
from cutmix.mixing.smmix import SMMix
from cutmix.preview import attention_figure, caption, preview_grid, run_preview


def opened(png: bytes | Path) -> Image.Image:
    image = Image.open(io.BytesIO(png) if isinstance(png, bytes) else png)
    image.load()
    assert image.format == "PNG"
    return image


@pytest.mark.parametrize("count", [2, 5])
def test_digits_give_a_grid_of_four_rows(tmp_path: Path, count: int) -> None:
    path = run_preview(PreviewOptions("digits", out=tmp_path / "a b.png", count=count))
    assert opened(path).size == (round(120 * (1 + 1.7 * count)), round(120 * 2.1 * 4))


def test_a_seed_gives_the_same_figure() -> None:
    data = open_data("digits", "train")

    def pixels(seed: int) -> np.ndarray:
        return np.asarray(opened(preview_grid(data, {"CutMix": CutMix(seed=seed)}, count=3, seed=seed)))

    assert np.array_equal(pixels(0), pixels(0))
    assert not np.array_equal(pixels(0), pixels(1))


def test_drawing_leaves_the_global_generator_alone() -> None:
    before = torch.get_rng_state()
    preview_grid(open_data("digits", "train"), {"CutMix": CutMix(seed=0)}, count=3)
    assert torch.equal(torch.get_rng_state(), before)


def test_images_of_every_kind_and_name(tmp_path: Path) -> None:
    modes = {"price $1$ \\frac": "L", "猫": "RGBA", "tabby, a cat": "P", "CMYK": "CMYK"}
    for name, mode in modes.items():
        (tmp_path / "data" / name).mkdir(parents=True)
        for i in range(2):
            suffix = "jpg" if mode == "CMYK" else "png"
            Image.new(mode, (30 + 10 * i, 20)).save(tmp_path / "data" / name / f"{i}.{suffix}")
    path = run_preview(PreviewOptions(str(tmp_path / "data"), out=tmp_path / "p.png", count=9, image_size=24))
    assert opened(path).size == (round(120 * (1 + 1.7 * 4)), round(120 * 2.1 * 4))  # one of each class to train on


def test_captions_say_both_labels_and_their_shares() -> None:
    classes = ("cat, tabby", "dog", "a name that is far too long to be shown")
    targets = MixedTargets(torch.tensor([0, 1, 0]), torch.tensor([1, 1, 2]), torch.tensor([0.625, 0.5, 1.0]))
    assert caption(targets, 0, classes) == "0.62 cat\n0.38 dog"
    assert caption(targets, 1, classes) == "1.00 dog"
    assert caption(targets, 2, classes) == "1.00 cat"
    assert caption(torch.tensor([2]), 0, classes) == "a name that is fa…"


def test_a_transformer_for_other_images_is_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(
        InputError, match=r"deit_tiny_patch4_32 takes no images of 64×64 pixels .*--image-size or --model"
    ):
        run_preview(
            PreviewOptions("digits", out=tmp_path / "a.png", mix="smmix", model="deit_tiny_patch4_32", image_size=64)
        )
    assert not (tmp_path / "a.png").exists()


# ---- the figure of SMMix ----

CLASSES = ("price $1$ \\frac", "猫", "tabby, a cat", "a name that is far too long to be shown")


def network(in_chans: int = 3) -> nn.Module:
    torch.manual_seed(0)
    shape = {"img_size": (16, 24), "patch_size": 4, "embed_dim": 24, "num_heads": 3, "depth": 1, "num_classes": 4}
    return timm.create_model("vit_tiny_patch16_224", in_chans=in_chans, **shape)


def figure(images: Tensor, seed: int = 0) -> np.ndarray:
    channels = images.shape[1]
    png = attention_figure(
        network(channels), images, torch.arange(len(images)) % 4, classes=CLASSES, mean=(0.5,) * channels,
        std=(0.5,) * channels, seed=seed,
    )  # fmt: skip
    image = Image.open(io.BytesIO(png))
    assert image.format == "PNG"
    return np.asarray(image.convert("RGB")).astype(int)


@pytest.mark.parametrize(("n", "channels"), [(2, 1), (3, 2), (5, 3), (2, 6)])
def test_a_column_for_each_image(n: int, channels: int) -> None:
    pixels = figure(torch.randn(n, channels, 16, 24))
    assert pixels.shape == (round(120 * 6.3), round(120 * max(1 + 1.7 * n, 5)), 3)


def test_a_seed_gives_the_same_figure_and_leaves_the_global_generator_alone() -> None:
    images = torch.randn(3, 3, 16, 24)
    state = torch.get_rng_state()
    first = attention_figure(
        net := network(), images, torch.arange(3), classes=CLASSES, mean=(0.5,) * 3, std=(0.5,) * 3
    )
    torch.set_rng_state(state)
    again = attention_figure(net, images, torch.arange(3), classes=CLASSES, mean=(0.5,) * 3, std=(0.5,) * 3)
    assert first == again
    assert torch.equal(torch.get_rng_state(), state)
    assert not np.array_equal(figure(images, seed=0), figure(images, seed=1))


def test_squares_cover_the_share_that_the_caption_says(monkeypatch: pytest.MonkeyPatch) -> None:
    attention = torch.rand(2, 4, 6, generator=torch.Generator().manual_seed(1))
    monkeypatch.setattr(preview, "predict_and_attend", lambda *_: (None, attention))
    images = torch.zeros(2, 3, 16, 24)
    images[0, :, :, :] = torch.tensor([1.0, -1.0, -1.0])[:, None, None]  # red
    images[1, :, :, :] = torch.tensor([-1.0, -1.0, 1.0])[:, None, None]  # blue
    sides = {seed: SMMix(1.0, seed=seed).draw(attention).side for seed in range(20)}
    counts = {}
    for side in (1, 3):
        seed = next(seed for seed, found in sides.items() if found == side)
        pixels = figure(images, seed)
        red, blue = ((np.abs(pixels - colour).sum(2) < 30) for colour in ((255, 0, 0), (0, 0, 255)))
        half = pixels.shape[1] // 2
        mixed = blue[:, :half].sum()  # of the left column, only the pasted square is blue
        counts[side] = mixed / (mixed + red[pixels.shape[0] * 2 // 5 :, :half].sum())
    assert counts[1] == pytest.approx(1 / 24, abs=0.03)
    assert counts[3] == pytest.approx(9 / 24, abs=0.05)


def test_of_more_channels_the_first_three_are_drawn(monkeypatch: pytest.MonkeyPatch) -> None:
    """A fourth channel was drawn as transparency, and a fifth refused by matplotlib."""
    generator = torch.Generator().manual_seed(1)
    attention, images = torch.rand(2, 4, 6, generator=generator), torch.randn(2, 5, 16, 24, generator=generator)
    monkeypatch.setattr(preview, "predict_and_attend", lambda *_: (None, attention))
    for channels in (4, 5):
        assert np.array_equal(figure(images[:, :channels]), figure(images[:, :3]))


def test_what_it_refuses() -> None:
    with pytest.raises(InputError, match="the batch has 1 image"):
        figure(torch.randn(1, 3, 16, 24))
