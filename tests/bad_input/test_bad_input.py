"""Bad inputs drawn by hypothesis, over every command: no traceback, no hang, no other file touched, bounded memory."""

import hashlib
import io
import json
import os
import re
import resource
import shutil
import signal
import sys
import traceback
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, NamedTuple
from unittest.mock import MagicMock

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import cutmix.training.campaign
import cutmix.training.loop
from cutmix.cli import COMMANDS, main
from cutmix.config import options as command_options
from cutmix.config.recipe import Recipe
from cutmix.config.tasks import Captioning, Detection

SECONDS = 60  # an example that takes longer hangs
MEMORY = 4 << 30  # bytes of addresses beyond those in use before an example
TRAIN = "--device cpu --workers 0 --epochs 1 --batch-size 4 --precision float32"
MODEL = "--model test_resnet --no-pretrained --image-size 32"


class Command(NamedTuple):
    """A command that succeeds.

    Attributes:
        words: Its words; OUT is the only folder, beside those of ``own``, that it may write to.
        files: The files and folders that it reads.
        options: The classes of its flags.
        own: Folders that it writes to though they were there before.
    """

    words: str
    files: tuple[str, ...] = ()
    options: tuple[type, ...] = ()
    own: tuple[str, ...] = ()


RUN = ("run/config.json", "run/model.safetensors", "run/results.jsonl", "run/log.jsonl", "run/environment.json", "run")
PHOTOS = ("photos/train/a/0.png", "photos/test/b/b1.jpg", "photos/train", "photos")
COCO = ("coco/annotations/instances_train.json", "coco/annotations/instances_val.json", "coco/train/0.png")
CAPTIONS = ("captions/captions.txt", "captions/images/00.png")
CIFAR = ("cifar-100-python/train", "cifar-100-python/meta")
IDX = ("mnist/train-images-idx3-ubyte", "mnist/train-labels-idx1-ubyte", "mnist/t10k-labels-idx1-ubyte", "mnist")
CUB = ("CUB_200_2011/images.txt", "CUB_200_2011/train_test_split.txt", "CUB_200_2011/bounding_boxes.txt")
TINY = ("tiny-imagenet-200/val/val_annotations.txt", "tiny-imagenet-200/wnids.txt", "tiny-imagenet-200/words.txt")
o = command_options
EVERY = (
    Command("data photos", PHOTOS, (o.DataOptions,)),
    Command("data photos --json --out OUT/a.png", PHOTOS, (o.DataOptions,)),
    Command("data cifar-100-python", CIFAR, (o.DataOptions,)),
    Command("data mnist", IDX),
    Command("data CUB_200_2011", CUB),
    Command("data tiny-imagenet-200", TINY),
    Command("data labels.csv", ("labels.csv", "photos/train/a/0.png")),
    Command("data several.csv --channels 1", ("several.csv",), (o.DataOptions,)),
    Command(f"train --labels several.csv {MODEL} {TRAIN} --out OUT/run", ("several.csv",)),
    Command("data labels.jsonl", ("labels.jsonl",)),
    Command("shards photos --out OUT/shards", PHOTOS, (o.ShardsOptions,)),
    Command("preview --data photos --count 2 --image-size 32 --out OUT/a.png", PHOTOS, (o.PreviewOptions,)),
    Command(f"train --data photos {MODEL} {TRAIN} --out OUT/run", PHOTOS, (Recipe, o.TrainOptions)),
    Command(f"train digits-resnet20-cutmix {TRAIN} --out OUT/run", (), (Recipe, o.TrainOptions)),
    Command(
        f"train --data photos --model test_resnet --weights w.pth --image-size 32 {TRAIN} --out OUT/run", ("w.pth",)
    ),
    Command(
        "train --config settings.yaml --data labels.csv --class-weights weights.csv --device cpu --workers 0 "
        "--out OUT/run", ("settings.yaml", "weights.csv", "labels.csv"),
    ),
    Command(
        "train --resume --out run --device cpu --workers 0", (*RUN, "run/checkpoint.pt"), (o.TrainOptions,), ("run",)
    ),
    Command(
        f"train --data photos {MODEL} {TRAIN} --overwrite --out run", ("run/config.json",), (o.TrainOptions,), ("run",)
    ),
    Command("evaluate run --device cpu --workers 0", (*RUN, *PHOTOS), (o.EvaluateOptions,), ("run",)),
    Command(
        "evaluate w.pth --model test_resnet --classes classes.json --image-size 32 --data photos --device cpu "
        "--out OUT/e",
        ("w.pth", "classes.json", *PHOTOS), (o.EvaluateOptions,),
    ),
    Command(
        "evaluate run --suite ood --outliers photos --device cpu --workers 0 --out OUT/e.jsonl",
        ("run/model.safetensors", "photos"), (o.EvaluateOptions,),
    ),
    Command(
        "evaluate run --suite robustness --images 4 --pairs 4 --corruptions corrupted --device cpu --out OUT/e",
        ("corrupted", "run/predictions/last.npz"), (o.EvaluateOptions,),
    ),
    Command(
        "evaluate run --suite localization --boxes boxes --device cpu --workers 0 --out OUT/e",
        ("boxes/a0.xml", "boxes"),
    ),
    Command("evaluate run --suite calibration --data labels.csv --device cpu --workers 0 --out OUT/e", ("labels.csv",)),
    Command("predict run photos/test --device cpu --out OUT/p.csv", (*RUN[:2], *PHOTOS), (o.PredictOptions,)),
    Command("predict run/model.safetensors photos/test/b/b1.jpg --device cpu", ("run/model.safetensors",)),
    Command(
        "explain run photos/test/b/b1.jpg --neighbours 1 --device cpu --out OUT/x", (*RUN[:2], *PHOTOS),
        (o.ExplainOptions,),
    ),
    Command("serve run --device cpu", RUN[:2], (o.ServeOptions,)),
    Command("export run --format torch --out OUT/x", RUN[:2]),
    Command("export run --format safetensors --out OUT/x", RUN, (o.ExportOptions,)),
    Command("push run --to OUT/hub", RUN, (o.PushOptions,)),
    Command("report run --out OUT/r.html", (*RUN, "run/samples.png", "run/predictions/last.npz"), (o.ReportOptions,)),
    Command("paper table5 --results results.jsonl", ("results.jsonl",), (o.PaperOptions,)),
    Command("paper --runs run", RUN, (o.PaperOptions,)),
    Command(
        "reproduce table5 --rows Baseline --scale smoke --model resnet20 --data cifar-100-python --device cpu "
        "--out OUT/rep", CIFAR, (o.ReproduceOptions,),
    ),
    Command(
        f"compare --data photos {MODEL} --device cpu --workers 0 --epochs 1 --batch-size 4 --seeds 1 --out OUT/cmp",
        PHOTOS, (o.CompareOptions,),
    ),
    Command(
        f"transfer detection --small --data coco --model test_resnet --image-size 64 {TRAIN} --out OUT/t", COCO,
        (Detection, o.RunOptions),
    ),
    Command(
        f"transfer detection --small --data voc --model test_resnet --image-size 64 {TRAIN} --out OUT/t",
        ("voc/Annotations/00.xml", "voc/JPEGImages/01.png", "voc"),
    ),
    Command(
        f"transfer captioning --small --data captions --model resnet20 --image-size 36 --crop 32 --min-count 1 {TRAIN} "
        "--out OUT/t", CAPTIONS, (Captioning, o.RunOptions),
    ),
    Command(
        f"transfer captioning --small --data coco --backbone run --min-count 1 {TRAIN} --out OUT/t",
        ("coco/annotations/captions_train.json", "coco/annotations/captions_val.json", *RUN[:2]),
    ),
    Command("recipes"),
    Command("demo --epochs 1 --device cpu --out OUT/demo", (), (o.DemoOptions,)),
)  # fmt: skip

