"""Speed of mixing and of its loss beside the authors' way, timm, torchvision and kornia, in one run.

    python benchmarks/mixing.py [--json FILE] [--quick] [--device cuda] [--threads N] [--crossover]

Drawing is part of what is timed on every side. The sides take turns within one run and the medians are compared, so
that a machine that is busy for a while is busy for all of them. A row passes when the ratio is at most the target.
"""

import argparse
import json
import os
import platform
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from rich.console import Console
from rich.table import Table
from timm.data import Mixup as TimmMixup
from torch import Tensor
from torchvision.transforms import v2

import cutmix
from cutmix.mixing import paste

CLASSES = 1000
BLOCK = 0.004  # Seconds of one timed block: a call shorter than this is repeated within it.


@dataclass(frozen=True)
class Row:
    """Median milliseconds of one call on each side; ``target`` is the highest ratio that passes, None without one."""

    what: str
    at: str
    ours_ms: float
    peer: str
    peer_ms: float
    target: float | None

    @property
    def ratio(self) -> float:
        """Our time as a share of the peer's."""
        return self.ours_ms / self.peer_ms


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, help="also write the rows, hardware and versions to this file")
    parser.add_argument("--quick", action="store_true", help="few repetitions: does it run?")
    parser.add_argument("--device", default="cpu", help="cpu (default) or cuda")
    parser.add_argument("--crossover", action="store_true", help="instead: from which size copies a sample are faster")
    parser.add_argument("--threads", type=int, help="threads of torch; as it chooses without this")
    args = parser.parse_args()
    if args.threads:
        torch.set_num_threads(args.threads)
    device, rounds = torch.device(args.device), 3 if args.quick else 50
    if args.crossover:
        crossover(rounds)
        return
    where = circumstances(device)
    rows = []
    for row in (*mixing_rows(device, rounds), *loss_rows(device, rounds)):
        print(f"{row.what}, {row.at}: {row.ratio:.3f} × {row.peer}", file=sys.stderr)
        rows.append(row)
    where["load_after"] = os.getloadavg()
    show(rows, where)
    if args.json:
        record = {"circumstances": where, "rows": [asdict(row) | {"ratio": row.ratio} for row in rows]}
        args.json.write_text(json.dumps(record, indent=1) + "\n")


def mixing_rows(device: torch.device, rounds: int) -> Iterator[Row]:
    """CutMix and Mixup on batches of photographs and of small images."""
    for n, side, peers in ((256, 224, large_peers), (128, 32, small_peers)):
        images = torch.randn(n, 3, side, side, device=device)
        labels = torch.randint(CLASSES, (n,), device=device)
        at = f"{n}×3×{side}×{side}"
        ours = {
            "CutMix in place, one box": cutmix.CutMix(inplace=True, seed=0),
            "CutMix in place, per sample": cutmix.CutMix(inplace=True, per_sample=True, seed=0),
            "CutMix out of place, one box": cutmix.CutMix(seed=0),
            "CutMix out of place, per sample": cutmix.CutMix(per_sample=True, seed=0),
            "Mixup in place": cutmix.Mixup(inplace=True, seed=0),
        }
        timm_mixup = TimmMixup(mixup_alpha=1.0, label_smoothing=0.0, num_classes=CLASSES)
        sides = ours | peers() | {"x.clone()": lambda x, _: x.clone(), "timm mixup": timm_mixup}
        calls = {name: partial(side, images, labels) for name, side in sides.items()}
        ms = measure(calls, rounds, device)
        for what in ours:
            for peer, target in targets(what, side).items():
                if peer in ms:
                    yield Row(what, at, ms[what], peer, ms[peer], target)


def targets(what: str, side: int) -> dict[str, float | None]:
    """Which peers a row is compared with, and the highest ratio that passes."""
    if "out of place" in what:
        return {"x.clone()": 1.3 if side == 224 else None, "torchvision": None}
    if "Mixup" in what:
        return {"timm mixup": None}
    if side == 224:
        return {"authors": 0.35, "timm batch": 0.15, "torchvision": 0.10, "kornia": 0.01}
    return {"timm elem": 0.35} if "per sample" in what else {"authors": 1.2, "timm batch": None, "torchvision": None}


