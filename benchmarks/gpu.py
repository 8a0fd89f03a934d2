"""Half an hour on a GPU: what waits, kernels, PyramidNet-200, ResNet-50 and its input, and pairs of runs.

    python benchmarks/gpu.py --minutes 9 --json FILE --resume [--data DIR] [--runs DIR] [--only PART] [--quick]

A row is written as soon as it is there, with card, versions, precision and command. With --resume, rows of the file are
not measured again and the runs of pairs continue, so that a machine that is lent for minutes is used to the last.
With --quick everything runs on small models, on a CPU too.
"""

import argparse
import json
import os
import shlex
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch.profiler import ProfilerActivity, profile

from cutmix.config.options import TrainOptions
from cutmix.config.recipe import Recipe
from cutmix.config.recipes import find_recipe
from cutmix.models import create_model
from cutmix.runs.folder import environment, is_complete
from cutmix.runs.record import read_records
from cutmix.runtime.device import arithmetic
from cutmix.runtime.files import write_atomic
from cutmix.training.loop import run_training, train_step
from images import find_data, open_images, write_cifar
from measuring import arguments, in_turns, medians
from mixing import authors_cutmix, loss_rows, mixing_rows
from plain import plain_optimizer
from training import one_step, opened

PAIRS = 3  # seeds


@dataclass(frozen=True)
class Measured:
    """What a measurement found: values by their names, with the unit in the name."""

    part: str
    what: str
    at: str
    precision: str
    seed: int | None
    values: dict[str, Any]


Measurement = tuple[str, Callable[[], list[Measured]]]


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--minutes", type=float, default=9, help="start no measurement after this time; default 9")
    parser.add_argument("--resume", action="store_true", help="keep the rows of the file, and measure what it lacks")
    parser.add_argument("--data", default="cifar-100", help="CIFAR-100; random images where it is not there")
    parser.add_argument("--runs", type=Path, default=Path("runs/gpu"), help="folder of the pairs of runs")
    parser.add_argument("--only", choices=list(PARTS), help="this part alone")
    parser.set_defaults(device="cuda" if torch.cuda.is_available() else "cpu", json=Path("gpu.json"))
    args = parser.parse_args()
    args.end = time.monotonic() + 60 * args.minutes
    if args.threads:
        torch.set_num_threads(args.threads)
    with tempfile.TemporaryDirectory() as folder:
        scratch = Path(folder)
        args.small = str(write_cifar(scratch / "few", train=64, test=16)) if args.quick else ""
        args.small = args.small or find_data(args.data, scratch)[0]
        run(args, scratch)


def run(args: argparse.Namespace, scratch: Path) -> None:
    """Measure until the time is over; write each row as it is there."""
    here = environment(torch.device(args.device)) | {"command": shlex.join([Path(sys.argv[0]).name, *sys.argv[1:]])}
    rows: list[dict[str, Any]] = json.loads(args.json.read_text()) if args.resume and args.json.exists() else []
    done = {(row["name"], row["device"], row["torch"]) for row in rows if not row.get("unfinished")}
    for part, measurements in PARTS.items():
        for name, measure in measurements(args, scratch) if args.only in (None, part) else ():
            if (name, here["device"], here["torch"]) in done:
                continue
            if time.monotonic() > args.end:
                print(f"the time is over before: {name}; go on with --resume")
                return
            start = time.monotonic()
            try:
                found = measure()
            except (
                RuntimeError,
                OSError,
                SystemExit,
            ) as error:  # such as too little memory: the other rows are still wanted
                found = [Measured(part, name, "", "", None, {"error": f"{type(error).__name__}: {error}"[:500]})]
            took = round(time.monotonic() - start, 2)
            rows = [row for row in rows if row["name"] != name or row["device"] != here["device"]]
            for one in found:
                values = one.values
                rows.append({"name": name} | asdict(one) | values | {"seconds": took} | here)
                del rows[-1]["values"]
                print(f"{one.what} {one.at} {one.precision}: {values}", flush=True)
            content = (json.dumps(rows, indent=1, ensure_ascii=False) + "\n").encode()
            write_atomic(args.json, partial(_write, content))


def _write(content: bytes, file: Any) -> None:
    file.write(content)


def wait(device: str) -> None:
    if device.startswith("cuda"):
        torch.cuda.synchronize()


# ---- 1: what waits ----


def waiting(args: argparse.Namespace, scratch: Path) -> Iterator[Measurement]:
    """Yield the tests that need a GPU, and waits and launches of a step."""
    yield "tests", partial(gpu_tests, args.quick)
    for name in (
        ("cifar100-resnet20-cutmix",) if args.quick else ("cifar100-resnet20-cutmix", "cifar100-pyramidnet200-cutmix")
    ):
        for precision in ("float32",) if args.quick else ("float32", "bfloat16", "float16"):
            recipe = replace(find_recipe(name), data=args.small, mix_prob=1.0, ema_decay=0.99)
            recipe = replace(recipe, precision=cast("Any", precision))
            yield f"waits {name} {precision}", partial(waits, recipe, scratch, args.device)


