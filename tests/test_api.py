"""The Python functions do what the commands do, and their results print and show as tables."""

import csv
import inspect
import re
import shutil
import signal
import subprocess
import sys
import threading
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml

import cutmix
from cutmix import api
from cutmix.cli import COMMANDS, main, parse_train
from cutmix.config.options import RunOptions
from cutmix.config.recipe import Recipe
from cutmix.config.recipes import RECIPES
from cutmix.config.tasks import SSD300, Detection
from cutmix.errors import InputError
from cutmix.runs.folder import RunFolder, saved_recipe
from cutmix.runs.read import Run
from cutmix.runtime.files import to_json
from cutmix.training.settings import config_text, read_config_file, settle

FEW = {"epochs": 1, "train_per_class": 3, "device": "cpu", "precision": "float32"}


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    return cutmix.train("digits", mix="cutmix", out=str(tmp_path_factory.mktemp("api") / "run"), **FEW)


def test_a_run_prints_its_results_and_stands_for_its_folder(run: Run) -> None:
    assert "top1_err" in str(run)
    assert str(run.folder) in str(run)
    assert repr(run) == str(run)
    html = run._repr_html_()
    assert html.count("<tr>") == html.count("</tr>") == html.count("<table>") + len(run.results)
    assert "<th>metric</th>" in html
    assert cutmix.load(run, device="cpu").classes == tuple("0123456789")


def test_evaluate_returns_the_records_that_it_saves(run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    capsys.readouterr()
    found = cutmix.evaluate(run, suites=["classification", "calibration"], images=100, device="cpu", workers=0)
    assert capsys.readouterr().out == ""
    assert {record.suite for record in found} == {"classification", "calibration"}
    assert str(found).count("value [95 % interval]") == 2
    assert found._repr_html_().count("<table>") == 2


def test_the_answer_of_compare_comes_first_and_finished_runs_are_read(tmp_path: Path) -> None:
    shared = {"seeds": 2, "out": tmp_path, "workers": 0} | FEW
    shared["train_per_class"] = (3,)
    found = cutmix.compare("digits", ["none", "mixup"], **shared)
    assert str(found).startswith("mixup with 3 training images per class: ")
    assert found._repr_html_().startswith("<p>mixup with 3 training images")
    again = cutmix.compare("digits", ["none", "mixup"], table=tmp_path / "tables/few.csv", **shared)
    rows = list(csv.DictReader((tmp_path / "tables/few.csv").read_text(encoding="utf-8").splitlines()))
    assert [float(row["mean"]) for row in rows] == [again[0].baseline_error, again[0].error]
    times = {path: path.stat().st_mtime_ns for path in tmp_path.glob("*/checkpoint.pt")}
    assert len(times) == 4
    assert [one.to_json() for one in cutmix.compare("digits", ["none", "mixup"], **shared)] == [
        one.to_json() for one in found
    ]
    assert {path: path.stat().st_mtime_ns for path in times} == times


def test_shards_of_jobs_run_the_recipe_that_was_given(tmp_path: Path) -> None:
    shared = {"seeds": 1, "out": tmp_path, "workers": 0, "jobs": 2} | FEW | {"train_per_class": (3,)}
    (found,) = cutmix.compare("digits", ("none", "cutmix"), lr=0.01, **shared)
    assert found.per_class == 3
    assert (
        cutmix.train("digits", out=tmp_path / "digits-resnet20-none-3-per-class-seed0", resume=True).recipe["lr"]
        == 0.01
    )


def test_ctrl_c_leaves_a_run_that_resumes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import cutmix.training.loop as loop

    step, steps = loop.train_step, []

    def interrupted(*arguments: object) -> object:
        steps.append(1)
        if len(steps) == 3:
            signal.raise_signal(signal.SIGINT)
        return step(*arguments)  # type: ignore[arg-type]

    assert threading.current_thread() is threading.main_thread()
    settings = {"epochs": 2, "batch_size": 8, "train_per_class": 4, "device": "cpu", "precision": "float32"}
    monkeypatch.setattr(loop, "train_step", interrupted)
    with pytest.raises(KeyboardInterrupt, match="resume=True resumes"):
        cutmix.train("digits", out=tmp_path / "run", **settings)
    monkeypatch.setattr(loop, "train_step", step)
    resumed = cutmix.train(out=tmp_path / "run", resume=True, device="cpu")
    whole = cutmix.train("digits", out=tmp_path / "whole", **settings)
    assert resumed.finished
    assert resumed.result("top1_err", "last").value == whole.result("top1_err", "last").value  # type: ignore[union-attr]


def test_after_ctrl_c_reproduce_names_a_call_that_it_takes(monkeypatch: pytest.MonkeyPatch) -> None:
    import cutmix.paper.command

    def stopped(options: object) -> object:
        raise SystemExit(130)

    monkeypatch.setattr(cutmix.paper.command, "run_reproduce", stopped)
    with pytest.raises(InputError, match="no setting 'resume'"):
        cutmix.reproduce("table5", resume=True)
    with pytest.raises(KeyboardInterrupt, match="; the same call resumes"):
        cutmix.reproduce("table5")


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"epoch": 3}, "there is no setting 'epoch' of cutmix train; did you mean 'epochs'?"),
        ({"print_config": True}, "there is no setting 'print_config' of cutmix train"),
        ({"epochs": 0}, "--epochs is 0; expected a number of at least 1"),
        ({"epochs": "many"}, 'epochs is "many"; expected'),
        ({"mix": "cutmx"}, "--mix is cutmx; expected one of"),
    ],
)
def test_errors_are_the_sentences_of_the_command(settings: dict[str, object], said: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=re.escape(said)):
        cutmix.train("no such data, which are opened later", out=tmp_path / "run", device="cpu", **settings)
    with pytest.raises(InputError, match="nothing to train on"):
        cutmix.train()
    with pytest.raises(InputError, match="no setting 'image'; did you mean 'images'"):
        cutmix.evaluate(tmp_path, image=3)