# ---- what is bad ----

WHOLE = [
    "0",
    "-1",
    "1",
    "100000",
    "1000000000",
    "2147483648",
    "9223372036854775807",
    "-9223372036854775809",
    "1" * 5000,
]
NUMBERS = [*WHOLE, "nan", "inf", "-inf", "-0.0", "1e400", "1e308", "1e-320", "0.5", "1"]
NO_NUMBERS = ["", "abc", "0x10", "٣", "1_0", "None", "True", "\ud800"]
NAMES = [
    "absent", "", " ", ".", "..", "/", "~", "a\nb", "\x1b[31mred", "x" * 300, "x/" * 3000, "\udcff", "\x00", 
    "photos/*", "-", "--", "=", "file/inside", "file", "loop", "pipe", "/dev/null", "/dev/full", "/proc/self/mem", "猫",
    "\u202eexe",
]  # fmt: skip
VALUES: list[Any] = [
    None, True, 0, -1, 0.5, 1e308, 2**70, 2**31, "", "x", "\ud800", "\u0000", "x" * 10_000, [], {}, [None], [[1]],
    {"a": 1}, "../../victim", "/etc/passwd", [1] * 1000,
]  # fmt: skip
DEEP = b"[" * 200_000 + b"]" * 200_000


@dataclass(frozen=True)
class Case:
    """One bad input: a command, and what is wrong with its words or one of its files."""

    command: Command
    kind: str
    target: str = ""
    value: Any = None
    place: float = 0.0