def large_peers() -> dict[str, Callable]:
    """All peers; kornia where it is installed."""
    timm_batch = TimmMixup(mixup_alpha=0.0, cutmix_alpha=1.0, label_smoothing=0.0, num_classes=CLASSES)
    peers = {"authors": authors_cutmix, "timm batch": timm_batch, "torchvision": v2.CutMix(num_classes=CLASSES)}
    try:
        from kornia.augmentation import RandomCutMixV2
    except ImportError:
        print("kornia is not installed: its rows are left out", file=sys.stderr)
        return peers
    return peers | {"kornia": RandomCutMixV2(p=1.0, use_correct_lambda=True)}


def small_peers() -> dict[str, Callable]:
    """The peers on small images, timm's with a box for every sample too."""
    elem = TimmMixup(mixup_alpha=0.0, cutmix_alpha=1.0, mode="elem", label_smoothing=0.0, num_classes=CLASSES)
    return {name: peer for name, peer in large_peers().items() if name != "kornia"} | {"timm elem": elem}


def authors_cutmix(images: Tensor, labels: Tensor) -> tuple[Tensor, tuple[Tensor, Tensor, float]]:
    """Mix as clovaai/CutMix-PyTorch does in ``train.py``: one box, one permutation, an index copy of the box.

    ``np.int`` of the original, which NumPy has removed, is ``int`` here.
    """
    lam = np.random.beta(1.0, 1.0)  # noqa: NPY002
    index = torch.randperm(images.shape[0], device=images.device)
    width, height = images.shape[2:]
    cut_w, cut_h = int(width * np.sqrt(1 - lam)), int(height * np.sqrt(1 - lam))
    cx, cy = np.random.randint(width), np.random.randint(height)  # noqa: NPY002
    x1, x2 = np.clip(cx - cut_w // 2, 0, width), np.clip(cx + cut_w // 2, 0, width)
    y1, y2 = np.clip(cy - cut_h // 2, 0, height), np.clip(cy + cut_h // 2, 0, height)
    images[:, :, x1:x2, y1:y2] = images[index, :, x1:x2, y1:y2]
    return images, (labels, labels[index], 1 - (x2 - x1) * (y2 - y1) / (width * height))


def loss_rows(device: torch.device, rounds: int) -> Iterator[Row]:
    """Forward and backward of the loss, beside soft labels that are at hand or built from class ids in each step."""
    for num_classes, faster in ((1000, 1.4), (21_841, 2.0)):
        logits = torch.randn(256, num_classes, device=device, requires_grad=True)
        labels = torch.randint(num_classes, (256,), device=device)
        draw = cutmix.CutMix(seed=0).draw((256, 3, 224, 224))
        mixed = draw.targets(labels)
        dense = cutmix.MixedTargets(*mixed).dense(num_classes)
        losses: dict[str, Callable[[], Tensor]] = {
            "ours": partial(cutmix.mixed_cross_entropy, logits, mixed),
            "soft labels, given": partial(F.cross_entropy, logits, dense),
            "soft labels, built": partial(soft_label_loss, logits, labels, float(draw.lam[0])),
        }
        calls = {name: partial(step, logits, loss) for name, loss in losses.items()}
        ms = measure(calls, rounds, device)
        for peer in list(losses)[1:]:
            at = f"256×{num_classes:,}"
            yield Row("mixed_cross_entropy, forward and backward", at, ms["ours"], peer, ms[peer], 1 / faster)


def soft_label_loss(logits: Tensor, labels: Tensor, lam: float) -> Tensor:
    """Make soft labels as torchvision's CutMix does, and take their cross entropy."""
    one_hot = F.one_hot(labels, logits.shape[1]).float()
    return F.cross_entropy(logits, one_hot.roll(1, 0).mul_(1 - lam).add_(one_hot.mul(lam)))


def step(logits: Tensor, loss: Callable[[], Tensor]) -> None:
    logits.grad = None
    loss().backward()


def measure(calls: Mapping[str, Callable[[], object]], rounds: int, device: torch.device) -> dict[str, float]:
    """Return the median milliseconds of a call of each, all of them timed in turn, ``rounds`` times.

    What takes a second is called five times at most.
    """
    number = {}
    for name, call in calls.items():
        seconds(call, 1, device)
        number[name] = max(1, round(BLOCK / seconds(call, 2, device)))
    times: dict[str, list[float]] = {name: [] for name in calls}
    for turn in range(rounds):
        for name, call in calls.items():
            if turn < 5 or times[name][0] < 0.5:
                times[name].append(seconds(call, number[name], device))
    return {name: 1000 * statistics.median(taken) for name, taken in times.items()}


def seconds(call: Callable[[], object], number: int, device: torch.device) -> float:
    """Seconds of one call, over ``number`` of them."""
    synchronize(device)
    start = time.perf_counter()
    for _ in range(number):
        call()
    synchronize(device)
    return (time.perf_counter() - start) / number


def synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def crossover(rounds: int) -> None:
    """Print from how many bytes a sample one copy a sample is faster than one index operation for the batch."""
    device, chosen = torch.device("cpu"), paste._LARGE
    table = Table("batch", "KiB a sample", "operation", "copies, µs", "index, µs", "copies ÷ index")
    for n in (32, 128):
        for side in (16, 24, 32, 40, 48, 64, 96):
            images, partner = torch.randn(n, 3, side, side), torch.randperm(n).roll(1)
            half = [side // 4, side // 4, side // 4 + side // 2, side // 4 + side // 2]
            draws = {
                "box of half the side": cutmix.Draw.from_boxes(partner, [half], (side, side)),
                "blend": cutmix.Draw.from_lam(partner, 0.3),
            }
            for name, draw in draws.items():
                ways = {"copies": 0, "index": sys.maxsize}
                calls = {way: partial(apply_above, threshold, draw, images) for way, threshold in ways.items()}
                ms = measure(calls, rounds, device)
                moved = 3 * side * side * 4 / 1024 / (4 if name.startswith("box") else 1)
                us = [f"{1000 * ms[way]:.0f}" for way in ("copies", "index")]
                table.add_row(str(n), f"{moved:.1f}", name, *us, f"{ms['copies'] / ms['index']:.2f}")
    paste._LARGE = chosen
    Console().print(table, f"chosen: {chosen / 1024:.0f} KiB")


def apply_above(threshold: int, draw: cutmix.Draw, images: Tensor) -> None:
    paste._LARGE = threshold
    draw.apply(images, inplace=True)


def circumstances(device: torch.device) -> dict[str, object]:
    """Hardware, versions, threads and load."""
    cpu = platform.processor() or platform.machine()
    if (info := Path("/proc/cpuinfo")).exists():
        models = [line.split(":")[1].strip() for line in info.read_text().splitlines() if line.startswith("model name")]
        cpu = models[0] if models else cpu
    versions = {}
    for package in ("torch", "torchvision", "timm", "kornia", "numpy"):
        try:
            versions[package] = version(package)
        except PackageNotFoundError:
            versions[package] = "not installed"
    return {
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else cpu,
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "python": platform.python_version(),
        "versions": versions | {"cutmix": cutmix.__version__},
        "load_before": os.getloadavg(),
    }


def show(rows: list[Row], where: dict[str, object]) -> None:
    """Print the rows as a table."""
    table = Table("what", "at", "ours, ms", "beside", "ms", "ratio", "target", "", title="Mixing, float32")
    for row in rows:
        verdict = "" if row.target is None else "yes" if row.ratio <= row.target else "NO"
        target = "" if row.target is None else f"≤ {row.target:.2f}"
        ours, peer = f"{row.ours_ms:.3f}", f"{row.peer_ms:.3f}"
        table.add_row(row.what, row.at, ours, row.peer, peer, f"{row.ratio:.3f}", target, verdict)
    Console(width=max(120, Console().width)).print(table, where)


if __name__ == "__main__":
    main()
