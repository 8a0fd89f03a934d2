"""Cross-validation: which image is in which fold, and what is left of all folds."""

import shutil
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image
from scipy import stats

import cutmix
from cutmix.cli import main
from cutmix.config.options import TrainOptions
from cutmix.config.recipe import Recipe, complete
from cutmix.data import FileSet, open_splits
from cutmix.data.command import describe_splits
from cutmix.errors import InputError
from cutmix.runs.read import read_arrays, read_run
from cutmix.runs.record import Record, read_records
from cutmix.training import campaign

FEW = {"model": "resnet10t", "pretrained": False, "image_size": 32, "batch_size": 8, "epochs": 1, "workers": 0}
FEW |= {"device": "cpu", "precision": "float32"}


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder of 13 and 8 images, three of which are the same, one of them larger and a JPEG file."""
    root, rng = tmp_path_factory.mktemp("photos"), np.random.default_rng(0)
    for name, count in (("cat", 13), ("dog", 8)):
        (root / name).mkdir()
        for i in range(count):
            pixels = rng.integers(0, 120, (40, 36, 3), dtype=np.uint8)
            pixels[..., 0] += 100 * (name == "dog")
            Image.fromarray(pixels).save(root / name / f"{i:02}.png")
    (root / "cat/05.png").write_bytes((root / "cat/00.png").read_bytes())
    (root / "cat/11.png").unlink()
    Image.open(root / "cat/00.png").resize((180, 200)).save(root / "cat/11.jpg", quality=80)
    return root


def test_folds_are_stratified_and_keep_copies_together(photos: Path) -> None:
    splits = [open_splits(str(photos), fold=(k, 4)) for k in range(1, 5)]
    tested = [{str(path) for path in each.test.paths} for each in splits if each.test]
    assert sum(map(len, tested)) == len(set().union(*tested)) == 21
    for each, held in zip(splits, tested, strict=True):
        assert each.val is None
        assert {str(path) for path in each.train.paths} == set().union(*tested) - held
        assert each.test is not None
        assert each.test.counts()[1] == 2
        assert 2 <= each.test.counts()[0] <= 4
    (home,) = [held for held in tested if str(photos / "cat/00.png") in held]
    assert {str(photos / f"cat/{name}") for name in ("05.png", "11.jpg")} <= home
    assert splits[0].copies.near is not None
    assert [[file.path.name for file in group] for group in splits[0].copies.near] == [["00.png", "05.png", "11.jpg"]]
    again = open_splits(str(photos), fold=(1, 4))
    assert again.test is not None
    assert {str(path) for path in again.test.paths} == tested[0]
    other = open_splits(str(photos), fold=(1, 4), seed=1)
    assert other.test is not None
    assert {str(path) for path in other.test.paths} != tested[0]


def test_folds_of_a_subset_have_the_defaults_of_its_size(photos: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    planned: list[Recipe] = []

    def stop(jobs: list[campaign.Job], _: TrainOptions) -> None:
        planned.extend(job.recipe for job in jobs)
        raise InputError("planned")

    monkeypatch.setattr(campaign, "check_images", stop)
    recipe = Recipe(data=str(photos), folds=3, train_per_class=2, pretrained=False)
    with pytest.raises(InputError, match="planned"):
        campaign.run_folds(recipe, TrainOptions())
    expected, _ = complete(recipe, images=4, classes=2, files=True, side=224)
    assert planned == [replace(expected, fold=fold) for fold in (1, 2, 3)]


def test_a_fold_in_one_folder_names_its_images_as_the_others_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Out of fold, a/1.png and b/1.png would both be 1.png."""
    monkeypatch.chdir(tmp_path)
    listed = [("a", i, "xy"[i % 2]) for i in range(8)] + [("b", i, "xy"[i]) for i in range(2)]
    for number, (folder, i, _) in enumerate(listed):
        (tmp_path / folder).mkdir(exist_ok=True)
        Image.new("RGB", (20, 20), (25 * number, 0, 0)).save(tmp_path / folder / f"{i}.png")
    lines = [f"{folder}/{i}.png,{label}\n" for folder, i, label in listed]
    Path("labels.csv").write_text("".join(["file,label\n", f"{tmp_path}/{lines[0]}", *lines[1:]]))
    tested = [open_splits("labels.csv", fold=(k, 4)).test for k in range(1, 5)]
    names = [each.paths.names() for each in tested if isinstance(each, FileSet)]
    assert min(len({name[0] for name in own}) for own in names) == 1  # a fold that is in one folder
    assert sorted(name for own in names for name in own) == sorted(line.partition(",")[0] for line in lines)