def gpu_tests(quick: bool) -> list[Measured]:
    root = Path(__file__).parents[1]
    where = ["--version"] if quick else []
    command = [sys.executable, "-m", "pytest", "-q", "-m", "gpu", *where]
    found = subprocess.run(command, cwd=root, capture_output=True, text=True, check=False)
    last = (found.stdout.strip().splitlines() or [""])[-1]
    return [Measured("waits", "pytest -m gpu", "", "", None, {"exit": found.returncode, "summary": last})]


def waits(recipe: Recipe, scratch: Path, device: str) -> list[Measured]:
    """Count by the profiler what waits in a step, after steps that choose kernels."""
    steps = 5
    with opened(recipe, scratch / "waits", device, 10**6) as run, arithmetic(recipe.precision, run.world.device):
        batches = run.batches.epoch()
        for _ in range(3):
            train_step(run, *next(batches))
        wait(device)
        kinds = [ProfilerActivity.CPU] + [ProfilerActivity.CUDA] * device.startswith("cuda")
        with profile(activities=kinds) as profiled:
            for _ in range(steps):
                train_step(run, *next(batches))
        counts = {event.key: event.count / steps for event in profiled.key_averages()}
    names = ("Synchronize", "Memcpy DtoH", "cudaLaunchKernel", "Memcpy HtoD")
    values = {f"{name} a step": sum(n for key, n in counts.items() if name in key) for name in names}
    return [Measured("waits", "a step", recipe.model, recipe.precision, recipe.seed, values)]


# ---- 2: kernels ----


def kernels(args: argparse.Namespace, scratch: Path) -> Iterator[Measurement]:
    """Yield mixing and its loss beside timm, torchvision and kornia, timed by CUDA events on a GPU."""
    sizes = ((4, 16),) if args.quick else ((256, 224), (128, 32))
    for n, side in sizes:
        yield f"mixing {n}×{side}", partial(beside, mixing_rows, args.device, 1 if args.quick else 50, ((n, side),))
    if not args.quick:
        yield "loss", partial(beside, loss_rows, args.device, 50)


def beside(rows: Callable[..., Iterator[Any]], *arguments: Any) -> list[Measured]:
    return [
        Measured(
            "kernels", row.what, row.at, "float32", 0, {"ms": row.ours, "beside": row.beside, "their ms": row.theirs}
        )
        for row in rows(*arguments)
    ]


# ---- 3: a network of the paper ----


def network(args: argparse.Namespace, scratch: Path) -> Iterator[Measurement]:
    """Yield steps of the authors' loop beside those of ``cutmix train``, in each precision, eager and compiled."""
    name = "cifar100-resnet20-cutmix" if args.quick else "cifar100-pyramidnet200-cutmix"
    recipe = replace(find_recipe(name), data=args.small, batch_size=16 if args.quick else 64)
    rounds = 1 if args.quick else 20
    for precision in ("float32",) if args.device == "cpu" else ("float32", "tf32", "bfloat16"):
        its = replace(recipe, precision=cast("Any", precision))
        yield f"network {precision}", partial(loops, its, scratch, args.device, rounds, ("off",))
    if not args.quick:
        its = replace(recipe, precision="bfloat16")
        yield "network bfloat16 compiled", partial(loops, its, scratch, args.device, rounds, ("model", "step"))


def loops(recipe: Recipe, scratch: Path, device: str, rounds: int, modes: tuple[Any, ...]) -> list[Measured]:
    """Time a step of the authors' loop, of ours, in turns."""
    found = []
    with arithmetic(recipe.precision, torch.device(device)):
        for mode in modes:
            with opened(replace(recipe, compile=mode), scratch / "network", device) as run:
                sides: dict[str, Callable[[], object]] = {
                    "ours": partial(one_step, run),
                    "authors": authors_loop(recipe, device),
                }
                for _ in range(3):
                    sides["ours"]()  # compiles, and chooses kernels
                ms = medians(in_turns(sides, rounds, device))
            speed = {f"{side}, images/s": 1000 * recipe.batch_size / taken for side, taken in ms.items()}
            at = f"{recipe.model}, batch {recipe.batch_size}, --compile {mode}"
            found.append(Measured("network", "training step", at, recipe.precision, recipe.seed, speed))
    return found


def authors_loop(recipe: Recipe, device: str) -> Callable[[], None]:
    """Return a step of the authors' ``train.py``: NCHW, their CutMix, the loss and the accuracy read in each step."""
    data = open_images(recipe.data, "train")
    images = data.images[: recipe.batch_size].to(device) / 255
    labels = data.labels[: recipe.batch_size].to(device)
    model = create_model(recipe.model, data.num_classes).to(device).train()
    optimizer = plain_optimizer(model)
    half = recipe.precision == "bfloat16"

    def step() -> None:
        mixed, (own, other, lam) = authors_cutmix(images.clone(), labels)
        with torch.autocast(torch.device(device).type, torch.bfloat16, enabled=half):
            logits = model(mixed)
            loss = F.cross_entropy(logits, own) * lam + F.cross_entropy(logits, other) * (1 - lam)
        (logits.argmax(1) == own).float().mean().item()
        loss.item()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    return step


