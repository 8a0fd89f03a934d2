"""Where the results of an evaluation are saved."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from cutmix.config.options import EvaluateOptions
from cutmix.errors import InputError
from cutmix.evaluation.classifier import SuiteResult
from cutmix.evaluation.command import open_output
from cutmix.evaluation.load import Subject
from cutmix.runs.folder import hold
from cutmix.runs.record import Record, read_records
from cutmix.runtime.checkpoint import Header
from cutmix.runtime.device import World
from cutmix.runtime.weights import Weights

WORLD = World(0, 1, torch.device("cpu"))
RECORD = Record(metric="ece", which="file", value=1.0, n=2)
SUITE = SuiteResult([RECORD], {"right": np.array([True, False])}, {"gallery": b"\x89PNG"})


def subject(tmp_path: Path, run: bool = False) -> Subject:
    path = tmp_path / "weights.pth"
    content = Weights({}, {}, path, {}, False)
    return Subject(path, content, Header(), None, None, tmp_path if run else None, "last" if run else "file")


def options(**changes: Any) -> EvaluateOptions:
    return EvaluateOptions(Path("weights.pth"), **changes)


def test_a_folder_of_its_own_is_made_and_found_again(tmp_path: Path) -> None:
    out = tmp_path / "deep/evaluation"
    for _ in range(2):
        with open_output(options(out=out, model="resnet20", data="digits"), subject(tmp_path), WORLD) as output:
            assert output.own
            output.write("calibration-file", [RECORD, RECORD], SUITE)
    config = json.loads((out / "config.json").read_text())
    assert config["recipe"] == {"name": "weights", "model": "resnet20", "data": "digits"}
    assert config["evaluated"] == str(tmp_path / "weights.pth")
    assert read_records(out / "results.jsonl") == [RECORD] * 4
    assert np.load(out / "predictions/calibration-file.npz")["right"].tolist() == [True, False]
    assert (out / "figures/calibration-file-gallery.png").read_bytes() == b"\x89PNG"


def test_a_file_that_ends_in_jsonl_gets_lines_only(tmp_path: Path) -> None:
    with open_output(options(out=tmp_path / "all.jsonl"), subject(tmp_path, run=True), WORLD) as output:
        output.write("calibration-last", [RECORD], SUITE)
    assert [path.name for path in tmp_path.iterdir()] == ["all.jsonl"]


def test_without_a_place_the_results_of_weights_are_not_saved(tmp_path: Path) -> None:
    with open_output(options(), subject(tmp_path), WORLD) as output:
        output.write("calibration-file", [RECORD], SUITE)
    assert not list(tmp_path.iterdir())


def test_a_run_that_is_being_written_is_left_alone(tmp_path: Path) -> None:
    with hold(tmp_path) or pytest.skip("no locks here"):  # noqa: SIM117
        with pytest.raises(InputError, match="is being written by another process"):
            with open_output(options(), subject(tmp_path, run=True), WORLD):
                pass


def test_a_folder_without_a_configuration_yet_is_used(tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    for name in (".lock", "environment.json", ".config.json.0a1b2c3d.tmp"):  # killed before there was a configuration
        (out / name).write_text("{")
    with open_output(options(out=out), subject(tmp_path), WORLD) as output:
        output.write("calibration-file", [RECORD], SUITE)
    assert json.loads((out / "environment.json").read_text())["device"].startswith("cpu")
    assert sorted(path.name for path in out.iterdir() if path.suffix == ".tmp") == []


def test_damaged_results_are_found_before_anything_is_evaluated(tmp_path: Path) -> None:
    (tmp_path / "results.jsonl").write_text('{"schema": 1}\n{"sche\n{}\n')
    with pytest.raises(InputError, match=r"results\.jsonl, line 2 is not JSON"):  # noqa: SIM117
        with open_output(options(), subject(tmp_path, run=True), WORLD):
            pytest.fail("open")


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("config.json", '{"recipe": {}}', "holds a run; give another --out"),
        ("config.json", '{"recipe": {}, "evaluated": "other.pth"}', "holds an evaluation of other.pth"),
        ("config.json", "{", r"config\.json is not JSON"),
        ("notes.txt", "mine", "is not empty and holds no evaluation"),
    ],
)
def test_a_folder_of_something_else_is_refused(tmp_path: Path, name: str, content: str, said: str) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / name).write_text(content)
    with pytest.raises(InputError, match=said), open_output(options(out=out), subject(tmp_path), WORLD):
        pass
    assert (out / name).read_text() == content


def test_a_full_disk_leaves_no_half_of_a_suite(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = tmp_path / "all.jsonl"
    with open_output(options(out=out), subject(tmp_path), WORLD) as output:
        output.write("one", [RECORD], SUITE)
        before = out.read_bytes()
        with pytest.raises(TypeError):
            output.write("two", [RECORD, Record(metric="ece", value=1.0, note=object())], SUITE)  # type: ignore[arg-type]
        assert out.read_bytes() == before
