"""Images of one to sixteen channels, from the file to the prediction."""

import json
from pathlib import Path

import numpy as np
import pytest
import tifffile
import torch
from PIL import Image

import cutmix
from cutmix.cli import main
from cutmix.data import ImageSet, open_splits
from cutmix.data.decode import read_channels, read_image
from cutmix.errors import InputError
from cutmix.inference.model import load
from cutmix.runs.read import read_arrays, read_run
from cutmix.runtime.checkpoint import read_header

RNG = np.random.default_rng(0)
FEW = ["--model", "resnet10t", "--no-pretrained", "--image-size", "32", "--batch-size", "8", "--precision", "float32"]
FEW += ["--workers", "0", "--device", "cpu", "--epochs", "3"]


def bands(count: int, dtype: type = np.uint8, height: int = 40, width: int = 48) -> np.ndarray:
    return RNG.integers(0, np.iinfo(dtype).max, (height, width, count), dtype=dtype, endpoint=True)


# ---- decoding ----


def test_one_channel_is_the_luminance(tmp_path: Path) -> None:
    pixels = bands(3)
    Image.fromarray(pixels).save(tmp_path / "a.png")
    grey = np.asarray(read_channels(tmp_path / "a.png", 1))
    assert np.abs(grey - pixels @ np.array([0.299, 0.587, 0.114])).max() <= 0.51
    assert np.array_equal(np.asarray(read_channels(tmp_path / "a.png", 3)), pixels)


@pytest.mark.parametrize("channels", [1, 2, 4])
def test_16_bits_of_grey_are_scaled_to_8(channels: int, tmp_path: Path) -> None:
    pixels = bands(1, np.uint16)[..., 0]
    Image.fromarray(pixels).save(tmp_path / "a.png")
    found = np.atleast_3d(read_channels(tmp_path / "a.png", channels))
    grey = np.round(pixels / 257).astype(np.uint8)[..., None]
    assert np.array_equal(found[..., : max(channels - 1, 1)], np.repeat(grey, max(channels - 1, 1), axis=2))
    assert channels == 1 or (found[..., -1] == 255).all()


@pytest.mark.parametrize("count", [2, 4, 5, 16])
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
@pytest.mark.parametrize("layout", ["samples", "planes", "pages"])
def test_the_bands_of_a_tiff_are_taken_as_they_are(count: int, dtype: type, layout: str, tmp_path: Path) -> None:
    pixels, path = bands(count, dtype), tmp_path / "a.tif"
    planes = np.moveaxis(pixels, 2, 0)
    if layout == "samples":
        tifffile.imwrite(path, pixels, photometric="minisblack", planarconfig="contig")
    elif layout == "planes":
        tifffile.imwrite(path, planes, photometric="minisblack", planarconfig="separate")
    else:
        tifffile.imwrite(path, planes, photometric="minisblack", metadata={"axes": "CYX"})
    expected = pixels if dtype is np.uint8 else np.round(pixels / 257).astype(np.uint8)
    assert np.array_equal(read_channels(path, count), expected)
    with pytest.raises(InputError, match=r"a.tif cannot be read as an image"):
        read_channels(path, 7)


@pytest.mark.parametrize("axes", ["QRS", "X"])
def test_a_tiff_without_rows_or_columns_is_refused(axes: str, tmp_path: Path) -> None:
    shape = (7, 5, 6)[: len(axes)]
    tifffile.imwrite(tmp_path / "a.tif", np.zeros(shape, np.uint8), metadata={"axes": axes})
    with pytest.raises(InputError, match=r"a.tif cannot be read as an image"):
        read_channels(tmp_path / "a.tif", 5)


def test_four_channels_have_the_opacity(tmp_path: Path) -> None:
    pixels = bands(4)
    Image.fromarray(pixels).save(tmp_path / "a.png")
    Image.fromarray(pixels[..., :3]).save(tmp_path / "b.png")
    assert np.array_equal(read_channels(tmp_path / "a.png", 4), pixels)
    assert np.array_equal(read_channels(tmp_path / "b.png", 4)[..., 3], np.full((40, 48), 255))
    with pytest.raises(InputError, match=r"b.png cannot be read as an image \(it has 3 channels; expected 5"):
        read_channels(tmp_path / "b.png", 5)


