"""Cost of CutMix and SMMix in a training step; speed of ``cutmix train`` beside a plain loop; its memory and profile.

    python benchmarks/training.py [--only PART] [--data PATH] [--json FILE] [--quick] [--device cuda] [--threads N]
                                  [--compile]

The sides take turns by steps or blocks of steps. Memory is that of new processes. The part "small" is compared by CPU
time, with --threads 1; with ONEDNN_MAX_CPU_ISA=AVX2 ATEN_CPU_CAPABILITY=avx2 it is that of a CPU without bfloat16. The
part "pair" compares two runs at the same time with one run that has all threads.
"""

import argparse
import contextlib
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from itertools import count, islice
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from torch import Tensor
from torch.profiler import ProfilerActivity, profile
from torch.utils.flop_counter import FlopCounterMode

from cutmix.config.options import TrainOptions
from cutmix.config.recipes import Recipe, find_recipe
from cutmix.data.loaders import Batch, Loader
from cutmix.mixing import SMMix
from cutmix.models.transformers import WithTokenHead
from cutmix.runtime.device import autocast, keep_freed_memory, processes, resolve_precision
from cutmix.runtime.terminal import Stop
from cutmix.training.loop import train_epoch, train_step
from cutmix.training.setup import Run, prepare
from images import find_data, open_images, write_cifar
from measuring import Row, arguments, fresh, in_turns, loops_in_turns, median_ratio, medians, memory, report
from plain import check_twins, plain_blocks, plain_network_steps


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--data", default="cifar-100", help="small images, by name or path; default cifar-100")
    parser.add_argument(
        "--only",
        choices=["memory", "step", "loop", "network", "small", "pair", "smmix", "attention"],
        help="this part alone",
    )
    parser.add_argument("--device", default="cpu", help="cpu (default) or cuda")
    parser.add_argument("--compile", action="store_true", help="also with torch.compile, whose start takes a minute")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        scratch = Path(folder)
        data, what = find_data(args.data, scratch)
        recipe = replace(find_recipe("cifar100-resnet20-cutmix"), data=data, mix_prob=1.0)
        report(f"Training on {what}", rows_of(recipe, scratch, args), args, {"data": what})


def rows_of(recipe: Recipe, scratch: Path, args: argparse.Namespace) -> Iterator[Row]:
    """Yield the requested rows in the order of the table."""
    blocks, steps = (2, 3) if args.quick else (7, 40)  # long beside the four batches that workers have ready
    parts = {
        "memory": partial(memory_rows, repeats=1 if args.quick else 3),
        "step": partial(step_rows, pairs=3 if args.quick else 100),
        "loop": partial(speed_rows, blocks=blocks, steps=steps, compiled=args.compile),
        "network": partial(network_rows, rounds=1 if args.quick else 21),
        "small": partial(small_rows, rounds=1 if args.quick else 5, compiled=args.compile),
        "pair": partial(pair_rows, rounds=1 if args.quick else 3, steps=1 if args.quick else 4),
        "smmix": partial(smmix_rows, rounds=2 if args.quick else 21, batch_size=4 if args.quick else 16),
        "attention": partial(attention_rows, rounds=2 if args.quick else 11, batch_size=4 if args.quick else 32),
    }
    for name, rows in parts.items():
        if args.only in (None, name):
            yield from rows(recipe, scratch, args.device)


def at_of(recipe: Recipe) -> str:
    """Return the model and the batch of a row."""
    return f"{recipe.model}, batch {recipe.batch_size}"


# ---- cutmix train, a block of steps at a time ----


@contextlib.contextmanager
def opened(recipe: Recipe, out: Path, device: str, block: int = 1) -> Iterator[Run]:
    """Open a run as ``cutmix train`` does, with its loader cut into blocks."""
    with processes(device) as world, contextlib.redirect_stdout(sys.stderr):
        keep_freed_memory()  # as the command does
        run = prepare(recipe, TrainOptions(out=out, device=device, overwrite=True), world)
        run.batches = Blocks(run.batches, block)
        run.network.train()
        yield run
        if run.folder:
            run.folder.close()


class Blocks:
    """A loader whose epochs are the next few batches of another's, so that ``train_epoch`` runs a block of steps."""

    def __init__(self, batches: Loader, number: int) -> None:
        self.steps, self.number = batches.steps, number
        self.batches = (batch for epoch in count() for batch in batches.epoch(epoch))

    def epoch(self, epoch: int = 0, start: int = 0) -> Iterator[Batch]:
        """Yield the next block."""
        return islice(self.batches, self.number)


