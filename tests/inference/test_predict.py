"""Predictions equal those of the run's own evaluation, whatever the input is, and errors lose nothing."""

import csv
import io
import itertools
import json
import os
import re
import shutil
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import ExifTags, Image

import cutmix
from cutmix.cli import COMMANDS, main
from cutmix.config.options import PredictOptions
from cutmix.config.recipe import Recipe
from cutmix.data import open_data
from cutmix.data import test_loader as make_test_loader
from cutmix.data.image_files import Decoder
from cutmix.errors import InputError
from cutmix.inference.command import find_images, write_predictions
from cutmix.inference.model import Model, Prediction, Predictions, Preprocessing, load
from cutmix.runs.read import read_run
from cutmix.runs.record import read_records


def own_probabilities(run: Path) -> torch.Tensor:
    """Return what the training's own evaluation of the test images gives."""
    with np.load(run / "predictions/last.npz") as arrays:
        return torch.from_numpy(arrays["logits"]).softmax(1)


def as_table(model: Model, predictions: list[Prediction]) -> torch.Tensor:
    rows = [dict(zip(each.classes, each.probabilities, strict=True)) for each in predictions]
    return torch.tensor([[row[name] for name in model.classes] for row in rows])


def command(capsys: pytest.CaptureFixture[str], *words: str) -> tuple[int, str, str]:
    capsys.readouterr()
    code: object = 0
    try:
        main(["predict", *words])
    except SystemExit as end:
        code = end.code
    out, err = capsys.readouterr()
    return int(str(code)), out, err


def test_files_get_the_probabilities_of_the_run(run: Path, photos: Path) -> None:
    model = load(run, device="cpu")
    files = sorted((photos / "val").rglob("*.png"))
    found = list(model.predict(files, top=3, batch_size=4))
    torch.testing.assert_close(as_table(model, found), own_probabilities(run))
    assert [each.source for each in found] == [str(file) for file in files]
    arrays = [np.asarray(Image.open(file)) for file in files]
    assert [each[1:] for each in model.predict(arrays, top=3, batch_size=4)] == [each[1:] for each in found]


@pytest.mark.parametrize(
    ("image", "said"),
    [
        (np.zeros((0, 5, 3), np.uint8), "shape (0, 5, 3)"),
        ([1, 2], "image 0 is a list; expected a file, a PIL image, or a uint8 array of shape"),
        (torch.zeros(3, 8, 8), "image 0 is a Tensor; expected a file, a PIL image, or a uint8 array of shape"),
        (np.zeros((3, 8, 8)), "image 0 is an array of shape (3, 8, 8) and dtype float64; expected a file"),
    ],
)
def test_what_is_no_image_is_refused(image: Any, said: str, run: Path) -> None:
    model = load(run, device="cpu")
    with pytest.raises(InputError, match=re.escape(said)):
        list(model.predict([image]))
    with pytest.raises(InputError, match=re.escape(said)):
        model.explain(image)


@pytest.mark.parametrize("images", [None, 5, torch.zeros(2, 3, 8, 8), b"GIF89a"], ids=str)
def test_what_are_no_images_is_refused(images: Any, run: Path) -> None:
    said = f"images is a {type(images).__name__}; expected a file, a PIL image, or a uint8 array"
    for function in (load(run, device="cpu").predict, partial(cutmix.predict, run), partial(cutmix.explain, run)):
        with pytest.raises(InputError, match=said):
            function(images)