@pytest.mark.parametrize("seed", range(6))
def test_the_ordinary_split_keeps_the_same_copies_together(photos: Path, seed: int) -> None:
    splits = open_splits(str(photos), val_fraction=0.25, seed=seed)
    assert splits.val is not None
    held = {path.name for path in splits.val.paths if path.parent.name == "cat"}
    assert len({"00.png", "05.png", "11.jpg"} & held) in (0, 3)
    assert splits.val.counts()[1] == 2
    assert 3 <= splits.val.counts()[0] <= 5
    line = "1 more image is nearly the same as another; such images are never in two splits"
    assert line in describe_splits(splits).warnings()


def test_nearly_the_same_images_in_the_splits_of_a_folder_are_named(photos: Path, tmp_path: Path) -> None:
    shutil.copytree(photos, tmp_path / "all" / "train")
    (tmp_path / "all/test/cat").mkdir(parents=True)
    (tmp_path / "all/test/dog").mkdir()
    (tmp_path / "all/train/cat/11.jpg").rename(tmp_path / "all/test/cat/new.jpg")
    (tmp_path / "all/train/dog/00.png").rename(tmp_path / "all/test/dog/new.png")
    said = describe_splits(open_splits(str(tmp_path / "all"))).warnings()
    assert (
        "1 image is nearly the same in several splits: train/cat/00.png = train/cat/05.png = test/cat/new.jpg" in said
    )


def test_images_that_are_all_alike_are_divided_nevertheless(tmp_path: Path) -> None:
    for number, name in enumerate(("cat", "dog")):
        (tmp_path / name).mkdir()
        for i in range(6):
            Image.new("RGB", (20, 20), (100 * number, i, 0)).save(tmp_path / name / f"{i}.png")
    splits = [open_splits(str(tmp_path), fold=(k, 3)) for k in (1, 2, 3)]
    assert [each.test.counts().tolist() for each in splits if each.test] == [[2, 2]] * 3