def one_step(run: Run) -> None:
    train_step(run, *next(run.batches.epoch()))


def our_steps(recipe: Recipe, out: Path, device: str) -> Iterator[None]:
    """Run training steps of ``cutmix train`` with their batches, without the start and the end of an epoch."""
    with opened(recipe, out, device) as run:
        while True:
            one_step(run)
            yield


def our_blocks(recipe: Recipe, out: Path, device: str, steps: int) -> Iterator[None]:
    """Run the loop of ``cutmix train``, a block of steps at a time: batches, mixing, steps, progress, log."""
    with opened(recipe, out, device, steps) as run:
        while True:
            train_epoch(run, 0, Stop())
            yield


# ---- the rows ----


def memory_rows(recipe: Recipe, scratch: Path, device: str, repeats: int) -> Iterator[Row]:
    """Yield the memory with the data set minus that with 256 images, beside the size of both splits' pixels."""
    small = replace(recipe, data=few_images(scratch))
    differences: dict[str, list[int]] = {}
    for _ in range(repeats):
        taken, without = (fresh(memory_of_training, each, scratch, device, 30) for each in (recipe, small))
        for name in taken:
            differences.setdefault(name, []).append(taken[name] - without[name])
    pixels = sum(open_images(recipe.data, split).images.nbytes for split in ("train", "test")) / 1e6
    for number, (name, extra) in enumerate(differences.items()):
        target = None if number else 1.3
        ours = statistics.median(extra) / 1e6
        yield Row(f"memory above the model's: {name}", "MB", ours, "uint8 set", pixels, target, at_of(recipe))


def memory_of_training(recipe: Recipe, scratch: Path, device: str, steps: int) -> dict[str, int]:
    """Return the bytes that opening the data and some steps take in a new process."""
    with opened(recipe, scratch / "memory", device, steps) as run:
        train_epoch(run, 0, Stop())
        return memory(run.world.device)


def few_images(scratch: Path) -> str:
    return str(write_cifar(Path(tempfile.mkdtemp(dir=scratch)), train=256, test=256))


def step_rows(recipe: Recipe, scratch: Path, device: str, pairs: int) -> Iterator[Row]:
    """Yield a step with CutMix beside one without, from the batch to the optimizer."""
    unmixed = replace(recipe, mix="none")
    with opened(recipe, scratch / "mixed", device) as mixed, opened(unmixed, scratch / "unmixed", device) as without:
        ms = in_turns({"ours": partial(one_step, mixed), "theirs": partial(one_step, without)}, pairs, device)
    median, at = medians(ms), at_of(recipe)
    ratio = median_ratio(ms["ours"], ms["theirs"])
    yield Row("training step with CutMix", "ms", median["ours"], "without CutMix", median["theirs"], 1.02, at)
    yield Row("the same, ratios of steps in turn", "", ratio, "without CutMix", 1.0, at=at)


def speed_rows(recipe: Recipe, scratch: Path, device: str, blocks: int, steps: int, *, compiled: bool) -> Iterator[Row]:
    """Yield the images per second of the loop with CutMix, beside a plain loop with 0 and 2 workers."""
    sides = {"ours": partial(our_blocks, recipe, scratch / "eager", device, steps)}
    sides |= {f"plain loop, {n} workers": partial(plain_blocks, recipe, n, device, steps) for n in (0, 2)}
    if compiled:
        changed = replace(recipe, compile="step")
        sides["the same with --compile"] = partial(our_blocks, changed, scratch / "compiled", device, steps)
    ms = medians(loops_in_turns(sides, blocks).clock)
    speed = {name: 1000 * steps * recipe.batch_size / taken for name, taken in ms.items()}
    fastest_plain = max(theirs for name, theirs in speed.items() if name.startswith("plain"))
    ours = speed.pop("ours")
    for name, theirs in speed.items():
        target = 2.5 if theirs == fastest_plain else None
        yield Row("cutmix train, with CutMix", "images/s", ours, name, theirs, target, at_of(recipe))