def test_floating_point_bands_are_refused(tmp_path: Path) -> None:
    tifffile.imwrite(tmp_path / "a.tif", bands(5).astype(np.float32), photometric="minisblack")
    with pytest.raises(InputError, match="its values are float32; expected 8 or 16 bits without a sign"):
        read_channels(tmp_path / "a.tif", 5)


# ---- from training to prediction ----


def save(path: Path, label: int, channels: int) -> None:
    """Write an image whose class decides a channel that RGB would not hold."""
    pixels = RNG.integers(0, 90, (40, 48, channels), dtype=np.uint8)
    pixels[..., -1] += 150 * label
    if channels == 1:
        Image.fromarray(pixels[..., 0].astype(np.uint16) * 257).save(path.with_suffix(".png"))
    elif channels == 4:
        Image.fromarray(pixels).save(path.with_suffix(".png"))
    else:
        tifffile.imwrite(path.with_suffix(".tif"), pixels, photometric="minisblack", planarconfig="contig")


@pytest.fixture(scope="module", params=[1, 4, 6])
def trained(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[int, Path, Path]:
    """Return the number of channels, a folder of such images, and a run on them."""
    channels, root = request.param, tmp_path_factory.mktemp("bands")
    for split, count in (("train", 16), ("val", 8)):
        for label, name in enumerate(("dark", "light")):
            (root / split / name).mkdir(parents=True)
            for i in range(count):
                save(root / split / name / f"{i:02}", label, channels)
    out = tmp_path_factory.mktemp("runs") / "run"
    main(["train", "--data", str(root), "--channels", str(channels), *FEW, "--out", str(out)])
    return channels, root, out


def test_every_step_has_the_channels_of_the_weights(
    trained: tuple[int, Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    channels, root, run = trained
    header = read_header(run / "model.safetensors")
    assert (header.in_chans, len(header.mean or ()), len(header.std or ())) == (channels,) * 3
    train = open_splits(str(root), channels=channels).train
    pixels = np.concatenate([np.asarray(read_channels(path, channels)).reshape(-1, channels) for path in train.paths])
    assert header.mean == pytest.approx(pixels.mean(0) / 255, abs=1e-6)
    assert header.std == pytest.approx(pixels.std(0) / 255, abs=1e-6)
    results = {(r.source, r.metric): r.value for r in read_run(run).results if r.which == "last"}
    cutmix.evaluate(run, device="cpu", workers=0)
    again = {(r.source, r.metric): r.value for r in read_run(run).results if r.which == "last"}
    assert again["evaluation", "top1_err"] == results["training", "top1_err"]
    arrays, model = read_arrays(run / "predictions/last.npz"), load(run, device="cpu")
    files = sorted((root / "val").rglob("*.*"))
    found = {Path(each.source).parent.name + "/" + Path(each.source).name: each for each in model.predict(files)}
    for name, z in zip(arrays["files"].tolist(), arrays["logits"], strict=True):
        p = np.exp(z - z.max()) / np.exp(z - z.max()).sum()
        assert found[name.replace("\\", "/")].probabilities[0] == pytest.approx(p.max(), abs=1e-5)
    assert model.explain(files[0], neighbours=2).pixels.shape == (32, 32, 3)
    main(["export", str(run), "--out", str(tmp_path / "onnx")])
    main(["data", str(root), "--channels", str(channels), "--out", str(tmp_path / "classes.png")])
    main(["preview", "--data", str(root), "--channels", str(channels), "--image-size", "32",
          "--out", str(tmp_path / "preview.png")])  # fmt: skip
    main(["report", str(run), "--out", str(tmp_path / "page.html")])
    assert json.loads((run / "config.json").read_text())["recipe"]["channels"] == channels


def test_shards_hold_the_channels_that_they_are_written_with(
    trained: tuple[int, Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    channels, root, _ = trained
    main(["shards", str(root), "--channels", str(channels), "--out", str(tmp_path / "shards")])
    assert f"cutmix train --data {tmp_path / 'shards'} --channels {channels} trains on" in capsys.readouterr().out
    stored, files = (open_splits(str(path), channels=channels).train for path in (tmp_path / "shards", root))

    def pixels(data: ImageSet) -> list[bytes]:
        return sorted(np.asarray(read_channels(path, channels)).tobytes() for path in data.paths)  # type: ignore[attr-defined]

    assert pixels(stored) == pixels(files)
    if channels == 6:  # no image can be decoded to RGB
        for command in (["data"], ["train", *FEW, "--skip-unreadable", "--data"]):
            with pytest.raises(SystemExit):
                main([*command, str(tmp_path / "shards")])
            assert "none of the train images of class 'dark' can be read" in capsys.readouterr().err


def test_pretrained_weights_are_adapted_to_the_channels(trained: tuple[int, Path, Path], tmp_path: Path) -> None:
    """The stem of grey images is the sum of that of RGB images, as timm has it."""
    from cutmix.models import create_model
    from cutmix.runtime.weights import save_weights

    channels, root, _ = trained
    start = create_model("resnet10t", 5)
    save_weights(tmp_path / "start.safetensors", start.state_dict(), {})
    adapted = create_model("resnet10t", 2, in_chans=channels, pretrained=tmp_path / "start.safetensors")
    rgb, own = (model.get_submodule("conv1.0").weight for model in (start, adapted))
    if channels == 1:
        assert torch.allclose(own[:, 0], rgb.sum(1), atol=1e-6)
    else:
        assert torch.allclose(own.sum(1), rgb.repeat(1, 6, 1, 1)[:, :channels].sum(1) * 3 / channels, atol=1e-5)
    main(["train", "--data", str(root), "--channels", str(channels), *FEW, "--weights",
          str(tmp_path / "start.safetensors"), "--epochs", "1", "--out", str(tmp_path / "run")])  # fmt: skip
    assert read_header(tmp_path / "run/model.safetensors").in_chans == channels


def test_what_needs_rgb_is_refused(trained: tuple[int, Path, Path], tmp_path: Path) -> None:
    channels, root, run = trained
    shared = {"data": root, "channels": channels, "out": tmp_path / "x", "device": "cpu", "image_size": 32}
    with pytest.raises(InputError, match="colour jitter and lighting need 3"):
        cutmix.train(**shared, model="resnet10t", pretrained=False, color_jitter=0.1)
    if channels not in (1, 3):
        with pytest.raises(InputError, match=f"have {channels} channels; --auto-augment needs 1 or 3"):
            cutmix.train(**shared, model="resnet10t", pretrained=False, auto_augment="rand-m9")
        with pytest.raises(
            InputError, match=rf"expected a file or a uint8 array of shape \(height, width, {channels}\)"
        ):
            list(load(run, device="cpu").predict(np.zeros((8, 8, 3), np.uint8)))
    with pytest.raises(InputError, match="--channels is 17; expected a number of at least 1"):
        cutmix.Recipe(channels=17)
    with pytest.raises(InputError, match="--channels is 2; digits has 1 already"):
        cutmix.train("digits", channels=2, device="cpu", out=tmp_path / "y")


def test_grey_images_are_augmented_as_rgb(tmp_path: Path) -> None:
    for label in ("a", "b"):
        (tmp_path / label).mkdir()
        for i in range(4):
            Image.fromarray(bands(3)).save(tmp_path / label / f"{i}.png")
    assert read_image(tmp_path / "a/0.png").mode == "RGB"
    run = cutmix.train(
        tmp_path, channels=1, model="resnet10t", pretrained=False, image_size=32, epochs=1, batch_size=4, device="cpu",
        auto_augment="rand-m9-mstd0.5-inc1", workers=0, out=tmp_path / ".run",
    )  # fmt: skip
    assert read_header(run.folder / "model.safetensors").in_chans == 1


def test_a_tiff_file_that_announces_more_pixels_than_an_image_has_is_refused(tmp_path: Path, monkeypatch) -> None:
    tifffile.imwrite(tmp_path / "a.tif", bands(5), photometric="minisblack")
    monkeypatch.setattr("cutmix.data.decode.MOST_PIXELS", 1)
    with pytest.raises(InputError, match=r"announces .* values; expected at most 16"):
        read_channels(tmp_path / "a.tif", 5)