def test_images_in_memory_get_the_predictions_of_their_files(run: Path, photos: Path, tmp_path: Path) -> None:
    files = sorted((photos / "val/fish").glob("*.png"))
    expected = [each[1:] for each in cutmix.predict(run, photos / "val/fish", top=3)]
    opened = [Image.open(file) for file in files]
    arrays = [np.asarray(image) for image in opened]
    same = np.stack([np.asarray(image.resize((40, 40))) for image in opened])
    for images in (opened, arrays, iter(files)):
        assert [each[1:] for each in cutmix.predict(run, images, top=3)] == expected
    assert [each[1:] for each in cutmix.predict(run, opened[0], top=3)] == expected[:1]
    model = load(run)
    assert [each[1:] for each in model.predict(same)] == [each[1:] for each in model.predict(list(same))]
    drawn = cutmix.explain(run, [opened[0], arrays[1], files[2]], out=tmp_path / "out", neighbours=0)
    assert [file.name for file in drawn] == ["001.png", "002.png", "003-2.png"]


def test_only_the_last_or_the_best_epoch_is_loaded(run: Path) -> None:
    with pytest.raises(InputError, match='which is "worst"; expected "last" or "best"'):
        load(run, which="worst")


def test_loops_over_the_same_predictions_are_independent(run: Path, photos: Path) -> None:
    files = sorted((photos / "val").rglob("*.png"))
    found = load(run, device="cpu").predict(files)
    pairs = [(one.source, other.source) for one in found for other in found]
    assert pairs == list(itertools.product(map(str, files), repeat=2))


def test_an_opened_image_gets_the_prediction_of_its_file(run: Path, tmp_path: Path) -> None:
    """Orientation and transparency count in both."""
    rng = np.random.default_rng(0)
    turned = Image.fromarray(rng.integers(0, 256, (60, 90, 3), dtype=np.uint8))
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 6
    turned.save(tmp_path / "turned.jpg", exif=exif)
    Image.fromarray(rng.integers(0, 256, (60, 90, 4), dtype=np.uint8)).save(tmp_path / "clear.png")
    Image.fromarray(rng.integers(0, 65536, (60, 90), dtype=np.uint16)).save(tmp_path / "deep.png")
    model = load(run, device="cpu")
    for file in sorted(tmp_path.iterdir()):
        (ours,), (theirs,) = model.predict(Image.open(file), top=3), model.predict(file, top=3)
        assert ours.classes == theirs.classes
        assert ours.probabilities == pytest.approx(theirs.probabilities, abs=1e-4)


@pytest.mark.parametrize("decoder", ["exact", "fast"])
def test_a_jpeg_file_is_decoded_as_by_the_test_loader(tmp_path: Path, decoder: Decoder) -> None:
    ramp = np.linspace(0, 255, 640 * 480 * 3).reshape(480, 640, 3).astype(np.uint8)
    for split, label in itertools.product(("train", "val"), ("a", "b")):
        (tmp_path / split / label).mkdir(parents=True)
        Image.fromarray(np.roll(ramp, 50 * len(list(tmp_path.rglob("*.jpg"))), 0)).save(
            tmp_path / split / label / "0.jpg"
        )
    data = open_data(str(tmp_path), "val")
    view = Preprocessing(64, 3, data.mean, data.std, small=False, decoder=decoder)
    loader = make_test_loader(data, batch_size=1, device="cpu", image_size=64, decoder=decoder)
    torch.testing.assert_close(
        view.finish(view.cut(tmp_path / "val/a/0.jpg")[None])[0], next(loader.epoch())[0][0], rtol=0, atol=0
    )


def test_small_images_get_the_probabilities_of_the_run(digits_run: Path) -> None:
    model = load(digits_run / "model.safetensors", device="cpu")
    images = open_data("digits", "test").images[:, 0].numpy()
    torch.testing.assert_close(
        as_table(model, list(model.predict(list(images), top=10))), own_probabilities(digits_run)
    )


def test_flip_averages_and_temperature_divides(run: Path) -> None:
    model = load(run, device="cpu")
    inputs = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        one, other = model.network(inputs), model.network(inputs.flip(-1))
    expected = ((one / 2).softmax(1) + (other / 2).softmax(1)) / 2
    torch.testing.assert_close(model.probabilities(inputs, temperature=2.0, flip=True), expected)


