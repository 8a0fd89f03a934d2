"""Tar shards against the folder that they were written from, foreign shards, and damaged ones."""

import io
import json
import os
import shutil
import signal
import subprocess
import sys
import tarfile
import tracemalloc
from pathlib import Path
from typing import Any
from zipfile import ZipFile

import numpy as np
import pytest
import torch
from PIL import Image

import cutmix
import cutmix.data.command
import cutmix.data.shards
from cutmix.cli import main
from cutmix.config.options import TrainOptions
from cutmix.config.recipe import Recipe
from cutmix.data import Augment, FileSet, loaders, open_data, open_splits
from cutmix.data.decode import read_image
from cutmix.data.shards import INDEX, Members, read_unlabelled
from cutmix.data.sources import Sample, opened, write_shard
from cutmix.data.transforms import WINDOW, TrainOrder
from cutmix.errors import InputError
from cutmix.training.loop import run_training


def photos(folder: Path, each: int = 12, size: int = 40) -> Path:
    random = np.random.default_rng(0)
    for label, name in enumerate(("cat", "dog.v2", "élan")):
        (folder / name / "deep").mkdir(parents=True)
        for i in range(each):
            pixels = random.integers(0, 256, (size, size + i % 3, 3), dtype=np.uint8)
            pixels[: size // 2] = 80 * label
            below = "deep/" if i % 3 == 0 else ""
            Image.fromarray(pixels).save(folder / name / f"{below}{i}.a{('.jpg', '.png')[i % 2]}")
    return folder


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Return a folder of images and the shards written from it."""
    folder = tmp_path_factory.mktemp("data")
    source = photos(folder / "photos")
    return source, cutmix.shards(source, folder / "shards", shard_size=1)


def sample(tar: tarfile.TarFile, name: str, content: bytes, **fields: Any) -> None:
    info = tarfile.TarInfo(name)
    info.size = len(content)
    for field, value in fields.items():
        setattr(info, field, value)
    tar.addfile(info, io.BytesIO(content))


def png_file(value: int = 0) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (20, 20), (value, 90, 10)).save(file, "PNG")
    return file.getvalue()


def foreign(path: Path, samples: dict[str, dict[str, bytes]], form: int = tarfile.PAX_FORMAT) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w", format=form) as tar:
        for key, files in samples.items():
            for ending, content in files.items():
                sample(tar, f"{key}.{ending}", content, mtime=1700000000.25)
    return path


# ---- from a folder ----


@pytest.mark.parametrize("split", ["train", "val"])
def test_shards_hold_the_bytes_of_the_files_in_their_order(pair: tuple[Path, Path], split: Any) -> None:
    files, stored = (open_data(str(path), split) for path in pair)
    assert isinstance(files, FileSet)
    assert isinstance(stored, FileSet)
    assert isinstance(stored.paths, Members)
    assert stored.classes == files.classes == ("cat", "dog.v2", "élan")
    assert torch.equal(stored.labels, files.labels)
    assert [path.read_bytes() for path in stored.paths] == [path.read_bytes() for path in files.paths]
    assert stored.paths.names() == files.paths.names()
    assert stored.fingerprint() == files.fingerprint()
    assert stored.paths.rows.itemsize <= 24  # bytes of memory a sample, beside its label


def test_loaders_give_the_same_batches_from_shards_and_from_files(pair: tuple[Path, Path]) -> None:
    files, stored = (open_data(str(path), "train") for path in pair)
    for decoder in ("fast", "exact"):
        given: Any = {"batch_size": 6, "device": "cpu", "channels_last": False, "decoder": decoder}
        made = [
            loaders.train_loader(data, Augment(image_size=16), seed=0, workers=2, **given) for data in (files, stored)
        ]
        made += [loaders.test_loader(data, image_size=16, workers=0, **given) for data in (files, stored)]
        epochs = [list(loader.epoch(3)) for loader in made]
        for one, two in (epochs[:2], epochs[2:]):
            assert all(torch.equal(x, y) for a, b in zip(one, two, strict=True) for x, y in zip(a, b, strict=True))


def test_a_run_begun_on_files_resumes_on_shards_and_ends_with_the_same_weights(
    pair: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe = Recipe(
        name="tiny", data=str(pair[0]), model="resnet20", pretrained=False, image_size=16, epochs=1, batch_size=8
    )
    options = {"workers": 0, "device": "cpu"}
    run_training(recipe, TrainOptions(out=tmp_path / "whole", **options))
    original, steps = cutmix.training.loop.train_step, iter(range(9))

    def train_step(*arguments: Any) -> torch.Tensor:
        if next(steps) == 2:
            raise KeyboardInterrupt
        return original(*arguments)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cutmix.training.loop, "train_step", train_step)
        with pytest.raises(KeyboardInterrupt):
            run_training(recipe, TrainOptions(out=tmp_path / "moved", checkpoint_every=1, **options))
    main(["train", "--resume", "--out", str(tmp_path / "moved"), "--data", str(pair[1]), "--device", "cpu"])
    assert "the data have moved" in capsys.readouterr().out
    one, two = (tmp_path / name / "model.safetensors" for name in ("whole", "moved"))
    from safetensors.torch import load_file

    weights = load_file(two)
    assert all(torch.equal(value, weights[name]) for name, value in load_file(one).items())
    main(["evaluate", str(tmp_path / "whole"), "--data", str(pair[1]), "--device", "cpu"])
    main(["predict", str(tmp_path / "whole"), str(pair[1]), "--out", str(tmp_path / "out.csv"), "--device", "cpu"])
    lines = (tmp_path / "out.csv").read_text().splitlines()
    assert len(lines) == 1 + 36
    assert "train-000000.tar: " in lines[1]


def test_the_index_is_a_cache_that_is_built_again(pair: tuple[Path, Path]) -> None:
    index = pair[1] / INDEX
    before = open_data(str(pair[1]), "train").fingerprint()
    for content in (None, b"", index.read_bytes()[:-100], b"noise" * 99):
        if content is None:
            index.unlink()
        else:
            index.write_bytes(content)
        assert open_data(str(pair[1]), "train").fingerprint() == before
        assert len(np.load(index)["rows"]) == 36


@pytest.mark.parametrize(
    "change",
    [
        {"names": np.zeros(3, np.uint8)}, {"ends": np.zeros(2, np.int64)}, {"ends": np.array(["a"] * 36)},
        {"ends": -np.arange(36)}, {"ends": None}, {"names": None}, {"labels-train": None}, {"rows": None},
        {"names": "invalid"}, {"rows": "names"}, {"classes": np.array(["\x1b[31m"] * 3)},
        {"classes": np.array([["a"]])}, {"labels-train": np.zeros((18, 2), np.int64)}, {"junk": "announced"},
    ],
    ids=lambda change: next(iter(change)),
)  # fmt: skip
def test_an_index_that_somebody_changed_is_built_again_or_refused(
    pair: tuple[Path, Path], tmp_path: Path, change: dict[str, Any]
) -> None:
    shards = shutil.copytree(pair[1], tmp_path / "shards")
    data = open_data(str(shards), "train")
    assert isinstance(data, FileSet)
    right = data.classes, data.paths.names()
    with np.load(shards / INDEX) as file:
        arrays = dict(file)
    (name, value), *_ = change.items()
    if value is None:
        del arrays[name]
    elif name == "junk":
        header = io.BytesIO()
        np.lib.format.write_array_header_1_0(header, {"descr": "|u1", "fortran_order": False, "shape": (5 << 40,)})
    elif isinstance(value, str):
        arrays[name] = arrays[name].copy()
        arrays[name]["name" if name == "rows" else ...] = 255
    else:
        arrays[name] = value
    np.savez(shards / INDEX, **arrays)
    if name == "junk":
        with ZipFile(shards / INDEX, "a") as archive:
            archive.writestr("junk.npy", header.getvalue())
    if name in ("names", "ends") or (name == "rows" and value is not None):
        with pytest.raises(InputError, match="is damaged; remove it"):
            open_data(str(shards), "train").paths.names()  # type: ignore[union-attr]
    else:
        data = open_data(str(shards), "train")
        assert isinstance(data, FileSet)
        assert (data.classes, data.paths.names()) == right


def test_several_labels_an_image_are_not_written(tmp_path: Path) -> None:
    folder = photos(tmp_path / "photos", 4)
    files = sorted(folder.rglob("*.a.*"))
    rows = [f"{path.relative_to(folder)},{'cat|dog' if i % 2 else 'cat'}" for i, path in enumerate(files)]
    (folder / "labels.csv").write_text("\n".join(["path,label", *rows]))
    with pytest.raises(InputError, match="has several labels an image"):
        cutmix.shards(folder / "labels.csv", tmp_path / "shards")
    assert not (tmp_path / "shards").exists()


def test_shards_are_not_written_into_the_folder_that_they_are_made_of(pair: tuple[Path, Path]) -> None:
    with pytest.raises(InputError, match="and would be a class of it; expected another folder"):
        cutmix.shards(pair[0], pair[0] / "shards")
    assert not (pair[0] / "shards").exists()


@pytest.mark.parametrize("wrong", [0, 1])
def test_names_that_contradict_the_file_of_classes_are_refused(tmp_path: Path, wrong: int) -> None:
    with tarfile.open(tmp_path / "a.tar", "w") as tar:
        for i in range(4):
            sample(tar, f"{i}.png", png_file())
            sample(tar, f"{i}.json", json.dumps({"label": i % 2, "class": "xy"[i % 2]}).encode())
    (tmp_path / "classes.txt").write_text("z\ny\n" if wrong == 0 else "x\nz\n")
    with pytest.raises(InputError, match=f"names class {wrong} '{'xy'[wrong]}', but classes.txt there 'z'"):
        open_splits(str(tmp_path))


def test_writing_continues_after_a_kill(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = photos(tmp_path / "photos", each=40, size=200)
    cutmix.shards(source, tmp_path / "whole", shard_size=1)
    whole = {path.name: path.read_bytes() for path in (tmp_path / "whole").glob("*.tar")}
    assert len(whole) > 4
    program = (
        "import os, signal, cutmix, cutmix.data.command as w\n"
        "original, calls = w.write_shard, iter(range(99))\n"
        "def write(path, *arguments):\n"
        "    if next(calls) == 2:\n"
        "        path.with_name(f'.{path.name}.0000.tmp').write_bytes(b'half')\n"
        "        os.kill(os.getpid(), signal.SIGKILL)\n"
        "    original(path, *arguments)\n"
        "w.write_shard = write\n"
        f"cutmix.shards({str(source)!r}, {str(tmp_path / 'killed')!r}, shard_size=1)\n"
    )
    killed = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    assert len(list((tmp_path / "killed").glob("*.tar"))) == 2
    main(["shards", str(source), "--out", str(tmp_path / "killed"), "--shard-size", "1"])
    assert "(2 existed)" in capsys.readouterr().out
    assert {path.name: path.read_bytes() for path in (tmp_path / "killed").glob("*.tar")} == whole
    with pytest.raises(InputError, match="holds shards of other images or flags"):
        cutmix.shards(source, tmp_path / "killed", shard_size=2)
    with pytest.raises(InputError, match="is not empty and holds no shards"):
        cutmix.shards(source, tmp_path)
    with pytest.raises(InputError, match="digits is a set of small images"):
        cutmix.shards("digits", tmp_path / "digits")


# ---- order ----


def test_windows_of_shards_are_a_function_of_seed_and_epoch_alone() -> None:
    shards = np.repeat(np.arange(50) + 7, 20)
    orders = [TrainOrder(1000, 40, seed, 0, 1, shards=shards) for seed in (0, 0, 1)]
    first = orders[0].indices(3)
    assert sorted(first.tolist()) == list(range(1000))
    assert torch.equal(first, orders[1].indices(3))
    assert not torch.equal(first, orders[2].indices(3))
    assert not torch.equal(first, orders[0].indices(4))
    windows = [set(shards[part].tolist()) for part in first.numpy()[:960].reshape(3, 320)]
    assert [len(window) for window in windows] == [WINDOW] * 3
    assert not windows[0] & windows[1]
    assert np.diff(shards[first[:320].numpy()]).astype(bool).mean() > 0.8  # mixed inside a window
    ranks = [TrainOrder(1000, 40, 0, rank, 2, shards=shards) for rank in range(2)]
    joined = torch.cat([order.indices(3)[order.share(step)] for step in range(25) for order in ranks])
    assert torch.equal(joined, first)
    few = TrainOrder(1000, 40, 0, 0, 1, shards=shards % WINDOW)
    assert torch.equal(few.indices(3), TrainOrder(1000, 40, 0, 0, 1).indices(3))


# ---- foreign shards ----


@pytest.mark.parametrize("form", [tarfile.PAX_FORMAT, tarfile.GNU_FORMAT, tarfile.USTAR_FORMAT])
def test_webdataset_shards_with_class_ids_are_read(tmp_path: Path, form: int) -> None:
    for shard in range(2):  # keys that come again in another shard, with folders and dots
        samples = {f"train/x{i}": {"cls": b"%d\n" % (i % 3), "seg.txt": b"", "png": png_file(i)} for i in range(6)}
        foreign(tmp_path / f"web-train-{shard:04}.tar", samples, form)
    foreign(
        tmp_path / "web-val-0000.tar",
        {f"v{i}": {"jpg.png": b"", "PNG": png_file(i), "cls": b"2"} for i in range(4)},
    )
    splits = open_splits(str(tmp_path))
    assert splits.train.classes == ("0", "1", "2")
    assert splits.train.labels.tolist() == [0, 1, 2] * 4
    assert splits.val is not None
    assert splits.val.labels.tolist() == [2] * 4
    assert isinstance(splits.train, FileSet)
    assert read_image(splits.train.paths[7]).getpixel((0, 0)) == (1, 90, 10)
    assert splits.train.paths.names()[7] == "web-train-0001/train/x1.png"


def test_names_of_classes_come_from_json_from_text_or_from_a_file(tmp_path: Path) -> None:
    def about(i: int) -> bytes:
        return json.dumps({"label": i % 2, "class_name": ("ant", "bee")[i % 2]}).encode()

    foreign(tmp_path / "json/00.tar", {f"a{i}": {"png": png_file(i), "json": about(i)} for i in range(6)})
    foreign(tmp_path / "text/00.tar", {f"a{i}": {"png": png_file(i), "cls": b"eb"[i % 2 :][:1]} for i in range(6)})
    foreign(tmp_path / "file/00.tar", {f"a{i}": {"png": png_file(i), "cls": b"%d" % (i % 2)} for i in range(6)})
    (tmp_path / "file/classes.txt").write_text("ant\nbee\ncow\n")
    for name, classes in (("json", ("ant", "bee")), ("text", ("b", "e")), ("file", ("ant", "bee", "cow"))):
        splits = open_splits(str(tmp_path / name), val_fraction=0.3)
        assert splits.train.classes == classes
        assert splits.val is not None
        assert (len(splits.train), len(splits.val)) == (4, 2)
        assert splits.origin["val"] == "30% of each class"
    again = open_splits(str(tmp_path / "json"), val_fraction=0.3, seed=1)
    assert again.train.fingerprint() != open_splits(str(tmp_path / "json"), val_fraction=0.3).train.fingerprint()


GOOD = {f"a{i}": {"png": png_file(i), "cls": b"%d" % (i % 2)} for i in range(4)}


@pytest.mark.parametrize(
    ("samples", "said"),
    [
        ({**GOOD, "b": {"png": png_file()}}, r"has no label of the sample b; expected b.cls"),
        ({**GOOD, "b": {"cls": b"1"}}, "holds a label but no image of the sample b"),
        (
            {**GOOD, "b": {"png": png_file(), "jpg": png_file(), "cls": b"1"}},
            "holds png and jpg of the sample b",
        ),
        ({**GOOD, "b": {"png": png_file(), "cls": b"-1"}}, "the label of b is -1; expected 0 to"),
        ({**GOOD, "b": {"png": png_file(), "cls": b"99999999999"}}, "the label of b is 99999999999"),
        ({**GOOD, "b": {"png": png_file(), "json": b"[1]"}}, "b.json is not an object"),
        ({**GOOD, "b": {"png": png_file(), "json": b"{" * 99999}}, "b.json is not JSON"),
        ({**GOOD, "b": {"png": png_file(), "cls": b"1", "json": b'{"label": 0}'}}, "has the labels 1 and 0 of the"),
        ({**GOOD, "b": {"png": png_file(), "cls": b"bee"}}, "class ids for some samples and names for others"),
        ({"a": {"png": png_file(), "cls": b"0"}}, "holds one class only"),
        ({"../a": {"png": png_file(), "cls": b"0"}}, r"holds ../a.png, which leads out of its folder"),
        ({"/etc/a": {"png": png_file(), "cls": b"0"}}, "leads out of its folder"),
        ({}, "has no all images in its 1 shards"),
    ],
)
def test_shards_that_cannot_be_right_are_refused_in_a_sentence(tmp_path: Path, samples: Any, said: str) -> None:
    foreign(tmp_path / "set/0.tar", samples)
    with pytest.raises(InputError, match=said):
        open_splits(str(tmp_path / "set"))


def damaged(kind: str, path: Path) -> None:
    """Write a shard that is damaged or hostile in some way."""
    if kind in ("link", "hard link", "device", "twice", "apart"):
        with tarfile.open(path, "w") as tar:
            sample(tar, "a.png", png_file())
            sample(tar, "a.cls", b"0")
            kinds = {"link": tarfile.SYMTYPE, "hard link": tarfile.LNKTYPE, "device": tarfile.CHRTYPE}
            if kind in kinds:
                sample(tar, "b.png", b"", type=kinds[kind], linkname="/etc/passwd")
            else:
                sample(tar, "a.png" if kind == "twice" else "c.png", png_file())
                sample(tar, "a.cls", b"1")
        return
    foreign(path, GOOD, tarfile.USTAR_FORMAT)
    content = bytearray(path.read_bytes())
    if kind == "size":  # of the first member, with its checksum made right
        header = tarfile.TarInfo("a0.png")
        header.size = 1 << 40
        content[:512] = header.tobuf(tarfile.GNU_FORMAT)
    elif kind == "negative size":
        content[124:136] = b"\xff" * 11 + b"\x80"
        content[148:156] = b"%06o\0 " % (sum(content[:148]) + 8 * 32 + sum(content[156:512]))
    elif kind == "noise":
        content = bytearray(os.urandom(2000))
    path.write_bytes({"cut": content[:700], "no end": content[: 512 * 4 + 0]}.get(kind, content))


@pytest.mark.parametrize(
    ("kind", "said"),
    [
        ("link", "holds b.png, which is a link"), ("hard link", "holds b.png, which is a link"),
        ("device", "which is no regular file"), ("twice", "holds the sample a twice"),
        ("apart", "holds the sample a twice|no label of the sample c"), ("size", "a0.png ends beyond the file"),
        ("negative size", "is damaged|cannot be read as a tar"), ("noise", "cannot be read as a tar file"),
        ("cut", "beyond the file|cannot be read"), ("no end", "incomplete: it has no end"),
    ],
)  # fmt: skip
def test_damaged_and_hostile_tars_are_refused_in_a_sentence(tmp_path: Path, kind: str, said: str) -> None:
    damaged(kind, tmp_path / "0.tar")
    with pytest.raises(InputError, match=said):
        open_splits(str(tmp_path))


def test_names_of_shards_that_contradict_each_other_are_refused(tmp_path: Path) -> None:
    foreign(tmp_path / "a/train-0.tar", GOOD)
    foreign(tmp_path / "a/0.tar", GOOD)
    foreign(tmp_path / "b/val-0.tar", GOOD)
    (tmp_path / "c").mkdir()
    (tmp_path / "c/train-000.tar.gz").write_bytes(b"")
    for name, said in (("a", "belongs to no split"), ("b", "none to train on"), ("c", "is compressed")):
        with pytest.raises(InputError, match=said):
            open_splits(str(tmp_path / name))


def test_a_shard_that_shrinks_while_it_is_read_is_an_input_error(tmp_path: Path) -> None:
    path = foreign(tmp_path / "0.tar", GOOD)
    data = open_data(str(tmp_path), "train", val_fraction=0)
    os.truncate(path, 100)
    assert isinstance(data, FileSet)
    with pytest.raises(InputError, match=r"cannot be read as an image \(the shard is shorter"):
        read_image(data.paths[1])


def test_unreadable_images_of_shards_are_left_out_on_request(tmp_path: Path) -> None:
    foreign(tmp_path / "0.tar", {**GOOD, "b": {"png": b"no image", "cls": b"1"}})
    data = open_data(str(tmp_path), "train", val_fraction=0, skip_unreadable=True)
    assert (len(data), len(data.skipped)) == (4, 1)
    assert str(data.skipped[0]).endswith("0.tar: 0/b.png")


def test_an_index_of_many_samples_needs_no_python_object_for_each(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither to build it, nor to hold it after the fingerprint: 14 million samples would take 10 GB."""
    each, shards = 500, 40

    def scan(path: Path, labelled: bool) -> list[Sample]:
        first = each * int(path.stem)
        keys = range(first, first + each)
        return [Sample(f"{i:09d}", f"n{i % 7}/n{i % 7}_{i}.JPEG", 512 * i, 64, 0, i % 7, f"n{i % 7}") for i in keys]

    for number in range(shards):
        (tmp_path / f"{number}.tar").touch()
        os.truncate(tmp_path / f"{number}.tar", 512 * each * shards + 64)  # a sparse file
    monkeypatch.setattr(cutmix.data.shards, "scan", scan)
    tracemalloc.start()
    try:
        splits = open_splits(str(tmp_path), val_fraction=0)
        splits.train.fingerprint()
        kept, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert isinstance(splits.train, FileSet)
    assert splits.train.paths.names()[:2] == ["n0/n0_0.JPEG", "n1/n1_1.JPEG"]
    assert splits.train.labels[:8].tolist() == [0, 1, 2, 3, 4, 5, 6, 0]
    assert peak < 250 * each * shards  # 722 with an object for each
    assert kept < 50 * each * shards


def test_without_a_fraction_the_validation_images_are_those_of_the_results(pair: tuple[Path, Path]) -> None:
    divided, splits = (open_splits(str(pair[1]), val_fraction=fraction) for fraction in (0.2, 0.0))
    assert (splits.val, splits.origin["test"]) == (None, "val/")
    assert splits.test is not None
    assert divided.val is not None
    assert splits.test.paths.names() == divided.val.paths.names()  # type: ignore[union-attr]
    assert splits.train.fingerprint() == divided.train.fingerprint()


def test_content_of_a_name_without_ending_starts_no_program(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Pillow would give PostScript to Ghostscript."""
    Image.init()
    monkeypatch.setitem(Image.OPEN, "EPS", (lambda *_: pytest.fail("PostScript was opened"), lambda _: True))
    (tmp_path / "a").write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n")
    with pytest.raises(InputError, match="a cannot be read as an image; repair it"):
        write_shard(tmp_path / "a.tar", [0], [tmp_path / "a"], ["a"], [0], ["x", "y"])


def test_a_shard_that_is_replaced_is_not_read_by_its_old_index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The name of an open file may belong to another one by now, also in another working folder."""
    images = {}
    for folder, level in (("a", 0), ("b", 255)):
        (tmp_path / folder).mkdir()
        Image.new("L", (8, 8), level).save(tmp_path / folder / "x.png")
        monkeypatch.chdir(tmp_path / folder)
        write_shard(Path("t.tar"), [0], [Path("x.png")], ["x.png"], [0], ["x", "y"])
        images[folder] = read_unlabelled([Path("t.tar")])
        assert np.asarray(read_image(images[folder][0])).flat[0] == level
    assert np.asarray(read_image(images["a"][0])).flat[0] == 0
    write_shard(Path("t.tar"), [0, 1], [tmp_path / "a/x.png"] * 2, ["x.png"] * 2, [0, 1], ["x", "y"])
    opened.cache_clear()
    with pytest.raises(InputError, match=r"t.tar has changed since it was first read"):
        read_image(images["b"][0])
