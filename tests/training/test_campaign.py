"""The answer of ``cutmix compare`` is that of the runs' own predictions, and a finished run is not run again."""

import contextlib
import csv
import io
import itertools
import json
import os
import signal
import sys
import threading
import time
from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import cutmix.training.loop
from cutmix.cli import main
from cutmix.config.options import CompareOptions, TrainOptions
from cutmix.config.recipe import Recipe
from cutmix.config.recipes import RECIPES
from cutmix.data import open_splits
from cutmix.data.decode import FAST_JPEG
from cutmix.errors import InputError
from cutmix.report.verdict import (
    ClassDifference,
    Comparison,
    _by_class,
    as_csv,
    as_latex,
    as_markdown,
    in_words,
)
from cutmix.runs.outcomes import crossed_difference
from cutmix.runtime.device import processes
from cutmix.runtime.files import read_lines
from cutmix.runtime.terminal import Stop
from cutmix.training import campaign, classification
from cutmix.training.campaign import plan_methods
from cutmix.training.loop import DivergedError, evaluated_batches, run_to_end
from cutmix.training.mixes import make_mix
from cutmix.training.settings import settle
from cutmix.training.setup import Run, prepare

WORDS = ["compare", "digits-resnet20", "--mix", "none", "cutmix", "--seeds", "2", "--epochs", "1", "--device", "cpu",
         "--precision", "float32", "--train-error"]  # fmt: skip


def wrong(run: Path) -> np.ndarray:
    with np.load(run / "predictions/last.npz") as arrays:
        return arrays["logits"].argmax(1) != arrays["labels"]


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("compare")
    answer = io.StringIO()
    with contextlib.redirect_stdout(answer):
        main([*WORDS, "--out", str(out), "--json"])
    (out / "answer.json").write_text(answer.getvalue())
    return out


@pytest.mark.parametrize(("error", "runs"), [(InputError("a full disk"), 1), (DivergedError("the loss is nan"), 2)])
def test_with_several_processes_only_a_diverged_run_lets_the_others_start(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, error: InputError, runs: int
) -> None:
    """Another error may be that of one process alone: the others are still in the run, and would wait for it."""
    started = []

    def fail(recipe: Recipe, options: TrainOptions, stop: Stop) -> None:
        started.append(recipe.name)
        raise error

    jobs = [campaign.Job("a", replace(RECIPES["digits-resnet20"], name=name), tmp_path / name) for name in "ab"]
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setattr(campaign, "run_training", fail)
    with pytest.raises(InputError, match="a full disk") if runs == 1 else contextlib.nullcontext():
        campaign.run_jobs(jobs, CompareOptions(out=tmp_path), campaign.Console(file=io.StringIO()))
    assert len(started) == runs


