import argparse
import errno
import functools
import os
import pathlib
import pickle
import resource
import signal
import subprocess
import sys
import threading
import zipfile
from collections import defaultdict

import numpy as np
import pytest
import torch
from torch import nn

from cutmix.errors import InputError
from cutmix.runtime.checkpoint import Background, copy_state, load_checkpoint, save_checkpoint
from cutmix.runtime.files import write_atomic
from cutmix.runtime.weights import read_weights, save_weights


class Payload:
    """Unpickled carelessly, this makes a file."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.system, (f"touch {self.path}",)


def small_model(classes=5, width=4):
    return nn.Sequential(
        nn.Conv2d(3, width, 3, bias=False), nn.BatchNorm2d(width), nn.Flatten(), nn.Linear(width, classes)
    )


def same(first, second):
    return first.keys() == second.keys() and all(torch.equal(first[key], second[key]) for key in first)


@pytest.fixture
def target(tmp_path):
    path = tmp_path / "checkpoint.pt"
    save_checkpoint(path, {"step": 1})
    return path


@pytest.fixture
def file_size_limit():
    """The system refuses to let a file of this process grow beyond 256 KiB."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (256 * 1024, before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, before)


# Writing


def test_writes_and_replaces_with_the_usual_permissions(target):
    save_checkpoint(target, {"step": 2})
    plain = target.with_name("plain")
    plain.touch()
    assert torch.load(target, weights_only=True) == {"step": 2}
    assert target.stat().st_mode == plain.stat().st_mode
    assert sorted(path.name for path in target.parent.iterdir()) == ["checkpoint.pt", "plain"]


@pytest.mark.parametrize("error", [ValueError("bug"), KeyboardInterrupt(), RuntimeError("bug")])
def test_a_failing_writer_leaves_the_old_file_alone(target, error):
    before = target.read_bytes()

    def write(file):
        file.write(b"half")
        raise error

    with pytest.raises(type(error)) as raised:
        write_atomic(target, write)
    assert raised.value is error
    assert target.read_bytes() == before
    assert list(target.parent.iterdir()) == [target]


def test_no_space_is_one_sentence(target):
    def write(file):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with pytest.raises(InputError) as raised:
        write_atomic(target, write)
    expected = f"{target} could not be written: No space left on device; the previous checkpoint.pt is unchanged"
    assert str(raised.value) == expected
    with pytest.raises(InputError, match=r"No space left on device$"):
        write_atomic(target.with_name("new.pt"), write)
    assert list(target.parent.iterdir()) == [target]


@pytest.mark.usefixtures("file_size_limit")
@pytest.mark.parametrize("size", [65_300, 65_536, 1_000_000])  # refused while flushing, while closing, in the middle
@pytest.mark.parametrize("save", [save_checkpoint, lambda path, state: save_weights(path, state, {})])
def test_a_refused_write_leaves_the_old_file_alone(target, save, size):
    before = target.read_bytes()
    with pytest.raises(InputError, match=r"File too large; the previous checkpoint\.pt is unchanged$"):
        save(target, {"weight": torch.rand(size), "bias": torch.rand(300)})
    assert target.read_bytes() == before
    assert list(target.parent.iterdir()) == [target]


FULL_DISK = """
import sys, torch
from cutmix.runtime.checkpoint import save_checkpoint
from cutmix.errors import InputError
path = sys.argv[1] + "/checkpoint.pt"
save_checkpoint(path, {"weight": torch.zeros(100_000)})
try:
    save_checkpoint(path, {"weight": torch.ones(200_000)})
except InputError as error:
    assert "No space left on device; the previous" in str(error), error
else:
    raise SystemExit("it was written")
assert torch.load(path, weights_only=True)["weight"].sum() == 0
"""


