"""The subject of an evaluation: weights of a run or a file, its classes, its images; more in test_command.py."""

import json
import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from torch import nn

from cutmix.config.options import EvaluateOptions
from cutmix.config.recipe import Recipe
from cutmix.data import ArraySet, FileSet, ImageSet, open_data
from cutmix.data.image_files import ResizeAndCrop
from cutmix.data.transforms import normalize
from cutmix.errors import InputError
from cutmix.evaluation.classifier import decode
from cutmix.evaluation.command import run_evaluate
from cutmix.evaluation.load import (
    draw_images,
    find_subject,
    find_view,
    is_cut,
    load_model,
    open_test_set,
    read_classes,
)
from cutmix.inference.model import Preprocessing, load
from cutmix.models import create_model
from cutmix.runs.folder import find_weights
from cutmix.runs.read import read_arrays
from cutmix.runtime.weights import save_weights


def image_files(folder: Path, each: int, classes: Sequence[str] = ("cat", "dog")) -> Path:
    rng = np.random.default_rng(0)
    for name in classes:
        (folder / name).mkdir(parents=True)
        for i in range(each):
            Image.fromarray(rng.integers(0, 256, (20, 30, 3), dtype=np.uint8)).save(folder / name / f"{i}.png")
    return folder


def test_weights_of_another_program_are_evaluated_on_every_image(tmp_path: Path) -> None:
    torch.save(create_model("resnet20", 2).state_dict(), tmp_path / "plain.pth")
    options = EvaluateOptions(tmp_path / "plain.pth", str(image_files(tmp_path / "photos", 1)), model="resnet20")
    subject = find_subject(options)
    data = open_test_set(options, subject)
    assert (subject.which, subject.recipe, len(data), data.split) == ("file", None, 2, "all")
    model = load_model(options, subject, data)
    assert model.fc.out_features == 2
    assert model.layer1[0].conv1.weight.is_contiguous(memory_format=torch.channels_last)


def test_a_checkpoint_that_names_its_architecture_needs_no_model(tmp_path: Path) -> None:
    content = {"arch": "resnet20", "state_dict": create_model("resnet20", 2).state_dict()}
    torch.save(content, tmp_path / "checkpoint.pth")
    options = EvaluateOptions(tmp_path / "checkpoint.pth", str(image_files(tmp_path / "photos", 1)))
    subject = find_subject(options)
    assert load_model(options, subject, open_test_set(options, subject)).fc.out_features == 2


def test_weights_of_a_recipe_are_evaluated_on_the_images_held_out(tmp_path: Path) -> None:
    folder = image_files(tmp_path / "photos", 5)
    recipe = Recipe(data=str(folder), model="resnet20", val_fraction=0.4)
    about = {"recipe": json.dumps(recipe.to_dict()), "mean": "[0.1, 0.2, 0.3]", "std": "[1, 1, 1]"}
    save_weights(tmp_path / "ours.safetensors", create_model("resnet20", 2).state_dict(), about)
    options = EvaluateOptions(tmp_path / "ours.safetensors")
    data = open_test_set(options, find_subject(options))
    assert (len(data), data.split, data.mean) == (4, "val", (0.1, 0.2, 0.3))


def ours(path: Path, folder: Path, names: Sequence[str], model: nn.Module | None = None, **header: object) -> Path:
    """Save weights as a run on a folder does."""
    recipe = Recipe(data=str(folder), model="resnet20", val_fraction=0.4)
    values = {
        "recipe": recipe.to_dict(),
        "classes": list(names),
        "num_classes": len(names),
        "in_chans": 3,
        **header,
    }
    strings = {name: value if isinstance(value, str) else json.dumps(value) for name, value in values.items()}
    save_weights(path, (model or create_model("resnet20", len(names))).state_dict(), strings)
    return path


def opened(path: Path, data: Path | None, **options: Any) -> ImageSet:
    chosen = EvaluateOptions(path, data and str(data), **options)
    return open_test_set(chosen, find_subject(chosen))


