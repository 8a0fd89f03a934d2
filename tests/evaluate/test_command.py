"""``cutmix evaluate``: the same numbers as the run's own, and a clear sentence where things do not fit."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

import cutmix.evaluate.command
import cutmix.evaluate.subject
from cutmix.cli import main
from cutmix.data import open_data
from cutmix.errors import InputError
from cutmix.evaluate.classification import Predictions
from cutmix.evaluate.command import run_evaluate
from cutmix.jsonl import read_lines
from cutmix.models import create_model
from cutmix.options import EvaluateOptions
from cutmix.run_folder import read_arrays


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("runs") / "digits"
    words = ["--epochs", "2", "--ema-decay", "0.9", "--device", "cpu", "--out", str(out)]
    main(["train", "digits-resnet20-cutmix", *words])
    return out


@pytest.fixture
def run(trained: Path, tmp_path: Path) -> Path:
    return shutil.copytree(trained, tmp_path / "run")


def options(source: Path, **changes: object) -> EvaluateOptions:
    return EvaluateOptions(source, **{"device": "cpu", "workers": 0} | changes)  # type: ignore[arg-type]


@pytest.mark.parametrize("which", ["last", "best"])
def test_saved_weights_give_the_saved_predictions(run: Path, monkeypatch: pytest.MonkeyPatch, which: str) -> None:
    seen: list[Predictions] = []
    original = cutmix.evaluate.command.predict
    monkeypatch.setattr(cutmix.evaluate.command, "predict", lambda *a, **k: seen.append(original(*a, **k)) or seen[-1])
    batch = json.loads((run / "config.json").read_text())["recipe"]["batch_size"]
    records = run_evaluate(options(run, which=which, batch_size=batch))
    saved = read_arrays(run / f"predictions/{which}.npz")
    assert torch.equal(seen[0].logits, saved["logits"])
    assert torch.equal(seen[0].labels, saved["labels"])
    own = {r["measure"]: r for r in read_lines(run / "results.jsonl") if r["which"] == which and "file" not in r}
    for record in records:
        shared = (
            "value",
            "low",
            "high",
            "n",
            "epoch",
            "model",
            "mix",
            "seed",
            "weights",
            "parameters",
            "recipe",
            "data",
        )
        assert {name: record[name] for name in shared} == {name: own[record["measure"]][name] for name in shared}


def test_shake_drop_keeps_its_expectation(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    words = ["--epochs", "1", "--shake-drop", "0.5", "--depth-decay", "constant", "--device", "cpu"]
    main(["train", "digits-resnet20", *words, "--out", str(tmp_path / "run")])
    seen: list[Predictions] = []
    original = cutmix.evaluate.command.predict
    monkeypatch.setattr(cutmix.evaluate.command, "predict", lambda *a, **k: seen.append(original(*a, **k)) or seen[-1])
    run_evaluate(options(tmp_path / "run", batch_size=64))
    assert torch.equal(seen[0].logits, read_arrays(tmp_path / "run/predictions/last.npz")["logits"])


def test_results_are_appended_or_go_where_they_are_wanted(run: Path, tmp_path: Path) -> None:
    before = read_lines(run / "results.jsonl")
    records = run_evaluate(options(run))
    assert read_lines(run / "results.jsonl") == [*before, *records]
    run_evaluate(options(run, out=tmp_path / "else.jsonl"))
    assert len(read_lines(run / "results.jsonl")) == len(before) + 2
    assert len(read_lines(tmp_path / "else.jsonl")) == 2


def test_a_file_of_weights_says_what_it_is(run: Path) -> None:
    from_run = run_evaluate(options(run, out=run / "other.jsonl"))
    alone = shutil.copy(run / "model.safetensors", run.parent / "alone.safetensors")
    from_file = run_evaluate(options(Path(alone)))
    assert [r["value"] for r in from_file] == [r["value"] for r in from_run]
    assert {r["which"] for r in from_file} == {"file"}


def test_a_plain_state_dict_needs_model_and_data(tmp_path: Path) -> None:
    path = tmp_path / "plain.pth"
    torch.save({f"module.{k}": v for k, v in create_model("resnet20", 10, in_chans=1).state_dict().items()}, path)
    with pytest.raises(InputError, match="does not say what it was trained on; give --data"):
        run_evaluate(options(path))
    with pytest.raises(InputError, match="does not say which network it is; give --model"):
        run_evaluate(options(path, data="digits"))
    (record, _) = run_evaluate(options(path, data="digits", model="resnet20"))
    assert (record["n"], record["mix"], record["epoch"], record["recipe"]) == (797, None, None, "plain")
    with pytest.raises(InputError, match="is a checkpoint of another model"):
        run_evaluate(options(path, data="digits", model="resnet32"))


def test_another_count_of_classes_is_refused(run: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    digits = open_data("digits", "test")
    hundred = replace(digits, name="hundred", classes=tuple(map(str, range(100))))
    monkeypatch.setattr(cutmix.evaluate.subject, "open_data", lambda *_, **__: hundred)
    with pytest.raises(InputError, match="knows 10 classes, but hundred has 100"):
        run_evaluate(options(run))
    path = tmp_path / "plain.pth"  # says nothing of its classes
    torch.save(create_model("resnet20", 10, in_chans=1).state_dict(), path)
    with pytest.raises(InputError, match="holds 10 classes, the model has 100"):
        run_evaluate(options(path, data="digits", model="resnet20"))


def test_classes_in_another_order_are_refused(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    digits = open_data("digits", "test")
    turned = replace(digits, name="turned", classes=digits.classes[::-1])
    monkeypatch.setattr(cutmix.evaluate.subject, "open_data", lambda *_, **__: turned)
    with pytest.raises(InputError, match=r'was trained with class "\w+" where turned has "\w+"'):
        run_evaluate(options(run))


def test_an_unfinished_run_says_so(run: Path) -> None:
    (run / "model.safetensors").unlink()
    with pytest.raises(InputError, match="the run is not finished; go on with it with --resume"):
        run_evaluate(options(run))
    run_evaluate(options(run, which="best"))


def test_a_batch_of_none_is_refused(run: Path) -> None:
    with pytest.raises(InputError, match="--batch-size is 0; expected at least 1"):
        run_evaluate(options(run, batch_size=0))


def test_the_table_names_the_file_as_it_is(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    odd = run.rename(run.parent / "a [red]b[blue")
    run_evaluate(options(odd))
    said = capsys.readouterr().out.replace("\n", "")
    assert "[red]b[blue" in said
    assert "95 % interval" in said
    assert np.isfinite([r["value"] for r in read_lines(odd / "results.jsonl")]).all()