# ---- 4: large images ----


def large(args: argparse.Namespace, scratch: Path) -> Iterator[Measurement]:
    """Yield ResNet-50 on one batch again and again, and on JPEG files with the share of time that waits for them."""
    for precision in ("float32",) if args.quick else ("tf32", "bfloat16"):
        if precision != "tf32" or args.device != "cpu":
            yield f"large {precision}", partial(from_files, precision, scratch, args)


def from_files(precision: Any, scratch: Path, args: argparse.Namespace) -> list[Measured]:
    quick = args.quick
    steps, batch, side, model = (2, 4, 32, "resnet10t") if quick else (20, 256, 224, "resnet50")
    folder = photographs(scratch / "photographs", count=16 if quick else 4096)
    recipe = Recipe(
        name="large", data=str(folder), model=model, pretrained=False, mix="cutmix", batch_size=batch, image_size=side,
        precision=precision, epochs=100, optimizer="sgd", lr=0.01, ema_decay=0.0, val_fraction=0.25,
    )  # fmt: skip
    with opened(recipe, scratch / "large", args.device, 10**6) as run, arithmetic(precision, run.world.device):
        batches = run.batches.batches  # type: ignore[attr-defined]
        images, labels = next(batches)
        times = {}
        for name in ("warm", "synthetic"):
            start = time.perf_counter()
            for _ in range(3 if name == "warm" else steps):
                train_step(run, images.clone(), labels)
            wait(args.device)
            times[name] = time.perf_counter() - start
        waited, start = 0.0, time.perf_counter()
        for _ in range(steps):
            clock = time.perf_counter()
            given = next(batches)
            waited += time.perf_counter() - clock
            train_step(run, *given)
        wait(args.device)
        total = time.perf_counter() - start
    values = {
        "synthetic, images/s": steps * batch / times["synthetic"], "from files, images/s": steps * batch / total,
        "share of the host's time in the loader": waited / total,
        "share of the time waiting for input": max(0.0, 1 - times["synthetic"] / total), "workers": run.options.workers,
    }  # fmt: skip
    return [Measured("large", "training step", f"{model}, {batch}×3×{side}×{side}", precision, 0, values)]


def photographs(folder: Path, count: int) -> Path:
    """Write smooth random images of 500×375 pixels in two classes, once."""
    rng = np.random.default_rng(0)
    for i in range(count if not folder.exists() else 0):
        path = folder / str(i % 2) / f"{i}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        small = Image.fromarray(rng.integers(0, 256, (47, 63, 3), np.uint8))
        small.resize((500, 375), Image.Resampling.BICUBIC).save(path, quality=90)
    return folder


# ---- 5: does it help ----


def pairs(args: argparse.Namespace, scratch: Path) -> Iterator[Measurement]:
    """Yield runs of CIFAR-100 ResNet-18 without and with CutMix; each is resumed in slices of the time."""
    data = args.small if args.quick else args.data  # never a result of random images
    for seed in range(1 if args.quick else PAIRS):
        for mix in ("none", "cutmix"):
            recipe = replace(
                find_recipe("cifar100-resnet20-cutmix" if args.quick else "cifar100-resnet18-cutmix"),
                mix=mix,
                seed=seed,
            )
            recipe = replace(recipe, data=data, name=f"gpu-{mix}", epochs=1 if args.quick else 200)
            folder = (scratch if args.quick else args.runs) / f"{mix}-seed{seed}"
            yield f"pair {mix} {seed}", partial(slice_of_run, recipe, folder, args)


def slice_of_run(recipe: Recipe, folder: Path, args: argparse.Namespace) -> list[Measured]:
    """Train until the time is over; the signal saves a checkpoint, from which the next call goes on."""
    left = max(1.0, args.end - time.monotonic())
    timer = threading.Timer(left, os.kill, (os.getpid(), signal.SIGTERM))
    timer.start()
    values: dict[str, Any] = {}
    try:
        run_training(recipe, TrainOptions(out=folder, resume=True, device=args.device))
    except SystemExit:
        values["unfinished"] = True
    finally:
        timer.cancel()
    if is_complete(folder):
        found = {r.metric: r for r in read_records(folder / "results.jsonl") if r.which == "last"}["top1_err"]
        values["top-1 error, last epoch, %"] = found.value
        recipe = replace(recipe, precision=cast("Any", found.precision))
    at = f"{recipe.model}, {recipe.epochs} epochs, mix {recipe.mix}"
    return [Measured("pairs", "run", at, recipe.precision, recipe.seed, values)]


PARTS: dict[str, Callable[[argparse.Namespace, Path], Iterator[Measurement]]] = {
    "waits": waiting, "kernels": kernels, "network": network, "large": large, "pairs": pairs,
}  # fmt: skip


if __name__ == "__main__":
    main()
