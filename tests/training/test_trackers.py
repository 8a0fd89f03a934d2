"""Trackers get what the loop logs, and a missing package is one sentence."""

import inspect
import json
import sys
import threading
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

import cutmix
from cutmix.config.recipes import SMALL
from cutmix.errors import InputError
from cutmix.training.trackers import check_tracker, open_tracker


class Fake(SimpleNamespace):
    """A tracker's module that keeps its calls."""

    def __init__(self) -> None:
        super().__init__(calls=[])
        self.__spec__ = None

    def __getattr__(self, name: str) -> Any:
        def call(*arguments: Any, **named: Any) -> SimpleNamespace:
            self.calls.append((name, arguments, named))
            return SimpleNamespace(info=SimpleNamespace(run_id="run-of-mlflow"))

        return call


@pytest.mark.parametrize(
    ("name", "logged", "closed"),
    [
        ("wandb", ("log", ({"train/loss": 0.5},), {"step": 7}), "finish"),
        ("trackio", ("log", ({"train/loss": 0.5},), {"step": 7}), "finish"),
        ("mlflow", ("log_metric", ("train/loss", 0.5), {"step": 7}), "end_run"),
    ],
)
def test_a_tracker_gets_the_recipe_the_figures_and_the_end(
    name: str, logged: tuple[Any, ...], closed: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake = Fake()
    monkeypatch.setitem(sys.modules, name, fake)  # type: ignore[arg-type]
    for folder in ("elsewhere/my-run", "my-run"):
        (tmp_path / folder).mkdir(parents=True)
    open_tracker(name, SMALL, tmp_path / "elsewhere/my-run", step=0)
    elsewhere = fake.calls[:]
    fake.calls.clear()
    tracker = open_tracker(name, SMALL, tmp_path / "my-run", step=0)
    started = list(fake.calls)
    assert name == "mlflow" or started != elsewhere, "two folders of one name are one run"
    assert any("my-run" in str(call) for call in started)
    assert any("weight_decay" in str(call) for call in started)
    tracker.add_scalar("train/loss", 0.5, 7)
    assert fake.calls[len(started) :] == [logged]
    tracker.close()
    assert fake.calls[-1][0] == closed
    fake.calls.clear()
    open_tracker(name, SMALL, tmp_path / "my-run", step=7)
    if name == "mlflow":
        assert fake.calls[1] == ("start_run", (), {"run_id": "run-of-mlflow", "run_name": "my-run"})
        assert len(fake.calls) == 2, "MLflow refuses parameters that differ, as more epochs do"
    else:
        assert fake.calls == started
    fake.calls += started
    module = pytest.importorskip(name, reason=f"the extra {name} is not installed")
    for call, arguments, named in fake.calls:
        inspect.signature(getattr(module, call)).bind(*arguments, **named)


def test_the_loop_logs_each_epoch_at_its_step(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake = Fake()
    monkeypatch.setitem(sys.modules, "wandb", fake)  # type: ignore[arg-type]
    run = cutmix.train(
        "digits", epochs=2, train_per_class=3, batch_size=10, device="cpu", log="wandb", log_every=2,
        out=tmp_path / "run",
    )  # fmt: skip
    logged: dict[int, dict[str, float]] = {}
    for name, arguments, named in fake.calls:
        if name == "log":
            logged.setdefault(named["step"], {}).update(*arguments)
    written = [json.loads(line) for line in (tmp_path / "run/log.jsonl").read_text().splitlines()]
    assert [step for step in logged if "epoch/top1_err" in logged[step]] == [3, 6]
    assert [logged[step]["epoch/top1_err"] for step in (3, 6)] == [entry["top1_err"] for entry in run.epochs]  # type: ignore[union-attr]
    steps = [entry["step"] for entry in written if entry["kind"] == "train"]
    assert steps == [step for step in logged if "train/loss" in logged[step]] != []
    assert fake.calls[-1][0] == "finish"


@pytest.mark.parametrize("name", ["wandb", "trackio", "mlflow", "tensorboard"])
def test_a_missing_tracker_is_named_with_its_extra(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard" if name == "tensorboard" else name, None)
    with pytest.raises(InputError, match=f"--log {name} needs "):
        check_tracker(name, None)


def test_a_tracker_that_cannot_start_is_one_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(**_: Any) -> None:
        raise ConnectionError("no network\nat all")

    monkeypatch.setitem(sys.modules, "wandb", SimpleNamespace(init=refuse, __spec__=None))  # type: ignore[arg-type]
    with pytest.raises(InputError, match="--log wandb could not be started: no network at all"):
        open_tracker("wandb", SMALL, tmp_path, step=0)


@pytest.mark.parametrize("name", ["wandb", "trackio", "mlflow"])
def test_a_tracker_that_fails_later_is_one_sentence(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake = Fake()
    monkeypatch.setitem(sys.modules, name, fake)  # type: ignore[arg-type]
    tracker = open_tracker(name, SMALL, tmp_path, step=0)

    def refuse(*_: Any, **__: Any) -> None:
        raise ConnectionError("the server\nhas gone")

    fake.log = fake.log_metric = fake.finish = fake.end_run = refuse
    for call in (lambda: tracker.add_scalar("train/loss", 0.5, 7), tracker.close):
        with pytest.raises(InputError, match=f"--log {name} could not be written: the server has gone"):
            call()


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")  # of TensorBoard's thread
@pytest.mark.skipif(not Path("/dev/full").exists(), reason="this system has no /dev/full")
def test_a_full_disk_under_tensorboard_is_named(tmp_path: Path) -> None:
    """Its thread keeps the error, which names no file, and raises it in a later call."""
    pytest.importorskip("tensorboard", reason="the extra tensorboard is not installed")
    before = set(threading.enumerate())
    tracker = open_tracker("tensorboard", SMALL, tmp_path, step=0)
    (file,) = (tmp_path / "tensorboard").iterdir()
    full = tmp_path / "full"
    full.symlink_to("/dev/full")
    full.replace(file)  # in one step: the thread may write at any time, and makes a file that is missing

    def fill() -> None:
        for step in range(50):
            tracker.add_scalar("train/loss", 0.5, step)
        tracker.close()

    with pytest.raises(InputError, match=r"--log tensorboard could not be written: .*No space left on device"):
        fill()
    for thread in set(threading.enumerate()) - before:
        thread.join(60)


@pytest.mark.parametrize("name", ["tensorboard", "mlflow"])
def test_a_folder_whose_name_is_not_utf8_is_refused_before_it_is_made(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    module = "torch.utils.tensorboard" if name == "tensorboard" else name
    monkeypatch.setitem(sys.modules, module, Fake())  # type: ignore[arg-type]
    out = tmp_path / b"r\xe4n".decode(errors="surrogateescape")
    sentence = rf"--log {name} needs a folder with a UTF-8 name, and .*r\\udce4n has none; give another --out"
    for refuse in (
        lambda: cutmix.train(recipe=SMALL, log=name, out=out),
        lambda: open_tracker(name, SMALL, out, step=0),
    ):
        with pytest.raises(InputError, match=sentence):
            refuse()
    assert not out.exists()
