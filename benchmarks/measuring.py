"""Shared by the benchmarks: sides that take turns, separate processes, rows with targets, a table and a JSON file.

The sides of a row take turns within one run and their medians are compared, so that a machine that is busy for a while
is busy for all of them.
"""

import argparse
import json
import os
import statistics
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from importlib.metadata import distributions
from multiprocessing import get_context
from pathlib import Path
from typing import Any, NamedTuple

import torch
from rich.console import Console
from rich.table import Table

from cutmix.runs.folder import environment


@dataclass(frozen=True)
class Row:
    """Two sides of a comparison; the ratio is to be at most ``target``, or at least for rates ("/s")."""

    what: str
    unit: str
    ours: float
    beside: str
    theirs: float
    target: float | None = None
    at: str = ""

    @property
    def ratio(self) -> float:
        """Return our value as a share of theirs."""
        return self.ours / self.theirs

    def aim(self) -> tuple[str, str]:
        """Return the target and whether it is reached, as text."""
        if self.target is None:
            return "", ""
        least = self.unit.endswith("/s")
        reached = self.ratio >= self.target if least else self.ratio <= self.target
        return f"{'≥' if least else '≤'} {self.target:.3g}", "yes" if reached else "NO"


def arguments(description: str | None) -> argparse.ArgumentParser:
    """Return the flags that every benchmark has."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, help="also write the rows, hardware and versions to this file")
    parser.add_argument("--quick", action="store_true", help="few repetitions, to see that it runs")
    parser.add_argument("--threads", type=int, help="threads of torch; by default torch's own choice")
    parser.set_defaults(device="cpu")
    return parser


def report(title: str, rows: Iterable[Row], args: argparse.Namespace, about: Mapping[str, object]) -> None:
    """Run the rows one by one, print them as a table, and write them with their circumstances to the file of --json."""
    if args.threads:
        torch.set_num_threads(args.threads)
    where = environment(torch.device(args.device))
    where |= {"cores": os.cpu_count(), **about, "load_before": os.getloadavg()}
    found = []
    table = Table("what", "at", "", "ours", "beside", "theirs", "ratio", "target", "", title=title)
    for row in rows:
        print(f"{row.what}: {row.ratio:.3f} × {row.beside}", file=sys.stderr)
        ours, theirs = (f"{value:,.{1 if value >= 10 else 3}f}" if row.unit else "" for value in (row.ours, row.theirs))
        table.add_row(row.what, row.at, row.unit, ours, row.beside, theirs, f"{row.ratio:.4f}", *row.aim())
        found.append(asdict(row) | {"ratio": row.ratio})
    where["load_after"] = os.getloadavg()
    Console(width=max(130, Console().width)).print(table, where)
    if args.json:
        record = {"circumstances": where, "rows": found}
        args.json.write_text(json.dumps(record, indent=1, ensure_ascii=False) + "\n")


def versions(*packages: str) -> dict[str, str | None]:
    """Return the versions of packages; None where one is not installed."""
    return {name: next((found.version for found in distributions(name=name)), None) for name in packages}


# ---- time ----


def in_turns(
    calls: Mapping[str, Callable[[], object]],
    rounds: int,
    device: str = "cpu",
    *,
    block: float = 0.0,
    clock: Callable[[], float] = time.perf_counter,
) -> dict[str, list[float]]:
    """Return the milliseconds of each call in each round, after a warm-up; the order rotates from round to round.

    A call that takes less than ``block`` seconds is repeated within its turn until about that time has passed.
    """
    on_gpu = torch.device(device).type == "cuda"

    def taken(call: Callable[[], object], number: int = 1) -> float:
        if on_gpu:  # by events in its stream
            first, last = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            torch.cuda.synchronize()
            first.record()
            for _ in range(number):
                call()
            last.record()
            last.synchronize()
            return first.elapsed_time(last) / number
        start = clock()
        for _ in range(number):
            call()
        return 1000 * (clock() - start) / number

    for call in calls.values():
        taken(call)
    number = {name: max(1, round(1000 * block / taken(call, 2))) if block else 1 for name, call in calls.items()}
    times: dict[str, list[float]] = {name: [] for name in calls}
    for turn in range(rounds):
        for name in list(calls)[:: 1 if turn % 2 else -1]:
            times[name].append(taken(calls[name], number[name]))
    return times


def medians(times: Mapping[str, list[float]]) -> dict[str, float]:
    """Return the median of each side."""
    return {name: statistics.median(taken) for name, taken in times.items()}


def median_ratio(ours: list[float], theirs: list[float]) -> float:
    """Return the median of the ratios of consecutive timings."""
    return statistics.median(a / b for a, b in zip(ours, theirs, strict=True))


# ---- processes ----


class Side:
    """Blocks of one loop in a separate process, whose memory the other side does not affect."""

    blocks: Iterator[None]

    @classmethod
    def start(cls, make: Callable[[], Iterator[None]], threads: int) -> None:
        """Create the loop in its process."""
        torch.set_num_threads(threads)
        cls.blocks = make()

    @classmethod
    def run(cls) -> float:
        """Run the next block in the loop's process, and return the milliseconds of CPU time that it took."""
        start = time.process_time()
        next(cls.blocks)
        if torch.cuda.is_initialized():
            torch.cuda.synchronize()
        return 1000 * (time.process_time() - start)


Loop = Callable[[], Iterator[None]]


class Turns(NamedTuple):
    """The milliseconds of each side's blocks.

    Attributes:
        clock: On the clock.
        cpu: Of its processes, which other work on the machine changes little.
    """

    clock: dict[str, list[float]]
    cpu: dict[str, list[float]]


def loops_in_turns(sides: Mapping[str, Loop | tuple[Loop, ...]], rounds: int) -> Turns:
    """Return the times of blocks of loops, each of which has a process that waits while the other sides work.

    The loops of a side run at the same time and share the threads.
    """
    with ExitStack() as stack:
        spent: dict[str, list[float]] = {name: [] for name in sides}
        calls: dict[str, Callable[[], object]] = {}
        for name, given in sides.items():
            loops = given if isinstance(given, tuple) else (given,)
            threads = max(1, torch.get_num_threads() // len(loops))
            group = [stack.enter_context(_process(Side.start, make, threads)) for make in loops]

            def block(name: str = name, group: list[ProcessPoolExecutor] = group) -> None:
                futures = [process.submit(Side.run) for process in group]
                spent[name].append(sum(future.result() for future in futures))

            calls[name] = block
        clock = in_turns(calls, rounds)
        return Turns(clock, {name: own[-rounds:] for name, own in spent.items()})


def fresh(function: Callable[..., Any], *args: object) -> Any:
    """Return the result of a function that runs in a new process."""
    with _process(torch.set_num_threads, torch.get_num_threads()) as process:
        return process.submit(function, *args).result()


def _process(initializer: Callable[..., object], *initargs: object) -> ProcessPoolExecutor:
    return ProcessPoolExecutor(1, mp_context=get_context("spawn"), initializer=initializer, initargs=initargs)


def memory(device: torch.device) -> dict[str, int]:
    """Return the bytes that this process has taken; the first entry is the one that is compared."""
    status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    fields = {"resident, peak": "VmHWM", "anonymous, at the end": "RssAnon"}
    taken = {name: 1024 * int(status[field].split()[0]) for name, field in fields.items()}
    if device.type == "cuda":
        return {"on the GPU, peak": torch.cuda.max_memory_allocated(device)} | taken
    return taken