def test_python_and_the_command_settle_on_the_same(tmp_path: Path) -> None:
    words = ["--data", "photos", "--mix", "mixup", "--no-flip", "--pretrained", "--milestones", "0.3", "0.6"]
    settings = {"data": "photos", "mix": "mixup", "flip": False, "pretrained": True, "milestones": [0.3, 0.6]}
    assert settle(None, settings)[0] == parse_train(words)[0]
    named = {"mix": "cutmix"}
    recipe = "cifar100-pyramidnet200-feature-cutmix-layer-0"
    assert settle(recipe, named)[0] == parse_train([recipe, "--mix", "cutmix"])[0]


@pytest.mark.parametrize(("settings", "decays"), [
    ({"epochs": 90}, [30, 60]), ({"epochs": 200}, [30, 60, 90, 120, 150, 180]), ({"epochs": 300}, [75, 150, 225]),
    ({}, [75, 150, 225]), ({"epochs": 90, "milestones": [0.25, 0.5, 0.75]}, [22.5, 45, 67.5]),
])  # fmt: skip
def test_the_decays_of_the_authors_code_are_those_of_python_command_and_file(
    settings: dict[str, Any], decays: list[float], tmp_path: Path
) -> None:
    words = [str(w) for k, v in settings.items() for w in (f"--{k}", *(v if isinstance(v, list) else [v]))]
    file = tmp_path / "settings.yaml"
    file.write_text("".join(f"{name}: {value}\n" for name, value in settings.items()) or "{}")
    for recipe in (
        settle("imagenet-resnet50-cutmix", settings)[0],
        parse_train(["imagenet-resnet50-cutmix", *words])[0],
        parse_train(["imagenet-resnet50-cutmix", "--config", str(file)])[0],
        settle("imagenet-resnet50-cutmix", {"config": file})[0],
    ):
        assert [share * recipe.epochs for share in recipe.milestones] == pytest.approx(decays)


