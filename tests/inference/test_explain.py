"""Heat maps are those of the localization suite or of grad-cam, and an image is its own nearest neighbour."""

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from cutmix.cli import COMMANDS
from cutmix.config.recipes import RECIPES
from cutmix.data.decode import FAST_JPEG
from cutmix.errors import InputError
from cutmix.evaluation.localization import normalize_maps, resize_maps
from cutmix.inference.explain import HeatMaps, find_nearest, open_training_set, training_images
from cutmix.inference.export import check_images
from cutmix.inference.model import load
from cutmix.models import create_model


def test_a_map_of_one_position_is_flat() -> None:
    """Of a constant, resizing used to leave rounding errors, which the normalization made a pattern."""
    maps = normalize_maps(resize_maps(torch.full((1, 1, 1), 0.1234567), (32, 32)))
    assert not maps.any()


def test_negative_neighbours_are_refused(digits_run: Path) -> None:
    with pytest.raises(InputError, match="neighbours is -1; expected at least 0"):
        load(digits_run, device="cpu").explain(np.zeros((8, 8), np.uint8), neighbours=-1)


def test_the_map_is_the_class_activation_map(run: Path) -> None:
    """The mean of the unscaled map and the bias are the logit; the scaled one has the same order of positions."""
    model = load(run, device="cpu")
    inputs = torch.randn(1, 3, 96, 96, generator=torch.Generator().manual_seed(0))  # the map has 3 by 3 positions
    maps = HeatMaps(model.network, (3, 96, 96))
    assert maps.name == "class activation map"
    with torch.no_grad():
        features = model.network.forward_features(inputs)  # type: ignore[operator]
    weight = model.network.get_classifier().weight[2]  # type: ignore[operator]
    raw = torch.einsum("nchw,c->nhw", features, weight)
    large = torch.nn.functional.interpolate(raw[:, None], (96, 96), mode="bicubic", align_corners=False)[:, 0]
    scaled = (large - large.min()) / (large.max() - large.min())
    torch.testing.assert_close(maps(inputs, torch.tensor([2])), scaled.detach())


@pytest.mark.parametrize(
    ("name", "size"),
    [("deit_tiny_patch8_64", 64), ("pvt_tiny_patch1_32", 32), ("convnext_atto", 64), ("resnet10t", 32)],  # 1×1 features
)
def test_grad_cam_of_other_networks(name: str, size: int) -> None:
    pytest.importorskip("pytorch_grad_cam")
    torch.manual_seed(0)
    maps = HeatMaps(create_model(name, 5).eval(), (3, size, size))
    assert maps.name == "Grad-CAM"
    found = maps(torch.randn(2, 3, size, size), torch.tensor([1, 4]))
    assert found.shape == (2, size, size)
    assert 0 <= float(found.min()) < float(found.max()) <= 1


def test_a_training_image_is_its_own_nearest(run: Path, photos: Path) -> None:
    model = load(run, device="cpu")
    known, why = training_images(model, 3)
    assert known is not None, why
    assert len(known.labels) == 18
    inputs = model.preprocessing(Image.open(photos / "train/fish/4.png").convert("RGB"))[None]
    nearest = find_nearest(model, inputs, known, 3)
    torch.testing.assert_close(known.inputs[nearest[0]], inputs[0])


def test_the_training_images_are_those_of_the_subset() -> None:
    model: Any = SimpleNamespace(recipe=replace(RECIPES["digits-resnet20"], train_per_class=2))
    assert open_training_set(model).labels.bincount().tolist() == [2] * 10


def test_an_unreadable_training_image_is_left_out(run: Path, photos: Path) -> None:
    broken = photos / "train/fish/broken.png"
    broken.write_bytes(b"")
    try:
        model = load(run, device="cpu")
        known, _ = training_images(model, 3)
        assert known is not None
        assert check_images(model)[1] == "16 training images"
    finally:
        broken.unlink()


def test_a_file_is_read_as_predict_reads_it(run: Path, tmp_path: Path) -> None:
    """A JPEG file is decoded at the resolution that the crop needs, which gives other pixels than the whole image."""
    if not FAST_JPEG:
        pytest.skip("simplejpeg is not installed")
    pixels = np.random.default_rng(0).integers(0, 256, (400, 300, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "noise.jpg")
    model = load(run, device="cpu")
    assert model.preprocessing.decoder == "fast"
    predicted = model.predict(tmp_path / "noise.jpg", top=3)[0]
    expected = dict(zip(predicted.classes, predicted.probabilities, strict=True))
    for source in (tmp_path / "noise.jpg", str(tmp_path / "noise.jpg")):
        found = model.explain(source, neighbours=0).probabilities.tolist()
        assert dict(zip(model.classes, found, strict=True)) == pytest.approx(expected, abs=1e-6)
    assert model.explain(Image.open(tmp_path / "noise.jpg"), neighbours=0).probabilities.tolist() != pytest.approx(
        found, abs=1e-6
    )


def test_a_requested_class_has_one_map(run: Path, photos: Path) -> None:
    model = load(run, device="cpu")
    predicted = model.explain(photos / "train/fish/4.png", neighbours=0).class_ids[0]
    again = model.explain(photos / "train/fish/4.png", class_name=model.classes[predicted], neighbours=0)
    assert again.class_ids == (predicted,)
    assert len(again.maps) == 1


def test_the_command_writes_an_image_each(run: Path, photos: Path, tmp_path: Path) -> None:
    words = [str(run), str(photos / "val/fish"), "--class", "fish", "--out", str(tmp_path / "out"), "--device", "cpu"]
    COMMANDS["explain"](words)
    files = sorted((tmp_path / "out").iterdir())
    assert [file.name for file in files] == ["001-0.png", "002-1.png", "003-2.png"]
    assert np.asarray(Image.open(files[0])).std() > 10
    with pytest.raises(InputError, match="--class is \"fisch\"; expected a class of the model: did you mean 'fish'"):
        COMMANDS["explain"]([*words[:2], "--class", "fisch"])


def test_a_folder_that_cannot_be_made_is_one_sentence(digits_run: Path, photos: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    image = str(photos / "val/fish/0.png")
    words = [str(digits_run), image, "--device", "cpu", "--neighbours", "0", "--out"]
    with pytest.raises(InputError, match="file could not be made: it is a file"):
        COMMANDS["explain"]([*words, str(tmp_path / "file")])
    COMMANDS["explain"]([*words, str(tmp_path / "deep/new")])
    assert [path.name for path in (tmp_path / "deep/new").iterdir()] == ["001-0.png"]


def test_images_may_not_become_a_class(run: Path, photos: Path) -> None:
    """The next training would take the folder of heat maps for a class."""
    out = photos / "train" / "explained"
    with pytest.raises(InputError, match=r"is inside .*, and would be a class of it"):
        COMMANDS["explain"]([str(run), str(photos / "val" / "fish" / "0.png"), "--out", str(out)])
    with pytest.raises(InputError, match=r"is inside .*, and would be a class of it"):
        COMMANDS["evaluate"]([str(run), "--suite", "calibration", "--out", str(out)])
    assert not out.exists()
