"""The command: what a newcomer sees, and one clear sentence for every mistake."""

import json
import os
import pickle
import subprocess
import sys
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from cutmix import __version__
from cutmix.cli import COMMANDS, main, parse_train, parse_transfer
from cutmix.config.options import TrainOptions
from cutmix.config.recipe import Recipe, flag
from cutmix.config.recipes import RECIPES, find_recipe
from cutmix.config.tasks import CAPTIONING, FASTER_RCNN, SSD300, small_transfer
from cutmix.runs.folder import saved_recipe
from cutmix.runs.record import read_records
from cutmix.training.state import learning_rate

Refused = Callable[..., str]
DIGITS = ("train", "digits-resnet20", "--epochs", "1", "--device", "cpu", "--log-every", "1000")


@pytest.fixture
def refused(capsys: pytest.CaptureFixture[str]) -> Refused:
    """Return a runner of a command that must fail with exit code 2 and one sentence, which it returns."""

    def run(*words: str | Path) -> str:
        capsys.readouterr()
        with pytest.raises(SystemExit) as stopped:
            main([str(word) for word in words])
        said = capsys.readouterr().err
        assert stopped.value.code == 2
        assert said.startswith("cutmix: ")
        assert said.count("\n") == 1
        return said

    return run


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a finished run of one epoch; tests copy what they change."""
    out = tmp_path_factory.mktemp("runs") / "digits"
    main([*DIGITS, "--out", str(out)])
    return out


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Return a folder of two classes with ten images each."""
    pixels = np.random.default_rng(0)
    folder = tmp_path / "my [photos] $x^"
    for name in ("Käse", "[b] $10$"):
        (folder / name).mkdir(parents=True)
        for i in range(10):
            image = Image.fromarray(pixels.integers(0, 256, (20, 24, 3), dtype=np.uint8))
            image.save(folder / name / f"bild {i}.png")
    return folder


SMALL = ("--model", "resnet20", "--no-pretrained", "--image-size", "16", "--epochs", "1", "--batch-size", "8",
         "--workers", "0", "--device", "cpu")  # fmt: skip


# ---- what it says ----


def test_a_module_is_imported_without_torch() -> None:
    words = "import sys; from cutmix import cli, errors; print('torch' in sys.modules, cli.__name__)"
    done = subprocess.run([sys.executable, "-c", words], capture_output=True, text=True, check=True)
    assert done.stdout == "False cutmix.cli\n"


