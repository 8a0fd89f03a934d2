"""Kills and stop signals at random moments: every run ends bit for bit as the uninterrupted one, without leftovers."""

import json
import os
import pickle
import random
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cutmix.runs.read import read_run
from cutmix.runtime.files import read_lines

# Forks a process for each rank from one that has imported everything, sends one of them a signal after a time, and
# returns the exit codes. When a rank has died, the others get SIGTERM and at last SIGKILL, as torchrun does.
SERVER = """
import atexit, json, os, signal, sys, time
import cutmix.evaluation.command, cutmix.paper.command, cutmix.training.loop, cutmix.transfer.command
from cutmix.cli import main
from cutmix.data import open_data

open_data("digits", "test")

STOPPING = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
signal.signal(signal.SIGHUP, signal.SIG_DFL)  # ignored under nohup
signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored in the background

def work(job, environment):
    os.environ.update(environment)
    log = os.open(job["log"], os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(log, 1), os.dup2(log, 2)
    code = 1
    try:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, STOPPING)
        main(job["words"])
        code = 0
    except SystemExit as stop:
        code = stop.code or 0
    finally:
        if sys.exc_info()[0] not in (None, SystemExit):
            sys.excepthook(*sys.exc_info())
        atexit._run_exitfuncs()
        sys.stdout.flush()
        os._exit(code)

def ended(codes, seconds, count):
    end = time.monotonic() + seconds
    while sum(code is not None for code in codes.values()) < count and time.monotonic() < end:
        for pid in [pid for pid in codes if codes[pid] is None]:
            found, status = os.waitpid(pid, os.WNOHANG)
            codes[pid] = os.waitstatus_to_exitcode(status) if found else None
        time.sleep(0.002)
    return sum(code is not None for code in codes.values()) >= count

def send(codes, number):
    for pid in [pid for pid in codes if codes[pid] is None]:
        os.kill(pid, number)

for line in sys.stdin:
    job = json.loads(line)
    codes = {}
    signal.pthread_sigmask(signal.SIG_BLOCK, STOPPING)  # a child that has just been forked is not yet the command
    for environment in job["environments"]:
        pid = os.fork() or work(job, environment)
        codes[pid] = None
    signal.pthread_sigmask(signal.SIG_UNBLOCK, STOPPING)
    number, after = job["signal"], job["after"]
    hung = False
    if number is None:
        hung = not ended(codes, 180, len(codes))
    elif not ended(codes, after, len(codes)):
        os.kill(list(codes)[job["victim"]], number)
        hung = not ended(codes, 60, 1)
    if not ended(codes, 1, len(codes)):
        send(codes, signal.SIGTERM)
        if not ended(codes, 10, len(codes)):
            send(codes, signal.SIGKILL)
            ended(codes, 10, len(codes))
    print(json.dumps({"codes": list(codes.values()), "hung": hung}), flush=True)
"""
SIGNALS = (signal.SIGKILL, signal.SIGKILL, signal.SIGKILL, signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
CLOCK = {"seconds", "images_per_second", "date", "command", "commit"}
IN_A_ROW = 6  # kills of one run before it is left to end
TRAIN = [
    "train",
    "--data",
    "digits",
    "--model",
    "resnet20",
    "--train-per-class",
    "8",
    "--batch-size",
    "20",
    "--epochs",
    "4",
    "--crop-padding",
    "0",
    "--mix",
    "cutmix",
    "--ema-decay",
    "0.9",
    "--log-every",
    "2",
    "--checkpoint-every",
    "2",
    "--device",
    "cpu",
    "--workers",
    "0",
    "--resume",
    "--out",
]
SHARED = "--epochs 2 --eval-every 1 --checkpoint-every 2 --device cpu --workers 0 --resume"


@dataclass
class Job:
    """A command that is killed again and again.

    Attributes:
        words: The command, which resumes what is there; the folder follows.
        kills: Number of kills.
        ranks: Number of processes.
        start: Makes the folder as it is before the command.
        done: Kills so far, by signal.
        runs: Runs that came to their end and were compared.
    """

    words: list[str]
    kills: int
    ranks: int = 1
    start: Callable[[Path], object] = lambda _: None
    done: dict[str, int] = field(default_factory=dict)
    runs: int = 0


class Server:
    """The process that the jobs are forked from."""

    def __init__(self, log: Path) -> None:
        environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore"}
        pipe = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True, "env": environment}
        self.process = subprocess.Popen([sys.executable, "-c", SERVER], **pipe)
        self.log = log

    def run(self, words: list[str], ranks: int, number: int | None, after: float, victim: int = 0) -> list[int]:
        """Run a command, send it a signal after some seconds unless ``number`` is None, return the exit codes."""
        environments: list[dict[str, str]] = [{}]
        if ranks > 1:
            with socket.socket() as free:
                free.bind(("localhost", 0))
                port = str(free.getsockname()[1])
            common = {"MASTER_ADDR": "localhost", "MASTER_PORT": port, "WORLD_SIZE": str(ranks)}
            environments = [common | {"RANK": str(rank), "LOCAL_RANK": str(rank)} for rank in range(ranks)]
        job = {"words": words, "environments": environments, "signal": number, "after": after, "victim": victim}
        print(json.dumps(job | {"log": str(self.log)}), file=self.process.stdin, flush=True)
        answer = json.loads(self.process.stdout.readline())
        assert not answer["hung"], f"{words} did not end"
        return answer["codes"]