def test_the_command_writes_csv_in_order_and_says_what_it_cannot_read(
    run: Path, photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    broken = tmp_path / "broken.jpg"
    broken.write_bytes(b"no image")
    good = photos / "val" / "fish" / "0.png"
    code, out, err = command(capsys, str(run), str(good), str(broken), str(photos / "val"), "--top", "2")
    rows = list(csv.DictReader(io.StringIO(out)))
    assert code == 2
    assert len(rows) == 11
    assert rows[0]["file"] == str(good)
    assert rows[1]["error"].startswith(str(broken))
    assert rows[1]["class_1"] == ""
    assert {"class_1", "class_2", "probability_2"} <= set(rows[0])
    assert "1 of the files cannot be read" in err
    assert "no temperature" in err


def test_a_folder_is_predicted_without_hidden_files_and_the_others_are_counted(
    run: Path, photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    image = (photos / "val" / "fish" / "0.png").read_bytes()
    for name in ("a/0.PNG", "a/._0.png", "a/b.heic", "c.HEIC", "notes.txt", ".cache/0.png", "__MACOSX/0.png"):
        (tmp_path / "new" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "new" / name).write_bytes(image)
    code, out, err = command(capsys, str(run), str(tmp_path / "new"))
    assert (code, [row["file"] for row in csv.DictReader(io.StringIO(out))]) == (0, [f"{tmp_path}/new/a/0.PNG"])
    assert f"{tmp_path}/new: 3 files are not images: 2 .heic, 1 .txt" in err
    (tmp_path / "new" / "a" / "0.PNG").unlink()
    with pytest.raises(InputError, match=r"new holds no images; 3 files are not images: 2 \.heic, 1 \.txt; expected"):
        find_images(str(tmp_path / "new"))


def test_a_folder_is_predicted_through_links(photos: Path, tmp_path: Path) -> None:
    """A folder of links to class folders trains, so its images can be predicted too."""
    linked = tmp_path / "linked"
    linked.mkdir()
    (linked / "fish").symlink_to(photos / "val" / "fish")
    (linked / "0.png").symlink_to(photos / "val" / "fish" / "0.png")
    expected = sorted(Path(top) / name for top, _, names in os.walk(linked, followlinks=True) for name in names)
    assert len(expected) > 2
    assert find_images(str(linked)) == expected


def test_json_lines_from_standard_input(
    run: Path, photos: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    files = sorted((photos / "val").rglob("*.png"))
    monkeypatch.setattr("sys.stdin", io.StringIO("".join(f"{file}\n" for file in files)))
    code, out, _ = command(capsys, str(run), "-", "--format", "jsonl", "--threshold", "1")
    lines = [json.loads(line) for line in out.splitlines()]
    assert code == 0
    assert [line["file"] for line in lines] == [str(file) for file in files]
    assert not any(line["sure"] for line in lines)


def test_without_a_threshold_no_prediction_is_called_sure(
    run: Path, photos: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (file, *_) = sorted((photos / "val").rglob("*.png"))
    _, out, _ = command(capsys, str(run), str(file))
    assert next(csv.DictReader(io.StringIO(out)))["sure"] == ""
    _, out, _ = command(capsys, str(run), str(file), "--format", "jsonl")
    assert "sure" not in json.loads(out)


def test_the_temperature_of_a_calibration_is_taken_and_said(
    digits_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    main(["evaluate", str(digits_run), "--suite", "calibration", "--device", "cpu"])
    (fitted,) = (r.value for r in read_records(digits_run / "results.jsonl") if r.metric == "temperature")
    model = load(digits_run, device="cpu")
    assert model.fitted_on == 398
    assert model.temperature == fitted
    image = tmp_path / "digit.png"
    Image.fromarray(open_data("digits", "test").images[0, 0].numpy()).save(image)
    _, _, err = command(capsys, str(digits_run), str(image))
    assert "fitted on 398 held-out images" in err


def test_the_temperature_is_that_of_the_epoch_the_size_and_the_data_of_the_predictions(
    digits_run: Path, run: Path, photos: Path, tmp_path: Path
) -> None:
    def calibrated(folder: Path, *words: str) -> dict[str, float]:
        main(["evaluate", str(folder), "--suite", "calibration", "--device", "cpu", *words])
        return {r.metric: r.value for r in read_records(folder / "results.jsonl")}  # the last line of each

    copy = Path(shutil.copytree(digits_run, tmp_path / "digits"))
    (copy / "best.safetensors").write_bytes((copy / "model.safetensors").read_bytes())
    fitted = calibrated(copy, "--which", "best", "--images", "300")["temperature"]
    assert load(copy, which="best", device="cpu").temperature == fitted
    last = calibrated(copy)["temperature"]
    assert calibrated(copy, "--image-size", "12")["temperature"] != last
    assert load(copy, which="last", device="cpu").temperature == last
    assert load(copy, which="best", device="cpu").temperature == fitted
    assert len({path.name for path in (copy / "predictions").glob("calibration-last*.npz")}) == 2

    copy = Path(shutil.copytree(run, tmp_path / "run"))
    own = calibrated(copy)
    other = tmp_path / "other" / photos.name
    shutil.copytree(photos / "train", other)
    Image.new("RGB", (50, 50), "navy").save(other / "fish" / "more.png")
    assert calibrated(copy, "--data", str(other))["nll"] != own["nll"]
    assert {r.metric: r.value for r in read_run(copy).suite("calibration")}["nll"] == own["nll"]


@pytest.mark.parametrize(
    "changed", [{"temperature": 1e-3}, {"temperature": 1e3}, {"nll_unscaled": 0.5, "nll_scaled": 0.5}]
)
def test_a_temperature_at_the_end_of_its_range_or_without_a_lower_loss_is_not_taken(
    changed: dict[str, float], digits_run: Path, tmp_path: Path
) -> None:
    run = Path(shutil.copytree(digits_run, tmp_path / "run"))
    main(["evaluate", str(run), "--suite", "calibration", "--device", "cpu"])
    lines = [json.loads(line) for line in (run / "results.jsonl").read_text().splitlines()]
    lines = [line | {"value": changed.get(line["metric"], line["value"])} for line in lines]
    (run / "results.jsonl").write_text("".join(f"{json.dumps(line)}\n" for line in lines))
    model = load(run, device="cpu")
    assert (model.temperature, model.fitted_on) == (1.0, 0)
    assert f"1, as the fitted {model.rejected:.3g} does not lower the loss" in str(model)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"top": 0}, "top is 0; expected at least 1"),
        ({"threshold": 1.5}, r"threshold is 1.5; expected a probability in \[0, 1\]"),
        ({"temperature": 0.0}, "temperature is 0.0; expected a number above 0"),
        ({"temperature": 1e-300}, "temperature is 1e-300; expected a number above 0, from 1e-6 on"),
    ],
)
def test_arguments_out_of_range(arguments: dict[str, float], said: str) -> None:
    with pytest.raises(InputError, match=said):
        linear_model().predict([], **arguments)  # type: ignore[arg-type]


@pytest.mark.parametrize("value", ["-1.0", "1e-300", "0.0"])
def test_a_recorded_temperature_that_is_none_is_refused(run: Path, tmp_path: Path, value: str) -> None:
    copy = shutil.copytree(run, tmp_path / "run")
    line = (copy / "results.jsonl").read_text().splitlines()[0]
    record = json.loads(line) | {"metric": "temperature", "suite": "calibration", "source": "evaluation"}
    record |= {"which": "last", "value": float(value), "low": None, "high": None}
    with (copy / "results.jsonl").open("a") as file:
        file.write(json.dumps(record) + "\n")
    with pytest.raises(InputError, match="temperature"):
        load(copy, device="cpu")


def test_what_cannot_be_loaded_is_said(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="does not exist; expected the folder of a run"):
        load(tmp_path / "nothing")
    with pytest.raises(InputError, match="a uint8 array of shape"):
        list(linear_model().predict(np.zeros((4, 4, 3))))


def linear_model() -> Model:
    preprocessing = Preprocessing(4, 3, (0.5,) * 3, (0.5,) * 3, small=True)
    network = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(48, 2))
    return Model(network, ("a", "b"), preprocessing, source=Path("weights"), recipe=Recipe())