def flags(command: Command) -> dict[str, str]:
    """Return the flags of a command that take a value, with their types."""
    left_out = {"jobs", "name", "private", "download", "tensorboard", "compile", "resume", "overwrite", "json", "apgd"}
    return {
        f"--{field.name.replace('_', '-')}": str(field.type)
        for kind in command.options
        for field in sorted(fields(kind), key=lambda field: field.name)
        if field.name not in left_out and "Positional" not in str(field.type) and "bool" not in str(field.type)
    }


@st.composite
def cases(draw: Callable[..., Any]) -> Case:
    command = draw(st.sampled_from(EVERY))
    kinds = ["word"] + ["bytes", "json", "kind"] * bool(command.files) + ["flag", "flag"] * bool(command.options)
    kind = draw(st.sampled_from(kinds))
    place = draw(st.floats(0, 1, exclude_max=True))
    if kind == "flag":
        target, hint = draw(st.sampled_from(sorted(flags(command).items())))
        values = NUMBERS if "float" in hint else WHOLE if "int" in hint else NAMES
        values = draw(st.sampled_from([values] * 8 + [NO_NUMBERS]))
        return Case(command, kind, target, draw(st.sampled_from(values)), place)
    if kind == "word":
        return Case(command, kind, "", draw(st.sampled_from(NAMES) | st.text(max_size=8)), place)
    target = draw(st.sampled_from(command.files))
    if kind == "json":
        return Case(command, kind, target, draw(st.sampled_from([*VALUES, DEEP])), place)
    how = ["truncate", "flip", "random", "append", "empty"] if kind == "bytes" else ["folder", "absent", "link", "pipe"]
    return Case(command, kind, target, draw(st.sampled_from(how)), place)


def damage(case: Case, folder: Path) -> None:
    """Make of the target what the case says."""
    path = folder / case.target
    files = sorted(part for part in path.rglob("*") if part.is_file()) if path.is_dir() else [path]
    if path.is_dir() and (case.kind != "kind" or case.value == "folder"):
        path = files[int(case.place * len(files))]
    if case.kind == "kind":
        shutil.rmtree(path) if path.is_dir() else path.unlink()
        if case.value == "folder":
            path.mkdir()
        elif case.value == "link":
            path.symlink_to(folder / "victim")
        elif case.value == "pipe":
            os.mkfifo(path)
        return
    content = path.read_bytes()
    at = int(case.place * max(len(content), 1))
    if case.kind == "json":
        path.write_bytes(with_value(content, case.value, case.place))
        return
    noise = hashlib.shake_128(str(case.place).encode()).digest(64)
    path.write_bytes(
        {
            "truncate": content[:at], "empty": b"", "append": content + noise, "random": noise * 40,
            "flip": content[:at] + bytes([content[at] ^ 1 << at % 8]) + content[at + 1 :] if content else b"",
        }[case.value]
    )  # fmt: skip


