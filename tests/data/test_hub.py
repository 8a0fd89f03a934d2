"""Data sets of Hugging Face's ``datasets``, saved to a folder: no network."""

import io
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from cutmix.api import data as describe_data
from cutmix.config.options import TrainOptions
from cutmix.config.recipe import Recipe
from cutmix.data import FileSet, open_data, open_splits
from cutmix.data.decode import read_image
from cutmix.data.tables import Rows
from cutmix.errors import InputError
from cutmix.runs.record import read_records
from cutmix.training.loop import run_training

datasets = pytest.importorskip("datasets", reason="the package datasets is not installed")


def table(count: int, names: tuple[str, ...] | None = ("ant", "bee"), first: int = 0, **columns: Any) -> Any:
    """Return a data set of images whose left top pixel is their number."""
    images = []
    for i in range(count):
        pixels = np.full((20, 20 + i % 3, 3), 60 * (i % 2), np.uint8)
        pixels[0, 0] = first + i
        file = io.BytesIO()
        Image.fromarray(pixels).save(file, "PNG")
        images.append({"bytes": file.getvalue(), "path": None})
    label = datasets.ClassLabel(names=list(names)) if names else datasets.Value("string")
    labels = [i % 2 if names else ("bee", "ant")[i % 2] for i in range(count)]
    features = datasets.Features({"image": datasets.Image(), "label": label})
    return datasets.Dataset.from_dict({"image": images, "label": labels} | columns, features=features)


def test_the_splits_of_a_saved_dictionary_are_used(tmp_path: Path) -> None:
    given = {"train": table(12), "validation": table(6, first=100), "test": table(4, first=200)}
    datasets.DatasetDict(given).save_to_disk(tmp_path / "set")
    splits = open_splits(str(tmp_path / "set"))
    assert splits.train.classes == ("ant", "bee")
    for data, count, first in ((splits.train, 12, 0), (splits.val, 6, 100), (splits.test, 4, 200)):
        assert isinstance(data, FileSet)
        assert data.labels.tolist() == [i % 2 for i in range(count)]
        assert [read_image(path).getpixel((0, 0))[0] for path in data.paths] == [first + i for i in range(count)]
    assert len({data.fingerprint() for data in (splits.train, splits.val, splits.test) if data}) == 3
    datasets.DatasetDict(given | {"train": table(12, first=1)}).save_to_disk(tmp_path / "other")
    assert describe_data(str(tmp_path / "set")).splits["val"] == [3, 3]


def test_a_single_table_is_divided_and_text_labels_are_sorted(tmp_path: Path) -> None:
    table(20, names=None).shuffle(seed=1).save_to_disk(tmp_path / "set")
    splits = open_splits(str(tmp_path / "set"))
    assert splits.train.classes == ("ant", "bee")
    assert splits.val is not None
    assert (len(splits.train), len(splits.val)) == (16, 4)
    for data in (splits.train, splits.val):
        assert isinstance(data, FileSet)
        numbers = torch.tensor([read_image(path).getpixel((0, 0))[0] for path in data.paths])
        assert torch.equal(data.labels, 1 - numbers % 2)


def test_a_run_trains_on_it(tmp_path: Path) -> None:
    table(24).save_to_disk(tmp_path / "set")
    recipe = Recipe(data=str(tmp_path / "set"), model="resnet20", pretrained=False, image_size=16, epochs=1)
    run = run_training(recipe, TrainOptions(out=tmp_path / "run", workers=1, device="cpu"))
    assert read_records(run / "results.jsonl")[0].n == 4
    run_training(recipe, TrainOptions(out=tmp_path / "run", workers=0, device="cpu", resume=True))


