"""What CutMix costs in a training step, how fast ``cutmix train`` is beside what everybody writes, its memory.

    python benchmarks/training.py [--only PART] [--data PATH] [--json FILE] [--quick] [--device cuda] [--threads N]
                                  [--compile]

The sides take turns within one run, step by step or block by block, and the medians are compared, so that a machine
that is busy for a while is busy for all of them. Memory is that of fresh processes.
"""

import argparse
import contextlib
import json
import os
import pickle
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass, replace
from functools import partial
from itertools import count, islice
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset
from torchvision import transforms

from cutmix.allocator import keep_freed_memory
from cutmix.data import ArraySet, open_data
from cutmix.data.loaders import Batch, Loader
from cutmix.distributed import processes
from cutmix.errors import InputError
from cutmix.models import create_model
from cutmix.options import TrainOptions
from cutmix.preparation import Run, prepare
from cutmix.recipes import Recipe, find_recipe
from cutmix.run_folder import environment
from cutmix.signals import Stop
from cutmix.train import train_epoch, train_step


@dataclass(frozen=True)
class Row:
    """Two sides of one measure; the ratio must be at most ``target``, at least for images per second, None without."""

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
    parser.add_argument("--data", default="cifar-100", help="small images, by name or path; default cifar-100")
    parser.add_argument("--json", type=Path, help="also write the rows, hardware and versions to this file")
    parser.add_argument("--only", choices=["memory", "step", "loop", "network"], help="this part alone")
    parser.add_argument("--quick", action="store_true", help="few repetitions: does it run?")
    parser.add_argument("--device", default="cpu", help="cpu (default) or cuda")
    parser.add_argument("--threads", type=int, help="threads of torch; as it chooses without this")
    parser.add_argument("--compile", action="store_true", help="also with torch.compile, whose start takes a minute")
    args = parser.parse_args()
    if args.threads:
        torch.set_num_threads(args.threads)
    with tempfile.TemporaryDirectory() as folder:
        scratch = Path(folder)
        data, what = find_data(args.data, scratch)
        recipe = replace(find_recipe("cifar100-resnet20-cutmix"), data=data, mix_prob=1.0)
        where = environment(torch.device(args.device)) | {
            "cores": os.cpu_count(), "data": what, "model": recipe.model, "batch_size": recipe.batch_size,
            "load_before": os.getloadavg(),
        }  # fmt: skip
        rows = []
        for row in measures(recipe, scratch, args):
            print(f"{row.what}: {row.ratio:.3f} × {row.beside}", file=sys.stderr)
            rows.append(row)
    where["load_after"] = os.getloadavg()
    show(rows, where)
    if args.json:
        record = {"circumstances": where, "rows": [asdict(row) | {"ratio": row.ratio} for row in rows]}
        args.json.write_text(json.dumps(record, indent=1, ensure_ascii=False) + "\n")


def measures(recipe: Recipe, scratch: Path, args: argparse.Namespace) -> Iterator[Row]:
    """The rows that are asked for, in the order of the table."""
    blocks, steps = (2, 3) if args.quick else (7, 40)  # long beside the four batches that workers have ready
    parts = {
        "memory": partial(memory_rows, repeats=1 if args.quick else 3),
        "step": partial(step_rows, pairs=3 if args.quick else 100),
        "loop": partial(speed_rows, blocks=blocks, steps=steps, compiled=args.compile),
        "network": partial(network_rows, rounds=1 if args.quick else 21),
    }
    for name, rows in parts.items():
        if args.only in (None, name):
            yield from rows(recipe, scratch, args.device)


# ---- the sides ----


@contextlib.contextmanager
def opened(recipe: Recipe, out: Path, device: str, block: int = 1) -> Iterator[Run]:
    """What ``cutmix train`` works with, made by itself; its loader is cut into blocks."""
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


class Pictures(Dataset[tuple[Tensor, int]]):
    """The images as ``torchvision.datasets.CIFAR100`` gives them: a PIL image of each, transformed."""

    def __init__(self, data: ArraySet) -> None:
        self.images, self.labels = data.images.permute(0, 2, 3, 1).contiguous().numpy(), data.labels.tolist()
        self.transform = transforms.Compose([
            transforms.RandomCrop(data.images.shape[2:], 4), transforms.RandomHorizontalFlip(),
            transforms.ToTensor(), transforms.Normalize(data.mean, data.std),
        ])  # fmt: skip

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return self.transform(Image.fromarray(self.images[index])), self.labels[index]


def our_blocks(recipe: Recipe, out: Path, device: str, steps: int) -> Iterator[None]:
    """The loop of ``cutmix train``, a block of steps at a time: batches, mixing, steps, progress, log."""
    with opened(recipe, out, device, steps) as run:
        while True:
            train_epoch(run, 0, Stop())
            yield