def with_value(content: bytes, value: Any, place: float) -> bytes:
    """Put a value somewhere into JSON, JSON lines or the header of safetensors; other files become the value."""
    if isinstance(value, bytes):
        return value
    if content[8:9] == b"{":  # safetensors
        end = 8 + int.from_bytes(content[:8], "little")
        header = with_value(content[8:end].rstrip(), value, place)
        return len(header).to_bytes(8, "little") + header + content[end:]
    lines = content.split(b"\n")
    number = int(place * len(lines)) if content.startswith(b'{"') else 0
    try:
        parsed = json.loads(lines[number] if len(lines) > 2 and content.startswith(b'{"') else content)
    except ValueError:
        return json.dumps(value).encode()
    places: list[tuple[Any, Any]] = []

    def walk(node: Any) -> None:
        for key in list(node) if isinstance(node, dict) else range(len(node)) if isinstance(node, list) else ():
            places.append((node, key))
            walk(node[key])

    walk(parsed)
    if places and place > 0.02:
        node, key = places[int(place * 7919) % len(places)]
        node[key] = value
    else:
        parsed = value
    text = json.dumps(parsed).encode()
    if len(lines) > 2 and content.startswith(b'{"'):
        return b"\n".join([*lines[:number], text, *lines[number + 1 :]])
    return text


def words_of(case: Case) -> list[str]:
    """Return the words of the command with the bad one in it."""
    words = case.command.words.split()
    if case.kind == "word":
        words[1 + int(case.place * (len(words) - 1)) if len(words) > 1 else 0] = case.value
    elif case.kind == "flag":
        if case.target in words:
            words[words.index(case.target) + 1] = case.value
        else:
            words += [case.target, case.value]
    return [word.replace("OUT", "out") for word in words]


# ---- the bounds ----


class Enough(BaseException):
    """The command has been accepted and trains."""


class Hang(BaseException):
    """The command takes too long."""


@contextmanager
def bounds() -> Iterator[None]:
    """Bound time and memory."""

    def stop(*_: object) -> None:
        raise Hang

    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    limits, before = resource.getrlimit(resource.RLIMIT_AS), signal.signal(signal.SIGALRM, stop)
    resource.setrlimit(resource.RLIMIT_AS, (used + MEMORY, limits[1]))
    signal.alarm(SECONDS)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)
        resource.setrlimit(resource.RLIMIT_AS, limits)


def state(folder: Path, without: tuple[str, ...]) -> dict[str, Any]:
    """Return the content of all files but those in some folders."""
    found: dict[str, Any] = {}
    for path in folder.rglob("*"):
        name = str(path.relative_to(folder))
        if not name.startswith(without):
            found[name] = (
                os.readlink(path) if path.is_symlink() else path.read_bytes() if path.is_file() else path.stat().st_mode
            )
    return found


