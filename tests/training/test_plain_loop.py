"""The defaults for a folder are not worse than the loop that everybody writes: AdamW, crops and flips."""

import sys
from pathlib import Path

import pytest
from PIL import Image

from cutmix.config.options import TrainOptions
from cutmix.config.recipe import Recipe, complete
from cutmix.data import ArraySet, open_data
from cutmix.training.loop import run_training

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))
import defaults

MODEL = "test_efficientnet"  # timm's smallest with the head and the depthwise convolutions of the family


def write_digits(root: Path, labels: range, per_class: int, split: str) -> None:
    """Write real digits as PNG files of 32×32 in class folders."""
    data = open_data("digits", split)  # type: ignore[arg-type]
    assert isinstance(data, ArraySet)
    for label in labels:
        (root / str(label)).mkdir(parents=True)
        for index in (data.labels == label).nonzero().flatten()[:per_class].tolist():
            image = Image.fromarray(data.images[index, 0].numpy()).resize((32, 32), Image.Resampling.BICUBIC)
            image.save(root / str(label) / f"{index}.png")


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Train on the digits 0 to 4, so that there are weights to fine-tune on the others."""
    root = tmp_path_factory.mktemp("pretrained")
    write_digits(root / "digits", range(5), 100, "train")
    recipe = Recipe(
        data=str(root / "digits"), model=MODEL, pretrained=False, image_size=32, epochs=5, batch_size=32,
        precision="float32", val_fraction=0.0,
    )  # fmt: skip
    run = run_training(recipe, TrainOptions(out=root / "run", workers=0, device="cpu"))
    return run / "model.safetensors"


@pytest.mark.parametrize(
    ("epochs", "seed", "rates"),
    [(20, 0, (1e-3,)), *(pytest.param(None, seed, (1e-3, 3e-4), marks=pytest.mark.slow) for seed in range(2))],
)
def test_fine_tuning_a_hundred_images_by_the_defaults_beats_a_plain_loop(
    epochs: int | None, seed: int, rates: tuple[float, ...], weights: Path, tmp_path: Path
) -> None:
    for split, per_class in (("train", 20), ("test", 200)):
        write_digits(tmp_path / "data" / split, range(5, 10), per_class, split)
    asked = Recipe(
        data=str(tmp_path / "data"), model=MODEL, weights=str(weights), image_size=32, epochs=epochs, seed=seed,
        precision="float32", val_fraction=0.0,
    )  # fmt: skip
    recipe, _ = complete(asked, images=100, classes=5, files=True)
    ours = defaults.ours(recipe, tmp_path / "run")
    assert ours < min(defaults.plain(recipe, tmp_path / "data", rate) for rate in rates)
