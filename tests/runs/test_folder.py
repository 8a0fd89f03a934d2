"""A folder holds one run, one process writes it, and nothing of somebody else's is lost."""

import json
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from cutmix.config.recipes import SMALL, Recipe
from cutmix.errors import InputError
from cutmix.runs.folder import (
    RunFolder,
    command_line,
    environment,
    find_weights,
    is_complete,
    saved_recipe,
    write_arrays,
    write_bytes,
)
from cutmix.runs.read import read_arrays, read_log
from cutmix.runs.record import Record, append_records, read_records
from cutmix.runtime.files import read_lines
from cutmix.runtime.weights import read_weights, save_weights

RECIPE = replace(SMALL, name="one")


@contextmanager
def opened(
    path: Path, recipe: Recipe = RECIPE, *, resume: bool = False, overwrite: bool = False
) -> Iterator[RunFolder]:
    folder = RunFolder(path, recipe, resume=resume, overwrite=overwrite)
    try:
        yield folder
    finally:
        folder.close()


@pytest.fixture
def run(tmp_path: Path) -> Path:
    with opened(tmp_path / "deep/run") as folder:
        folder.start(RECIPE, {"python": "3"})
        folder.log({"kind": "train"})
        write_bytes(folder.path / "checkpoint.pt", b"state")
        write_arrays(folder.path / "predictions/best.npz", {"logits": np.zeros((2, 3), np.float32)})
    return tmp_path / "deep/run"


def test_a_run_says_what_it_is(run: Path) -> None:
    assert saved_recipe(run) == RECIPE
    assert json.loads((run / "config.json").read_text())["command"] == command_line()
    assert json.loads((run / "environment.json").read_text()) == {"python": "3"}


def test_a_folder_with_a_run_is_refused_as_it_is(run: Path) -> None:
    before = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    with pytest.raises(
        InputError, match="already holds a run; continue it with --resume, start again with --overwrite"
    ):
        RunFolder(run, RECIPE, resume=False, overwrite=False)
    assert {path: path.read_bytes() for path in run.rglob("*") if path.is_file()} == before


def test_another_recipe_cannot_go_on_with_it(run: Path) -> None:
    other = replace(RECIPE, lr=0.5, crop_scale=(0.5, 1.0))
    message = r"holds another run: --lr 0.5 \(there 0.1\), --crop-scale \[0.5, 1.0\] \(there \[0.08, 1.0\]\)"
    with pytest.raises(InputError, match=message):
        RunFolder(run, other, resume=True, overwrite=False)
    with opened(run, resume=True):  # the refused one does not hold the folder
        assert (run / "checkpoint.pt").exists()


def test_overwriting_removes_the_runs_own_files_only(run: Path) -> None:
    mine = [
        run / "notes.txt",
        run / "predictions/mine.npz",
        run / "tensorboard/mine",
        run / "tensorboard/events.out.mine",
        run / "figures/ood.png",
        run / ".mine.npz.tmp",
    ]
    own = [
        run / "tensorboard/events.out.tfevents.1.host",
        run / "predictions/evaluated-last.npz",
        run / "predictions/robustness-best-my photos.npz",
        run / "predictions/.ood-last.npz.0a1b2c3d.tmp",
        run / "figures/localization-last-boxes.png",
        run / "figures/example-wrong.png",
        run / "results-12-epochs.jsonl",
        run / ".checkpoint.pt.0a1b2c3d.tmp",
    ]
    for path in (*mine, *own):
        path.parent.mkdir(exist_ok=True)
        path.write_text("x")
    with opened(run, replace(RECIPE, lr=0.5), overwrite=True) as folder:
        left = {path for path in run.rglob("*") if path.is_file()}
        assert left == {*mine, run / ".lock", run / "config.json"}
        folder.start(replace(RECIPE, lr=0.5), {})
    assert saved_recipe(run).lr == 0.5


def test_a_process_killed_while_overwriting_leaves_a_run(run: Path) -> None:
    with opened(run, overwrite=True):
        pass
    with opened(run, resume=True):
        pass


