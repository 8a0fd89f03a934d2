"""What SMMix costs: a training step in which it is active beside one with CutMix, its search for squares, its memory.

    python benchmarks/smmix.py [--model NAME] [--batch N] [--device cuda] [--bf16] [--compile] [--rounds N]
                               [--threads N] [--json FILE]

The sides take turns step by step in one process, and the medians are compared. On a CPU they are of the processor's
time, which others on the machine hardly change; on a GPU of the time that passes. Memory is that of fresh processes.
ImageNet's shapes, random pixels; AdamW.
"""

import argparse
import contextlib
import json
import os
import statistics
import sys
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn

from cutmix.allocator import keep_freed_memory
from cutmix.mixing import CutMix, mixed_cross_entropy
from cutmix.mixing.attention import SMMix
from cutmix.models import create_model
from cutmix.models.attention_maps import WithTokenHead
from cutmix.run_folder import environment


@dataclass(frozen=True)
class Row:
    """Two sides of one measure; the ratio must be at most ``target``, None without."""

    what: str
    unit: str
    ours: float
    beside: str
    theirs: float
    target: float | None = None

    @property
    def ratio(self) -> float:
        """Ours as a share of theirs."""
        return self.ours / self.theirs


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="deit_tiny_patch16_224", help="a vision transformer; default DeiT-T")
    parser.add_argument("--batch", type=int, default=16, help="images of a step; default 16")
    parser.add_argument("--device", default="cpu", help="cpu (default) or cuda")
    parser.add_argument("--bf16", action="store_true", help="autocast to bfloat16; float32 without")
    parser.add_argument("--compile", action="store_true", help="compile the network; the unmixed pass stays uncompiled")
    parser.add_argument("--rounds", type=int, default=9, help="steps of each side; default 9")
    parser.add_argument("--threads", type=int, help="threads of torch; as it chooses without this")
    parser.add_argument("--json", type=Path, help="also write the rows, hardware and versions to this file")
    args = parser.parse_args()
    if args.threads:
        torch.set_num_threads(args.threads)
    where = environment(torch.device(args.device)) | {
        "cores": os.cpu_count(), "threads": torch.get_num_threads(), "model": args.model, "batch_size": args.batch,
        "precision": "bfloat16" if args.bf16 else "float32", "compile": args.compile, "rounds": args.rounds,
        "load_before": os.getloadavg(),
    }  # fmt: skip
    rows = [*memory_rows(args), *time_rows(args)]
    where["load_after"] = os.getloadavg()
    show(rows, where)
    if args.json:
        record = {"circumstances": where, "rows": [asdict(row) | {"ratio": row.ratio} for row in rows]}
        args.json.write_text(json.dumps(record, indent=1, ensure_ascii=False) + "\n")


# ---- the sides ----


class Training:
    """A network, a batch, and a step on it; what is mixed is a copy of the batch."""

    def __init__(self, args: argparse.Namespace, *, smmix: bool) -> None:
        torch.manual_seed(0)
        keep_freed_memory()  # as the command does
        self.model: nn.Module = create_model(args.model, 1000).to(args.device).train()
        self.smmix = SMMix(prob=1.0, inplace=True, seed=0) if smmix else None
        self.cutmix = CutMix(inplace=True, seed=0)
        if smmix:
            self.model = WithTokenHead(self.model).to(args.device).train()
        self.network: Any = torch.compile(self.model) if args.compile else self.model
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=1e-4, weight_decay=0.05)
        self.images = torch.randn(args.batch, 3, 224, 224, device=args.device)
        self.labels = torch.arange(args.batch, device=args.device) % 1000
        self.autocast = torch.autocast(args.device, torch.bfloat16, enabled=args.bf16)

    def loss(self, images: Tensor) -> Tensor:
        """The loss of a batch that was not mixed yet."""
        with self.autocast:
            if self.smmix:
                return self.smmix.loss(self.network, images, self.labels)
            mixed, targets = self.cutmix(images, self.labels)
            return mixed_cross_entropy(self.network(mixed), targets, label_smoothing=0.1)

    def step(self) -> None:
        """Take a training step."""
        self.optimizer.zero_grad(set_to_none=True)
        self.loss(self.images.clone()).backward()
        self.optimizer.step()