@pytest.mark.parametrize(
    ("given", "saved", "same"),
    [
        ({"image_size": None}, {"image_size": 224}, True),
        ({"image_size": None}, {"image_size": 64}, False),
        ({"image_size": 96}, {"image_size": 64}, False),
        ({"precision": "auto"}, {"precision": "bfloat16"}, True),
        ({"precision": "float32"}, {"precision": "bfloat16"}, False),
        ({"decoder": "exact"}, {"decoder": "fast"}, False),
        ({"decoder": "fast"}, {"decoder": "exact"}, not FAST_JPEG),  # not on the machine that trained it either
    ],
)
def test_a_finished_run_is_taken_only_for_one_of_the_same_settings(
    given: dict[str, Any], saved: dict[str, Any], same: bool, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    job = campaign.Job("a", replace(RECIPES["digits-resnet20"], **given), tmp_path)
    (tmp_path / "config.json").touch()
    monkeypatch.setattr(campaign, "saved_recipe", lambda path: replace(job.recipe, **saved))
    monkeypatch.setattr(campaign, "is_complete", lambda path: True)
    with contextlib.nullcontext() if same else pytest.raises(InputError, match="holds another run, with --"):
        assert campaign.share_done(job) == 1


def test_runs_of_several_precisions_are_noted(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Where no precision is given, each machine that trains a shard chooses its own."""
    chosen = {"a": "bfloat16", "b": "float32"}
    jobs = [campaign.Job(name, RECIPES["digits-resnet20"], tmp_path / name) for name in chosen]
    for job in jobs:
        job.path.mkdir()
        (job.path / "results.jsonl").touch()
    monkeypatch.setattr(campaign, "plan_methods", lambda recipe, options: jobs)
    for name in ("check_images", "_run_left"):
        monkeypatch.setattr(campaign, name, lambda *_: None)
    monkeypatch.setattr(campaign, "saved_recipe", lambda path: replace(jobs[0].recipe, precision=chosen[path.name]))
    assert campaign.run_methods(jobs[0].recipe, CompareOptions(out=tmp_path)) == jobs
    assert "note: the runs were computed in bfloat16 and float32; give --precision" in capsys.readouterr().out
    chosen["b"] = "bfloat16"
    campaign.run_methods(jobs[0].recipe, CompareOptions(out=tmp_path))
    assert "computed in" not in capsys.readouterr().out


def test_options_of_the_runs_reach_them_from_flags_and_from_a_file(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    reached: list[tuple[Recipe, TrainOptions]] = []

    def run_methods(recipe: Recipe, options: CompareOptions) -> list[campaign.Job]:
        job = campaign.Job("a", recipe, tmp_path / "a")
        reached.append((recipe, campaign.train_options(job, options)))
        return []

    monkeypatch.setattr(campaign, "run_methods", run_methods)
    (tmp_path / "c.yaml").write_text("device: cpu\nworkers: 0\nlog_every: 3\nlr: 0.5\nskip_unreadable: true\n")
    asked = ["--config", str(tmp_path / "c.yaml"), "--log-every", "7", "--timeout", "60", "--log", "tensorboard"]
    main(["compare", "--data", "photos", *asked, "--checkpoint-every", "9", "--download"])
    given: Any = {"log_every": 7, "timeout": 60, "log": "tensorboard", "checkpoint_every": 9, "download": True}
    cutmix.compare("photos", config=tmp_path / "c.yaml", **given)
    expected = TrainOptions(
        out=tmp_path / "a", resume=True, device="cpu", workers=0, log_every=7, timeout=60, log="tensorboard",
        checkpoint_every=9, download=True, skip_unreadable=True,
    )  # fmt: skip
    assert [(recipe.lr, options) for recipe, options in reached] == [(0.5, expected)] * 2
    assert reached[0] == reached[1]


def test_shards_have_the_options_and_the_recipe_of_the_command(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    started: list[list[str]] = []

    class Popen:
        def __init__(self, command: list[str], env: dict[str, str], **_: object) -> None:
            started.append(command)
            assert env["OMP_NUM_THREADS"] == "32"  # half of 64

        def wait(self) -> int:
            return 0

        poll = terminate = wait

    recipe = replace(RECIPES["cifar100-deit-tiny"], lr=3e-05, train_per_class=4)
    options = CompareOptions(
        out=tmp_path, jobs=2, device="cpu", workers=0, log_every=7, skip_unreadable=True, timeout=60, seeds=2, steps=8,
        mix=("none", "smmix:alpha=0.8"), train_per_class=(2, 4),
    )  # fmt: skip
    monkeypatch.setattr(campaign.subprocess, "Popen", Popen)
    monkeypatch.setattr(campaign, "CORES", 64)
    campaign._run_shards(recipe, options)
    reached: list[Any] = []
    monkeypatch.setattr(campaign, "run_methods", lambda *given: reached.append(given) or [])
    for command in started:
        main(command[3:])
    assert reached == [(recipe, replace(options, jobs=1, shard=f"{shard}/2")) for shard in (1, 2)]


def test_the_printed_settings_of_a_comparison_are_those_of_its_runs(capsys: pytest.CaptureFixture[str]) -> None:
    main([*WORDS, "--print-config", "--workers", "0"])
    printed = capsys.readouterr().out
    assert all(f"{line}\n" in printed for line in ("epochs: 1", "lr: 0.05", "workers: 0", "precision: float32"))


def test_fewer_steps_have_the_learning_rate_of_as_many_epochs(tmp_path: Path) -> None:
    noise = np.random.default_rng(0)
    for name, i in itertools.product("ab", range(60)):
        (tmp_path / name).mkdir(exist_ok=True)
        Image.fromarray(noise.integers(0, 256, (8, 8, 3), dtype=np.uint8)).save(tmp_path / name / f"{i}.png")
    recipe = Recipe(data=str(tmp_path), pretrained=False)
    images = len(open_splits(str(tmp_path)).train)
    (by_epochs, *_) = plan_methods(replace(recipe, epochs=3), CompareOptions(seeds=1))
    steps = 3 * -(-images // by_epochs.recipe.batch_size)
    (by_steps, *_) = plan_methods(recipe, CompareOptions(seeds=1, steps=steps))
    assert by_steps.recipe == by_epochs.recipe


def test_a_method_with_other_settings_than_its_named_recipe_is_noted(capsys: pytest.CaptureFixture[str]) -> None:
    plan_methods(RECIPES["digits-resnet20"], CompareOptions(mix=("none", "cutmix", "mixup"), seeds=2))
    assert capsys.readouterr().out == (
        "note: cutmix has --mix-prob 1.0 here, and --mix-prob 0.5 in the recipe digits-resnet20-cutmix; "
        "cutmix:mix-prob=0.5 is as there\n"
    )
    options = CompareOptions(mix=("none", "cutmix:mix-prob=0.5"), seeds=1)
    (_, job) = plan_methods(RECIPES["digits-resnet20"], options)
    assert replace(job.recipe, name="digits-resnet20-cutmix") == RECIPES["digits-resnet20-cutmix"]
    plan_methods(replace(RECIPES["digits-resnet20"], mix_prob=0.7), CompareOptions(seeds=1))
    assert capsys.readouterr().out == ""


def test_cutout_leaves_pixels_of_the_smallest_images() -> None:
    options = CompareOptions(mix=("none", "cutout", "cutmix-fixed-size"), seeds=1)
    for recipe in (RECIPES["digits-resnet20"], Recipe(data="digits")):
        _, cutout, fixed = plan_methods(recipe, options)
        images, _ = make_mix(cutout.recipe).mix(torch.ones(64, 1, 8, 8), torch.zeros(64, dtype=torch.int64))
        assert 0.5 < images.mean() < 1
        _, targets = make_mix(fixed.recipe).mix(torch.ones(64, 1, 8, 8), torch.zeros(64, dtype=torch.int64))
        assert targets.lam.min() > 0.5


def test_standard_output_is_the_answer_alone_also_where_runs_are_trained(finished: Path) -> None:
    assert json.loads((finished / "answer.json").read_text()) == json.loads((finished / "comparison.json").read_text())


def test_the_answer_has_the_errors_on_the_training_images(finished: Path) -> None:
    (one,) = json.loads((finished / "comparison.json").read_text())
    last = {path.parent.name: read_lines(path)[-1]["train_err"] for path in finished.glob("*/log.jsonl")}
    for name, field in (("cutmix", "train_error"), ("none", "baseline_train_error")):
        assert one[field] == pytest.approx(np.mean([err for run, err in last.items() if f"-{name}-" in run]))


@pytest.mark.parametrize(
    ("own", "said"),
    [
        (None, ""),
        (13.5, " Of the training images 13.5 % are wrong at the end, 0.4 % with none."),
        (49.4, " Of the training images 49.4 % are wrong at the end, 0.4 % with none: longer training may change the "
               "answer."),
    ],
)  # fmt: skip
def test_a_method_that_has_not_fitted_its_training_images_may_need_longer_training(
    own: float | None, said: str
) -> None:
    one = replace(comparison(-3, -4, -2, 0.01), train_error=own, baseline_train_error=0.4)
    assert said in in_words(one)
    assert ("training images" in in_words(one)) is bool(said)


def test_the_difference_is_that_of_the_predictions(finished: Path) -> None:
    (found,) = json.loads((finished / "comparison.json").read_text())
    errors = {
        mix: np.stack([wrong(finished / f"digits-resnet20-{mix}-seed{seed}") for seed in (0, 1)])
        for mix in ("none", "cutmix")
    }
    expected = crossed_difference(errors["cutmix"], errors["none"])
    assert found["difference"]["value"] == pytest.approx(expected.value)
    assert found["difference"]["low"] == pytest.approx(expected.low)
    assert found["error"] == pytest.approx(100 * errors["cutmix"].mean())
    assert sum(each["images"] for each in found["classes"]) == errors["none"].shape[1]
    assert (finished / "report.html").stat().st_size > 10_000


def test_finished_runs_are_not_run_again(finished: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = {path: path.stat().st_mtime_ns for path in finished.glob("*/checkpoint.pt")}
    main([*WORDS, "--out", str(finished), "--json"])
    assert {path: path.stat().st_mtime_ns for path in before} == before
    assert json.loads(capsys.readouterr().out)[0]["method"] == "cutmix"


def test_other_runs_in_the_folder_are_refused(finished: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main([*WORDS, "--lr", "0.01", "--out", str(finished)])
    assert "holds another run, with --lr 0.05 instead of 0.01" in capsys.readouterr().err


def test_shards_and_subsets_together_are_the_whole(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = [*WORDS, "--seeds", "1", "--train-per-class", "5", "20", "--out", str(tmp_path)]
    main([*words, "--shard", "1/2"])
    assert "2 of 4 runs are left to other shards" in capsys.readouterr().out
    main([*words, "--shard", "2/2"])
    said = " ".join(capsys.readouterr().out.split())
    assert "with 5 training images per class" in said
    assert "One seed says nothing about another" in said
    found = json.loads((tmp_path / "comparison.json").read_text())
    assert [one["per_class"] for one in found] == [5, 20]


def test_subsets_are_trained_for_equally_many_steps() -> None:
    recipe = replace(RECIPES["digits-resnet20"], batch_size=16, epochs=20, warmup_epochs=2, eval_every=4)
    recipe = replace(recipe, freeze=5, patience=8)
    jobs = plan_methods(recipe, CompareOptions(train_per_class=(8, 16, 40), steps=100, seeds=1, mix=("none", "cutmix")))
    in_epochs = ("epochs", "warmup_epochs", "eval_every", "freeze", "patience")
    found = {job.recipe.train_per_class: tuple(getattr(job.recipe, name) for name in in_epochs) for job in jobs}
    assert found == {8: (20, 2.0, 4, 5, 8), 16: (10, 1.0, 2, 2, 4), 40: (4, 0.4, 1, 1, 2)}  # 5, 10, 25 steps an epoch


def test_a_method_may_have_settings_of_its_own() -> None:
    own = "cutmix:mix-per-sample=true,alpha=4"
    methods = ("none", "none:label-smoothing=0.1", "feature-cutmix:mix-layers=0+2", own)
    jobs = plan_methods(RECIPES["digits-resnet20"], CompareOptions(seeds=1, mix=methods))
    plain = jobs[0].recipe.to_dict()
    found = [
        {name: value for name, value in job.recipe.to_dict().items() if value != plain[name] and name != "name"}
        for job in jobs
    ]
    assert found == [
        {},
        {"label_smoothing": 0.1},
        {"mix": "feature-cutmix", "mix_layers": [0, 2]},
        {"mix": "cutmix", "mix_per_sample": True, "alpha": 4.0},
    ]
    assert [job.method for job in jobs] == list(methods)
    assert jobs[3].path.name == "digits-resnet20-cutmix-mix-per-sample-true-alpha-4-seed0"


def test_a_mix_with_settings_is_compared_with_the_same_mix(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.argv", ["cutmix", "compare", "as typed"])
    words = [{"none": "cutmix", "cutmix": "cutmix:alpha=0.25"}.get(word, word) for word in WORDS]
    main([*words, "--seeds", "1", "--out", str(tmp_path), "--jobs", "2"])
    (found,) = json.loads((tmp_path / "comparison.json").read_text())
    assert (found["method"], found["baseline"]) == ("cutmix:alpha=0.25", "cutmix")
    errors = [
        100 * wrong(tmp_path / f"digits-resnet20-{name}-seed0").mean() for name in ("cutmix-alpha-0.25", "cutmix")
    ]
    assert [found["error"], found["baseline_error"]] == pytest.approx(errors)
    lines = [line for path in tmp_path.glob("*/results.jsonl") for line in read_lines(path)]
    assert {line["command"] for line in lines} == {"cutmix compare 'as typed'"}


def test_the_hole_of_cutout_has_half_the_side_of_other_images(tmp_path: Path) -> None:
    """A recipe for images of 64 pixels kept its hole of 32 with --image-size 32: as large as the image."""
    for settings, size in [({"image_size": 4}, 2), ({"image_size": 4, "cutout_size": 3}, 3), ({}, 4)]:
        recipe = settle("digits-resnet20", settings)[0]
        jobs = plan_methods(recipe, CompareOptions(mix=("none", "cutout"), seeds=1, out=tmp_path, device="cpu"))
        assert [job.recipe.cutout_size for job in jobs] == [size, size], settings
    for named in ("tiny-resnet20", RECIPES["tiny-resnet20"]):
        assert settle(named, {"image_size": 32})[0].cutout_size is None  # by the data
    own = replace(RECIPES["tiny-resnet20"], cutout_size=12)
    assert settle(own, {"image_size": 32, "data": "cifar-100"})[0].cutout_size == 12


def test_a_slow_first_step_is_not_the_estimate(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    now, durations = [0.0], iter([6.0, 1.0, 1.0, 1.0])

    def step(run: object, images: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        now[0] += next(durations)
        return torch.zeros(())

    monkeypatch.setattr(campaign, "train_step", step)
    monkeypatch.setattr(campaign.time, "perf_counter", lambda: now[0])
    recipe = replace(RECIPES["digits-resnet20"], batch_size=100, epochs=3, precision="float32")
    (job, *_) = campaign.plan_methods(recipe, CompareOptions(seeds=1, out=tmp_path, device="cpu"))
    assert campaign.time_run(job, CompareOptions(out=tmp_path, device="cpu")) == pytest.approx(
        3 * -(-len(open_splits("digits").train) // 100) * 1.0
    )


@pytest.mark.parametrize(
    ("splits", "fields", "evaluated"),
    [  # in batches of 4, after epochs 2 and 3 of 3; test images that choose no epoch only after the last
        ({"train": 8, "val": 6}, {}, 2 * 2),
        ({"train": 8, "val": 6}, {"train_error": True}, 2 * (2 + 2)),
        ({"train": 8, "val": 6}, {"train_error": True, "ema_decay": 0.9}, 2 * 2 * (2 + 2)),
        ({"train": 8, "test": 6}, {"ema_decay": 0.9}, 2 * 2),
        ({"train": 8, "val": 2, "test": 6}, {}, 2 * 1 + 2 * 2),
        ({"train": 8, "val": 2, "test": 6}, {"train_error": True, "ema_decay": 0.9}, 2 * 2 * (1 + 2) + 3 * (2 + 2)),
    ],
)
def test_the_estimate_counts_every_evaluation(
    splits: dict[str, int], fields: dict[str, Any], evaluated: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Against the batches that the run evaluates."""
    for split, index in [(split, index) for split, count in splits.items() for index in range(count)]:
        path = tmp_path / split / "ab"[index % 2] / f"{index}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (32, 32), (17 * index, 0, 40 * len(split))).save(path)
    batches: list[Any] = []

    def counted(source: Iterable[Any]) -> Iterator[Any]:
        for batch in source:
            batches.append(batch)
            yield batch

    real = classification.predict
    monkeypatch.setattr(classification, "predict", lambda model, source, *a, **k: real(model, counted(source), *a, **k))
    recipe = Recipe(data=str(tmp_path), model="resnet20", pretrained=False, image_size=32, batch_size=4, epochs=3,
                    eval_every=2, warmup_epochs=0, precision="float32", mix="none",
                    **{"ema_decay": 0.0} | fields)  # fmt: skip
    with processes("cpu", 60.0) as world:
        run = prepare(recipe, TrainOptions(out=tmp_path / "run", device="cpu", workers=0), world)
        assert evaluated_batches(run) == evaluated
        run_to_end(run)
    assert len(batches) == evaluated


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--steps", "0"], "--steps is 0; expected at least 1"),
        (["--mix", "none"], "expected two or more different methods"),
        (["--mix", "none", "none"], "expected two or more different methods"),
        (["--mix", "none", "cutmx"], "cutmx"),
        (["--mix", "cutmix", "cutmix:alpha=1"], "two are the same"),
        (["--mix", "none", "cutmix:lr=1"], "such as cutmix:alpha=0.5,cutout=true, of alpha, mixup-alpha"),
        (["--mix", "none", "cutmix:alpha"], "expected a method, or one with settings"),
        (["--mix", "none", "cutmix:"], "expected a method, or one with settings"),
        (["--mix", "none", "cutmix:alpha=1,alpha=2"], "expected a method, or one with settings"),
        (["--mix", "none", "cutmix:alpha=much"], "alpha"),
        (["--mix", "none", "cutmix:alpha=-1"], "alpha is -1"),
        (["--mix", "none", "cutmix:mix-layers=2"], "--mix is cutmix, which has none"),
        (["--mix", "cutmix", "smmix:mixup-alpha=0.8"], "smmix does not read mixup-alpha"),
        (["--mix", "none", "cutmix:cutout-size=4"], "cutmix does not read cutout-size"),
        (["--mix", "none", "none:alpha=0.5"], "none does not read alpha"),
        (["--mix", "none", "cutout:mix-per-sample=true"], "cutout does not read mix-per-sample"),
        (["--mix", "none", "none:drop-block-size=7"], "none does not read drop-block-size"),
        (["--seed", "5"], "--seed is 5; expected --seeds N"),
        (["--overwrite"], "--overwrite is given; expected another --out"),
        (["--table", "t.xlsx"], "--table is t.xlsx; expected a name that ends in .csv, .tex or .md"),
        (["--seeds", "0"], "--seeds is 0; expected 1 to 1,000"),
        (["--jobs", "2", "--shard", "1/2"], "--jobs makes shards by itself"),
    ],
)
def test_bad_options_are_one_sentence(
    words: list[str], said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as end:
        main(["compare", "--data", "digits", *words, "--out", str(tmp_path / "out")])
    assert end.value.code == 2
    assert said in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def comparison(value: float, low: float, high: float, p: float, seeds: int = 3) -> Comparison:
    rng = np.random.default_rng(0)
    base = crossed_difference(rng.random((seeds, 500)) < 0.3, rng.random((seeds, 500)) < 0.3)
    found = type(base)(**{**vars(base), "value": value, "low": low, "high": high, "p": p})
    classes = (ClassDifference("cat", value * 2, 100, p),)
    return Comparison("cutmix", "none", "photos", "test", None, 20 + value, 20, found, p, 60, 50, classes)


def test_the_words_say_direction_chance_and_classes() -> None:
    better = in_words(comparison(-5, -7, -3, 0.0001))
    assert "85.0 of 100 images right, 80.0 with none – 5.0 points better [+3.0, +7.0]" in better
    assert "more than chance (p below 0.001" in better
    assert "Helps most on cat (−10 points of error)" in better
    assert "1.20 times as long" in better
    worse = in_words(comparison(1, -2, 4, 0.4))
    assert "1.0 points worse [−4.0, +2.0]" in worse
    assert "Chance is not excluded (p = 0.400" in worse
    assert "No class alone differs" in worse
    assert "with none – equal [−3.0, +0.0]. Chance" in in_words(comparison(0.0, 0.0, 3.0, 1.0))
    alike = in_words(comparison(0.0, 0.0, 0.0, 1.0))
    assert alike.endswith(
        "80.0 with none – equal on every image in every run: more or harder test images are needed. "
        "Training took 1.20 times as long by the clock."
    )


def test_one_seed_with_equal_images_says_so() -> None:
    """Its interval has a width, but no image differs."""
    same = np.arange(40)[None] < 3
    one = replace(comparison(0.0, 0.0, 0.0, 1.0), difference=crossed_difference(same, same))
    assert "with none – equal on every image in every run: more or harder test images" in in_words(one)
    swapped = replace(one, difference=crossed_difference(same, np.roll(same, 3)))
    assert "with none – equal [−12.3, +12.3]. Chance is not excluded" in in_words(swapped)


def test_tables_for_a_paper_have_a_row_for_each_method() -> None:
    base = comparison(-5, -7.25, -3, 0.0001)
    one = replace(base, errors=(14.0, 16.0, 15.0), baseline_errors=(19.0, 21.0, 20.0))
    two = replace(one, method="own_mix", p=0.4, error=20.0, errors=(20.0, 20.0, 20.0))
    csv_rows = list(csv.DictReader(io.StringIO(as_csv([one, two]))))
    assert [row["method"] for row in csv_rows] == ["none", "cutmix", "own_mix"]
    assert (csv_rows[0]["mean"], csv_rows[0]["sd"], csv_rows[0]["difference"], csv_rows[0]["p"]) == (
        "20.0",
        "1.0",
        "",
        "",
    )
    assert [csv_rows[1][name] for name in ("seeds", "images", "low", "high", "p")] == [
        "3",
        "500",
        "-7.25",
        "-3",
        "0.0001",
    ]
    text = as_markdown([one, two])
    assert (
        "| method | error (%) | difference [95 %] | p |\n| --- | --- | --- | --- |\n| none | 20.00 ± 1.00 |  |  |\n"
        in text
    )
    assert "| cutmix | 15.00 ± 1.00 | −5.00 [−7.25, −3.00] | below 0.001 |\n" in text
    assert "photos, 500 test images, 3 seeds, mean ± standard deviation over them" in text
    latex = as_latex([one, two])
    assert (
        "\\begin{tabular}{lrrr}\n\\toprule\nmethod & error (\\%) & difference [95 \\%] & p \\\\\n\\midrule\n" in latex
    )
    assert "own\\_mix & 20.00 $\\pm$ 0.00 & $-$5.00 [$-$7.25, $-$3.00] & 0.400 \\\\\n\\bottomrule" in latex
    curve = as_markdown([replace(one, per_class=count) for count in (10, 1000)])
    assert [row in curve for row in ("| none | 10 |", "| none | 1,000 |")] == [True, True]


def test_an_adjusted_p_is_said_to_be_and_no_difference_is_over_100_points() -> None:
    one = comparison(-5, -9, -1, 0.03)
    assert "(p = 0.060 adjusted for all comparisons, over 3 seeds" in in_words(replace(one, p=0.06))
    few = replace(one, difference=replace(one.difference, detectable=123.0), p=0.06)
    assert "these runs are too few to find a difference of any size" in in_words(few)


@pytest.mark.parametrize(("seeds", "swing", "unequal"), [(2, 0.3, 0), (2, 0.6, 0), (3, 0.6, 0), (2, 0.6, 1)])
def test_classes_of_equal_methods_rarely_differ(seeds: int, swing: float, unequal: float) -> None:
    """Simulated: classes swing from seed to seed, no method is better; some class differs in 5 % of the comparisons."""
    rng = np.random.default_rng(0)
    labels, wrongly = np.repeat(np.arange(10), 60), 0
    for _ in range(150):
        swing_of = swing * np.exp(unequal * rng.standard_normal(10))  # the same for both methods
        hard = rng.normal(-1.3, 0.7, 10)[labels] + rng.normal(0, 1.5, len(labels))
        swings = (swing_of * rng.normal(0, 1, (2, seeds, 10)))[..., labels]
        wrong = (hard + swings + rng.normal(0, 1, swings.shape) > 0)[..., None]
        found = _by_class(wrong[0], wrong[1], labels, [str(k) for k in range(10)])
        wrongly += any(one.p < 0.05 for one in found)
    assert wrongly / 150 < 0.1


def test_a_class_of_three_images_settles_nothing() -> None:
    labels = np.repeat([0, 1], 3)
    wrong = np.ones((2, 6, 1), dtype=bool)
    assert {one.p for one in _by_class(wrong, ~wrong, labels, ["a", "b"])} == {0.5}


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_stopped_comparison_stops_its_shards_and_waits_for_them(
    number: signal.Signals, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shard = tmp_path / "python"
    shard.write_text(
        "#!/bin/sh\ntrap 'sleep 0.2; echo saved; exit 143' TERM\necho began\nwhile :; do sleep 0.02; done\n"
    )
    shard.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(shard))

    def stop_once_they_run() -> None:
        while [path.read_text() for path in tmp_path.glob("out/shard-*.txt")] != ["began\n"] * 2:
            time.sleep(0.02)
        os.kill(os.getpid(), number)

    threading.Thread(target=stop_once_they_run, daemon=True).start()
    with pytest.raises(SystemExit) as stopped:
        main([*WORDS, "--jobs", "2", "--out", str(tmp_path / "out")])
    assert stopped.value.code == 128 + number
    assert [path.read_text() for path in tmp_path.glob("out/shard-*.txt")] == ["began\nsaved\n"] * 2


@pytest.mark.parametrize(
    ("end", "said"),
    [
        ("kill -9 $$", "shard 1 was ended by SIGKILL; the same command resumes"),
        ("echo saved; exit 143", "shard 1 was ended by SIGTERM; the same command resumes"),
        ("echo cutmix: a full disk; exit 2", "a shard failed: cutmix: a full disk"),
    ],
)
def test_a_shard_that_ends_early_says_why(end: str, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The shard of a killed command, which nothing stops, writes to its own file."""
    shard, out = tmp_path / "python", tmp_path / "out"
    shard.write_text(f"#!/bin/sh\necho epoch 1\n{end}\n")
    shard.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(shard))
    out.mkdir()
    with open(out / "shard-1.txt", "wb", buffering=0) as old:
        old.write(b"epoch 1\n" * 100)
        with pytest.raises(InputError, match=said):
            cutmix.compare("digits", jobs=2, out=out, device="cpu")
        old.write(b"epoch 2\n")
    lines = (out / "shard-1.txt").read_text().splitlines()
    assert lines[0] == "epoch 1"
    assert len(lines) <= 2


@pytest.mark.parametrize("fails", [False, True])
def test_a_signal_after_the_last_step_of_a_run_stops_the_campaign(
    fails: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The run ends, or cannot write its checkpoint, and the next one does not start."""

    def evaluate(run: Run) -> dict[str, Any]:
        os.kill(os.getpid(), signal.SIGTERM)
        if fails:
            raise InputError("a full disk")
        return evaluated(run)

    evaluated = cutmix.training.loop.evaluate_epoch
    monkeypatch.setattr(cutmix.training.loop, "evaluate_epoch", evaluate)
    recipe = replace(RECIPES["digits-resnet20"], epochs=1, train_per_class=2, batch_size=16)
    jobs = [campaign.Job(name, replace(recipe, name=name), tmp_path / name) for name in "ab"]
    with pytest.raises(SystemExit) as stopped:
        campaign.run_jobs(jobs, CompareOptions(out=tmp_path, device="cpu"), campaign.Console(file=io.StringIO()))
    assert stopped.value.code == 128 + signal.SIGTERM
    assert campaign.is_complete(tmp_path / "a") is not fails
    assert not (tmp_path / "b").exists()


def test_a_brief_run_reads_a_few_batches_of_each_split(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    seen = []
    monkeypatch.setattr(campaign, "run_to_end", lambda run, stop: seen.append(run))
    recipe = replace(RECIPES["digits-resnet20"], batch_size=8, train_error=True)
    campaign.train_briefly(recipe, TrainOptions(out=tmp_path / "run", device="cpu"))
    loaders = (seen[0].batches, seen[0].task.train_batches, seen[0].task.test_batches)
    assert max(len(list(loader.epoch(0))) for loader in loaders) <= campaign.BRIEF_STEPS