def test_help_is_quick_because_torch_stays_out() -> None:
    code = (
        "import sys; from cutmix.cli import main; main(['--help']); print(sorted({'torch', 'tyro'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.endswith("[]\n")
    for command in ("demo", "train", "evaluate", "preview", "report", "recipes", "paper", "reproduce"):
        assert f"cutmix {command}" in done.stdout


def test_python_m_cutmix_says_the_version() -> None:
    done = subprocess.run([sys.executable, "-m", "cutmix", "--version"], capture_output=True, text=True, check=True)
    assert done.stdout == f"cutmix {__version__}\n"


def test_a_reader_that_has_gone_is_no_traceback():
    command, pipe = [sys.executable, "-m", "cutmix", "recipes"], subprocess.PIPE
    with subprocess.Popen(command, stdout=pipe, stderr=pipe) as p:
        p.stdout.close()
        assert p.stderr.read() == b""
    assert p.returncode == 141


def test_every_field_is_a_flag_and_explained(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        main(["train", "digits-resnet20", "--help"])
    assert stopped.value.code == 0
    said = capsys.readouterr().out
    words = " ".join(said.replace("│", " ").split())
    for field in (*fields(Recipe), *fields(TrainOptions)):
        assert f"--{flag(field.name)}" in said, field.name
    for sentence in (
        "Side of Cutout's square in pixels",
        "Resume the run in the folder",
        "Passes over the training",
    ):
        assert sentence in words
    assert "(default: 40)" in words  # the recipe's own, not the class's


@pytest.mark.parametrize("command", ["demo", "train", "evaluate", "preview", "report", "paper", "reproduce"])
def test_every_command_explains_itself(capsys: pytest.CaptureFixture[str], command: str) -> None:
    with pytest.raises(SystemExit) as stopped:
        main([command, "--help"])
    assert stopped.value.code == 0
    assert f"usage: cutmix {command}" in capsys.readouterr().out


def test_recipes_are_listed(capsys: pytest.CaptureFixture[str]) -> None:
    main(["recipes"])
    assert [line.split()[0] for line in capsys.readouterr().out.splitlines()] == list(RECIPES)


# ---- what it makes of the words ----


def test_flags_change_the_recipe() -> None:
    recipe, options = parse_train(["digits-resnet20-cutmix", "--lr", "0.2", "--milestones", "0.3", "0.6", "--no-flip",
                                   "--image-size", "None", "--out", "x y"])  # fmt: skip
    assert (recipe.lr, recipe.milestones, recipe.mix, recipe.image_size) == (0.2, (0.3, 0.6), "cutmix", None)
    assert options.out == Path("x y")


def test_the_command_and_python_have_the_same_recipe_of_a_folder() -> None:
    assert parse_train(["--data", "photos", "--mix", "mixup"])[0] == Recipe(data="photos", mix="mixup")


def test_a_flag_wins_over_what_a_recipe_holds() -> None:
    given, _ = parse_train(["--data", "photos", "--weights", "w.pth"])
    assert (given.weights, given.pretrained) == ("w.pth", False)
    given, _ = parse_train(["cub-resnet50-wsol", "--weights", "w.pth"])
    assert (given.weights, given.pretrained) == ("w.pth", False)
    given, _ = parse_train(["cifar100-pyramidnet200-feature-cutmix-layer-0", "--mix", "cutmix"])
    assert (given.mix, given.mix_layers) == ("cutmix", (0, 1, 2, 3, 4))
    given, _ = parse_train(["cifar100-pyramidnet200-shakedrop", "--stochastic-depth", "0.25"])
    assert (given.stochastic_depth, given.shake_drop) == (0.25, 0.0)


@pytest.mark.parametrize(
    ("words", "value"),
    [(["--pretrained"], True), (["--no-pretrained"], False), (["--pretrained", "False"], False), ([], None)],
)
def test_pretrained_is_a_flag_of_three_values(words: list[str], value: bool | None) -> None:
    assert parse_train(["--data", "photos", *words, "--epochs", "3"])[0] == Recipe(
        data="photos", pretrained=value, epochs=3
    )


def test_contradicting_flags_are_refused(refused: Refused) -> None:
    assert "--pretrained and --weights are both given" in refused(
        "train", "--data", "x", "--pretrained", "--weights", "w"
    )


def test_resuming_without_a_folder_finds_the_run_of_the_same_words() -> None:
    words = ["--data", "digits", "--epochs", "5"]
    assert parse_train([*words, "--resume"])[0] == parse_train(words)[0]


def test_resuming_needs_the_folder_only(run: Path) -> None:
    for words in (["--resume", "--out", str(run)], ["--resume", f"--out={run}"]):
        assert parse_train(words)[0] == saved_recipe(run)


def test_resuming_within_a_runs_folder_is_no_accident(
    run: Path, refused: Refused, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(run)
    assert "give --data" in refused("train", "--resume")
    assert parse_train(["--resume", "--out", "."])[0] == saved_recipe(run)


# ---- photographs with odd names ----


def test_odd_names_and_relative_paths(
    photos: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(photos.parent)
    out = "läufe [1]/no 1"
    main(["train", "--data", photos.name, *SMALL, "--out", out])
    main(["evaluate", out, "--workers", "0", "--device", "cpu"])
    main(["preview", "--data", photos.name, "--out", "bild [x].png", "--count", "3"])
    main(["report", out, "--out", "seite [1].html"])
    said = capsys.readouterr().out
    assert "results in läufe [1]/no 1" in said
    assert "wrote bild [x].png" in said
    assert Path("seite [1].html").stat().st_size > 10_000


def test_an_unreadable_file_stops_or_is_counted(
    photos: Path, refused: Refused, capsys: pytest.CaptureFixture[str]
) -> None:
    text = photos / "Käse/note.jpg"
    text.write_text("no image")
    out = photos.parent / "run"
    words = ("train", "--data", str(photos), *SMALL, "--out", str(out))
    said = refused(*words)
    assert str(text) in said
    assert "--skip-unreadable" in said
    main([*words, "--skip-unreadable", "--overwrite"])
    assert "unreadable images left out: 1" in capsys.readouterr().out
    assert json.loads((out / "environment.json").read_text())["skipped"] == 1


# ---- user errors ----


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        (("zzz",), 'no command "zzz"; the commands are demo, data, shards, train'),
        (("train",), "give --data FOLDER, or the name of a recipe"),
        (("train", "."), "to train on the images in it, give --data ."),
        (("train", "digits-resnet21"), 'there is no recipe "digits-resnet21"; did you mean \'digits-resnet20'),
        (("tran",), "there is no command \"tran\"; did you mean 'train' or 'transfer'?"),
        (("train", "--data", "digist"), "did you mean 'digits'"),
        (("train", "--data", "/nowhere/at all"), "neither a folder that exists nor a known data set"),
        (("train", "photos"), "--data is missing; expected a folder"),
        ((*DIGITS, "--model", "resnet999"), "there is no model 'resnet999'; did you mean"),
        ((*DIGITS, "--device", "quantum"), 'the device is "quantum"; expected auto, cpu, cuda'),
        ((*DIGITS, "--lr", "-1"), "--lr is -1.0; expected a number above 0"),
        ((*DIGITS, "--lr", "nan"), "--lr is NaN"),
        ((*DIGITS, "--workers", "-1"), "--workers is -1"),
        ((*DIGITS, "--resume", "--overwrite"), "either resumed or started again"),
        ((*DIGITS, "--weights", "absent.pth"), "absent.pth cannot be read: No such file"),
        ((*DIGITS, "--crop-padding", "9", "--padding-mode", "reflect"), "crop_padding is 9"),
        ((*DIGITS, "--out", "/dev/null/run"), "/dev/null/run could not be made: Not a directory"),
        ((*DIGITS, "--out", "/dev/null"), "/dev/null is a file"),
        (("evaluate", "nowhere"), "nowhere does not exist; expected the folder of a run, or a file of weights"),
        (("evaluate", "."), "has no config.json"),
        (("report", "nowhere"), "nowhere"),
        (("preview", "--data", "digits", "--count", "1"), "--count is 1"),
        (("preview", "--data", "digits", "--alpha", "0"), "--alpha is 0.0"),
        (("preview", "--data", "digits", "--cutout-size", "0"), "--cutout-size is 0"),
        (("preview", "--data", "digits", "--image-size", "0"), "image_size is 0"),
        (("preview", "--data", "digits", "--out", "/nowhere/x.png"), "/nowhere/x.png could not be written"),
        (("demo", "--epochs", "0"), "--epochs is 0"),
    ],
)
def test_a_user_error_is_one_sentence(
    refused: Refused, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, words: tuple[str, ...], reason: str
) -> None:
    monkeypatch.chdir(tmp_path)
    assert reason in refused(*words)
    assert not list(tmp_path.rglob("*.json"))


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        ((*DIGITS, "--epochs", "many"), "Error parsing --epochs"),
        ((*DIGITS, "--mix", "cutmx"), "invalid choice 'cutmx'"),
        ((*DIGITS, "--epoch", "3"), "Perhaps you meant"),
        (("recipes", "all"), "Unrecognized options: all"),
        (("compare", "digits-resnet20", "--absent"), "run cutmix compare digits-resnet20 --help"),
        (("transfer", "detection", "--skip-unreadable"), "Unrecognized options: --skip-unreadable"),
        (("evaluate",), "Missing from cutmix evaluate"),
    ],
)
def test_words_that_do_not_parse_are_explained(
    words: tuple[str, ...], reason: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as stopped:
        main(words)
    assert stopped.value.code == 2
    assert reason in capsys.readouterr().err


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_help(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        main([command, "--help"])
    assert stopped.value.code in (0, None)
    assert f"usage: cutmix {command}" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("names", "reason"),
    [
        ([], "holds no images"),
        (["cat/1.png", "cat/2.png"], "one class only ('cat')"),
        (["cat/1.png", "cat/2.png", "dog/"], "the class folder"),
        (["cat/", "dog/"], "holds no images"),
        (["1.png", "2.png"], "images but no class folders"),
        (["train/cat/1.png", "train/dog/1.png"], "leaves no images to evaluate on"),
        (["val/cat/1.png", "val/dog/1.png"], "has val/ but no train/"),
        (["train/cat/1.png", "train/dog/1.png", "val/cat/1.png", "val/cow/1.png"], "the class 'cow' is in"),
    ],
)
def test_a_folder_that_cannot_be_learnt_from_is_refused(
    refused: Refused, tmp_path: Path, names: list[str], reason: str
) -> None:
    data = tmp_path / "data"
    data.mkdir()
    for name in names:
        path = data / name
        (path if name.endswith("/") else path.parent).mkdir(parents=True, exist_ok=True)
        if not name.endswith("/"):
            Image.new("RGB", (8, 8)).save(path)
    said = refused("train", "--data", data, *SMALL, "--out", tmp_path / "run")
    assert reason in said
    assert str(data) in said
    assert not (tmp_path / "run").exists()


def test_a_run_is_not_written_over_by_accident(run: Path, refused: Refused) -> None:
    before = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    assert "already holds a run" in refused(*DIGITS, "--out", run)
    assert "--lr 0.5 (there 0.05)" in refused(*DIGITS, "--lr", "0.5", "--resume", "--out", run)
    assert "--lr 0.5 (there 0.05)" in refused("train", "--lr", "0.5", "--resume", "--out", run)
    assert {path: path.read_bytes() for path in run.rglob("*") if path.is_file()} == before


def test_nothing_is_overwritten_for_a_run_that_cannot_start(
    run: Path, refused: Refused, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    assert 'pip install "tensorboard>=' in refused(*DIGITS, "--overwrite", "--log", "tensorboard", "--out", run)
    assert "there is no model" in refused(*DIGITS, "--overwrite", "--model", "nonsense", "--out", run)
    assert "takes no images" in refused(*DIGITS, "--overwrite", "--model", "test_vit", "--out", run)
    assert {path: path.read_bytes() for path in run.rglob("*") if path.is_file()} == before


class Code:
    """A pickle that makes a folder when it is loaded."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Callable[[str], None], tuple[str]]:
        return os.mkdir, (str(self.path),)


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (lambda path: path.write_bytes(path.read_bytes()[:-1000]), "is damaged or incomplete"),
        (lambda path: path.write_bytes(b""), "is empty"),
        (lambda path: path.write_text("hello"), "is not a checkpoint"),
        (lambda path: torch.save({"model": Code(path.parent / "ran")}, path), "holds Python objects"),
        (lambda path: path.write_bytes(pickle.dumps(Code(path.parent / "ran"))), "cannot be read|Python objects"),
        (lambda path: torch.save({"epoch": 1}, path), "is not one of this run"),
        (lambda path: torch.save([1, 2], path), "holds a list"),
    ],
)
def test_a_damaged_checkpoint_is_refused(
    run: Path, tmp_path: Path, refused: Refused, damage: Callable[[Path], object], reason: str
) -> None:
    copy = tmp_path / "run"
    copy.mkdir()
    (copy / "config.json").write_bytes((run / "config.json").read_bytes())
    (copy / "checkpoint.pt").write_bytes((run / "checkpoint.pt").read_bytes())
    damage(copy / "checkpoint.pt")
    damaged = (copy / "checkpoint.pt").read_bytes()
    said = refused("train", "--resume", "--out", copy)
    assert any(one in said for one in reason.split("|")), said
    assert (copy / "checkpoint.pt").read_bytes() == damaged
    assert not (copy / "ran").exists()
    if "one of this run" not in reason:
        refused("evaluate", copy / "checkpoint.pt", "--data", "digits", "--model", "resnet20", "--device", "cpu")
        assert not (copy / "ran").exists()


def test_a_checkpoint_of_another_network_is_refused(run: Path, tmp_path: Path, refused: Refused) -> None:
    copy = tmp_path / "run"
    copy.mkdir()
    config = json.loads((run / "config.json").read_text())
    config["recipe"]["model"] = "resnet32"
    (copy / "config.json").write_text(json.dumps(config))
    (copy / "checkpoint.pt").write_bytes((run / "checkpoint.pt").read_bytes())
    assert "is not one of this run" in refused("train", "--resume", "--out", copy)
    assert "checkpoint of another model" in refused(
        *DIGITS, "--weights", run / "model.safetensors", "--model", "resnet32"
    )


def test_training_starts_from_a_runs_weights(run: Path, tmp_path: Path) -> None:
    main([*DIGITS, "--weights", str(run / "model.safetensors"), "--out", str(tmp_path / "next")])
    first, second = (read_records(path / "results.jsonl")[0].value for path in (run, tmp_path / "next"))
    assert second < first


def test_an_interruption_has_its_exit_code(monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("cutmix.training.loop.prepare", interrupt)
    with pytest.raises(SystemExit) as stopped:
        main(list(DIGITS))
    assert stopped.value.code == 130


def test_an_unreadable_image_ends_the_command_and_its_workers(tmp_path: Path) -> None:
    for label in ("a", "b"):
        (tmp_path / "photos" / label).mkdir(parents=True)
        for i in range(8):
            Image.new("RGB", (16, 16), (i, 0, 0)).save(tmp_path / "photos" / label / f"{i}.png")
            (tmp_path / "photos" / label / f"{i}.jpg").write_bytes(b"no image")
    words = ["--model", "resnet20", "--no-pretrained", "--image-size", "16", "--workers", "1", "--device", "cpu"]
    command = [sys.executable, "-m", "cutmix", "train", "--data", str(tmp_path / "photos"), *words, "--out", "run"]
    run = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=120)
    assert run.returncode == 2
    assert "Traceback" not in run.stderr
    assert ".jpg cannot be read as an image" in run.stderr


# ---- transfer ----


def test_transfer_takes_the_defaults_of_the_task_and_its_architecture() -> None:
    named = {"data": "x", "backbone": "runs/a/model.safetensors"}
    flags = ["--data", "x", "--backbone", "runs/a/model.safetensors"]
    for words, base in (
        (["detection"], SSD300),
        (["detection", "--arch", "ssd300"], SSD300),
        (["detection", "--arch=faster-rcnn"], FASTER_RCNN),
        (["detection", "--small", "--arch", "faster-rcnn"], small_transfer(FASTER_RCNN)),
        (["captioning"], CAPTIONING),
        (["captioning", "--small"], small_transfer(CAPTIONING)),
    ):
        recipe, _ = parse_transfer([*words, *flags])
        assert type(recipe) is type(base)
        assert recipe.to_dict() == base.to_dict() | named | {"name": f"{base.name}-a"}
    recipe, options = parse_transfer(["captioning", "--tune-encoder", "--lr", "0.1", "--name", "n", "--device", "cpu"])
    assert (recipe.tune_encoder, recipe.lr, recipe.name, options.device) == (True, 0.1, "n", "cpu")  # type: ignore[attr-defined]


def test_a_resumed_transfer_has_the_recipe_of_its_folder(tmp_path: Path, refused: Refused) -> None:
    saved, _ = parse_transfer(["detection", "--small", "--data", "x", "--lr", "0.3"])
    (tmp_path / "config.json").write_text(json.dumps({"recipe": saved.to_dict()}))
    assert parse_transfer(["detection", "--resume", "--out", str(tmp_path)])[0] == saved
    assert "config.json, recipe has an unknown field" in refused(
        "transfer", "captioning", "--resume", "--out", tmp_path
    )


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ((), "cutmix transfer needs a task; expected detection or captioning"),
        (("--data", "x"), "cutmix transfer needs a task"),
        (("segmentation",), 'there is no task "segmentation"; expected detection or captioning'),
        (("detection",), "--data is missing; expected the folder of a detection"),
        (("captioning", "--data", "nowhere"), "nowhere is not a folder"),
        (("detection", "--data", "nowhere", "--model", "resnet18"), "nowhere is not a folder"),
        (("captioning", "--beam", "0"), "--beam is 0; expected a number of at least 1"),
    ],
)
def test_a_wrong_transfer_is_one_sentence(words: tuple[str, ...], expected: str, refused: Refused) -> None:
    assert expected in refused("transfer", *words)


def test_transfer_explains_itself(capsys: pytest.CaptureFixture[str]) -> None:
    for words, expected in ((["--help"], "detection|captioning"), (["captioning", "--help"], "--tune-encoder")):
        with pytest.raises(SystemExit, match="0"):
            main(["transfer", *words])
        said = capsys.readouterr().out
        assert expected in said
        assert not any(name in said for name in ("--compile", "--download", "--skip-unreadable"))  # for classifiers


@pytest.mark.parametrize("epochs", [300, 90, 150, 200, 20])
@pytest.mark.parametrize("name", ["imagenet-resnet50-cutmix", "imagenet-resnet101"])
def test_imagenets_learning_rate_falls_as_in_the_authors_code(name: str, epochs: int) -> None:
    def adjust_learning_rate(epoch: int) -> float:  # train.py of the CutMix repository, for --dataset imagenet
        if epochs == 300:
            return 0.1 * (0.1 ** (epoch // 75))
        return 0.1 * (0.1 ** (epoch // 30))

    recipe, _ = parse_train([name, "--epochs", str(epochs), "--data", "photos"])
    rates = [learning_rate(recipe, epoch * 7 + step, 7) for epoch in range(epochs) for step in (0, 6)]
    assert rates == pytest.approx([adjust_learning_rate(epoch) for epoch in range(epochs) for _ in range(2)])


def test_given_milestones_and_other_recipes_stay() -> None:
    words = ["imagenet-resnet50", "--epochs", "90", "--milestones", "0.5"]
    assert parse_train(words)[0].milestones == (0.5,)
    for name in ("cifar100-pyramidnet200", "cub-resnet50-wsol", "imagenet-resnet50-wsol", "imagenet-deit-tiny"):
        assert parse_train([name, "--epochs", "90"])[0].milestones == find_recipe(name).milestones