def network_rows(recipe: Recipe, scratch: Path, device: str, rounds: int) -> Iterator[Row]:
    """Yield a step of PyramidNet-110 on a batch of 64 by ``cutmix train``, beside the same model written plainly.

    Each side has a separate process: ``cutmix train`` configures the memory allocator, a plain script does not.
    """
    default = replace(find_recipe("cifar100-pyramidnet110"), data=recipe.data, lr=0.01)
    float32 = replace(default, precision="float32", channels_last=False)
    fresh(check_twins, default.model)
    times = loops_in_turns({
        "plain": partial(plain_network_steps, float32, device),
        "float32": partial(our_steps, float32, scratch / "float32", device),
        "default": partial(our_steps, default, scratch / "default", device),
    }, rounds)  # fmt: skip
    ms = medians(times.clock)
    speed = {name: 1000 * default.batch_size / taken for name, taken in ms.items()}
    at, beside = at_of(default), "written plainly, float32 NCHW"
    yield Row("training step, float32 NCHW", "ms", ms["float32"], beside, ms["plain"], 1.0, at)
    yield Row("default speed settings", "images/s", speed["default"], beside, speed["plain"], 1.8, at)


def small_rows(recipe: Recipe, scratch: Path, device: str, rounds: int, *, compiled: bool) -> Iterator[Row]:
    """Yield the images a second of CPU time of ``cutmix train`` beside float32 loops, and the profile of its steps."""
    steps = 1 if rounds == 1 else 4
    precision = resolve_precision("auto", torch.device(device))
    recipe, target = replace(recipe, precision=precision), 3.0 if precision == "bfloat16" else 1.3
    network = replace(find_recipe("cifar100-pyramidnet110"), data=recipe.data, lr=0.01, batch_size=32)
    network = replace(network, precision=precision)
    plain = partial(plain_blocks, recipe, 0, device, steps), partial(plain_network_steps, network, device)
    ours = partial(our_blocks, recipe, scratch / "small", device, steps), partial(our_steps, network, scratch, device)
    for own, theirs, loop, number in zip((recipe, network), plain, ours, (steps, 1), strict=True):
        sides = {"ours": loop, "plain": theirs}
        if compiled and own is recipe:
            whole = replace(recipe, compile="step")
            sides["compiled"] = partial(our_blocks, whole, scratch / "compiled", device, steps)
        ms = medians(loops_in_turns(sides, rounds).cpu)
        speed = {name: 1000 * number * own.batch_size / taken for name, taken in ms.items()}
        what = f"{'cutmix train' if own is recipe else 'its training step'}, {precision}"
        yield Row(
            f"{what}, CPU time", "images/s", speed["ours"], "plain float32 loop", speed["plain"], target, at_of(own)
        )
        if "compiled" in speed:
            what = "the same with --compile step, CPU time"
            yield Row(what, "images/s", speed["compiled"], "without", speed["ours"], at=at_of(own))
    for own in (recipe, network):
        spent, reached, peak = fresh(profile_steps, own, scratch, device, 1 if rounds == 1 else 3)
        for name, taken in spent.items():
            share = 100 * taken / sum(spent.values())
            yield Row(f"profile of a step: {name}", "%", share, "the step", 100.0, at=at_of(own))
        beside = f"product of 2,048² matrices, {precision}"
        yield Row("arithmetic of the convolutions", "GFLOP/s", reached, beside, peak, at=at_of(own))


def pair_rows(recipe: Recipe, scratch: Path, device: str, rounds: int, steps: int) -> Iterator[Row]:
    """Yield the images a second of two runs at the same time, which share the threads, beside those of one run."""
    loops = [partial(our_blocks, recipe, scratch / name, device, steps) for name in ("alone", "left", "right")]
    turns = loops_in_turns({"one": loops[0], "two": (loops[1], loops[2])}, rounds)
    for times, clock in zip(turns, ("on the clock", "CPU time"), strict=True):
        ms = medians(times)
        one, two = (1000 * number * steps * recipe.batch_size / ms[name] for name, number in (("one", 1), ("two", 2)))
        yield Row(f"two runs at the same time, {clock}", "images/s", two, "one run", one, at=at_of(recipe))


PARTS = {"convolution": "convolutions", "batch_norm": "batch normalization"}