# ---- the measures ----


def time_rows(args: argparse.Namespace) -> list[Row]:
    """A step where SMMix is active, its unmixed pass, and its search and pasting, beside a step with CutMix."""
    ours, theirs = Training(args, smmix=True), Training(args, smmix=False)
    smmix, network = ours.smmix, ours.model
    assert smmix is not None
    assert isinstance(network, WithTokenHead)
    with ours.autocast:
        attention = network.attend(ours.images)[1]
    images = ours.images.clone()

    def search() -> None:
        smmix.draw(attention).token_masks()

    def unmixed_pass() -> None:
        with ours.autocast:
            network.attend(images)

    calls: dict[str, Callable[[], object]] = {
        "smmix": ours.step, "cutmix": theirs.step, "pass": unmixed_pass, "search": search,
        "paste": lambda: smmix.draw(attention).apply(images, inplace=True),
    }  # fmt: skip
    ms = milliseconds(calls, args.rounds, args.device)
    pairwise = statistics.median(a / b for a, b in zip(ms["smmix"], ms["cutmix"], strict=True))
    median = {name: statistics.median(taken) for name, taken in ms.items()}
    step, with_cutmix = "the step with SMMix", "step with CutMix"
    return [
        Row("step with SMMix active", "ms", median["smmix"], with_cutmix, median["cutmix"], 1.40),
        Row("the same, ratios of steps in turn", "", pairwise, with_cutmix, 1.0),
        Row("unmixed pass", "ms", median["pass"], with_cutmix, median["cutmix"]),
        Row("search for squares, masks", "ms", median["search"], step, median["smmix"], 0.02),
        Row("the same and pasting", "ms", median["paste"], step, median["smmix"]),
    ]


def memory_rows(args: argparse.Namespace) -> list[Row]:
    """Peak memory of a process that takes three steps."""
    peaks = []
    for smmix in (True, False):
        with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as process:
            peaks.append(process.submit(peak_memory, args, smmix, torch.get_num_threads()).result() / 1e6)
    what = "on the GPU" if "cuda" in args.device else "resident"
    return [Row(f"peak memory, {what}", "MB", peaks[0], "with CutMix", peaks[1], 1.10)]


def peak_memory(args: argparse.Namespace, smmix: bool, threads: int) -> int:
    """Bytes, in a process that has done nothing else."""
    torch.set_num_threads(threads)
    training = Training(args, smmix=smmix)
    for _ in range(3):
        training.step()
    if "cuda" in args.device:
        return torch.cuda.max_memory_allocated()
    status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return 1024 * int(status["VmHWM"].split()[0])


def milliseconds(calls: dict[str, Callable[[], object]], rounds: int, device: str) -> dict[str, list[float]]:
    """Milliseconds of each call in each round, after one that does not count; the order turns round by round."""
    on_gpu = "cuda" in device
    wait: Callable[[], Any] = torch.cuda.synchronize if on_gpu else contextlib.nullcontext
    clock = time.perf_counter if on_gpu else time.process_time
    times: dict[str, list[float]] = {name: [] for name in calls}
    for turn in range(rounds + 1):
        print(f"round {turn} of {rounds}", end="\r", file=sys.stderr)
        for name in list(calls)[:: -1 if turn % 2 else 1]:
            wait()
            start = clock()
            calls[name]()
            wait()
            times[name].append(1000 * (clock() - start))
    return {name: taken[1:] for name, taken in times.items()}


def show(rows: list[Row], where: dict[str, object]) -> None:
    """Print the rows as a table."""
    table = Table("what", "", "ours", "beside", "theirs", "ratio", "target", "", title=f"SMMix, {where['model']}")
    for row in rows:
        target, verdict = "", ""
        if row.target is not None:
            target, verdict = f"≤ {row.target}", "yes" if row.ratio <= row.target else "NO"
        ours, theirs = (f"{value:,.1f}" if row.unit else "" for value in (row.ours, row.theirs))
        table.add_row(row.what, row.unit, ours, row.beside, theirs, f"{row.ratio:.4f}", target, verdict)
    Console(width=max(120, Console().width)).print(table, where)


if __name__ == "__main__":
    main()