def outcome(folder: Path) -> dict[str, Any]:
    """Return everything in a run folder that a command computed, without what the clock decides."""
    found: dict[str, Any] = {}
    for config in folder.rglob("config.json"):
        name, run = str(config.parent.relative_to(folder)), config.parent
        parts = [path for path in run.rglob("*") if path.suffix in (".safetensors", ".npz", ".png")]
        found |= {f"{name}/{path.relative_to(run)}": path.read_bytes() for path in parts}
        found[f"{name}: log"] = [
            {key: value for key, value in entry.items() if key not in CLOCK} for entry in read_lines(run / "log.jsonl")
        ]
        records = [
            replace(record, seconds=None, date=None, command=None, file=None) for record in read_run(run).results
        ]
        found[f"{name}: results"] = sorted(map(repr, records))  # of a metric evaluated twice, the later
    return found


def leftovers(folder: Path) -> list[str]:
    return [
        str(path.relative_to(folder)) for path in folder.rglob("*") if path.suffix == ".tmp" or ".next." in path.name
    ]


def write_cifar100(folder: Path) -> Path:
    """Write 60 images of random pixels in CIFAR-100's layout."""
    folder.mkdir(parents=True)
    for name in ("train", "test"):
        pixels = np.random.default_rng(0).integers(0, 256, (60, 3072), dtype=np.uint8)
        (folder / name).write_bytes(
            pickle.dumps({b"data": pixels, b"fine_labels": [i % 100 for i in range(60)]}, protocol=3)
        )
    names = [f"name {i}".encode() for i in range(100)]
    (folder / "meta").write_bytes(pickle.dumps({b"fine_label_names": names}, protocol=3))
    return folder


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    server = Server(tmp_path / "output.txt")
    yield server
    server.process.stdin.close()
    server.process.wait(timeout=60)
    server.process.stdout.close()