def run(case: Case, world: Path, patch: pytest.MonkeyPatch) -> tuple[str, str]:
    """Run a case in a copy of the world; return how it ended and what it printed, and check everything else."""
    folder = world.parent / "case"
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(world, folder, symlinks=True, ignore=lambda *_: ["pipe"])
    os.mkfifo(folder / "pipe")
    (folder / "out").mkdir()
    os.chdir(folder)
    if case.target and not case.target.startswith("--"):
        damage(case, folder)
    words = words_of(case)
    own = ("out", *case.command.own)
    before = state(folder, own)
    train_step, steps = cutmix.training.loop.train_step, []

    def few_steps(*arguments: Any) -> Any:
        steps.append(1)
        if len(steps) > 12:
            raise Enough
        return train_step(*arguments)

    def enough(*_: Any) -> None:
        raise Enough

    gradio = MagicMock()  # the page is not served
    gradio.Interface.return_value.launch.return_value = None, "http://127.0.0.1", None
    out, err = io.StringIO(), io.StringIO()
    ended = "done"
    with patch.context() as patched, warnings.catch_warnings():
        warnings.simplefilter("default")
        patched.setattr(cutmix.training.loop, "train_step", few_steps)
        patched.setattr(cutmix.training.campaign, "train_step", few_steps)
        patched.setattr(cutmix.training.campaign, "_run_shards", enough)
        patched.setattr("sys.stdin", io.StringIO("photos/test/b/b1.jpg\nabsent.png\n"))
        patched.setitem(sys.modules, "gradio", gradio)
        try:
            with redirect_stdout(out), redirect_stderr(err), bounds():
                main(words)
        except Enough:
            ended = "accepted"
        except SystemExit as stop:
            ended = f"exit {stop.code or 0}"
        except BaseException as error:
            ended = f"{type(error).__name__}"
            trace = "".join(traceback.format_exception(error)[-12:])
            pytest.fail(f"{words} with {case.target} {case.value!r:.60} {case.place}:\n{trace}", pytrace=False)
    said, shown = err.getvalue(), out.getvalue().replace("\r\n", "\n")  # CSV
    after = state(folder, own)
    changed = {name for name in before.keys() | after.keys() if before.get(name) != after.get(name)}
    new = {name.split("/")[0] for name in changed}
    if case.kind in ("word", "flag"):  # a bad word can be the name of the output
        changed = {name for name in changed if name in before and name != case.value}
    assert not changed, f"{words} changed {sorted(changed)} {new}"
    assert (folder / "victim").read_text() == "precious"
    assert ended in ("done", "accepted", "exit 0", "exit 1", "exit 2"), f"{words}: {ended}"
    if ended == "exit 2":
        sentence = re.match(r"cutmix: .+\n\Z", said[said.rfind("cutmix: ") :])
        assert sentence or "For full helptext" in said or "files cannot be read" in said, f"{words} said {said}"
    assert not re.search("[\x00-\x09\x0b-\x1f\x7f-\x9f]", said + shown), f"{words} said {said + shown!r}"
    assert "Traceback" not in said + shown, f"{words} said {said}"
    assert not re.search(r"^  (warnings\.)?warn", said, flags=re.MULTILINE), f"{words} said {said}"
    return ended, said


def campaign(world: Path, patch: pytest.MonkeyPatch, examples: int) -> dict[str, int]:
    """Run examples that hypothesis draws, the same each time; return how they ended."""
    found: dict[str, int] = {}
    failures: list[str] = []

    @settings(
        max_examples=examples, derandomize=True, database=None, deadline=None, suppress_health_check=list(HealthCheck)
    )
    @given(cases())
    def each(case: Case) -> None:
        try:
            ended, _ = run(case, world, patch)
        except BaseException as error:
            if isinstance(error, KeyboardInterrupt):
                raise
            ended = "failure"
            failures.append(f"{case.command.words}\n  {case.kind} {case.target} {case.value!r:.80}\n{error}")
        found[ended] = found.get(ended, 0) + 1

    each()
    assert not failures, f"{len(failures)} of {found}:\n\n" + "\n\n".join(failures)
    return found


def test_some_bad_inputs(world: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert sum(campaign(world, monkeypatch, 12).values()) >= 12


@pytest.mark.slow
def test_200_bad_inputs(world: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """CUTMIX_EXAMPLES is another number."""
    found = campaign(world, monkeypatch, int(os.environ.get("CUTMIX_EXAMPLES", 200)))
    print(", ".join(f"{ended}: {count}" for ended, count in sorted(found.items())))


def test_every_command_is_tried() -> None:
    assert {command.words.split()[0] for command in EVERY} == set(COMMANDS)


@pytest.mark.slow
@pytest.mark.parametrize("command", EVERY, ids=lambda command: command.words[:40])
def test_the_commands_succeed_without_damage(command: Command, world: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Otherwise they would be refused for another reason than the damage."""
    ended, said = run(Case(command, "none"), world, monkeypatch)
    assert ended in ("done", "accepted"), said
