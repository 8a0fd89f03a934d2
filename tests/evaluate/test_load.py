"""What is measured: a run's weights, a file's, the data they are shown; more in test_command.py."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from cutmix.config.options import EvaluateOptions
from cutmix.config.recipe import Recipe
from cutmix.errors import InputError
from cutmix.evaluate.load import draw_images, find_subject, load_model, open_test_set
from cutmix.models import create_model
from cutmix.runtime.weights import save_weights


def photographs(folder: Path, each: int) -> Path:
    rng = np.random.default_rng(0)
    for name in ("cat", "dog"):
        (folder / name).mkdir(parents=True)
        for i in range(each):
            Image.fromarray(rng.integers(0, 256, (20, 30, 3), dtype=np.uint8)).save(folder / name / f"{i}.png")
    return folder


def test_weights_from_elsewhere_are_shown_every_photograph(tmp_path: Path) -> None:
    torch.save(create_model("resnet20", 2).state_dict(), tmp_path / "plain.pth")
    options = EvaluateOptions(tmp_path / "plain.pth", str(photographs(tmp_path / "photos", 1)), model="resnet20")
    subject = find_subject(options)
    data = open_test_set(options, subject)
    assert (subject.which, subject.recipe, len(data), data.split) == ("file", None, 2, "all")
    model = load_model(options, subject, data)
    assert model.fc.out_features == 2
    assert model.layer1[0].conv1.weight.is_contiguous(memory_format=torch.channels_last)


def test_weights_of_a_recipe_are_evaluated_on_the_images_held_out(tmp_path: Path) -> None:
    folder = photographs(tmp_path / "photos", 5)
    recipe = Recipe(data=str(folder), model="resnet20", val_fraction=0.4)
    about = {"recipe": json.dumps(recipe.to_dict()), "mean": "[0.1, 0.2, 0.3]", "std": "[1, 1, 1]"}
    save_weights(tmp_path / "ours.safetensors", create_model("resnet20", 2).state_dict(), about)
    options = EvaluateOptions(tmp_path / "ours.safetensors")
    data = open_test_set(options, find_subject(options))
    assert (len(data), data.split, data.mean) == (4, "val", (0.1, 0.2, 0.3))


def test_fewer_images_are_a_part_of_more() -> None:
    few, many = draw_images(100, 10, 3), draw_images(100, 40, 3)
    assert few is not None
    assert many is not None
    assert len(set(few.tolist())) == 10
    assert set(few.tolist()) < set(many.tolist()) < set(range(100))
    assert few.tolist() == sorted(few.tolist())
    assert draw_images(100, None, 3) is None
    assert draw_images(100, 100, 3) is None


def test_the_normalisation_of_a_known_network_goes_with_it(tmp_path: Path) -> None:
    torch.save(create_model("resnet18", 2).state_dict(), tmp_path / "plain.pth")
    folder = str(photographs(tmp_path / "photos", 1))
    for model, mean in (("resnet18", 0.485), ("tf_efficientnet_lite0", 0.5)):
        options = EvaluateOptions(tmp_path / "plain.pth", folder, model=model)
        assert open_test_set(options, find_subject(options)).mean[0] == mean


def test_nothing_there_is_said(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="expected the folder of a run, or a file of weights"):
        find_subject(EvaluateOptions(tmp_path / "absent.pth"))
