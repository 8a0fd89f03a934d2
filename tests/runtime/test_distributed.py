"""Two processes under ``torchrun`` (gloo, CPU) against one."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

import cutmix.evaluation.command
import cutmix.runtime.device
from cutmix.cli import main
from cutmix.errors import InputError
from cutmix.models import create_model
from cutmix.runs.record import read_records
from cutmix.runtime.device import (
    Vote,
    World,
    any_process,
    average_loss,
    first_alone,
    gather,
    gather_samples,
    parallel,
    processes,
    send_buffers,
    without_sync,
)

# Writes down which threads are left after the product's own functions at exit, which run before this one.
THREADS = """
import atexit, glob, os, sys

@atexit.register
def note_threads():
    names = [open(path).read().strip() for path in glob.glob("/proc/self/task/*/comm")]
    open(f"{sys.argv[1]}/threads{os.environ['RANK']}", "w").write(" ".join(sorted(names)))
"""

# Runs the real commands; only looks at what passes by.
DRIVER = (
    THREADS
    + """
from os import environ
import numpy as np
import torch
import cutmix.evaluation.command, cutmix.mixing.images, cutmix.training.loop
from cutmix.cli import main

torch.set_num_threads(1)
out, rank = sys.argv[1], int(environ["RANK"])
found = {"partners": []}

def finish(run, original=cutmix.training.loop.finish):
    weights, average = (list(model.parameters()) for model in (run.state.model, run.state.average.module))
    parts = {"weights": weights, "average": average, "gradients": [p.grad for p in weights]}
    found.update({name: torch.cat([t.detach().flatten() for t in part]) for name, part in parts.items()})
    original(run)

def train_step(run, images, labels, original=cutmix.training.loop.train_step):
    if sys.argv[2:] == [environ["RANK"]] and environ["TORCHELASTIC_RESTART_COUNT"] == "0" and run.state.step == 5:
        os.kill(os.getpid(), 9)
    draw = run.state.mix.draw
    run.state.mix.draw = lambda shape: remember(draw(shape))
    try:
        return original(run, images, labels)
    finally:
        del run.state.mix.draw

def remember(draw):
    found["partners"].append(draw.partner[:50].tolist())
    return draw

def predict(*arguments, original=cutmix.evaluation.command.predict, **named):
    predictions = original(*arguments, **named)
    if predictions:
        found["logits"], found["labels"] = predictions
    return predictions

cutmix.training.loop.finish, cutmix.training.loop.train_step = finish, train_step
if rank:
    cutmix.training.loop.load_checkpoint = cutmix.training.loop.read_weights = None  # the first process reads
cutmix.evaluation.command.predict = predict
main(["train", "digits-resnet20-cutmix", "--epochs", "1", "--mix-prob", "1", "--batch-size", "126", "--accumulate", "2",
      "--ema-decay", "0.5", "--precision", "float32", "--checkpoint-every", "3", "--out", out + "/run"])
if len(sys.argv) > 2:
    raise SystemExit
main(["evaluate", out + "/run", "--out", out + "/results.jsonl"])
np.savez(f"{out}/rank{rank}.npz", **{name: np.asarray(value) for name, value in found.items()})
try:
    main(["train", "digits-resnet20-cutmix", "--batch-size", "125", "--out", out + "/odd"])
except SystemExit as stopped:
    open(f"{out}/exit{rank}", "w").write(str(stopped.code))
"""
)

LOSING = """
import os, sys, time
from cutmix.errors import InputError
from cutmix.runtime.device import any_process, processes
from cutmix.runtime.terminal import print_once

late = sys.argv[2] == "late"
try:
    with processes("cpu", 2.0 if late else 60.0) as world:
        any_process(False, world)
        if not world.first:
            time.sleep(4 if late else 0)
            os._exit(0)
        any_process(False, world)
except InputError as error:
    print_once(f"cutmix: {error}")