def test_a_folder_with_other_things_is_refused(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("x")
    for flags in ({"resume": True, "overwrite": False}, {"resume": False, "overwrite": True}):
        with pytest.raises(InputError, match="is not empty and holds no run"):
            RunFolder(tmp_path, RECIPE, **flags)
    with pytest.raises(InputError, match="is a file; expected a folder"):
        RunFolder(tmp_path / "thesis.tex", RECIPE, resume=False, overwrite=False)


@pytest.mark.parametrize("left", [".lock", "environment.json", ".environment.json.0a1b2c3d.tmp", ".config.json.ff.tmp"])
def test_what_a_killed_start_leaves_is_no_obstacle(tmp_path: Path, left: str) -> None:
    (tmp_path / left).write_text("x")
    with opened(tmp_path) as folder:
        folder.start(RECIPE, {})
    assert {path.name for path in tmp_path.iterdir()} == {".lock", "environment.json", "config.json"}


def test_one_process_at_a_time(run: Path) -> None:
    with opened(run, resume=True):
        for flags in ({"resume": True, "overwrite": False}, {"resume": False, "overwrite": True}):
            with pytest.raises(InputError, match="is being written by another process"):
                RunFolder(run, RECIPE, **flags)
        assert (run / "checkpoint.pt").exists()
    with opened(run, resume=True):
        pass


def test_a_place_that_cannot_be_written_to_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(InputError, match="file/run could not be made: Not a directory"):
        RunFolder(tmp_path / "file/run", RECIPE, resume=False, overwrite=False)

    def refuse(*_: object, **__: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("cutmix.runs.folder.open", refuse, raising=False)
    with pytest.raises(InputError, match="cannot be written to: Permission denied"):
        RunFolder(tmp_path / "run", RECIPE, resume=False, overwrite=False)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "is not JSON in UTF-8"),
        ("{", "is not JSON in UTF-8"),
        ("[]", "is a list; expected one JSON object"),
        ("{}", "has no field 'recipe'; expected an object"),
        ('{"recipe": 1}', ": recipe is 1; expected an object"),
        ('{"recipe": {}, "command": ["cutmix"]}', ": command is a list; expected a text"),
        ('{"recipe": {"lr": -1}}', ", recipe: --lr is -1.0; expected a number above 0"),
        ('{"recipe": {"lr": "0.1"}}', ', recipe: lr is "0.1"; expected a number'),
        ('{"recipe": {"lr": true}}', ", recipe: lr is true; expected a number"),
        ('{"recipe": {"lr": NaN}}', "NaN is not a JSON number"),
        ('{"recipe": {"epochs": 1.0}}', ", recipe: epochs is 1.0; expected a whole number"),
        ('{"recipe": {"name": null}}', ", recipe: name is null; expected the value that the run had"),
        ('{"recipe": {"name": "\\ud800"}}', "has half a surrogate pair"),
        ('{"recipe": {"mix_layers": ["0"]}}', ", recipe: mix_layers is a list; expected a list of whole numbers"),
        ('{"recipe": {"crop_scale": [0.1]}}', ", recipe: crop_scale is a list; expected a list of numbers"),
        ('{"recipe": {"optimizer": "lion"}}', 'optimizer is "lion"; expected one of sgd, adamw'),
        ('{"recipe": {"colour": 1}}', ", recipe has an unknown field 'colour'"),
        ('{"recipe": ' + "[" * 200_000 + "]" * 200_000 + "}", "is nested too deeply"),
        ('{"recipe": {"lr": 1' + "0" * 400 + "}}", "expected a number"),
    ],
    ids=range(19),
)
def test_a_damaged_configuration_is_named_with_its_field(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(
        InputError, match=rf"config\.json{re.escape(message)}|config\.json.*{re.escape(message)}"
    ) as refused:
        saved_recipe(tmp_path)
    assert len(str(refused.value)) < 400


def test_a_folder_without_a_run_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"has no config\.json; expected a run folder"):
        saved_recipe(tmp_path)


def test_a_loss_that_is_not_finite_leaves_the_log_readable(run: Path) -> None:
    """JSON has no NaN: the report, and cutmix.train at its end, refused the whole run."""
    with opened(run, resume=True) as folder:
        folder.cut_log(0)
        folder.log({"kind": "epoch", "epoch": 1, "test_loss": float("nan"), "train_loss": float("inf"), "step": 2})
    assert read_log(run / "log.jsonl")[0] == {
        "kind": "epoch", "epoch": 1, "test_loss": None, "train_loss": None, "step": 2
    }  # fmt: skip


def test_the_log_is_cut_back(run: Path) -> None:
    with opened(run, resume=True) as folder:
        size = folder.log_size()
        folder.log({"kind": "epoch"})
        folder.cut_log(size)
        assert read_lines(run / "log.jsonl") == [{"kind": "train"}]
        folder.cut_log(0)
        assert folder.log_size() == 0


def test_results_of_training_replace_their_own_and_keep_evaluations(run: Path) -> None:
    evaluation = Record(metric="top1_err", value=9.0, file="model.safetensors")
    own = Record(metric="top1_err", value=1.0, source="training")
    append_records(run / "results.jsonl", [evaluation])
    assert not is_complete(run)
    with opened(run, resume=True) as folder:
        folder.write_results([own])
        folder.write_results([own])
    assert not is_complete(run)  # its checkpoint can restore the weights
    write_bytes(run / "model.safetensors", b"")
    write_bytes(run / "predictions/last.npz", b"")
    assert is_complete(run)
    assert read_records(run / "results.jsonl") == [own, evaluation]