@pytest.mark.skipif(os.name == "nt", reason="names on Windows are Unicode")
def test_a_name_that_is_not_utf8_is_a_line(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    name = os.fsdecode(b"caf\xe9.png")
    Image.new("RGB", (40, 40)).save(tmp_path / name)
    code, out, _ = command(capsys, str(run), str(tmp_path / name), "--format", "jsonl")
    assert code == 0
    assert json.loads(out)["predictions"]


def test_the_file_of_predictions_is_replaced_whole_or_not_at_all(
    run: Path, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "old.csv"
    out.write_text("precious")
    words = ["predict", str(run), str(photos / "val"), "--device", "cpu", "--out", str(out)]
    predict = Model._predict

    def interrupted(*arguments: Any, **named: Any) -> Iterator[Prediction]:
        yield from itertools.islice(predict(*arguments, **named), 2)
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(Model, "_predict", interrupted)
        with pytest.raises(SystemExit) as stopped:
            main(words)
    assert (stopped.value.code, out.read_text()) == (130, "precious")
    main(words)
    assert len(out.read_text().splitlines()) == 10
    assert list(tmp_path.iterdir()) == [out]


def test_predictions_do_not_replace_a_file_of_a_run(run: Path, photos: Path) -> None:
    before = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    for name in ("results.jsonl", "config.json", "model.safetensors"):
        with pytest.raises(InputError, match=f"a file of the run in {run}; expected another name"):
            COMMANDS["predict"]([str(run), str(photos / "val"), "--device", "cpu", "--out", str(run / name)])
    assert {path: path.read_bytes() for path in run.rglob("*") if path.is_file()} == before


def test_predictions_do_not_replace_what_they_are_made_of(run: Path, tmp_path: Path) -> None:
    weights = shutil.copy(run / "model.safetensors", tmp_path / "weights.safetensors")
    (tmp_path / "photos").mkdir()
    Image.new("RGB", (40, 40)).save(tmp_path / "photos/a.png")
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    for out in before:
        for images in ("photos", "photos/a.png"):
            words = [str(weights), str(tmp_path / images), "--device", "cpu", "--out", str(out)]
            with pytest.raises(InputError, match="which is read too; expected another name"):
                COMMANDS["predict"](words)
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before


@pytest.mark.parametrize("terminal", [False, True])
@pytest.mark.parametrize("kind", ["csv", "jsonl"])
def test_names_are_as_they_are_in_a_file_and_escaped_on_a_terminal(
    kind: str, terminal: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = io.StringIO()
    file.isatty = lambda: terminal  # type: ignore[method-assign]
    found = [Prediction("a\x9b2J\x1b.png", ("cat",), (0.5,), True)]
    monkeypatch.setattr("sys.stdout", file)
    options = PredictOptions(Path("run"), ("a",), format=kind)  # type: ignore[arg-type]
    assert write_predictions(Predictions(found, "one image"), options) == 0
    assert ("\x9b" in file.getvalue()) is not terminal
    assert ("\\x9b2J\\x1b.png" in file.getvalue().replace("\\\\", "\\")) is terminal


def test_more_classes_than_there_are_are_all_of_them(run: Path, photos: Path, tmp_path: Path) -> None:
    image, out = str(photos / "val/fish/0.png"), tmp_path / "out.csv"
    main(["predict", str(run), image, "--device", "cpu", "--top", "1000000000", "--out", str(out)])
    header, row = csv.reader(out.read_text().splitlines())
    assert header[-4:] == ["class_3", "probability_3", "sure", "error"]
    assert len(row) == len(header)