def plain_step(model: nn.Module, optimizer: torch.optim.Optimizer, images: Tensor, labels: Tensor) -> None:
    """The training step that everybody writes."""
    optimizer.zero_grad()
    F.cross_entropy(model(images), labels).backward()
    optimizer.step()


def plain_optimizer(model: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9, nesterov=True, weight_decay=5e-4)


def plain_blocks(recipe: Recipe, workers: int, device: str, steps: int) -> Iterator[None]:
    """The loop that everybody writes, a block of steps at a time: DataLoader, PIL, float32, SGD; it mixes nothing."""
    data = open_images(recipe.data, "train")
    model = create_model(recipe.model, data.num_classes).to(device).train()
    optimizer = plain_optimizer(model)
    pin = device != "cpu"
    loader = DataLoader(Pictures(data), recipe.batch_size, shuffle=True, num_workers=workers, pin_memory=pin)
    for step, (images, labels) in enumerate((batch for _ in count() for batch in loader), 1):
        images, labels = images.to(device, non_blocking=True), labels.to(device, non_blocking=True)
        plain_step(model, optimizer, images, labels)
        if step % steps == 0:
            yield


class PlainBottleneck(nn.Module):
    """PyramidNet's bottleneck as everybody writes it: the shortcut is concatenated with zeros."""

    def __init__(self, channels: int, width: int, stride: int) -> None:
        super().__init__()
        self.bn1, self.conv1 = nn.BatchNorm2d(channels), nn.Conv2d(channels, width, 1, bias=False)
        self.bn2, self.conv2 = nn.BatchNorm2d(width), nn.Conv2d(width, width, 3, stride, 1, bias=False)
        self.bn3, self.conv3 = nn.BatchNorm2d(width), nn.Conv2d(width, 4 * width, 1, bias=False)
        self.bn4, self.relu = nn.BatchNorm2d(4 * width), nn.ReLU(inplace=True)
        self.downsample = nn.AvgPool2d(2, ceil_mode=True) if stride == 2 else None

    def forward(self, x: Tensor) -> Tensor:
        """(N, channels, H, W) -> (N, 4 width, H/stride, W/stride)."""
        out = self.conv1(self.bn1(x))
        out = self.conv2(self.relu(self.bn2(out)))
        out = self.bn4(self.conv3(self.relu(self.bn3(out))))
        shortcut = self.downsample(x) if self.downsample else x
        n, channels, height, width = out.shape
        zeros = torch.zeros(n, channels - shortcut.shape[1], height, width, device=out.device)
        return out + torch.cat((shortcut, zeros), 1)