def test_a_full_disk_leaves_the_old_file_alone(tmp_path):
    mount = ["unshare", "-rm", "sh", "-c", 'mount -t tmpfs -o size=1m tmpfs "$0" && "$@"', str(tmp_path)]
    try:
        subprocess.run([*mount, "true"], check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("a file system of limited size cannot be mounted here")
    run = subprocess.run([*mount, sys.executable, "-c", FULL_DISK, str(tmp_path)], capture_output=True, text=True)
    assert run.returncode == 0, run.stderr


KILLED = """
import os, signal, sys, time, torch
from cutmix.runtime.checkpoint import save_checkpoint
torch.set_num_threads(1)  # a child of fork must not use the threads of its parent
path = sys.argv[1]
for kill in range(12):
    if not (child := os.fork()):
        for step in range(10_000):
            save_checkpoint(path, {"step": step, "weights": [torch.full((50_000,), step) for _ in range(8)]})
    before = os.stat(path).st_mtime_ns
    while os.stat(path).st_mtime_ns == before:
        time.sleep(0.001)
    time.sleep(0.004 * kill)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    state = torch.load(path, weights_only=True)
    assert all((weight == state["step"]).all() for weight in state["weights"])
"""


def test_a_process_killed_while_saving_leaves_a_good_file(target):
    save_checkpoint(target, {"step": 0, "weights": []})
    subprocess.run([sys.executable, "-W", "ignore", "-c", KILLED, str(target)], check=True)
    save_checkpoint(target, {"step": 0})
    assert list(target.parent.iterdir()) == [target]


def test_what_a_killed_process_left_is_removed_by_the_next_save_of_the_same_file(tmp_path):
    script = "import os, sys; from cutmix.runtime.files import write_atomic; "
    script += "write_atomic(sys.argv[1], lambda file: os.kill(os.getpid(), 9))"
    for name in ("last[1].pt", "best.pt"):
        killed = subprocess.run([sys.executable, "-c", script, str(tmp_path / name)])
        assert killed.returncode == -signal.SIGKILL
    assert len(list(tmp_path.iterdir())) == 2
    save_checkpoint(tmp_path / "last[1].pt", {})
    names = sorted(path.name for path in tmp_path.iterdir())
    assert len(names) == 2
    assert names[0].startswith(".best.pt.")
    assert names[1] == "last[1].pt"


@pytest.mark.parametrize(("name", "reason"), [("none/x.pt", "No such file"), ("folder", "Is a directory")])
def test_an_impossible_target_is_one_sentence(tmp_path, name, reason):
    (tmp_path / "folder").mkdir()
    with pytest.raises(InputError, match=reason):
        save_checkpoint(tmp_path / name, {})
    assert [path.name for path in tmp_path.iterdir()] == ["folder"]


# Checkpoints


def test_a_run_comes_back_bit_for_bit(tmp_path):
    model = small_model().to(memory_format=torch.channels_last)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    schedule = torch.optim.lr_scheduler.MultiStepLR(optimizer, [2, 4])
    model(torch.rand(2, 3, 3, 3)).sum().backward()
    optimizer.step()
    parts = {"model": model, "optimizer": optimizer, "schedule": schedule}
    state = {name: part.state_dict() for name, part in parts.items()}
    state |= {"generator": torch.Generator().get_state(), "epoch": 3, "best": None, "history": [(1, 2.5)]}
    save_checkpoint(tmp_path / "c.pt", state)
    loaded = load_checkpoint(tmp_path / "c.pt")
    torch.testing.assert_close(loaded, state, rtol=0, atol=0)
    assert loaded["model"]["0.weight"].stride() == state["model"]["0.weight"].stride()
    for name, part in parts.items():
        part.load_state_dict(loaded[name])


def test_a_copied_state_makes_the_same_file_and_does_not_change_with_the_state(tmp_path):
    model = small_model().to(memory_format=torch.channels_last)
    state = {"model": model.state_dict(), "epoch": 3, "history": [(1, torch.ones(2))], "processes": [{"seen": 4}]}
    copied = copy_state(state)
    for name, each in (("a", state), ("b", copied)):
        save_checkpoint(tmp_path / f"{name}.pt", each)
    first, second = (load_checkpoint(tmp_path / f"{name}.pt") for name in "ab")
    torch.testing.assert_close(first, second, rtol=0, atol=0)
    assert first["model"]._metadata == second["model"]._metadata
    assert [value.stride() for value in second["model"].values()] == [
        value.stride() for value in first["model"].values()
    ]
    with torch.no_grad():
        for value in model.state_dict().values():
            value.zero_()
    torch.testing.assert_close(copied, second, rtol=0, atol=0)


def test_one_job_runs_in_the_background_and_its_error_is_raised_once():
    order, go, background = [], threading.Event(), Background()

    def job(name):
        go.wait(10)
        order.append(name)

    background.wait()
    background.start(lambda: job("first"))
    assert order == []
    go.set()
    background.start(lambda: job("second"))
    assert "first" in order
    background.start(lambda: int("no number"))
    assert order == ["first", "second"]
    with pytest.raises(ValueError, match="no number"):
        background.wait()
    background.wait()


@pytest.mark.parametrize("zipped", [True, False])
def test_code_is_refused_and_never_run(tmp_path, zipped):
    path, made = tmp_path / "evil.pt", tmp_path / "made"
    state = {"state_dict": {"weight": torch.zeros(2)}, "epoch": Payload(made)}
    torch.save(state, path, _use_new_zipfile_serialization=zipped)
    for read in (load_checkpoint, read_weights):
        with pytest.raises(InputError, match=r"holds Python objects \(posix\.system\).* was not loaded"):
            read(path)
    assert not made.exists()
    torch.load(path, weights_only=False)  # the payload works where code is let in
    assert made.exists()


@pytest.mark.parametrize("protocol", range(6))
def test_a_bare_pickle_with_code_is_never_run(tmp_path, protocol):
    path, made = tmp_path / "evil.pkl", tmp_path / "made"
    path.write_bytes(pickle.dumps({"weight": Payload(made)}, protocol))
    with pytest.raises(InputError, match=r"which could run code, and was not loaded|is not a checkpoint"):
        read_weights(path)
    assert not made.exists()
    pickle.loads(path.read_bytes())
    assert made.exists()


def test_a_whole_model_is_refused_with_the_way_out(tmp_path):
    torch.save(small_model(), tmp_path / "model.pt")
    with pytest.raises(InputError, match=r"torch\.nn\.modules\.container\.Sequential.*state_dict\(\)"):
        read_weights(tmp_path / "model.pt")


def test_a_numpy_number_may_hold_no_python_object(tmp_path):
    class Hidden:
        def __reduce__(self):
            scalar = np.float64(0).__reduce__()[0]
            return scalar, (np.dtype("O"), b"cposix\nsystem\n(S'true'\ntR.")

    torch.save({"best_err1": Hidden()}, tmp_path / "c.pt")
    with pytest.raises(InputError, match="was not loaded"):
        load_checkpoint(tmp_path / "c.pt")


def test_a_numpy_array_cannot_be_made_of_pointers(tmp_path):
    class Pointers:
        def __reduce__(self):
            return np.ndarray, ((1,), "O", b"AAAAAAAA")  # an object at an address of the file's choice

    torch.save({"a": Pointers(), "b": 1}, tmp_path / "c.pt")
    loaded = load_checkpoint(tmp_path / "c.pt")
    assert loaded["b"] == 1
    assert not isinstance(loaded["a"], np.ndarray)


@pytest.mark.parametrize(
    "call",
    [(eval, "1"), (getattr, pathlib.Path, "touch"), (__import__, "os"), (open, "made"), (os.remove, "made"),
     (subprocess.run, "true"), (functools.partial, os.system), (argparse.ArgumentParser,), (pathlib.Path.touch,),
     (defaultdict, os.system), (torch.load, "made"), (np.fromfile, "made"), (pickle.loads, b"")],
)  # fmt: skip
@pytest.mark.parametrize("beside", [{}, {"args": argparse.Namespace(lr=0.1), "a": np.zeros(2), "b": pathlib.Path()}])
def test_anything_callable_is_refused(tmp_path, call, beside):
    class Call:
        def __reduce__(self):
            return call[0], call[1:]

    torch.save({"state_dict": {"weight": torch.zeros(2)}, **beside, "x": Call()}, tmp_path / "c.pt")
    with pytest.raises(InputError, match="was not loaded"):
        load_checkpoint(tmp_path / "c.pt")
    assert not (tmp_path / "made").exists()


@pytest.mark.parametrize("kind", ["zip", "legacy", "safetensors"])
def test_a_truncated_file_is_one_sentence_at_any_length(tmp_path, kind):
    path, weights = tmp_path / "w", {"weight": torch.rand(200)}
    if kind == "safetensors":
        save_weights(path, weights, {})
    else:
        torch.save(weights, path, _use_new_zipfile_serialization=kind == "zip")
    whole = path.read_bytes()
    assert read_weights(path)[0].keys() == weights.keys()
    for size in [*range(1, len(whole), 29), len(whole) - 1]:
        path.write_bytes(whole[:size])
        with pytest.raises(InputError, match=r"is damaged or incomplete|is not a checkpoint|was not loaded"):
            read_weights(path)


@pytest.mark.parametrize("read", [load_checkpoint, read_weights])
def test_what_is_no_checkpoint_is_one_sentence(tmp_path, read):
    cases = {
        "empty": (b"", "is empty"),
        "text": (b"hello, these are no weights\n", "is not a checkpoint"),
        "png": (b"\x89PNG\r\n\x1a\n", "is not a checkpoint"),
    }
    for name, (content, message) in cases.items():
        (tmp_path / name).write_bytes(content)
        with pytest.raises(InputError, match=message):
            read(tmp_path / name)
    with zipfile.ZipFile(tmp_path / "photographs.zip", "w") as archive:
        archive.writestr("cat.jpg", b"\xff\xd8")
    with pytest.raises(InputError, match="is damaged or incomplete"):
        read(tmp_path / "photographs.zip")
    with pytest.raises(InputError, match="cannot be read: Is a directory"):
        read(tmp_path)
    with pytest.raises(InputError, match="cannot be read: No such file"):
        read(tmp_path / "missing")
    torch.save([1, 2], tmp_path / "list")
    with pytest.raises(InputError, match="holds a list"):
        read(tmp_path / "list")
