"""The picture of what mixing does."""

import io
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from cutmix.config.options import PreviewOptions
from cutmix.data import open_data
from cutmix.errors import InputError
from cutmix.mixing import CutMix, MixedTargets
from cutmix.preview.command import run_preview
from cutmix.preview.drawing import caption, preview_grid


def opened(png: bytes | Path) -> Image.Image:
    image = Image.open(io.BytesIO(png) if isinstance(png, bytes) else png)
    image.load()
    assert image.format == "PNG"
    return image


@pytest.mark.parametrize("count", [2, 5])
def test_digits_give_a_grid_of_four_rows(tmp_path: Path, count: int) -> None:
    path = run_preview(PreviewOptions("digits", out=tmp_path / "a b.png", count=count))
    assert opened(path).size == (round(120 * (1 + 1.7 * count)), round(120 * 2.1 * 4))


def test_a_seed_gives_the_same_picture() -> None:
    data = open_data("digits", "train")

    def pixels(seed: int) -> np.ndarray:
        return np.asarray(opened(preview_grid(data, {"CutMix": CutMix(seed=seed)}, count=3, seed=seed)))

    assert np.array_equal(pixels(0), pixels(0))
    assert not np.array_equal(pixels(0), pixels(1))


def test_drawing_leaves_the_global_generator_alone() -> None:
    before = torch.get_rng_state()
    preview_grid(open_data("digits", "train"), {"CutMix": CutMix(seed=0)}, count=3)
    assert torch.equal(torch.get_rng_state(), before)


def test_photographs_of_every_kind_and_name(tmp_path: Path) -> None:
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