def test_every_image_is_predicted_once_and_the_mean_has_an_interval(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "cv"
    found = cutmix.train(photos, folds=3, out=out, **FEW)
    arrays = read_arrays(out / "predictions/out-of-fold.npz")
    assert sorted(arrays["files"].tolist()) == sorted(
        path.relative_to(photos).as_posix() for path in photos.rglob("*.*g")
    )
    wrong = arrays["logits"].argmax(1) != arrays["labels"]
    errors = [100 * wrong[arrays["fold"] == k].mean() for k in (1, 2, 3)]
    records = [r for r in read_records(out / "results.jsonl") if r.metric == "top1_err"]
    assert [(r.fold, r.value) for r in records[:3]] == [(f"{k} of 3", pytest.approx(errors[k - 1])) for k in (1, 2, 3)]
    mean = records[3]
    half = stats.t.ppf(0.975, 2) * np.std(errors, ddof=1) * np.sqrt(1 / 3 + 1 / 2)
    assert (mean.fold, mean.value, mean.n) == ("mean of 3", pytest.approx(np.mean(errors)), 21)
    ends = max(mean.value - half, 0), min(mean.value + half, 100)
    assert (mean.low, mean.high) == (pytest.approx(ends) if half else (None, None))
    assert "mean of 3" in str(found)
    for use in (cutmix.load, cutmix.api.report):
        with pytest.raises(InputError, match="holds folds, each of which is a run: give"):
            use(out)
    before = {path: path.stat().st_mtime_ns for path in out.glob("fold-*/checkpoint.pt")}
    assert len(before) == 3
    results = (out / "results.jsonl").read_bytes()

    def full(path: Path, *arguments: str, **named: object) -> object:
        if "results.jsonl" in Path(path).name:
            raise OSError(28, "No space left on device")
        return open(path, *arguments, **named)  # type: ignore[call-overload]

    with monkeypatch.context() as patch:
        patch.setattr("cutmix.runtime.files.open", full, raising=False)
        with pytest.raises(InputError, match=r"results\.jsonl could not be written"):
            cutmix.train(photos, folds=3, out=out, **FEW)
    assert (out / "results.jsonl").read_bytes() == results
    main(["train", "--data", str(photos), "--folds", "3", "--out", str(out), "--model", "resnet10t", "--no-pretrained",
          "--image-size", "32", "--batch-size", "8", "--epochs", "1", "--workers", "0", "--device", "cpu",
          "--precision", "float32"])  # fmt: skip
    assert {path: path.stat().st_mtime_ns for path in before} == before
    cutmix.evaluate(out / "fold-2", device="cpu", workers=0)
    own = {(r.source, r.metric): r.value for r in read_run(out / "fold-2").results}
    assert own["evaluation", "top1_err"] == own["training", "top1_err"] == pytest.approx(errors[1])
    main(["report", *map(str, sorted(out.glob("fold-*"))), "--out", str(tmp_path / "page.html")])


@pytest.mark.parametrize(
    ("errors", "ends"),
    [
        ((10.0, 11.0, 12.0), (11 - 4.302653 * (5 / 6) ** 0.5, 11 + 4.302653 * (5 / 6) ** 0.5)),  # the deviation is 1
        ((0.0, 0.0, 0.0), (None, None)),  # three folds of 8 images without a mistake do not prove 0 %
    ],
)
def test_the_mean_of_folds_has_the_interval_of_their_spread(
    errors: tuple[float, ...], ends: tuple[float | None, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    own = Record(metric="top1_err", value=0.0, low=0.0, high=32.4, n=8, source="training", which="last")
    runs = {f"fold-{k}": SimpleNamespace(results=[replace(own, value=e)]) for k, e in enumerate(errors, 1)}
    arrays = {"logits": np.zeros((8, 2)), "labels": np.zeros(8), "files": np.arange(8), "classes": np.arange(2)}
    monkeypatch.setattr(campaign, "read_arrays", lambda path: arrays)
    monkeypatch.setattr(campaign, "read_run", lambda path: runs[path.name])
    jobs = [campaign.Job("3 folds", Recipe(data="photos"), tmp_path / name) for name in runs]
    mean = campaign.summarize_folds(jobs, tmp_path)[-1]
    assert (mean.fold, mean.value, mean.n) == ("mean of 3", pytest.approx(sum(errors) / 3), 24)
    assert (mean.low, mean.high) == (pytest.approx(ends) if any(ends) else ends)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"folds": 1}, "--folds is 1; expected 0, or 2 to 100"),
        ({"folds": 3, "fold": 4}, "--fold is 4; expected 0 to 3"),
        ({"folds": 3, "overwrite": True}, "--overwrite and --folds are both given"),
        ({"folds": 3, "fold": 1, "patience": 2}, "--patience needs images to choose an epoch by"),
        ({"folds": 30}, "no test images"),
    ],
)
def test_folds_that_cannot_be_are_refused(changes: dict, said: str, photos: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=said):
        cutmix.train(photos, out=tmp_path / "x", **FEW, **changes)
    assert not (tmp_path / "x").exists()  # before any fold was trained


def test_a_folder_with_splits_and_a_known_set_are_refused(photos: Path, tmp_path: Path) -> None:
    for part in ("train", "val"):
        (tmp_path / part).symlink_to(photos)
    with pytest.raises(InputError, match="--folds divides a folder without splits"):
        open_splits(str(tmp_path), fold=(1, 3))
    with pytest.raises(InputError, match="digits has its own splits"):
        cutmix.train("digits", folds=3, out=tmp_path / "x", device="cpu")
    with pytest.raises(InputError, match="--folds is given; expected none, as cutmix compare trains on one split"):
        cutmix.compare(photos, folds=3, out=tmp_path / "x", **FEW)


