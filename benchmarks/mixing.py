"""Time of mixing and of its loss beside the authors' code, timm, torchvision and kornia.

    python benchmarks/mixing.py [--json FILE] [--quick] [--device cuda] [--threads N] [--crossover]

Every side's time includes drawing.
"""

import sys
from collections.abc import Callable, Iterator, Sequence
from functools import partial

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
from measuring import Row, arguments, in_turns, medians, report, versions

CLASSES = 1000
BLOCK = 0.004  # Seconds of one timed block: a call shorter than this is repeated within it.


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--device", default="cpu", help="cpu (default) or cuda")
    parser.add_argument("--crossover", action="store_true", help="instead: from which size copies a sample are faster")
    args = parser.parse_args()
    rounds = 3 if args.quick else 50
    if args.crossover:
        crossover(rounds)
    else:
        report("Mixing, float32", rows(args.device, rounds), args, versions("kornia"))


def rows(device: str, rounds: int) -> Iterator[Row]:
    """Yield CutMix and Mixup, then the loss."""
    yield from mixing_rows(device, rounds)
    yield from loss_rows(device, rounds)


def mixing_rows(device: str, rounds: int, sizes: Sequence[tuple[int, int]] = ((256, 224), (128, 32))) -> Iterator[Row]:
    """Yield CutMix and Mixup on batches of n images of a side, by default of large and of small ones."""
    for n, side in sizes:
        peers = large_peers if side >= 224 else small_peers
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
        ms = medians(in_turns(calls, rounds, device, block=BLOCK))
        for what in ours:
            for peer, target in targets(what, side).items():
                if peer in ms:
                    yield Row(what, "ms", ms[what], peer, ms[peer], target, at)


def targets(what: str, side: int) -> dict[str, float | None]:
    """Return the peers of a row, each with its target or None."""
    if "out of place" in what:
        return {"x.clone()": 1.3 if side == 224 else None, "torchvision": None}
    if "Mixup" in what:
        return {"timm mixup": None}
    if side == 224:
        return {"authors": 0.35, "timm batch": 0.15, "torchvision": 0.10, "kornia": 0.01}
    return {"timm elem": 0.35} if "per sample" in what else {"authors": 1.2, "timm batch": None, "torchvision": None}


def large_peers() -> dict[str, Callable]:
    """Return all peers; kornia only where it is installed."""
    timm_batch = TimmMixup(mixup_alpha=0.0, cutmix_alpha=1.0, label_smoothing=0.0, num_classes=CLASSES)
    peers = {"authors": authors_cutmix, "timm batch": timm_batch, "torchvision": v2.CutMix(num_classes=CLASSES)}
    try:
        from kornia.augmentation import RandomCutMixV2
    except ImportError:
        print("kornia is not installed: its rows are skipped", file=sys.stderr)
        return peers
    return peers | {"kornia": RandomCutMixV2(p=1.0, use_correct_lambda=True)}


def small_peers() -> dict[str, Callable]:
    """Return the peers for small images, with timm's box per sample."""
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


def loss_rows(device: str, rounds: int) -> Iterator[Row]:
    """Yield the loss, forward and backward, beside soft labels that are given or built from class ids in each step."""
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
        ms = medians(in_turns(calls, rounds, device, block=BLOCK))
        for peer in list(losses)[1:]:
            at = f"256×{num_classes:,}"
            yield Row("mixed_cross_entropy, forward and backward", "ms", ms["ours"], peer, ms[peer], 1 / faster, at)


def soft_label_loss(logits: Tensor, labels: Tensor, lam: float) -> Tensor:
    """Build soft labels as torchvision's CutMix does, and return their cross entropy."""
    one_hot = F.one_hot(labels, logits.shape[1]).float()
    return F.cross_entropy(logits, one_hot.roll(1, 0).mul_(1 - lam).add_(one_hot.mul(lam)))


def step(logits: Tensor, loss: Callable[[], Tensor]) -> None:
    logits.grad = None
    loss().backward()


def crossover(rounds: int) -> None:
    """Print the size per sample from which one copy per sample is faster than one index operation for the batch."""
    chosen = paste._LARGE
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
                ms = medians(in_turns(calls, rounds, block=BLOCK))
                moved = 3 * side * side * 4 / 1024 / (4 if name.startswith("box") else 1)
                us = [f"{1000 * ms[way]:.0f}" for way in ("copies", "index")]
                table.add_row(str(n), f"{moved:.1f}", name, *us, f"{ms['copies'] / ms['index']:.2f}")
    paste._LARGE = chosen
    Console().print(table, f"chosen: {chosen / 1024:.0f} KiB")


def apply_above(threshold: int, draw: cutmix.Draw, images: Tensor) -> None:
    paste._LARGE = threshold
    draw.apply(images, inplace=True)


if __name__ == "__main__":
    main()
