"""Rows are run, once, by whoever has the folder; what does not fit is said before anything is trained."""

import json
import pickle
import shutil
from pathlib import Path

import numpy as np
import pytest

from cutmix.cli import main
from cutmix.config.options import ReproduceOptions
from cutmix.config.recipes import RECIPES
from cutmix.errors import InputError
from cutmix.paper.command import plan, run_reproduce, scaled
from cutmix.paper.tables import find_tables
from cutmix.runs.folder import hold, saved_recipe
from cutmix.runs.record import read_records
from cutmix.runtime.files import read_lines
from cutmix.training import campaign
from cutmix.training.campaign import parse_shard
from cutmix.training.state import learning_rate

SMALL = ("--model", "resnet20", "--device", "cpu")
PAIR = ("--rows", "Baseline", "CutMix")


def write_cifar100(folder: Path, classes: int = 100, seed: int = 0) -> Path:
    """Write 200 images of random pixels in CIFAR-100's layout."""
    folder.mkdir(parents=True)
    for name in ("train", "test"):
        pixels = np.random.default_rng(seed).integers(0, 256, (200, 3072), dtype=np.uint8)
        content = {b"data": pixels, b"fine_labels": [i % classes for i in range(200)]}
        (folder / name).write_bytes(pickle.dumps(content, protocol=3))
    names = [f"name {i}".encode() for i in range(classes)]
    (folder / "meta").write_bytes(pickle.dumps({b"fine_label_names": names}, protocol=3))
    return folder


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_cifar100(tmp_path_factory.mktemp("data") / "cifar-100-python")


def run(data: Path, out: Path, *words: str) -> None:
    main(["reproduce", "table5", *SMALL, *PAIR, "--data", str(data), "--out", str(out), *words])