class PlainPyramidNet(nn.Module):
    """PyramidNet-110 with α̃ = 64 as everybody writes it; its parameters have the names of ours."""

    def __init__(self, num_classes: int, in_chans: int) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(in_chans, 16, 3, padding=1, bias=False), nn.BatchNorm2d(16)
        channels, width, stages = 16, 16.0, []
        for stage in range(3):
            blocks = []
            for block in range(12):
                width += 64 / 36
                blocks.append(PlainBottleneck(channels, round(width), 2 if stage > 0 and block == 0 else 1))
                channels = 4 * round(width)
            stages.append(nn.Sequential(*blocks))
        self.layer1, self.layer2, self.layer3 = stages
        self.bn_final, self.relu = nn.BatchNorm2d(channels), nn.ReLU(inplace=True)
        self.pool, self.fc = nn.AdaptiveAvgPool2d(1), nn.Linear(channels, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        """Images (N, in_chans, H, W) -> logits (N, num_classes)."""
        x = self.layer3(self.layer2(self.layer1(self.bn1(self.conv1(x)))))
        return self.fc(self.pool(self.relu(self.bn_final(x))).flatten(1))


class Side:
    """Blocks of one loop in a process of its own: how memory is allocated there is not the other side's doing."""

    blocks: Iterator[None]

    @classmethod
    def start(cls, make: Callable[[], Iterator[None]], threads: int) -> None:
        """Make the loop, in its process."""
        torch.set_num_threads(threads)
        cls.blocks = make()

    @classmethod
    def run(cls) -> None:
        """Run the next block, in the loop's process."""
        next(cls.blocks)
        if torch.cuda.is_initialized():
            torch.cuda.synchronize()


def new_process(*initargs: object, initializer: Callable[..., object] = torch.set_num_threads) -> ProcessPoolExecutor:
    return ProcessPoolExecutor(1, mp_context=get_context("spawn"), initializer=initializer, initargs=initargs)


# ---- the measures ----


def step_rows(recipe: Recipe, scratch: Path, device: str, pairs: int) -> Iterator[Row]:
    """A step with CutMix beside one without, from the batch to the optimizer."""
    unmixed = replace(recipe, mix="none")
    with opened(recipe, scratch / "mixed", device) as mixed, opened(unmixed, scratch / "unmixed", device) as without:
        ms = milliseconds({"ours": partial(one_step, mixed), "theirs": partial(one_step, without)}, pairs, device)
    ours, theirs = (statistics.median(side) for side in ms.values())
    pairwise = statistics.median(a / b for a, b in zip(*ms.values(), strict=True))
    yield Row("training step with CutMix", "ms", ours, "without CutMix", theirs, 1.02)
    yield Row("the same, ratios of steps in turn", "", pairwise, "without CutMix", 1.0)


def speed_rows(recipe: Recipe, scratch: Path, device: str, blocks: int, steps: int, *, compiled: bool) -> Iterator[Row]:
    """Images per second of the real loop with CutMix, beside the plain one with its workers at their best."""
    sides = {"ours": partial(our_blocks, recipe, scratch / "eager", device, steps)}
    sides |= {f"plain loop, {n} workers": partial(plain_blocks, recipe, n, device, steps) for n in (0, 2)}
    if compiled:
        changed = replace(recipe, compile=True)
        sides["the same with --compile"] = partial(our_blocks, changed, scratch / "compiled", device, steps)
    times = in_turns(sides, blocks, device)
    speed = {name: 1000 * steps * recipe.batch_size / statistics.median(ms) for name, ms in times.items()}
    fastest_plain = max(theirs for name, theirs in speed.items() if name.startswith("plain"))
    ours = speed.pop("ours")
    for name, theirs in speed.items():
        target = 2.5 if theirs == fastest_plain else None
        yield Row("cutmix train, with CutMix", "images/s", ours, name, theirs, target)


def network_rows(recipe: Recipe, scratch: Path, device: str, rounds: int) -> Iterator[Row]:
    """A step of PyramidNet-110 on a batch of 64, by ``cutmix train``'s code, beside the same network written plainly.

    Each side has a process of its own, as in the loops above: how ``cutmix train`` sets the allocator is among its
    speed settings, and a plain script leaves it alone.
    """
    default = replace(find_recipe("cifar100-pyramidnet110"), data=recipe.data, lr=0.01)
    float32 = replace(default, precision="float32", channels_last=False)
    times = in_turns({
        "plain": partial(plain_network_steps, float32, device),
        "float32": partial(our_blocks, float32, scratch / "float32", device, 1),
        "default": partial(our_blocks, default, scratch / "default", device, 1),
    }, rounds, device)  # fmt: skip
    ms = {name: statistics.median(taken) for name, taken in times.items()}
    speed = {name: 1000 * default.batch_size / taken for name, taken in ms.items()}
    what, beside = "PyramidNet-110", "written plainly, float32 NCHW"
    yield Row(f"{what}: step, float32 NCHW", "ms", ms["float32"], beside, ms["plain"], 1.0)
    what = f"{what}: default speed settings"
    yield Row(what, "images/s", speed["default"], beside, speed["plain"], 1.8)


def plain_network_steps(recipe: Recipe, device: str) -> Iterator[None]:
    """Steps of the network written plainly; that it computes what ours does is seen first."""
    data = open_images(recipe.data, "train")
    labels = data.labels[: recipe.batch_size].to(device)
    images = data.images[: recipe.batch_size].to(device) / 255
    ours = create_model(recipe.model, data.num_classes).to(device).train()
    plain = plain_twin(ours, images)
    optimizer = plain_optimizer(plain)
    del ours
    while True:
        plain_step(plain, optimizer, images, labels)
        yield


def plain_twin(ours: nn.Module, images: Tensor) -> nn.Module:
    """The network written plainly, with our weights; it has been seen to compute the same."""
    logits = ours(images)
    plain = PlainPyramidNet(logits.shape[1], images.shape[1]).to(images.device)
    plain.load_state_dict(ours.state_dict(), strict=True)
    torch.testing.assert_close(logits, plain(images), rtol=1e-3, atol=1e-4)
    return plain


def in_turns(sides: Mapping[str, Callable[[], Iterator[None]]], rounds: int, device: str) -> dict[str, list[float]]:
    """Milliseconds of each side's blocks, each in a process of its own, which waits while the others work."""
    with contextlib.ExitStack() as stack:
        calls: dict[str, Callable[[], object]] = {}
        for name, make in sides.items():
            process = stack.enter_context(new_process(make, torch.get_num_threads(), initializer=Side.start))
            calls[name] = lambda process=process: process.submit(Side.run).result()  # type: ignore[misc]
        return milliseconds(calls, rounds, device)


def milliseconds(calls: dict[str, Callable[[], object]], rounds: int, device: str) -> dict[str, list[float]]:
    """Milliseconds of each call in each round, after one that does not count; the order turns round by round."""
    wait = torch.cuda.synchronize if torch.device(device).type == "cuda" else lambda: None
    times: dict[str, list[float]] = {name: [] for name in calls}
    for turn in range(rounds + 1):
        for name in list(calls)[:: -1 if turn % 2 else 1]:
            wait()
            start = time.perf_counter()
            calls[name]()
            wait()
            times[name].append(1000 * (time.perf_counter() - start))
    return {name: taken[1:] for name, taken in times.items()}


def memory_rows(recipe: Recipe, scratch: Path, device: str, repeats: int) -> Iterator[Row]:
    """Memory with the set less memory with 256 images, beside the pixels of both splits as they are."""
    small = replace(recipe, data=str(write_cifar(scratch / "small", train=256, test=256)))
    differences: dict[str, list[int]] = {}
    for _ in range(repeats):
        taken, without = (fresh_memory(each, scratch / "memory", device) for each in (recipe, small))
        for name in taken:
            differences.setdefault(name, []).append(taken[name] - without[name])
    pixels = sum(open_images(recipe.data, split).images.nbytes for split in ("train", "test")) / 1e6
    for name, extra in differences.items():
        target = 1.3 if name == ("on the GPU, peak" if "cuda" in device else "resident, peak") else None
        yield Row(
            f"memory above the model's: {name}", "MB", statistics.median(extra) / 1e6, "uint8 set", pixels, target
        )


def fresh_memory(recipe: Recipe, out: Path, device: str) -> dict[str, int]:
    with new_process(torch.get_num_threads()) as process:
        return process.submit(memory_of_training, recipe, out, device).result()


def memory_of_training(recipe: Recipe, out: Path, device: str) -> dict[str, int]:
    """Bytes that opening the data and 30 steps have taken, in a process that has done nothing else."""
    with opened(recipe, out, device, block=30) as run:
        train_epoch(run, 0, Stop())
        status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
        fields = {"resident, peak": "VmHWM", "anonymous, at the end": "RssAnon"}
        taken = {name: 1024 * int(status[field].split()[0]) for name, field in fields.items()}
        if run.world.device.type == "cuda":
            taken["on the GPU, peak"] = torch.cuda.max_memory_allocated(run.world.device)
    return taken


# ---- data and table ----


def find_data(data: str, scratch: Path) -> tuple[str, str]:
    """Where the images lie and what they are; random ones where CIFAR-100 is asked for and is not there."""
    try:
        open_images(data, "test")
        return data, data
    except InputError as error:
        if data != "cifar-100":
            raise SystemExit(str(error)) from None
        return str(write_cifar(scratch / "random", train=50_000, test=10_000)), "random images, as CIFAR-100 is absent"


def open_images(data: str, split: str) -> ArraySet:
    images = open_data(data, "train" if split == "train" else "test")
    if not isinstance(images, ArraySet):
        raise SystemExit(f"{data} holds photographs: expected a set of small images")
    return images


def write_cifar(parent: Path, train: int, test: int) -> Path:
    """Write random images in CIFAR-100's official layout."""
    folder = parent / "cifar-100-python"
    folder.mkdir(parents=True)
    rng = np.random.default_rng(0)
    contents: dict[str, dict[str, object]] = {"meta": {"fine_label_names": [f"class {i}" for i in range(100)]}}
    for split, n in (("train", train), ("test", test)):
        pixels = rng.integers(0, 256, (n, 3072), np.uint8)
        contents[split] = {"data": pixels, "fine_labels": [i % 100 for i in range(n)]}
    for name, content in contents.items():
        (folder / name).write_bytes(pickle.dumps(content, protocol=4))
    return folder


def show(rows: list[Row], where: dict[str, object]) -> None:
    """Print the rows as a table."""
    title = f"Training on {where['data']}; {where['model']} where no network is named"
    table = Table("what", "", "ours", "beside", "theirs", "ratio", "target", "", title=title)
    for row in rows:
        least = row.unit == "images/s"
        target = "" if row.target is None else f"{'≥' if least else '≤'} {row.target}"
        reached = row.target is not None and (row.ratio >= row.target if least else row.ratio <= row.target)
        verdict = "" if row.target is None else "yes" if reached else "NO"
        ours, theirs = (f"{value:,.1f}" if row.unit else "" for value in (row.ours, row.theirs))
        table.add_row(row.what, row.unit, ours, row.beside, theirs, f"{row.ratio:.3f}", target, verdict)
    Console(width=max(120, Console().width)).print(table, where)


if __name__ == "__main__":
    main()