def profile_steps(recipe: Recipe, scratch: Path, device: str, steps: int) -> tuple[dict[str, float], float, float]:
    """Return the milliseconds of a training step by kind of operator, and two speeds in GFLOP/s.

    They are those of its convolutions and of a product of matrices in the same precision.
    """
    with opened(recipe, scratch / "profile", device) as run:
        with FlopCounterMode(display=False) as counter:
            one_step(run)
        step = medians(in_turns({"step": partial(one_step, run)}, 2 * steps + 1, clock=time.process_time))["step"]
        with profile(activities=[ProfilerActivity.CPU]) as found:
            for _ in range(steps):
                one_step(run)
    spent = dict.fromkeys([*PARTS.values(), "everything else"], 0.0)
    for event in found.key_averages():
        part = next((part for key, part in PARTS.items() if key in event.key), "everything else")
        spent[part] += event.self_cpu_time_total / 1000 / steps
    counts = counter.get_flop_counts()["Global"]
    convolutions = sum(count for operator, count in counts.items() if "convolution" in str(operator))
    taken = step * spent[PARTS["convolution"]] / sum(spent.values())  # of CPU time, as the profile is of the clock
    matrix = torch.rand(2048, 2048, dtype=torch.bfloat16 if recipe.precision == "bfloat16" else torch.float32)
    product = in_turns({"product": lambda: matrix @ matrix}, 2 * steps + 1, clock=time.process_time)
    return spent, convolutions / taken / 1e6, 2 * 2048**3 / medians(product)["product"] / 1e6


def smmix_rows(recipe: Recipe, scratch: Path, device: str, rounds: int, batch_size: int) -> Iterator[Row]:
    """Yield DeiT-T's steps with SMMix active beside steps with CutMix, the search for squares, and the memory.

    Small images are enlarged to 224×224 and not augmented, so that the model dominates a step.
    """
    changes: dict[str, Any] = {"data": few_images(scratch), "mix_prob": 1.0, "batch_size": batch_size}
    changes["auto_augment"] = "none"
    smmix, cutmix = (replace(find_recipe(f"imagenet-deit-tiny-{mix}"), **changes) for mix in ("smmix", "cutmix"))
    at, beside = f"DeiT-T, {batch_size}×3×224×224", "with CutMix"
    peaks = [fresh(memory_of_training, each, scratch, device, 3) for each in (smmix, cutmix)]
    name, ours = next(iter(peaks[0].items()))
    yield Row(f"memory with SMMix active: {name}", "MB", ours / 1e6, beside, peaks[1][name] / 1e6, 1.1, at)
    with opened(smmix, scratch / "smmix", device) as run, opened(cutmix, scratch / "cutmix", device) as other:
        mix, network = run.state.mix, run.state.model
        assert isinstance(mix, SMMix)
        assert isinstance(network, WithTokenHead)
        images, _ = next(run.batches.epoch())

        def unmixed_pass() -> Tensor:
            with autocast(run.recipe.precision, torch.device(device)):
                return network.attend(images)[1]

        attention = unmixed_pass()
        ms = in_turns({
            "smmix": partial(one_step, run), "cutmix": partial(one_step, other), "pass": unmixed_pass,
            "search": lambda: mix.draw(attention).token_masks(),
        }, rounds, device)  # fmt: skip
    median = medians(ms)
    ratio = median_ratio(ms["smmix"], ms["cutmix"])
    yield Row("training step with SMMix active", "ms", median["smmix"], beside, median["cutmix"], 1.4, at)
    yield Row("the same, ratios of steps in turn", "", ratio, beside, 1.0, at=at)
    yield Row("its unmixed pass", "ms", median["pass"], "step with CutMix", median["cutmix"], at=at)
    yield Row("its search for squares", "ms", median["search"], "step with SMMix", median["smmix"], 0.02, at)


def fused_step(run: Run) -> None:
    """Take a step with PyTorch's fused attention."""
    with mock.patch("cutmix.training.loop.training_attention") as left_out:
        left_out.return_value = contextlib.nullcontext()
        one_step(run)


def attention_rows(recipe: Recipe, scratch: Path, device: str, rounds: int, batch_size: int) -> Iterator[Row]:
    """Yield steps of DeiT-T in bfloat16 beside the same steps with PyTorch's fused attention, by number of tokens."""
    base = replace(find_recipe("cifar100-deit-tiny"), data=few_images(scratch), auto_augment="none")
    base = replace(base, batch_size=batch_size, precision="bfloat16")
    for patch, tokens in ((8, 17), (4, 65), (2, 257)):
        each = replace(base, model=f"deit_tiny_patch{patch}_32")
        with opened(each, scratch / f"attention-{patch}", device) as run:
            ms = in_turns({"without": partial(one_step, run), "with": partial(fused_step, run)}, rounds, device)
        median, at = medians(ms), f"{at_of(each)}, {tokens} tokens"
        yield Row("training step", "ms", median["without"], "with fused attention", median["with"], 1.05, at)


if __name__ == "__main__":
    main()