def test_smoke_runs_each_row_once(data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out"
    run(data, out, "--scale", "smoke")
    said = " ".join(capsys.readouterr().out.split())
    assert "run 2 of 2: CutMix, seed 0" in said
    assert "more, if the others take as long" in said
    assert "which measure nothing" in said
    assert "14.47" in said
    folders = sorted(path for path in out.iterdir() if path.is_dir())
    names = [f"cifar100-pyramidnet200{mix}+resnet20+smoke" for mix in ("", "-cutmix")]
    assert {path.name for path in folders} == {f"{name}-seed0" for name in names}
    for folder in folders:
        assert {record.n for record in read_records(folder / "results.jsonl")} == {32}
        assert read_lines(folder / "log.jsonl")[-1]["step"] == 3
    before = {path: path.stat().st_mtime_ns for path in out.rglob("*") if path.is_file() and path.name[0] != "."}
    run(data, out, "--scale", "smoke")
    assert "0 of 1" in capsys.readouterr().out
    assert {path: path.stat().st_mtime_ns for path in before} == before


def test_short_is_timed_first_and_goes_on_where_it_was_stopped(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    words = ("--scale", "short", "--epochs", "2", "--seeds", "1")
    run(data, tmp_path / "whole", *words)
    said = capsys.readouterr().out
    assert said.index("in all, timed on a few steps") < said.index("run 1 of 2")
    assert "network resnet20, 2 of 300 epochs" in " ".join(said.split())

    really = campaign.run_training

    def killed(recipe, options, stop):  # the second row is stopped as by a signal, before its first step
        if recipe.mix == "cutmix":
            raise SystemExit(143)
        return really(recipe, options, stop)

    monkeypatch.setattr(campaign, "run_training", killed)
    with pytest.raises(SystemExit) as stopped:
        run(data, tmp_path / "parts", *words)
    assert stopped.value.code == 143
    assert "the same command resumes" in capsys.readouterr().out
    monkeypatch.undo()
    run(data, tmp_path / "parts", *words)
    said = capsys.readouterr().out
    assert "run 1 of 1: CutMix" in said
    results = [
        {path.parent.name: [record.value for record in read_records(path)] for path in out.glob("*/results.jsonl")}
        for out in (tmp_path / "whole", tmp_path / "parts")
    ]
    assert results[0] == results[1]
    assert len(results[0]) == 2


def test_a_row_that_fails_does_not_keep_the_others_from_running(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    really = campaign.train_briefly

    def failing(recipe, options, stop):
        if recipe.mix == "none":
            raise InputError("the loss is nan")
        return really(recipe, options, stop)

    monkeypatch.setattr(campaign, "train_briefly", failing)
    with pytest.raises(SystemExit) as stopped:
        run(data, tmp_path, "--scale", "smoke")
    assert stopped.value.code == 2
    said = capsys.readouterr()
    assert "1 of 2 runs failed" in said.err
    assert "the loss is nan" in said.err
    assert (tmp_path / "cifar100-pyramidnet200-cutmix+resnet20+smoke-seed0/results.jsonl").exists()


def test_a_second_one_at_the_same_time_is_refused(data: Path, tmp_path: Path) -> None:
    options = ReproduceOptions(
        table="table5", scale="smoke", model="resnet20", data=str(data), out=tmp_path, device="cpu"
    )
    lock = hold(tmp_path, ".reproduce-1-of-1.lock")
    with pytest.raises(InputError, match="is being written by another process"):
        run_reproduce(options)
    assert not list(tmp_path.glob("*/config.json"))
    assert lock is not None
    lock.close()


def test_a_folder_of_another_run_is_refused(data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ("--scale", "short", "--seeds", "1", "--rows", "Baseline")
    run(data, tmp_path, *words, "--epochs", "1")
    with pytest.raises(SystemExit):
        run(data, tmp_path, *words, "--epochs", "2")
    assert "holds another run, with --epochs 1 instead of 2" in capsys.readouterr().err


@pytest.mark.parametrize("scale", [("smoke",), ("short", "--epochs", "1", "--seeds", "1")])
def test_all_rows_have_the_images_of_the_finished_ones(
    scale: tuple[str, ...], data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    main(
        ["reproduce", "table5", *SMALL, "--rows", "Baseline", "--data", str(data), "--out", str(out), "--scale", *scale]
    )
    moved, other = tmp_path / "moved" / data.name, write_cifar100(tmp_path / "other" / data.name, seed=1)
    shutil.copytree(data, moved)
    with pytest.raises(SystemExit):
        run(other, out, "--scale", *scale)
    assert "does not hold the images that" in capsys.readouterr().err
    run(moved, out, "--scale", *scale)
    assert "run 1 of 1: CutMix, seed 0" in " ".join(capsys.readouterr().out.split())


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        (("table13",), 'no table "table13"'),
        (("table10",), "table10; they are run by cutmix transfer detection"),
        (("table5", "--rows", "CutMx"), 'table5 has no row "CutMx"'),
        (("table3", "--rows", "ResNet-152"), "is quoted in the paper"),
        (("table5", "--data", "digits"), "digits holds 10 classes of 8×8 pixels, but table5 is about cifar-100: 100"),
        (("table3", "--data", "digits"), "is about imagenet: 1000 classes of images of any size"),
        (("table5", "--seeds", "0"), "--seeds is 0"),
        (("table5", "--seeds", "1000000000"), "--seeds is 1000000000; expected 1 to 1000"),
        (("table5", "--epochs", "5"), "expected --scale short"),
        (("table5", "--shard", "3/2"), "--shard is 3/2; expected i/n"),
        (("table5", "--shard", "half"), "--shard is half"),
        (("table5", "--out", "/dev/null/x"), "/dev/null/x could not be made"),
        (("table5", "--model", "resnet999"), "there is no model"),
    ],
)
def test_a_mistake_is_one_sentence_before_anything_is_trained(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], words: tuple[str, ...], reason: str
) -> None:
    given = [*words, *([] if "--data" in words else ["--data", str(data)])]
    with pytest.raises(SystemExit) as stopped:
        main(["reproduce", *given, *([] if "--out" in words else ["--out", str(tmp_path)])])
    said = capsys.readouterr().err
    assert stopped.value.code == 2
    assert reason in said
    assert said.count("\n") == 1
    assert not list(tmp_path.glob("*/config.json"))


def test_other_data_are_found_out_by_their_number_of_classes(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = write_cifar100(tmp_path / "cifar-100-python", classes=20)
    with pytest.raises(SystemExit):
        run(folder, tmp_path / "out")
    assert "20 classes of 32×32 pixels, but" in capsys.readouterr().err


def test_shards_share_all_runs_without_overlap() -> None:
    options = ReproduceOptions(table="table5")
    jobs = plan(find_tables("table5"), options)
    assert len(jobs) == 15 * 3
    assert [job.recipe.seed for job in jobs] == sorted(job.recipe.seed for job in jobs)
    shards = [jobs[i - 1 :: n] for i, n in (parse_shard(f"{i}/7") for i in range(1, 8))]
    paths = [job.path for shard in shards for job in shard]
    assert sorted(paths) == sorted({job.path for job in jobs})


def test_a_row_in_two_tables_is_run_once() -> None:
    jobs = plan(find_tables("figure3"), ReproduceOptions(table="figure3", seeds=1))
    assert len(jobs) == 1 + 6 + 5


def test_full_is_the_recipe_itself() -> None:
    recipe = RECIPES["cifar100-pyramidnet200-cutmix"]
    assert scaled(recipe, ReproduceOptions(table="table5"), 0) == recipe


def test_short_shrinks_the_schedule_with_the_epochs() -> None:
    recipe = RECIPES["cifar100-pyramidnet200-cutmix"]
    short = scaled(recipe, ReproduceOptions(table="table5", scale="short", model="resnet20", epochs=20), 2)
    assert (short.name, short.epochs, short.seed, short.model) == (f"{recipe.name}+resnet20+short", 20, 2, "resnet20")
    rates = [learning_rate(short, 30 * step, 300) for step in range(200)]  # a tenth of an epoch apart
    assert rates == [learning_rate(recipe, 15 * 30 * step, 300) for step in range(200)]
    assert len(set(rates)) == 3


def test_another_network_may_have_another_learning_rate() -> None:
    recipe = RECIPES["cifar100-pyramidnet200-shakedrop"]
    other = scaled(recipe, ReproduceOptions(table="table5", scale="short", model="resnet20", lr=0.1), 0)
    assert (other.name, other.lr) == (f"{recipe.name}+resnet20+lr0.1+short", 0.1)
    with pytest.raises(InputError, match="--lr is given without --model"):
        plan(find_tables("table5"), ReproduceOptions(table="table5", scale="short", lr=0.1))


def test_help_shows_the_slurm_line(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["reproduce", "--help"])
    assert "--shard $SLURM_ARRAY_TASK_ID/15" in " ".join(capsys.readouterr().out.split())


def test_configuration_says_the_command(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    words = ["reproduce", "table6", *SMALL, "--scale", "smoke", "--rows", "ResNet-110 + CutMix", "--data", str(data)]
    monkeypatch.setattr("sys.argv", ["cutmix", *words])
    main([*words, "--out", str(tmp_path)])
    (folder,) = tmp_path.glob("*/")
    assert json.loads((folder / "config.json").read_text())["command"].startswith("cutmix reproduce table6")
    assert saved_recipe(folder).lr == RECIPES["cifar100-resnet110-cutmix"].lr