def test_the_environment_names_what_a_result_depends_on() -> None:
    about = environment(torch.device("cpu"))
    assert about["torch"] == torch.__version__.split("+")[0]
    assert about["threads"] == torch.get_num_threads()
    assert about["device"].startswith("cpu (")
    assert {"cutmix", "commit", "python", "torchvision", "timm"} <= set(about)


@pytest.mark.parametrize(
    ("program", "typed"),
    [("/x/cutmix/__main__.py", "cutmix"), ("/bin/cutmix", "cutmix"), ("/x/mine.py", "python mine.py"), ("", "python")],
)
def test_the_command_can_be_pasted(program: str, typed: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.argv", [program, "train", "--data", "my photos"])
    assert command_line() == f"{typed} train --data 'my photos'"


@pytest.mark.parametrize(("of_checkpoint", "kept"), [(3, "3"), (2, "2"), (None, "2")])
def test_the_best_is_that_of_the_last_checkpoint(run: Path, of_checkpoint: int | None, kept: str) -> None:
    def write(name: str, epoch: int) -> None:
        save_weights(run / f"{name}.safetensors", {"w": torch.tensor([float(epoch)])}, {"epoch": str(epoch)})
        write_arrays(run / f"predictions/{name}.npz", {"logits": np.full((2, 3), epoch, np.float32)})

    with opened(run, resume=True) as folder:
        write("best", 2)
        write("best.next", 3)
        for _ in range(2):  # once more, as after a kill in between
            folder.promote_best(of_checkpoint)
            assert read_weights(run / "best.safetensors")[1]["epoch"] == kept
            assert read_arrays(run / "predictions/best.npz")["logits"].ravel().tolist() == [int(kept)] * 6
    assert not list(run.rglob("*next*"))


def test_a_run_that_ended_before_it_saved_anything_is_started_again(run: Path) -> None:
    (run / "checkpoint.pt").unlink()
    (run / "model.safetensors").write_bytes(b"weights")  # of a finished run, whose checkpoint somebody has removed
    with pytest.raises(InputError, match="already holds a run"):
        RunFolder(run, RECIPE, resume=False, overwrite=False)
    (run / "model.safetensors").unlink()
    with opened(run, replace(RECIPE, epochs=7)) as folder:
        assert not (run / "log.jsonl").exists()
        folder.start(replace(RECIPE, epochs=7), {})
    assert saved_recipe(run).epochs == 7


@pytest.mark.parametrize("name", [".lock", "results.jsonl", "log.jsonl", "predictions", "model.safetensors"])
@pytest.mark.parametrize("overwrite", [False, True])
def test_no_file_of_a_run_is_written_through_a_link(run: Path, tmp_path: Path, name: str, overwrite: bool) -> None:
    theirs = tmp_path / "theirs"
    if folder := name == "predictions":
        theirs.mkdir()
        (theirs / "last.npz").write_bytes(b"precious")
        shutil.rmtree(run / name, ignore_errors=True)
    else:
        theirs.write_bytes(b'{"precious": 1}')
        (run / name).unlink(missing_ok=True)
    (run / name).symlink_to(theirs, target_is_directory=folder)
    try:
        with opened(run, resume=not overwrite, overwrite=overwrite) as held:
            held.start(RECIPE, {})
            held.cut_log(1)
            held.log({"epoch": 1})
            held.write_results([])
            write_bytes(run / "model.safetensors", b"ours")
            write_arrays(run / "predictions/last.npz", {"a": np.zeros(1)})
    except InputError as error:
        assert "symbolic link" in str(error)  # noqa: PT017
    assert (theirs / "last.npz" if folder else theirs).read_bytes() in (b"precious", b'{"precious": 1}')


def test_the_weights_of_a_run_are_found_or_the_reason_is_given(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="expected the folder of a run, or a file of weights"):
        find_weights(tmp_path / "nowhere", "last")
    for which in ("last", "best"):
        with pytest.raises(InputError, match=r"has no config\.json; expected a run folder"):
            find_weights(tmp_path, which)
    (tmp_path / "config.json").write_text('{"recipe": {}}')
    for which in ("last", "best"):
        with pytest.raises(InputError, match="the run is not finished; continue it with --resume"):
            find_weights(tmp_path, which)
    last = tmp_path / "model.safetensors"
    last.touch()
    assert find_weights(tmp_path, "last") == find_weights(last, "best") == last
    with pytest.raises(InputError, match="no validation images chose a best epoch; use --which last"):
        find_weights(tmp_path, "best")
    (tmp_path / "best.safetensors").touch()
    assert find_weights(tmp_path, "best") == tmp_path / "best.safetensors"