def test_the_runs_of_a_comparison_describe_their_data_once(
    photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for _ in range(2):  # each comparison does
        cutmix.compare(photos, seeds=2, val_fraction=0.25, out=tmp_path / "runs", **FEW)
        said = capsys.readouterr().out
        assert said.count("21 images of 2 classes") == 1
        assert said.count("such images are never in two splits") == 1
        shutil.rmtree(tmp_path / "runs")


def test_finished_runs_are_taken_for_the_same_images_at_another_path(photos: Path, tmp_path: Path) -> None:
    """A trailing slash or a moved folder repeats no run, and other images are refused."""
    first, moved, out = tmp_path / "data", tmp_path / "disk/data", tmp_path / "runs"
    shutil.copytree(photos, first)
    settings = {"seeds": 1, "val_fraction": 0.25, "out": out, **FEW}
    cutmix.compare(first, ("none", "cutout"), **settings)
    written = {path: path.stat().st_mtime_ns for path in out.rglob("results.jsonl")}
    assert len(written) == 2
    moved.parent.mkdir()
    first.rename(moved)
    cutmix.compare(f"{moved}/", ("none", "cutout"), **settings)
    cutmix.compare(moved, ("none", "cutout"), **settings | {"seeds": 2})
    assert {path: path.stat().st_mtime_ns for path in written} == written
    assert len([*out.rglob("results.jsonl")]) == 4
    other = tmp_path / "other/data"  # no run is left
    shutil.copytree(moved, other)
    file = min((other / "cat").iterdir())
    file.rename(file.with_name(f"other{file.suffix}"))
    with pytest.raises(InputError, match=r"data does not hold the images that .*none-seed0 was trained and tested on"):
        cutmix.compare(other, ("none", "cutout"), **settings)


def test_the_rest_of_the_runs_has_the_images_of_the_finished_ones(photos: Path, tmp_path: Path) -> None:
    """Folds of changed data hold some images twice and others never; methods would have unequal data."""
    data, split = tmp_path / "data", tmp_path / "split"
    shutil.copytree(photos, data)
    for part in ("train", "val"):
        shutil.copytree(photos / "dog", split / part / "dog")
        shutil.copytree(photos / "cat", split / part / "cat")
    for number, file in enumerate(sorted((split / "val").rglob("*.*g"))):  # else all would be copies
        Image.new("RGB", (40, 36), (10 * number, 0, 90)).save(file)
    cutmix.train(data, folds=2, out=tmp_path / "cv", **FEW)
    cutmix.compare(split, ("none", "cutout"), seeds=1, out=tmp_path / "runs", **FEW)
    for name in ("fold-2", "results.jsonl"):
        (tmp_path / "gone").mkdir(exist_ok=True)
        (tmp_path / "cv" / name).rename(tmp_path / "gone" / name)
    for folder in (data / "cat", split / "train" / "cat"):
        Image.new("RGB", (40, 36), "navy").save(folder / "more.png")
    assert cutmix.compare(split, ("none", "cutout"), seeds=1, out=tmp_path / "runs", **FEW)
    with pytest.raises(InputError, match=r"data does not hold the images that .*fold-1 was trained and tested on"):
        cutmix.train(data, folds=2, out=tmp_path / "cv", **FEW)
    with pytest.raises(InputError, match=r"split does not hold the images that .*none-seed0 was trained and tested on"):
        cutmix.compare(split, ("none", "cutout"), seeds=2, out=tmp_path / "runs", **FEW)
    (split / "train/cat/more.png").unlink()
    first = min((split / "val/cat").iterdir())
    first.rename(first.with_name(f"other{first.suffix}"))
    with pytest.raises(InputError, match=r"split does not hold the images that .*none-seed0 was trained and tested on"):
        cutmix.compare(split, ("none", "cutout"), seeds=2, out=tmp_path / "runs", **FEW)