def campaign(server: Server, job: Job, folder: Path, random: random.Random) -> None:
    """Kill a job at random moments, let it end now and then, and compare with the uninterrupted run each time."""

    def command(out: Path) -> list[str]:
        return [*job.words, str(out)]

    durations = []
    for name in ("warm", "whole"):
        job.start(folder / name)
        started = time.monotonic()
        assert server.run(command(folder / name), job.ranks, None, 0) == [0] * job.ranks, server.log.read_text()[-3000:]
        durations.append(time.monotonic() - started)
    expected = outcome(folder / "whole")
    again = outcome(folder / "warm")
    assert [name for name in expected if again.get(name) != expected[name]] == []  # two uninterrupted runs are equal
    server.log.write_text("")
    while sum(job.done.values()) < job.kills:
        run = folder / f"run{job.runs}"
        job.start(run)
        for attempt in range(IN_A_ROW):
            number, after = random.choice(SIGNALS), random.uniform(0, 0.9 * min(durations) * 0.9**attempt)
            started = time.monotonic()
            codes = server.run(command(run), job.ranks, number, after, random.randrange(job.ranks))
            if codes == [0] * job.ranks:  # it ended before the signal
                durations.append(time.monotonic() - started)
                break
            job.done[number.name] = job.done.get(number.name, 0) + 1
            stopped = {-number, 128 + number}
            assert stopped & set(codes), (codes, server.log.read_text()[-3000:])
            for config in run.rglob("config.json"):
                read_run(config.parent)  # whatever is there can be read
        else:
            assert server.run(command(run), job.ranks, None, 0) == [0] * job.ranks, server.log.read_text()[-3000:]
        found = outcome(run)
        assert [name for name in expected if found.get(name) != expected[name]] == []
        assert found.keys() == expected.keys()
        assert not leftovers(run)
        job.runs += 1
    if job.ranks == 1:  # a rank whose peer has died ends with gloo's error
        # a library's finalizer drops the exception of Ctrl-C, as Python does; the command then goes on to its end
        dropped = r"Exception ignored in: .*\nTraceback .*\n(?: .*\n|\n)*KeyboardInterrupt.*\n"
        assert "Traceback" not in re.sub(dropped, "", server.log.read_text())


def make_job(kind: str, kills: int, tmp_path: Path, server: Server, request: pytest.FixtureRequest) -> Job:
    if kind == "train":
        return Job(TRAIN, kills)
    if kind == "two ranks":
        return Job(TRAIN, kills, ranks=2)
    if kind == "evaluate":
        trained = tmp_path / "trained"
        assert server.run([*TRAIN, str(trained)], 1, None, 0) == [0]
        words = "evaluate --suite classification,calibration,robustness --images 20 --pairs 10 --device cpu --workers 0"
        copy = lambda out: subprocess.run(["cp", "-r", str(trained), str(out)], check=True)  # noqa: E731
        return Job(words.split(), kills, start=copy)
    if kind == "reproduce":
        data = write_cifar100(tmp_path / "cifar-100-python")
        words = f"reproduce table5 --model resnet20 --device cpu --rows Baseline CutMix --data {data} --scale short "
        return Job([*words.split(), *["--epochs", "2", "--seeds", "1", "--out"]], kills)
    data = request.getfixturevalue("voc_folder" if kind == "detection" else "caption_folder")
    words = f"transfer {kind} --small --data {data} {SHARED} "
    if kind == "detection":
        words += "--model test_resnet --image-size 64 --batch-size 4 --out"
    else:
        words += "--model resnet20 --image-size 36 --crop 32 --embed 8 --hidden 8 --min-count 1 --beam 2 --out"
    return Job(words.split(), kills)


KILLS = {"train": 30, "evaluate": 15, "reproduce": 15, "detection": 12, "captioning": 13, "two ranks": 15}


@pytest.mark.parametrize("kind", [pytest.param(kind, marks=pytest.mark.slow) for kind in KILLS])
def test_killed_at_random_moments(
    kind: str, tmp_path: Path, server: Server, request: pytest.FixtureRequest, record_property: Callable[..., None]
) -> None:
    """100 kills in all; CUTMIX_KILLS multiplies them."""
    times = float(os.environ.get("CUTMIX_KILLS", 1))
    job = make_job(kind, round(KILLS[kind] * times), tmp_path, server, request)
    started = time.monotonic()
    campaign(server, job, tmp_path, random.Random(kind))
    signals = ", ".join(f"{name} {count}" for name, count in sorted(job.done.items()))
    seconds = time.monotonic() - started
    print(f"{kind}: {sum(job.done.values())} kills ({signals}), {job.runs} runs equal, {seconds:.0f} s")