def test_only_the_images_of_the_results_have_to_be_readable(tmp_path: Path) -> None:
    """A run that left out unreadable training or validation images is evaluated without a flag."""
    photos = tmp_path / "photos"
    for split in ("train", "val", "test"):
        image_files(photos / split, 3)
        for number, file in enumerate(sorted((photos / split).rglob("*.png"))):  # else all would be copies
            Image.new("RGB", (20, 30), (40 * number, 40 * len(split), 0)).save(file)
    path = ours(tmp_path / "w.safetensors", photos, ("cat", "dog"))
    for split in ("train", "val"):
        (photos / split / "cat" / "0.png").write_bytes(b"damaged")
    assert (len(opened(path, None)), opened(path, None).split) == (6, "test")
    (photos / "test" / "cat" / "0.png").write_bytes(b"damaged")
    with pytest.raises(InputError, match=r"test.cat.0.png cannot be read as an image"):
        opened(path, None)
    assert len(opened(path, None, skip_unreadable=True)) == 5


def test_all_of_other_data_is_evaluated_and_its_classes_are_matched_by_name(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    own = image_files(tmp_path / "own", 5, ("ant", "cat", "dog"))
    path = ours(tmp_path / "w.safetensors", own, ("dog", "ant", "cat"))
    new = image_files(tmp_path / "new", 7)
    data = opened(path, new)
    assert (len(data), data.classes) == (14, ("dog", "ant", "cat"))
    assert [data.classes[label] for label in data.labels.tolist()] == ["cat"] * 7 + ["dog"] * 7
    assert "2 of the 3 classes of the model" in caplog.text
    assert load_model(EvaluateOptions(path), find_subject(EvaluateOptions(path)), data).fc.out_features == 3
    with pytest.raises(InputError, match=r"'cats', which is not among the 3 of .*; did you mean 'cat'"):
        opened(path, image_files(tmp_path / "other", 1, ("cats", "dog")))


def test_the_runs_own_data_may_have_moved(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Other data with the same images are evaluated whole, and the training images among them are counted."""
    own = image_files(tmp_path / "own", 5)
    fingerprint = open_data(str(own), "train", val_fraction=0.4).fingerprint()
    path = ours(tmp_path / "w.safetensors", own, ("cat", "dog"), data=fingerprint)
    moved = tmp_path / "moved"
    shutil.copytree(own, moved)
    for data in (None, own, own / ".." / "own", moved):
        assert len(opened(path, data)) == 4
    (moved / "cat" / "another.png").write_bytes((moved / "cat" / "1.png").read_bytes())
    (moved / "cat" / "notes.heic").write_bytes(b"")
    caplog.set_level("INFO")
    assert len(opened(path, moved)) == 11
    trained = {each.name for each in open_data(str(own), "train", val_fraction=0.4).paths if each.parent.name == "cat"}
    assert caplog.messages == [
        f"{6 + ('1.png' in trained)} of the 11 images of moved are training images of {path}: the error on them is no "
        "test error",
        "1 file is not an image: 1 .heic",
    ]


def test_own_data_that_have_changed_are_named(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Where images that were held out are removed, others, which the run was trained on, are held out."""
    own = image_files(tmp_path / "own", 9)
    for number, file in enumerate(sorted(own.rglob("*.png"))):
        Image.new("RGB", (9, 9), (12 * number, 200, 7)).save(file)
    sorted(own.rglob("*.png"))[0].write_bytes(b"damaged")
    trained = open_data(str(own), "train", val_fraction=0.4, skip_unreadable=True)
    path = ours(tmp_path / "w.safetensors", own, ("cat", "dog"), data=trained.fingerprint())
    with caplog.at_level("WARNING", logger="cutmix"):
        opened(path, None, skip_unreadable=True)
    assert not caplog.messages
    names = {file.relative_to(own) for file in trained.paths}
    for file in sorted(own.rglob("*.png")):
        if file.relative_to(own) not in names:
            file.unlink()
    with caplog.at_level("WARNING", logger="cutmix"):
        assert {file.relative_to(own) for file in opened(path, None).paths} <= names
    assert caplog.messages == [
        f"{own} has changed since {path} was trained: images that it was trained on may be among those evaluated"
    ]


def test_other_data_of_the_same_name_have_another_name(tmp_path: Path) -> None:
    own = image_files(tmp_path / "a" / "images", 5)
    path = ours(tmp_path / "w.safetensors", own, ("cat", "dog"))
    assert opened(path, own).name == "images"
    for folder, name in (("b/images", "b/images"), ("c/a/images", "c/a/images"), ("a/images/more", "more")):
        assert opened(path, image_files(tmp_path / folder, 2)).name == name


def test_training_images_of_a_folder_of_splits_are_counted(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    own = image_files(tmp_path / "own" / "train", 3).parent
    image_files(own / "val", 3)
    for number, file in enumerate(sorted((own / "val").rglob("*.png"))):
        Image.new("RGB", (9, 9), (number, 200, 7)).save(file)
    path = ours(tmp_path / "w.safetensors", own, ("cat", "dog"))
    new = tmp_path / "new"
    shutil.copytree(own / "train", new)
    assert len(opened(path, new)) == 6
    assert caplog.messages == [
        f"6 of the 6 images of new are training images of {path}: the error on them is no test error"
    ]


def test_imagenets_classes_are_known(tmp_path: Path) -> None:
    path = tmp_path / "w.pth"
    torch.save(create_model("resnet20", 1000).state_dict(), path)
    numbers = {"n01443537": 1, "n01484850": 2, "n15075141": 999}
    data = opened(path, image_files(tmp_path / "wordnet", 1, list(numbers)), model="resnet20")
    assert (data.num_classes, data.labels.tolist()) == (1000, [1, 2, 999])
    data = opened(
        path, image_files(tmp_path / "words", 1, ("Goldfish", "great_white_shark", "toilet tissue")), model="resnet20"
    )
    assert (data.num_classes, data.labels.tolist(), data.classes[999]) == (1000, [1, 2, 999], "toilet tissue")
    for number, classes in enumerate((("goldfish", "my cat"), ("crane", "goldfish"))):  # no class; two classes
        folder = image_files(tmp_path / str(number), 1, classes)
        with pytest.raises(InputError, match=r"has 1000 classes and does not name them, . has 2; give"):
            opened(path, folder, model="resnet20")


@pytest.mark.parametrize(
    "text",
    ["b\na\nc\n", "b\r\na\r\nc", '["b", "a", "c"]', '{"0": "b", "2": "c", "1": "a"}',
     '{"0": ["b", "x"], "1": ["a", "y"], "2": ["c", "z"]}', "\ufeffb\na\nc"],
)  # fmt: skip
def test_a_list_of_classes_gives_the_order_of_the_outputs(tmp_path: Path, text: str) -> None:
    (tmp_path / "classes").write_text(text, encoding="utf-8", newline="")
    assert read_classes(tmp_path / "classes") == ("b", "a", "c")
    torch.save(create_model("resnet20", 3).state_dict(), tmp_path / "w.pth")
    folder = image_files(tmp_path / "photos", 1, ("a", "b", "c"))
    data = opened(tmp_path / "w.pth", folder, model="resnet20", classes=tmp_path / "classes")
    assert data.labels.tolist() == [1, 0, 2]


def test_a_list_of_classes_names_them_as_folders_are_named(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")
    names = ["cafe\u0301", "a\u2028b", "c\x85d"]  # a decomposed letter; line separators that end no line
    (tmp_path / "classes").write_text("\n".join(names), encoding="utf-8", newline="")
    torch.save(create_model("resnet20", 3).state_dict(), tmp_path / "w.pth")
    folder = image_files(tmp_path / "photos", 1, names)
    data = opened(tmp_path / "w.pth", folder, model="resnet20", classes=tmp_path / "classes")
    assert [data.classes[label] for label in data.labels] == list(open_data(str(folder), "all").classes)
    assert not caplog.text
    named = ours(tmp_path / "w.safetensors", folder, ("x", "y", "z"))
    assert find_subject(EvaluateOptions(named, classes=tmp_path / "classes")).classes == data.classes
    assert "names its classes otherwise (x, y, z, …)" in caplog.text


@pytest.mark.parametrize(
    ("text", "said"),
    [("", "hold a list"), ("a\n\nb", "hold a list"), ("[1, 2]", "hold a list"), ('{"a": "b"}', "hold a list"),
     ("[" * 9999, "hold a list"), ('["a"', "hold a list"), ("a\nb\na", "the class 'a' twice"),
     ("a\nb", "has 2 names; expected 3, a name for each class of .*w.safetensors")],
)  # fmt: skip
def test_a_bad_list_of_classes_is_one_sentence(tmp_path: Path, text: str, said: str) -> None:
    (tmp_path / "classes").write_text(text)
    path = ours(tmp_path / "w.safetensors", tmp_path, ("x", "y", "z"))
    with pytest.raises(InputError, match=said):
        find_subject(EvaluateOptions(path, classes=tmp_path / "classes"))
    for unreadable, why in ((tmp_path, "Is a directory"), (tmp_path / "none", "No such file")):
        with pytest.raises(InputError, match=f"{unreadable} cannot be read: {why}"):
            find_subject(EvaluateOptions(path, classes=unreadable))


@pytest.mark.parametrize("names", ["a\nb", "a\nb\nc\nd", '["x", "y"]'])
def test_a_list_of_classes_for_weights_of_another_number_is_named(tmp_path: Path, names: str) -> None:
    """The list is wrong, whether or not the data have its classes, and not the weights or the data."""
    (tmp_path / "names.txt").write_text(names)
    torch.save(create_model("resnet20", 3).state_dict(), tmp_path / "w.pth")
    folder = image_files(tmp_path / "photos", 1, ("a", "b"))
    with pytest.raises(InputError, match=r"names.txt has [24] names; expected 3, a name for each class of .*w.pth"):
        opened(tmp_path / "w.pth", folder, model="resnet20", classes=tmp_path / "names.txt")
    (tmp_path / "names.txt").write_text("a\nc\nd")
    with pytest.raises(InputError, match=r"photos has the class 'b', which is not among the 3 of .*names.txt"):
        opened(tmp_path / "w.pth", folder, model="resnet20", classes=tmp_path / "names.txt")


@pytest.mark.parametrize("safe", [True, False])
def test_a_folder_of_timm_tells_model_classes_and_normalization(safe: bool, tmp_path: Path) -> None:
    """As it is published on the Hugging Face Hub: what config.json says wins over the order of the folders."""
    network = timm.create_model("resnet10t", num_classes=2)
    told = {"num_classes": 2, "label_names": ["dog", "cat"], "pretrained_cfg": {"mean": [0.1] * 3, "std": [0.2] * 3}}
    timm.models.save_for_hf(network, tmp_path / "hub", model_config=told, safe_serialization=safe)
    folder = image_files(tmp_path / "photos", 1)
    for source in (tmp_path / "hub", find_weights(tmp_path / "hub", "last")):
        options = EvaluateOptions(source, str(folder))
        subject = find_subject(options)
        data = open_test_set(options, subject)
        assert (data.classes, data.labels.tolist()) == (("dog", "cat"), [1, 0])
        assert (data.mean, data.std) == ((0.1,) * 3, (0.2,) * 3)
        loaded = load_model(options, subject, data)
        assert torch.equal(loaded.fc.weight, network.fc.weight)


@pytest.mark.parametrize(
    ("size", "crop_pct", "mode", "how"),
    [(64, 0.875, "center", "bilinear"), (60, 0.9, "center", "bicubic"), (64, 0.95, "squash", "bicubic")],
)
def test_images_are_cut_as_timm_cuts_them(size: int, crop_pct: float, mode: str, how: str, tmp_path: Path) -> None:
    told = {"input_size": [3, size, size], "crop_pct": crop_pct, "crop_mode": mode, "interpolation": how}
    told |= {"mean": [0.0] * 3, "std": [1.0] * 3}
    network = timm.create_model("resnet10t", num_classes=2)
    timm.models.save_for_hf(network, tmp_path / "hub", model_config={"pretrained_cfg": told}, safe_serialization=True)
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (97, 71, 3), dtype=np.uint8))
    theirs = timm.data.create_transform(**timm.data.resolve_data_config({}, pretrained_cfg=told))(image)
    options = EvaluateOptions(tmp_path / "hub", str(image_files(tmp_path / "photos", 1)))
    subject = find_subject(options)
    data = open_test_set(options, subject)
    view = find_view(options, subject, data)
    ours = ResizeAndCrop(size, view.crop_fraction, view.squash, view.interpolation)(image)
    assert view.image_size == size
    assert torch.equal(ours, (255 * theirs).round().byte())
    assert find_view(replace(options, crop_fraction=0.5), subject, data).crop_fraction == 0.5


def test_files_are_cut_for_a_model_of_small_images_as_predict_cuts_them(tmp_path: Path) -> None:
    """Copies of small images as files are not changed at all, other images are resized whole, and grey stays grey."""
    rng, sides = np.random.default_rng(0), {"ant": (8, 8), "bee": (20, 30)}
    for name, side in sides.items():
        (tmp_path / "photos" / name).mkdir(parents=True)
        for i in range(2):
            pixels = Image.fromarray(rng.integers(0, 256, side, dtype=np.uint8))
            pixels.save(tmp_path / "photos" / name / f"{i}.png")
    about = {"small": True, "image_size": 8, "in_chans": 1, "mean": [0.3], "std": [0.4]}
    path = ours(tmp_path / "w.safetensors", tmp_path / "gone", tuple(sides), **about)
    options = EvaluateOptions(path, str(tmp_path / "photos"))
    subject = find_subject(options)
    data = open_test_set(options, subject)
    assert isinstance(data, FileSet)
    view, cut = find_view(options, subject, data), Preprocessing(8, 1, (0.3,), (0.4,), small=True)
    images = decode(data, *view).images
    with Image.open(data.paths[0]) as copy:
        assert np.array_equal(images[0, 0], copy)
    inputs = torch.stack([cut.cut(file) for file in data.paths])
    torch.testing.assert_close(normalize(images, data.mean, data.std), inputs, rtol=0, atol=1 / 255 / 0.4)
    with pytest.raises(InputError, match=r"--crop-fraction is 0\.9; expected 1, with which"):
        find_view(replace(options, crop_fraction=0.9), subject, data)


def test_arrays_are_cut_for_a_model_of_image_files_as_predict_cuts_them(tmp_path: Path) -> None:
    torch.manual_seed(0)
    recipe = Recipe(name="photos", data="gone", model="resnet20").to_dict()
    about = {"small": False, "image_size": 12, "in_chans": 1, "mean": [0.3], "std": [0.4], "recipe": recipe}
    path = tmp_path / "w.safetensors"
    ours(
        path, tmp_path / "gone", [str(digit) for digit in range(10)], create_model("resnet20", 10, in_chans=1), **about
    )
    chosen: dict[str, Any] = {"precision": "float32", "device": "cpu", "images": 30}
    run_evaluate(EvaluateOptions(path, "digits", suite="classification", out=tmp_path / "a", **chosen), shown=False)
    data = open_data("digits", "test")
    assert isinstance(data, ArraySet)
    drawn = draw_images(len(data), 30, 0)
    assert drawn is not None
    for i, index in enumerate(drawn.tolist()):
        Image.fromarray(data.images[index, 0].numpy()).save(tmp_path / f"{i:02}.png")
    predictions = load(path, device="cpu").predict(sorted(tmp_path.glob("*.png")), top=10)
    expected = [[dict(zip(*each[1:3], strict=True))[name] for name in data.classes] for each in predictions]
    logits = torch.from_numpy(read_arrays(tmp_path / "a/predictions/last.npz")["logits"])
    torch.testing.assert_close(logits.softmax(1), torch.tensor(expected), rtol=0, atol=1e-5)


def test_arrays_are_cut_for_other_weights_where_a_crop_is_given(tmp_path: Path) -> None:
    torch.save(create_model("resnet20", 10, in_chans=1).state_dict(), tmp_path / "plain.pth")
    for fraction, cut, size in ((None, False, None), (0.8, True, 8)):
        options = EvaluateOptions(tmp_path / "plain.pth", "digits", model="resnet20", crop_fraction=fraction)
        subject = find_subject(options)
        data = open_test_set(options, subject)
        assert is_cut(options, subject, data) == cut
        assert find_view(options, subject, data).image_size == size


def test_numbered_folders_are_noted(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")
    torch.save(create_model("resnet20", 11).state_dict(), tmp_path / "w.pth")
    folder = image_files(tmp_path / "photos", 1, [str(n) for n in range(11)])
    assert opened(tmp_path / "w.pth", folder, model="resnet20").classes[:3] == ("0", "1", "10")
    assert "in the order of the classes of photos (0, 1, 10, 2, …), numbers sorted as text" in caplog.text
    (tmp_path / "classes").write_text("\n".join(str(n) for n in range(11)))
    caplog.clear()
    data = opened(tmp_path / "w.pth", folder, model="resnet20", classes=tmp_path / "classes")
    assert data.labels.tolist() == [0, 1, 10, *range(2, 10)]
    assert not caplog.text


@pytest.mark.parametrize(
    ("field", "value"),
    [("image_size", 10**9), ("image_size", 0), ("image_size", "big"), ("image_size", True), ("mean", [0.5, None, 1]),
     ("mean", 3), ("std", [1, 0, 1]), ("std", [1.0, float("nan"), 1]), ("mean", [0.5]), ("classes", "cat"),
     ("classes", [1, 2]), ("classes", ["a"] * 3), ("num_classes", -1), ("num_classes", 10**12), ("epoch", "[" * 9999),
     ("epoch", {}), ("recipe", [1]), ("recipe", {"model": "resnet20", "colour": 1}), ("in_chans", 5)],
)  # fmt: skip
def test_a_header_of_other_types_is_one_sentence(tmp_path: Path, field: str, value: object) -> None:
    path = ours(
        tmp_path / "w.safetensors", tmp_path, ("a", "b"), **({"mean": [0.5] * 3, "std": [1] * 3} | {field: value})
    )
    with pytest.raises(InputError, match=rf"has {field} .* in its header; expected|contradicts itself|unknown field"):
        find_subject(EvaluateOptions(path))


def test_a_smaller_draw_is_part_of_a_larger_one() -> None:
    few, many = draw_images(100, 10, 3), draw_images(100, 40, 3)
    assert few is not None
    assert many is not None
    assert len(set(few.tolist())) == 10
    assert set(few.tolist()) < set(many.tolist()) < set(range(100))
    assert few.tolist() == sorted(few.tolist())
    assert draw_images(100, None, 3) is None
    assert draw_images(100, 100, 3) is None


def test_the_normalization_of_a_known_model_goes_with_it(tmp_path: Path) -> None:
    torch.save(create_model("resnet18", 2).state_dict(), tmp_path / "plain.pth")
    folder = str(image_files(tmp_path / "photos", 1))
    for model, mean in (("resnet18", 0.485), ("tf_efficientnet_lite0", 0.5)):
        options = EvaluateOptions(tmp_path / "plain.pth", folder, model=model)
        assert open_test_set(options, find_subject(options)).mean[0] == mean


def test_a_missing_file_is_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="expected the folder of a run, or a file of weights"):
        find_subject(EvaluateOptions(tmp_path / "absent.pth"))