"""

# Refusals that all processes share; a model whose buffers are sent before each forward pass, and one whose are not.
AGREEING = (
    THREADS
    + """
import torch
import cutmix.runtime.device as distributed
from cutmix.errors import InputError
from cutmix.runtime.terminal import print_once

def refuse():
    raise InputError("the folder is full")

def agree():
    with distributed.processes("cpu") as world:
        for check in (
            lambda: distributed.check_same_data(str(world.rank), "photos", world),
            lambda: distributed.from_first(refuse, world),
        ):
            try:
                check()
            except InputError as error:
                print_once(f"cutmix: {error}")
        for sent in (True, False):
            torch.manual_seed(0)
            model = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.BatchNorm2d(4), torch.nn.Flatten())
            wrapped = distributed.parallel(model, world)
            assert not any(getattr(wrapped, name) for name in distributed._NO_BUFFERS)
            if sent:
                wrapped = torch.nn.parallel.DistributedDataParallel(model)
            torch.manual_seed(world.rank)
            optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
            for _ in range(4):
                optimizer.zero_grad()
                wrapped(torch.randn(4, 3, 6, 6)).square().mean().backward()
                optimizer.step()
            distributed.send_buffers(model, world)
            if world.first:
                torch.save(model.state_dict(), f"{sys.argv[1]}/{sent}.pt")

agree()
"""
)


@pytest.fixture(scope="module")
def together(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Train and evaluate in two processes, and return the folder with what each of them saw."""
    folder = tmp_path_factory.mktemp("two")
    (folder / "driver.py").write_text(DRIVER)
    done = launch(folder)
    assert done.returncode == 0, done.stderr
    (folder / "stdout").write_text(done.stdout)
    (folder / "stderr").write_text(done.stderr)
    return folder


def launch(folder: Path, *words: str, restarts: int = 0, out: str = "") -> subprocess.CompletedProcess[str]:
    """Run the driver in two processes."""
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    return subprocess.run(
        [*launcher, "--max-restarts", str(restarts), str(folder / "driver.py"), str(folder / out), *words],
        env=os.environ | {"OMP_NUM_THREADS": "1"}, capture_output=True, text=True, timeout=240,
    )  # fmt: skip


def seen(folder: Path, name: str) -> tuple[np.ndarray, np.ndarray]:
    first, second = (np.load(folder / f"rank{rank}.npz")[name] for rank in (0, 1))
    return first, second


@pytest.mark.parametrize("name", ["weights", "average", "gradients"])
def test_both_processes_have_the_same(together: Path, name: str) -> None:
    first, second = seen(together, name)
    assert len(first) > 100
    np.testing.assert_array_equal(first, second)


def test_torchrun_restarts_a_killed_process_and_the_run_ends_with_the_same_weights(together: Path) -> None:
    out = together / "killed"
    out.mkdir()
    done = launch(together, "0", restarts=1, out=out.name)  # the one that writes
    assert done.returncode == 0, done.stderr
    assert "resuming after step 3" in done.stdout
    assert "Traceback (most recent call last)" not in done.stdout
    for name in ("model.safetensors", "best.safetensors"):
        assert (out / "run" / name).read_bytes() == (together / "run" / name).read_bytes()
    with np.load(out / "run/predictions/last.npz") as found, np.load(together / "run/predictions/last.npz") as expected:
        np.testing.assert_array_equal(found["logits"], expected["logits"])


def test_each_process_draws_its_own_mixes(together: Path) -> None:
    first, second = seen(together, "partners")
    assert len(first) == len(second) == 8  # steps; the two parts of a batch are mixed as one
    assert (first != second).any(axis=1).all()