def test_a_data_set_of_the_hub_is_loaded_by_its_name_and_configuration(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # the hub's files, which datasets prepares from a folder as from a download
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    for config, first in (("plain", 0), ("other", 100)):
        (tmp_path / "ants" / config).mkdir(parents=True)
        for split, count in (("train", 12), ("test", 4)):
            table(count, first=first).to_parquet(tmp_path / "ants" / config / f"{split}-00000-of-00001.parquet")
    (tmp_path / "ants/README.md").write_text(
        "---\nconfigs:\n"
        "- {config_name: plain, default: true, data_dir: plain}\n- {config_name: other, data_dir: other}\n---\n"
    )
    monkeypatch.chdir(tmp_path)
    for name, first in (("hf:./ants", 0), ("hf:./ants:other", 100)):
        splits = open_splits(name)
        assert splits.test is not None
        assert splits.train.classes == ("ant", "bee")
        for data, count in ((splits.train, 12), (splits.test, 4)):
            assert isinstance(data, FileSet)
            assert sorted(read_image(path).getpixel((0, 0))[0] for path in data.paths)[0] == first
            assert data.labels.bincount().tolist() == [count // 2, count // 2]
    with pytest.raises(InputError, match=r"hf:./ants:third could not be loaded: .*third.* not found"):
        open_splits("hf:./ants:third")


def test_what_cannot_be_trained_on_is_refused(tmp_path: Path) -> None:
    datasets.Dataset.from_dict({"text": ["a", "b"]}).save_to_disk(tmp_path / "text")
    with pytest.raises(InputError, match="has the columns text; expected one of images and one of labels"):
        open_data(str(tmp_path / "text"), "train")
    datasets.DatasetDict({"test": table(4)}).save_to_disk(tmp_path / "test")
    with pytest.raises(InputError, match="has the splits test; expected train"):
        open_data(str(tmp_path / "test"), "train")
    table(4).save_to_disk(tmp_path / "broken")
    next((tmp_path / "broken").glob("*.arrow")).write_bytes(b"noise")
    with pytest.raises(InputError, match="could not be loaded"):
        open_data(str(tmp_path / "broken"), "train")


def test_without_the_package_its_extra_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "datasets", None)
    with pytest.raises(InputError, match="hf:nobody/nothing, a data set of Hugging Face needs"):
        open_data("hf:nobody/nothing", "train")


def test_splits_that_number_the_classes_in_another_way_get_the_same_labels(tmp_path: Path) -> None:
    given = {"train": table(12), "test": table(4, ("bee", "ant"), first=200)}
    datasets.DatasetDict(given).save_to_disk(tmp_path / "set")
    data = open_data(str(tmp_path / "set"), "test")
    assert (data.classes, data.labels.tolist()) == (("ant", "bee"), [1, 0, 1, 0])


def test_classes_are_those_of_the_training_images_whichever_split_is_first(tmp_path: Path) -> None:
    bees = table(8, names=None).filter(lambda row: row["label"] == "bee")
    datasets.DatasetDict({"test": bees, "train": table(12, names=None)}).save_to_disk(tmp_path / "set")
    data = open_data(str(tmp_path / "set"), "test")
    assert (data.classes, data.labels.tolist()) == (("ant", "bee"), [1] * 4)


@pytest.mark.parametrize(
    ("test", "said"),
    [
        (lambda: table(4, ("ant", "wasp")), "has test images of the class 'wasp'; expected ant or bee"),
        (lambda: table(4, names=None).map(lambda row: {"label": row["label"].upper()}), "of the class 'BEE'"),
        (lambda: table(4).remove_columns("image").add_column("x", range(4)), "no column image in the split test"),
    ],
)
def test_splits_that_do_not_go_together_are_refused(tmp_path: Path, test: Any, said: str) -> None:
    datasets.DatasetDict({"train": table(12), "test": test()}).save_to_disk(tmp_path / "set")
    with pytest.raises(InputError, match=said):
        open_splits(str(tmp_path / "set"))


def test_a_split_without_the_column_of_labels_is_left_out_and_labels_of_no_class_are_refused(tmp_path: Path) -> None:
    datasets.DatasetDict({"train": table(12), "test": table(4).remove_columns("label")}).save_to_disk(tmp_path / "set")
    assert open_splits(str(tmp_path / "set")).test is None
    info = tmp_path / "set/train/dataset_info.json"
    info.write_text(info.read_text().replace('"bee"', "").replace('"ant",', '"ant"'))
    with pytest.raises(InputError, match=r"images of the class '1'; expected ant|could not be loaded"):
        open_splits(str(tmp_path / "set"))


@pytest.mark.parametrize("kind", ["pipe", "device", "gone"])
def test_a_row_that_names_no_regular_file_is_refused_and_not_waited_for(tmp_path: Path, kind: str) -> None:
    file = tmp_path / "image.png"
    file.touch()
    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=["ant", "bee"])})
    rows = {"image": [{"bytes": None, "path": str(file)}] * 8, "label": [0, 1] * 4}
    datasets.Dataset.from_dict(rows, features=features).save_to_disk(tmp_path / "set")
    file.unlink()
    if kind == "pipe":
        os.mkfifo(file)
    elif kind == "device":
        file.symlink_to("/dev/zero")
    data = open_data(str(tmp_path / "set"), "train")
    assert isinstance(data, FileSet)
    with pytest.raises(InputError, match="cannot be read"):
        read_image(data.paths[0])


def test_relative_paths_of_images_are_looked_for_in_the_data_set_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Present versions of ``datasets`` save the bytes of images, older ones their paths."""
    monkeypatch.chdir(tmp_path)
    for folder, size in (("images", (5, 5)), ("set/images", (9, 7))):
        Path(folder).mkdir(parents=True)
        Image.new("RGB", size).save(f"{folder}/a.png")
    rows = Rows([{"image": {"bytes": None, "path": "images/a.png"}}], "image", np.arange(1), str(tmp_path / "set"))
    assert read_image(rows.one(0)).size == (9, 7)
    (tmp_path / "set/images/a.png").unlink()
    assert read_image(rows.one(0)).size == (5, 5)


def test_without_a_network_the_hub_is_asked_once(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    class Session:
        def head(self, place: str, timeout: float) -> None:
            asked.append(timeout)
            raise OSError("no network")

    monkeypatch.setattr("huggingface_hub.utils.get_session", Session)
    with pytest.raises(InputError, match=r"hf:nobody/nothing could not be loaded"):
        open_data("hf:nobody/nothing", "train")
    assert asked == [5]
    assert not datasets.config.HF_HUB_OFFLINE
