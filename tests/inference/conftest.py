"""Two small trained runs: of digits, and of a folder of files."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from cutmix.cli import main


@pytest.fixture(scope="session")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder of three classes with images of odd sizes, already split."""
    root, rng = tmp_path_factory.mktemp("photos"), np.random.default_rng(0)
    for split, count in (("train", 6), ("val", 3)):
        for label, name in enumerate(("Ä cat", "dog, small", "fish")):
            folder = root / split / name
            folder.mkdir(parents=True)
            for i in range(count):
                pixels = rng.integers(0, 120, (50 + 7 * i, 61, 3), dtype=np.uint8)
                pixels[..., label] += 100
                Image.fromarray(pixels).save(folder / f"{i}.png")
    return root


@pytest.fixture(scope="session")
def run(photos: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a run of one of timm's models on the photos."""
    out = tmp_path_factory.mktemp("runs") / "photos"
    main(
        ["train", "--data", str(photos), "--model", "resnet10t", "--no-pretrained", "--image-size", "32",
         "--batch-size", "9", "--epochs", "2", "--precision", "float32", "--workers", "0", "--device", "cpu",
         "--ema-decay", "0", "--out", str(out)]
    )  # fmt: skip
    return out


@pytest.fixture(scope="session")
def digits_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a run of one of our own networks on the digits."""
    out = tmp_path_factory.mktemp("runs") / "digits"
    main(["train", "digits-resnet20", "--epochs", "1", "--precision", "float32", "--device", "cpu", "--out", str(out)])
    return out