def test_the_evaluation_equals_that_of_one_process(together: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    alone = []
    original = cutmix.evaluation.command.predict

    def predict(*arguments: object, **named: object) -> object:
        alone.append(original(*arguments, **named))  # type: ignore[arg-type]
        return alone[-1]

    monkeypatch.setattr(cutmix.evaluation.command, "predict", predict)
    main(["evaluate", str(together / "run"), "--out", str(together / "alone.jsonl"), "--device", "cpu"])
    logits, labels = logits_of_the_first(together)
    assert len(labels) == 797  # no multiple of two
    np.testing.assert_array_equal(labels, alone[0].labels.numpy())
    np.testing.assert_allclose(logits, alone[0].logits.numpy(), rtol=1e-5, atol=1e-5)
    fields = ("metric", "value", "low", "high", "n")
    in_two, in_one = (
        [[getattr(record, field) for field in fields] for record in read_records(together / name)]
        for name in ("results.jsonl", "alone.jsonl")
    )
    assert in_two == in_one


def logits_of_the_first(folder: Path) -> tuple[np.ndarray, np.ndarray]:
    """Return logits and labels of all images, which the first process alone holds."""
    assert "logits" not in np.load(folder / "rank1.npz")
    arrays = np.load(folder / "rank0.npz")
    return arrays["logits"], arrays["labels"]


def test_the_results_of_training_are_those_of_the_evaluation(together: Path) -> None:
    with np.load(together / "run/predictions/last.npz") as saved:
        logits, labels = logits_of_the_first(together)
        np.testing.assert_array_equal(saved["labels"], labels)
        np.testing.assert_allclose(saved["logits"], logits, rtol=1e-5, atol=1e-5)


def test_the_first_process_alone_speaks_and_writes(together: Path) -> None:
    lines = (together / "stdout").read_text().splitlines()
    assert len([line for line in lines if line.startswith("epoch ")]) == 1
    assert len((together / "results.jsonl").read_text().splitlines()) == 2
    assert json.loads((together / "run/environment.json").read_text())["processes"] == 2


def test_a_batch_that_cannot_be_shared_is_refused(together: Path) -> None:
    said = (together / "stderr").read_text()
    assert said.count("cutmix: batch_size is 125; expected a positive multiple of the 2 processes") == 1
    assert "Traceback" not in said
    assert [(together / f"exit{rank}").read_text() for rank in (0, 1)] == ["2", "2"]


def test_a_run_of_two_processes_is_not_resumed_by_one(together: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        main(["train", "--resume", "--out", str(together / "run"), "--device", "cpu"])
    assert "was started with 2 processes" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("how", "why"), [("late", "did not answer within 2 seconds (--timeout)"), ("gone", "has ended; see its message")]
)
def test_a_process_that_loses_the_others_says_so(tmp_path: Path, how: str, why: str) -> None:
    (tmp_path / "driver.py").write_text(LOSING)
    said = launch(tmp_path, how).stderr
    assert said.count(f"cutmix: another of the 2 processes {why}; restart the run with --resume") == 1
    assert "Error:" not in said


@pytest.fixture(scope="module")
def agreeing(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Run the second driver, and return the folder with what it wrote and said."""
    folder = tmp_path_factory.mktemp("agreeing")
    (folder / "driver.py").write_text(AGREEING)
    done = launch(folder)
    assert done.returncode == 0, done.stderr
    (folder / "stderr").write_text(done.stderr)
    return folder


def test_refusals_are_said_once_and_buffers_need_not_be_sent_before_each_forward_pass(agreeing: Path) -> None:
    said = (agreeing / "stderr").read_text()
    other = "cutmix: process 1 has other images in photos than process 0; expected the same data for all 2 processes"
    assert said.count(other) == 1
    assert said.count("cutmix: the folder is full") == 1
    sent, kept = (torch.load(agreeing / f"{name}.pt") for name in ("True", "False"))
    assert sent.keys() == kept.keys()
    assert all(torch.equal(sent[name], kept[name]) for name in sent)


@pytest.mark.skipif(not Path("/proc/self/task").is_dir(), reason="the system does not list the threads of a process")
def test_the_threads_of_the_group_end_before_the_interpreter(together: Path, agreeing: Path) -> None:
    # one that gives back a tensor later ends the process by SIGABRT, "terminate called without an active exception"
    names = [(folder / f"threads{rank}").read_text() for folder in (together, agreeing) for rank in (0, 1)]
    assert not [name for name in names if "gloo" in name]


def test_synchronized_batch_normalization_needs_gpus() -> None:
    with pytest.raises(InputError, match="--sync-bn is set on cpu; expected cuda"):
        parallel(torch.nn.BatchNorm2d(2), World(0, 2, torch.device("cpu")), sync_bn=True)


def test_synchronized_batch_normalization_replaces_every_layer_and_keeps_what_they_hold(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(cutmix.runtime.device, "DistributedDataParallel", lambda model, **_: model)
    for name in ("resnet20", "pyramidnet110", "test_efficientnet"):  # the last one's normalizations hold activations
        model = create_model(name, 3)
        expected = {key: value.clone() for key, value in model.state_dict().items()}
        normal = sum(isinstance(module, torch.nn.BatchNorm2d) for module in model.modules())
        activations = [type(module.act) for module in model.modules() if hasattr(module, "act")]
        model = parallel(model, World(0, 2, torch.device("cuda")), sync_bn=True)
        synchronized = [module for module in model.modules() if isinstance(module, torch.nn.SyncBatchNorm)]
        assert len(synchronized) == normal > 0
        assert not any(isinstance(module, torch.nn.BatchNorm2d) for module in model.modules())
        assert [type(module.act) for module in model.modules() if hasattr(module, "act")] == activations
        assert model.state_dict().keys() == expected.keys()
        assert all(torch.equal(value, expected[key]) for key, value in model.state_dict().items())


def test_a_vote_is_answered_a_step_later_and_drained_at_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    waited = []

    class Work:
        def wait(self) -> None:
            waited.append(True)

    monkeypatch.setattr(torch.distributed, "all_reduce", lambda *_, async_op, **__: Work() if async_op else None)
    vote = Vote(World(0, 2, torch.device("cpu")))
    assert (vote.ask(False), waited) == (False, [])
    assert (vote.ask(True), waited) == (False, [True])
    assert vote.answer()
    assert not vote.answer()


@pytest.mark.parametrize("size", [1, 2, 3])
def test_samples_of_several_processes_are_put_in_order(monkeypatch: pytest.MonkeyPatch, size: int) -> None:
    shares = [list(range(7))[rank::size] for rank in range(size)]
    monkeypatch.setattr("cutmix.runtime.device.gather_first", lambda own, world: shares if world.first else None)
    assert gather_samples(shares[0], World(0, size, torch.device("cpu"))) == list(range(7))
    assert gather_samples(shares[0], World(1, size, torch.device("cpu"))) is None


def test_the_first_process_writes_files_before_the_others_look_for_them(monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[str] = []
    monkeypatch.setattr(
        "cutmix.runtime.device.from_first", lambda make, world: make() if world.first else said.append("wait")
    )
    for rank in (0, 1):
        world = World(rank, 2, torch.device("cpu"))
        assert first_alone(lambda rank=rank: [said.append(f"{rank} makes"), rank][1], world) == rank
    assert said == ["0 makes", "wait", "1 makes"]


def test_one_process_needs_none_of_it() -> None:
    model = torch.nn.BatchNorm1d(2)
    with processes("cpu") as world:
        assert world == World(0, 1, torch.device("cpu"))
        assert world.first
        assert parallel(model, world) is model
        assert gather("own", world) == ["own"]
        assert (any_process(True, world), any_process(False, world)) == (True, False)
        assert average_loss(6.0, 4, world) == 1.5
        send_buffers(model, world)
        with without_sync(model, True):
            pass


@pytest.mark.parametrize("name", ["quantum", "meta", "mps", "cuda:99", ""])
def test_a_device_that_is_not_there_is_refused(name: str) -> None:
    with pytest.raises(InputError, match=r"the device is|does not exist"), processes(name):
        pass
