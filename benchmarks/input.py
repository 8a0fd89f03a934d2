"""Image files to batches: our loader beside torchvision's transforms and timm's in a DataLoader.

Every side makes uint8 batches of 224×224 with a random resized crop and a flip, in one process that takes turns; the
speed is images for each second of a core, by the CPU time of the process. With --workers, the time on the clock is
compared too. The files are JPEGs of three sizes, made of scikit-learn's two photographs or of those in --images.
The part "waiting" fine-tunes EfficientNet-Lite0 on the largest files, and compares the time that its loop waits for
batches: --workers threads compute and as many threads or processes decode.
"""

import argparse
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from itertools import cycle, islice
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import timm.data
import torch
from PIL import Image
from timm.data.loader import fast_collate
from torch.utils.data import DataLoader, Dataset
from torchvision.transforms import v2

from cutmix.data import Augment, FileSet
from cutmix.data.loaders import FileLoader, train_loader
from cutmix.data.sources import Paths
from measuring import Row, arguments, report, versions

SIZES = {"256 px": (341, 256, 90, 128), "500×375": (500, 375, 95, 96), "12 MP": (4000, 3000, 86, 12)}
TARGETS = {"256 px": (1.5, 1.6), "500×375": (1.5, 1.6), "12 MP": (5.0, 5.0)}
BATCH = 4


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--images", type=Path, help="folder of photographs to make the files of")
    parser.add_argument("--workers", type=int, default=2, help="threads and processes for the time on the clock")
    parser.add_argument("--only", choices=["speed", "waiting"], help="this part alone")
    args = parser.parse_args()
    torch.set_num_threads(1)  # a core
    about: dict[str, object] = {"sources": args.images.name if args.images else "scikit-learn's two photographs"}
    about |= versions("torchvision", "timm", "pillow", "simplejpeg")
    with tempfile.TemporaryDirectory() as scratch:
        report("image files", rows(Path(scratch), args), args, about)


def rows(scratch: Path, args: argparse.Namespace) -> Iterator[Row]:
    """Yield the requested rows."""
    if args.only != "waiting":
        yield from speed_rows(scratch, args.images, args.workers, args.quick)
    if args.only != "speed":
        yield from waiting_rows(scratch / "waiting", args.images, args.workers or 1, args.quick)


def speed_rows(scratch: Path, images: Path | None, workers: int, quick: bool) -> Iterator[Row]:
    """Yield the comparisons of every size of files."""
    for size, (width, height, quality, count) in SIZES.items():
        data = write_files(scratch / size, images, (width, height), quality, BATCH if quick else count)
        kilobytes = sum(len(path.read_bytes()) for path in data.paths) / len(data) / 1000
        at = f"{size}, {kilobytes:,.0f} KB"
        rounds = 1 if quick else 7
        found = in_turns(exhausted(sides(data, 0)), rounds, time.process_time, len(data))
        ours = found["cutmix"]
        for name, target in zip(("torchvision", "timm"), TARGETS[size], strict=True):
            yield Row("train loader, a core", "images/s", ours, name, found[name], target, at)
        yield Row("the same, --decoder exact", "images/s", found["cutmix exact"], "torchvision", found["torchvision"],
                  at=at)  # fmt: skip
        if workers:
            found = in_turns(exhausted(sides(data, workers)), rounds, time.perf_counter, len(data))
            for name in ("torchvision", "timm"):
                what = f"train loader, {workers} workers, on the clock"
                yield Row(what, "images/s", found["cutmix"], f"{name}, {workers} processes", found[name], at=at)


def waiting_rows(folder: Path, images: Path | None, workers: int, quick: bool) -> Iterator[Row]:
    """Yield the share of the time of fine-tuning that the loop waits for batches, beside that with other loaders."""
    size = "12 MP"
    width, height, quality, count = SIZES[size]
    files = write_files(folder, images, (width, height), quality, BATCH if quick else count)
    repeats = 1 if quick else 4  # of the same files, for a longer epoch
    data = replace(files, labels=files.labels.repeat(repeats), paths=files.paths.take([*range(len(files))] * repeats))
    torch.set_num_threads(workers)
    model = timm.create_model("efficientnet_lite0", num_classes=1).to(memory_format=torch.channels_last)
    optimizer = torch.optim.SGD(model.parameters(), 1e-3)
    loaders = sides(data, workers)
    shares: dict[str, list[float]] = {name: [] for name in ("cutmix", "torchvision", "timm")}
    for turn in range(1 if quick else 4):
        for name, own in shares.items():
            start, waited, batches = time.perf_counter(), 0.0, loaders[name](turn)
            while True:
                asked = time.perf_counter()
                batch = next(batches, None)
                waited += time.perf_counter() - asked
                if batch is None:
                    break
                optimizer.zero_grad()
                pixels = batch[0].to(torch.float32, memory_format=torch.channels_last)
                model(pixels / 128 - 1).square().mean().backward()
                optimizer.step()
            own.append(100 * waited / (time.perf_counter() - start))
    ours = median(shares["cutmix"][-3:])  # the first turn starts the workers
    for name in ("torchvision", "timm"):
        beside = f"{name}, {workers} processes"
        yield Row(f"fine-tuning EfficientNet-Lite0, {workers} threads: waiting for input", "%", ours, beside,
                  median(shares[name][-3:]), at=f"{size}, batch {BATCH}")  # fmt: skip


