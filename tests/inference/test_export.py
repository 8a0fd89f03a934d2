"""Exported models give the probabilities of the run's own evaluation, in the runtime that they are for."""

import json
import os
import runpy
import shutil
import signal
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from PIL import Image

import cutmix.inference.export
from cutmix.cli import COMMANDS, main
from cutmix.config.options import ExportOptions, PushOptions
from cutmix.errors import InputError
from cutmix.inference.model import load
from cutmix.runtime.weights import read_weights, save_weights


@pytest.fixture
def photo(photos: Path) -> Path:
    return photos / "val" / "fish" / "2.png"


def expected(run: Path, photo: Path) -> tuple[str, float]:
    (found,) = load(run, device="cpu").predict(photo)
    return found.classes[0], found.probabilities[0]


@pytest.mark.parametrize("kind", ["onnx", "torch"])
def test_the_lines_of_the_readme_give_the_prediction_of_the_model(
    kind: str,
    run: Path,
    photo: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    pytest.importorskip("onnxruntime")
    main(["export", str(run), "--format", kind, "--out", str(tmp_path / "out")])
    assert "largest difference of a probability from torch, on 16 training images: " in capsys.readouterr().out
    text = (tmp_path / "out/README.md").read_text(encoding="utf-8")
    assert "Largest difference of a probability from torch, on 16 training images: " in text
    fast = load(run, device="cpu").preprocessing.decoder == "fast"
    assert ("Pillow decodes them at full resolution" in text) == fast
    lines = text.split("```python\n")[1].split("```")[0].replace("photo.jpg", str(photo))
    (tmp_path / "out/use.py").write_text(lines, encoding="utf-8")
    monkeypatch.chdir(tmp_path / "out")
    runpy.run_path("use.py")
    name, probability = capsys.readouterr().out.strip().rsplit(" ", 1)
    assert name == expected(run, photo)[0]
    assert float(probability) == pytest.approx(expected(run, photo)[1], abs=1e-5)


def test_an_export_is_checked_on_images_of_the_run_or_on_noise(run: Path, photos: Path, tmp_path: Path) -> None:
    model = load(run, device="cpu")
    images, what = cutmix.inference.export.check_images(model)
    assert (images.shape, images.dtype, what) == ((16, 3, 32, 32), torch.uint8, "16 training images")
    first = sorted((photos / "train").rglob("*.png"))[0]
    assert torch.equal(images[0], model.preprocessing.cut(first))
    model.recipe = replace(model.recipe, data=str(tmp_path / "gone"))
    images, what = cutmix.inference.export.check_images(model)
    assert (images.shape, what) == ((16, 3, 32, 32), "16 random images (the training images cannot be read here)")


def test_an_error_without_a_text_is_one_sentence(
    digits_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise AssertionError

    monkeypatch.setattr(torch.export, "export", refuse)
    with pytest.raises(InputError, match="resnet20 cannot be exported: AssertionError"):
        COMMANDS["export"]([str(digits_run), "--format", "torch", "--out", str(tmp_path / "out")])


def test_small_grey_images(digits_run: Path, tmp_path: Path) -> None:
    onnxruntime = pytest.importorskip("onnxruntime")
    main(["export", str(digits_run), "--out", str(tmp_path / "out")])
    session = onnxruntime.InferenceSession(tmp_path / "out/model.onnx")
    images = np.random.default_rng(0).integers(0, 256, (5, 1, 8, 8), dtype=np.uint8)
    (found,) = session.run(None, {"images": images})
    model = load(digits_run, device="cpu")
    rows = [dict(zip(p.classes, p.probabilities, strict=True)) for p in model.predict(list(images[:, 0]), top=10)]
    np.testing.assert_allclose(found, [[row[c] for c in model.classes] for row in rows], atol=1e-5)
    assert json.loads(session.get_modelmeta().custom_metadata_map["classes"]) == list(model.classes)


def test_small_images_are_resized_alike_whatever_the_recipe_says_of_files(digits_run: Path, tmp_path: Path) -> None:
    """``--interpolation bicubic`` is of files; the network of small images had them bilinear."""
    weights = read_weights(digits_run / "model.safetensors")
    recipe = json.loads(weights.header["recipe"]) | {"interpolation": "bicubic", "squash": True, "crop_fraction": 0.5}
    header = weights.header | {"recipe": json.dumps(recipe)}
    del header["digest"]
    save_weights(tmp_path / "model.safetensors", weights.tensors, header)
    model = load(tmp_path / "model.safetensors", device="cpu")
    config = cutmix.inference.export.timm_config(model)["pretrained_cfg"]
    assert (config["interpolation"], config["crop_mode"], config["crop_pct"]) == ("bilinear", "squash", 1)
    assert "BILINEAR" in cutmix.inference.export._readme(model, ExportOptions(tmp_path), "model.onnx", "")


def test_the_weights_alone_load_again(run: Path, photo: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shutil.copytree(run, tmp_path / "own")
    monkeypatch.chdir(tmp_path / "own")
    main(["export", ".", "--format", "safetensors"])
    (found,) = load("own-safetensors/model.safetensors", device="cpu").predict(photo)
    assert (found.classes[0], found.probabilities[0]) == expected(run, photo)


def test_timm_loads_what_is_pushed_to_a_folder(run: Path, photo: Path, tmp_path: Path) -> None:
    """Logits and preprocessing are the run's, not those of timm's pretrained weights of the name."""
    main(["push", str(run), "--to", str(tmp_path / "hub")])
    theirs, ours = timm.create_model(f"local-dir:{tmp_path / 'hub'}", pretrained=True).eval(), load(run, device="cpu")
    transform = timm.data.create_transform(**timm.data.resolve_model_data_config(theirs))
    image = Image.open(photo).convert("RGB")
    with torch.no_grad():
        torch.testing.assert_close(theirs(transform(image)[None]), ours.network(ours.preprocessing(image)[None]))
    assert theirs.pretrained_cfg["label_names"] == list(ours.classes)
    assert not theirs.pretrained_cfg.get("license")  # that of the weights it started from is not ours to give
    card = (tmp_path / "hub/README.md").read_text(encoding="utf-8")
    assert "top1_err" in card
    assert "Not run." in card
    assert "16-bit grey" in card  # which this code of the card reads otherwise
    assert ("timm decodes them at full resolution" in card) == (ours.preprocessing.decoder == "fast")
    ours.preprocessing = replace(ours.preprocessing, decoder="exact")
    assert "full resolution" not in cutmix.inference.export.model_card(ours, run)


def test_models_that_timm_does_not_know_are_not_pushed(digits_run: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="not one of timm's models"):
        COMMANDS["push"]([str(digits_run), "--to", str(tmp_path / "hub")])
    assert not (tmp_path / "hub").exists()


def test_what_timm_would_compute_otherwise_is_not_pushed(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = load(run, device="cpu")
    model.recipe = replace(model.recipe, shake_drop=0.5)  # scales residual branches by 1 - p in evaluation
    monkeypatch.setattr(cutmix.inference.export, "load", lambda *_, **__: model)
    with pytest.raises(InputError, match="was trained with --shake-drop"):
        COMMANDS["push"]([str(run), "--to", str(tmp_path / "hub")])


@pytest.mark.parametrize("words", [["export", "--out"], ["push", "--to"]])
def test_a_folder_in_use_is_left_alone(words: list[str], run: Path, tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("mine")
    with pytest.raises(InputError, match="is not empty"):
        COMMANDS[words[0]]([str(run), words[1], str(tmp_path)])
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]


def test_an_export_that_fails_leaves_nothing(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(model: object, path: Path, images: object) -> float:
        path.write_bytes(b"half")
        raise OSError(28, "No space left on device", str(path))

    def wrong(model: object, path: Path, images: object) -> float:
        path.write_bytes(b"whole")
        return 0.5

    for write, said in ((full, "new could not be written: No space left"), (wrong, "differ by 0.5 from the model's")):
        monkeypatch.setitem(cutmix.inference.export._FORMATS, "torch", ("model.pt2", write))
        with pytest.raises(InputError, match=said):
            cutmix.inference.export.run_export(ExportOptions(run, format="torch", out=tmp_path / "new"))
        assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("kind", ["push", "torch", "onnx"])
def test_a_model_that_does_not_fit_on_the_disk_is_one_sentence(kind: str, run: Path, tmp_path: Path) -> None:
    """As on a full disk, which safetensors reports by an error of its own, and torch by the end of the process."""
    resource = pytest.importorskip("resource", reason="this system has no limits of processes")
    if kind == "onnx":
        pytest.importorskip("onnxruntime")
    write = partial(cutmix.inference.export.run_export, ExportOptions(run, format=kind, out=tmp_path / "new"))
    if kind == "push":
        write = partial(cutmix.inference.export.run_push, PushOptions(run, to=tmp_path / "new"))
    before, heeded = resource.getrlimit(resource.RLIMIT_FSIZE), signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, before[1]))
    try:
        with pytest.raises(InputError, match=r"new could not be written: .*File too large"):
            write()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, heeded)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("kind", ["onnx", "torch"])
def test_a_folder_whose_name_is_not_utf8(
    kind: str, digits_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("onnxruntime")
    out = tmp_path / os.fsdecode(b"caf\xe9")
    try:
        out.mkdir()
    except OSError:
        pytest.skip("the file system takes UTF-8 names only")
    main(["export", str(digits_run), "--format", kind, "--out", str(out / "export")])
    assert "largest difference" in capsys.readouterr().out
    assert (out / "export/README.md").read_text(encoding="utf-8").startswith("# digits")