def test_a_config_file_holds_defaults_and_flags_win(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "recipe.yaml"
    file.write_text("recipe: digits-resnet20\nepochs: 3\nbatch-size: 32\nlog_every: 7\nmilestones: [0.5]\n")
    recipe, options = parse_train(["--config", str(file), "--epochs", "4"])
    assert (recipe.epochs, recipe.batch_size, recipe.milestones, options.log_every) == (4, 32, (0.5,), 7)
    assert settle(None, {"config": file, "epochs": 4}) == (recipe, options)
    main(["train", "--config", str(file), "--epochs", "4", "--print-config"])
    printed = capsys.readouterr().out
    file.write_text(printed)
    assert parse_train(["--config", str(file)]) == (recipe, options)


@pytest.mark.parametrize(("text", "value"), [  # the core schema of YAML 1.2, and numbers as JSON writes them
    ("lr: 1e-05", 1e-5), ("lr: 1E+2", 100.0), ("lr: .5", 0.5), ("lr: 5.", 5.0), ('{"lr": 1e-05}', 1e-5),
    ("epochs: 010", 10),
    ("epochs: 08", 8), ("compile: off", "off"), ("data: no", "no"), ("data: 1:30", "1:30"), ("data: '1e5'", "1e5"),
    ("milestones:", None), ("milestones: ~", None), ("flip: False", False),
])  # fmt: skip
def test_scalars_of_a_config_file_are_those_of_yaml_12_and_json(text: str, value: Any, tmp_path: Path) -> None:
    file = tmp_path / "c.yaml"
    file.write_text(text)
    (found,) = read_config_file(file)[1].values()
    assert (found, type(found)) == (value, type(value))


def test_a_printed_config_file_gives_back_each_setting(tmp_path: Path) -> None:
    file = tmp_path / "c.yaml"
    for text in ("1e5", "08", "off", "1:30", "null", "~", "2020-01-01", "0x10", "1_000", "true", ".inf"):
        recipe, options = settle(None, {"data": text, "lr": 1e-05, "compile": "off", "out": Path(text)})
        file.write_text(config_text(recipe, options))
        assert settle(None, {"config": file}) == (recipe, options)
        assert yaml.safe_load(file.read_text())["data"] == text  # a reader of YAML 1.1 too


def test_the_file_of_each_named_recipe_gives_it_back(tmp_path: Path) -> None:
    for recipe in (recipe for recipe in RECIPES.values() if recipe.data):
        kept = {name: value for name, value in recipe.to_dict().items() if value is not None}
        (tmp_path / "recipe.json").write_bytes(to_json(kept, indent=1))
        assert settle(None, {"config": tmp_path / "recipe.json"})[0] == recipe


@pytest.mark.parametrize(("text", "said"), [("- 1", "is not a mapping"), ("a: [", "cannot be read as YAML"),
                                            ("epoch: 3", "did you mean 'epochs'"), ("lr: fast", "lr is"),
                                            ("lr: 2020-01-01", 'lr is "2020-01-01"; expected a number'),
                                            ("lr: 2020-13-45", 'lr is "2020-13-45"'), ("mix: !!set {a}", "mix is"),
                                            ("mix: !!binary aGk=", "mix is"), ("lr: 1" + "0" * 5000, "cannot be read"),
                                            ("[" * 50_000, "cannot be read as YAML"),
                                            ("workers: many", 'the settings: workers is "many"; expected a whole'),
                                            ("workers: 1.5", "workers is 1.5"), ("resume: maybe", "resume is"),
                                            ("out: 3", "out is 3; expected a path"), ("log: [1]", "log is a list"),
                                            ("recipe: [1]", "recipe is a list; expected a recipe, or the name")],
                         ids=range(16))  # fmt: skip
def test_a_bad_config_file_is_refused(text: str, said: str, tmp_path: Path) -> None:
    file = tmp_path / "c.yaml"
    file.write_text(text)
    with pytest.raises(InputError, match=said):
        parse_train(["--config", str(file), "--data", "digits"])
    with pytest.raises(InputError, match="cannot be read"):
        settle(None, {"config": tmp_path / "none.yaml"})


def test_a_recipe_object_is_accepted() -> None:
    assert settle(Recipe(data="digits", lr=0.2), {"epochs": 2})[0] == Recipe(data="digits", lr=0.2, epochs=2)


def test_overwriting_removes_all_that_a_run_and_its_evaluations_wrote(run: Run, tmp_path: Path) -> None:
    copy = tmp_path / "run"
    shutil.copytree(run.folder, copy)
    cutmix.evaluate(copy, images=20, suites="classification,calibration", device="cpu", workers=0)
    cutmix.evaluate(copy, data="digits", images=20, suites="calibration", device="cpu", workers=0)
    assert (copy / "predictions/calibration-last-digits.npz").exists()
    folder = RunFolder(copy, saved_recipe(copy), resume=False, overwrite=True)
    folder.close()
    assert {path.name for path in copy.rglob("*") if path.is_file()} == {".lock", "config.json"}


# ---- a function for each command ----


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_a_documented_function_of_its_name(command: str) -> None:
    function = getattr(api, command)
    documented = inspect.getdoc(function) or ""
    for name, parameter in inspect.signature(function).parameters.items():
        stars = "**" if parameter.kind is parameter.VAR_KEYWORD else ""
        assert f"    {stars}{name}: " in documented, name


_WORDS = {
    "demo": "--epochs 1", "data": "digits", "train": "digits-resnet20", "transfer": "detection --data x",
    "compare": "--data digits", "evaluate": "run --suite calibration", "predict": "run a.jpg", "explain": "run a.jpg",
    "serve": "run", "export": "run", "push": "run me/model", "preview": "--data digits", "report": "run",
    "recipes": "", "paper": "table5", "reproduce": "table5 --scale smoke", "shards": "photos --out x",
}  # fmt: skip


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_calls_its_function(command: str, monkeypatch: pytest.MonkeyPatch) -> None:
    called = []

    class Called(Exception):
        pass

    def function(*values: object, **named: object) -> None:
        inspect.signature(original).bind(*values, **named)
        called.append((values, named))
        raise Called

    original = getattr(api, command)
    monkeypatch.setattr(api, command, function)
    with pytest.raises(Called):
        main([command, *_WORDS[command].split()])
    ((values, named),) = called
    if command == "evaluate":
        assert (values, named["suites"], named["show"]) == ((Path("run"),), "calibration", True)
    if command == "predict":
        assert values == (Path("run"), ("a.jpg",))


def test_a_recipe_of_transfer_is_changed_by_the_other_arguments(monkeypatch: pytest.MonkeyPatch) -> None:
    """They were left out without a word: the run had the recipe's own data and epochs."""

    class Started(Exception):
        pass

    def start(recipe: Detection, options: RunOptions) -> None:
        raise Started(recipe, options.workers)

    monkeypatch.setattr("cutmix.transfer.command.run_transfer", start)
    with pytest.raises(Started) as started:
        api.transfer(data="voc", recipe=SSD300, epochs=7, backbone=Path("runs/x"), workers=0)
    assert started.value.args == (replace(SSD300, data="voc", epochs=7, backbone="runs/x"), 0)
    with pytest.raises(InputError, match="unknown field 'epoch'"):
        api.transfer(recipe=SSD300, epoch=7)


def test_names_that_are_no_part_of_the_package_are_at_its_root() -> None:
    for command in COMMANDS.keys() - {"data", "preview", "report", "paper", "transfer", "demo"}:
        assert getattr(cutmix, command) is getattr(api, command)
    assert cutmix.Recipe is Recipe
    script = "import cutmix; assert callable(cutmix.api.preview)"
    subprocess.run([sys.executable, "-c", script], check=True)


def test_other_results_print_as_tables_too(run: Run, tmp_path: Path) -> None:
    from PIL import Image

    Image.new("RGB", (8, 8)).save(tmp_path / "a.png")
    (tmp_path / "b.png").write_text("no image")
    found = cutmix.predict(run, [tmp_path / "a.png", tmp_path / "b.png"], top=2, device="cpu")
    assert [len(each.classes) for each in found] == [2, 0]
    assert len(found) == len(list(found)) == 2
    assert "cannot be read as an image" in str(found)
    assert found._repr_html_().count("<tr>") == 3
    model = cutmix.load(run, device="cpu")
    assert "8×8 pixels, 1 channel " in str(model)
    assert f"{sum(p.numel() for p in model.network.parameters()):,}" in repr(model)
    assert model._repr_html_().count("<tr>") == 6
    assert str(model.predict([tmp_path / "a.png", tmp_path / "b.png"], top=2)) == str(found).split("\n", 1)[1]
    assert len(repr(model.explain(tmp_path / "a.png", neighbours=0))) < 300
    described = api.data("digits")
    assert "test: 797 images" in str(described)
    assert "<table>" in described._repr_html_()
    table = api.paper("table5", runs=[run.folder])
    assert "PyramidNet" in str(table)
    assert "<table>" in table._repr_html_()
    assert api.report(run, tmp_path / "page.html").is_file()
    assert api.preview("digits", out=tmp_path / "preview.png", count=2).is_file()
    assert cutmix.export(run, out=tmp_path / "torch", format="torch").is_dir()


def test_in_a_notebook_results_are_shown_once_and_print(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    import rich.console
    import rich.jupyter

    shown = str(run)
    monkeypatch.setattr(rich.console, "_is_jupyter", lambda: True)
    monkeypatch.setenv("FORCE_COLOR", "1")  # as Jupyter's kernel sets it
    monkeypatch.setattr(rich.jupyter, "display", lambda *_: pytest.fail("rich shows what the result shows itself"))
    assert str(run) == shown
    assert "top1_err" in shown
    assert "\x1b" not in shown


def test_importing_the_package_takes_less_than_a_tenth_of_a_second() -> None:
    code = "import time; start = time.process_time(); import cutmix; print(time.process_time() - start)"
    taken = [
        float(subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout)
        for _ in range(3)
    ]
    assert min(taken) < 0.1


def test_mixing_imports_torch_and_numpy_alone() -> None:
    code = """
import sys, torch
before = set(sys.modules)
import cutmix.mixing
print(*{name.partition(".")[0] for name in set(sys.modules) - before} - {"cutmix", "torch", "numpy"})
"""
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert set(loaded) <= sys.stdlib_module_names, loaded