def in_turns(
    calls: dict[str, Callable[[int], None]], rounds: int, clock: Callable[[], float], count: int
) -> dict[str, float]:
    """Return the median of images a second of each side, after a warm-up; the order rotates."""
    taken: dict[str, list[float]] = {name: [] for name in calls}
    for turn in range(rounds + 1):
        for name in list(calls)[:: 1 if turn % 2 else -1]:
            start = clock()
            calls[name](turn)
            taken[name].append(clock() - start)
    return {name: count / median(times[1:]) for name, times in taken.items()}


def exhausted(loaders: dict[str, Callable[[int], Iterator[object]]]) -> dict[str, Callable[[int], None]]:
    """Return what runs through an epoch of each loader."""

    def exhaust(name: str, epoch: int) -> None:
        for _ in loaders[name](epoch):
            pass

    return {name: partial(exhaust, name) for name in loaders}


def sides(data: FileSet, workers: int) -> dict[str, Callable[[int], Iterator[Any]]]:
    """Return each side's batches of an epoch of the files."""
    augment = Augment(image_size=224, flip=True)

    def ours(decoder: str) -> Callable[[int], Iterator[Any]]:
        loader = train_loader(
            data, augment, batch_size=BATCH, seed=0, device="cpu", workers=workers, channels_last=False,
            decoder=decoder,  # type: ignore[arg-type]
        )  # fmt: skip
        assert isinstance(loader, FileLoader)
        loader.finish = lambda batch, epoch, step: batch  # uint8, as the others
        return loader.epoch

    def plain(transform: Callable[[Image.Image], object], collate: Callable | None) -> Callable[[int], Iterator[Any]]:
        loader: DataLoader = DataLoader(
            Files(data, transform), BATCH, shuffle=True, num_workers=workers, collate_fn=collate,
            persistent_workers=workers > 0,
        )  # fmt: skip
        return lambda epoch: iter(loader)

    torchvision = v2.Compose([v2.RandomResizedCrop(224), v2.RandomHorizontalFlip(), v2.PILToTensor()])
    timms = timm.data.create_transform(
        224, is_training=True, use_prefetcher=True, color_jitter=None, interpolation="bilinear"
    )
    return {
        "cutmix": ours("fast"), "cutmix exact": ours("exact"), "torchvision": plain(torchvision, None),
        "timm": plain(timms, fast_collate),
    }  # fmt: skip


class Files(Dataset):
    """Files as ``torchvision.datasets.ImageFolder`` and timm's readers open them."""

    def __init__(self, data: FileSet, transform: Callable[[Image.Image], object]) -> None:
        self.paths, self.labels, self.transform = data.paths, data.labels.tolist(), transform

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[object, int]:
        with Image.open(str(self.paths[index])) as image:
            return self.transform(image.convert("RGB")), self.labels[index]


def write_files(folder: Path, images: Path | None, size: tuple[int, int], quality: int, count: int) -> FileSet:
    """Write JPEG files of a size, with the grain of a sensor where they are enlarged."""
    folder.mkdir(parents=True)
    rng = np.random.default_rng(0)
    for number, source in enumerate(islice(cycle(open_sources(images)), count)):
        width, height = (side * rng.uniform(0.8, 1) for side in source.size)
        left, top = rng.uniform(0, source.width - width), rng.uniform(0, source.height - height)
        upright = size if width >= height else size[::-1]
        image = source.resize(upright, Image.Resampling.BICUBIC, (left, top, left + width, top + height))
        if upright[0] > source.width:
            grain = rng.integers(-6, 7, (image.height, image.width, 1))
            image = Image.fromarray((np.asarray(image) + grain).clip(0, 255).astype(np.uint8))
        image.save(folder / f"{number:05}.jpg", quality=quality)
    paths, stats = tuple(sorted(folder.iterdir())), ((0.5,) * 3, (0.5,) * 3)
    return FileSet("photographs", "train", ("all",), torch.zeros(len(paths), dtype=torch.int64), *stats, Paths(paths))


def open_sources(images: Path | None) -> list[Image.Image]:
    if images:
        return [Image.open(path).convert("RGB") for path in sorted(images.iterdir())[:100]]
    from sklearn.datasets import load_sample_images

    return [Image.fromarray(pixels) for pixels in load_sample_images().images]


if __name__ == "__main__":
    main()
