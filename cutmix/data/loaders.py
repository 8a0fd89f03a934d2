"""Batches for a model: normalized, on the device, and reproducible."""

# ruff: noqa: PT028 - test_loader loads a split for evaluation; it is not a test

import itertools
import math
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from cutmix.data.decode import decoding_threads
from cutmix.data.image_files import Decoder, Policy, ResizeAndCrop, TrainTransform
from cutmix.data.sets import ArraySet, FileSet, ImageSet
from cutmix.data.transforms import (
    Augment,
    ColorDraw,
    CropFlip,
    Interpolation,
    TestOrder,
    TrainOrder,
    check_crop_fraction,
    draw_color,
    draw_crop_flip,
    erase,
    normalize,
    resize,
    split_draw,
)
from cutmix.errors import InputError
from cutmix.runtime.device import check_memory
from cutmix.runtime.seeding import derive_seed

Batch = tuple[Tensor, Tensor]


class Loader(Protocol):
    """Yields (images, labels): float32 (n, C, H, W), normalized, and int64 (n,), both on the device."""

    steps: int  # batches an epoch

    def epoch(self, epoch: int = 0, start: int = 0) -> Iterator[Batch]:
        """Yield the batches of an epoch from number ``start`` on: always the same ones."""


def train_loader(
    data: ImageSet,
    augment: Augment,
    *,
    batch_size: int,
    seed: int,
    device: torch.device | str,
    workers: int,
    channels_last: bool,
    decoder: Decoder = "exact",
    rank: int = 0,
    world_size: int = 1,
    balanced: bool = False,
    repeats: int = 1,
    raw: bool = False,
) -> Loader:
    """Return shuffled, augmented batches.

    Order and augmentation depend on the seed, the epoch and the position in it alone (random erasing also on the rank):
    not on the number of workers or earlier draws; the global generators are left unchanged. An array set is moved to
    the device as uint8; ``raw`` yields ``RawBatch`` for it in place of images, unless they need more than a crop, a
    flip and normalization. File sets need ``augment.image_size``; their images are decoded by ``workers`` threads, or
    in the thread of the loop with 0.

    ``batch_size`` is that of all processes together. The batches of an epoch differ by one image of a process at most;
    the epoch is filled up from the start of its order until every process has the same share. ``balanced`` draws
    equally many images of each class; ``repeats`` is the number of copies of an image, one after another and each
    augmented differently. Neither changes the number of images in an epoch.
    """
    _check(data, batch_size, augment.image_size, workers, rank, world_size)
    if (augment.color_jitter or augment.lighting) and data.in_chans != 3:
        raise InputError(f"the images of {data.name} have {data.in_chans} channels; colour jitter and lighting need 3")
    if augment.auto_augment != "none" and data.in_chans not in (1, 3):
        raise InputError(f"the images of {data.name} have {data.in_chans} channels; --auto-augment needs 1 or 3")
    balance = data.labels if balanced else None
    shards = data.paths.shard if isinstance(data, FileSet) else None
    order = TrainOrder(len(data), batch_size, seed, rank, world_size, balance, repeats, shards)
    color = _Color(order, augment) if augment.color_jitter or augment.lighting else None
    erasing = (augment.random_erasing, order) if augment.random_erasing else None
    finish = _Finish(data, torch.device(device), augment.image_size, channels_last, erasing)
    if isinstance(data, FileSet):
        if augment.squash:
            side = round((augment.image_size or 0) / augment.crop_fraction)
            check_memory(6.0 * side**2, f"an image of {side}×{side} pixels (image_size / crop_fraction)")
        return _file_loader(
            _Files, data, TrainTransform(augment, decoder, data.in_chans), order, finish, workers, seed, color
        )
    smallest = min(data.images.shape[2:])
    if augment.crop_padding > smallest - (augment.padding_mode == "reflect"):
        most = "less than" if augment.padding_mode == "reflect" else "at most"
        raise InputError(
            f"crop_padding is {augment.crop_padding} with padding_mode '{augment.padding_mode}'; expected {most} the "
            f"image's {smallest} pixels"
        )
    return _ArrayLoader(data, order, finish, augment, color, seed, raw)


def test_loader(
    data: ImageSet,
    *,
    batch_size: int,
    device: torch.device | str,
    image_size: int | None,
    crop_fraction: float = 0.875,
    squash: bool = False,
    interpolation: Interpolation = "bilinear",
    workers: int = 0,
    channels_last: bool = False,
    decoder: Decoder = "exact",
    rank: int = 0,
    world_size: int = 1,
) -> Loader:
    """Return the images in their order, not augmented; rank r has the images r, r + world_size, ... and no others.

    ``batch_size`` is that of all processes together. An ``image_size`` of None keeps an array set's own. File sets are
    resized and cropped as ``ResizeAndCrop`` does.
    """
    _check(data, batch_size, image_size, workers, rank, world_size)
    check_crop_fraction(crop_fraction)
    order = TestOrder(len(data), batch_size, rank, world_size)
    finish = _Finish(data, torch.device(device), image_size, channels_last)
    if isinstance(data, FileSet):
        assert image_size is not None
        cut = ResizeAndCrop(image_size, crop_fraction, squash, interpolation, data.in_chans)
        transform = partial(cut.read, decoder=decoder)
        return _file_loader(_TestFiles, data, transform, order, finish, workers)
    return _ArrayLoader(data, order, finish)


def check_batch_size(batch_size: int, world_size: int, name: str = "batch_size") -> None:
    """Refuse a batch size that the processes cannot share equally."""
    if batch_size < 1 or batch_size % world_size:
        raise InputError(f"{name} is {batch_size}; expected a positive multiple of the {world_size} processes")


def _check(data: ImageSet, batch_size: int, image_size: int | None, workers: int, rank: int, world_size: int) -> None:
    check_batch_size(batch_size, world_size)
    if not 0 <= rank < world_size:
        raise InputError(f"rank is {rank}; expected 0 to {world_size - 1} for {world_size} processes")
    if workers < 0:
        raise InputError(f"workers is {workers}; expected 0 or more")
    if image_size is None and isinstance(data, FileSet):
        raise InputError(f"image_size is missing; the files of {data.name} differ in size, so it must be given")
    if image_size is not None and image_size < 1:
        raise InputError(f"image_size is {image_size}; expected 1 or more pixels")
    if not len(data):
        raise InputError(f"{data.name} has no {data.split} images")
    pixels = image_size**2 if image_size else math.prod(data.images.shape[2:]) if isinstance(data, ArraySet) else 0
    what = f"a batch of {batch_size // world_size} images" + (f" of {image_size}×{image_size}" if image_size else "")
    check_memory(4.0 * batch_size / world_size * data.in_chans * pixels, what)


# ---- steps on a batch ----


class _Color:
    """Colours for this rank's share of a batch, drawn for the whole batch: seeded by the epoch and the step."""

    def __init__(self, order: TrainOrder, augment: Augment) -> None:
        self.order, self.jitter, self.lighting = order, augment.color_jitter, augment.lighting

    def draw(self, epoch: int, step: int) -> ColorDraw:
        order, share = self.order, self.order.share(step)
        generator = torch.Generator().manual_seed(derive_seed(order.seed, "color", epoch, step))
        batch = order.batch(step)
        count, first = max(order.batch_size, batch.stop - batch.start), batch.start
        colors = draw_color(count, self.jitter, self.lighting, generator)
        return colors[share.start - first : share.stop - first]


class _Finish:
    """The last stage, on the device: normalize, resize, memory format; erase rectangles of training images."""

    def __init__(
        self, data: ImageSet, device: torch.device, image_size: int | None, channels_last: bool,
        erasing: tuple[float, TrainOrder] | None = None,
    ) -> None:  # fmt: skip
        self.erasing = erasing
        self.device, self.image_size, self.channels_last = device, image_size, channels_last
        self.mean = torch.tensor(data.mean, device=device)
        self.std = torch.tensor(data.std, device=device)

    def __call__(self, images: Tensor, epoch: int, step: int) -> Tensor:
        result = normalize(images, self.mean, self.std, channels_last=self.channels_last)
        result = result if self.image_size is None else resize(result, self.image_size)
        if self.erasing is None:
            return result
        probability, order = self.erasing
        generator = torch.Generator().manual_seed(derive_seed(order.seed, "erase", epoch, step, order.rank))
        return erase(result, probability, generator)


# ---- sets that are one tensor ----


@dataclass(frozen=True, eq=False)
class RawBatch:
    """Images of a batch before crop, flip and normalization, which a compiled graph does together with the mixing."""

    images: Tensor  # (n, C, H, W) uint8, on the device
    crops: CropFlip | None
    mean: Tensor  # (C,) float32, on the device
    std: Tensor  # (C,) float32, on the device
    channels_last: bool  # the memory format of the result

    def __len__(self) -> int:
        return len(self.images)

    def finished(self) -> Tensor:
        """Return the batch that the loader yields otherwise, (n, C, H, W) float32."""
        images = self.crops.apply(self.images) if self.crops else self.images
        return normalize(images, self.mean, self.std, channels_last=self.channels_last)


class _ArrayLoader:
    """Gathers, crops, flips and normalizes on the device; indices and draws go there once an epoch.

    The images are on the CPU if a policy changes them, one by one, in a thread.
    """

    def __init__(
        self,
        data: ArraySet,
        order: TrainOrder | TestOrder,
        finish: _Finish,
        augment: Augment = Augment(),  # noqa: B008 - frozen
        color: _Color | None = None,
        seed: int = 0,
        raw: bool = False,
    ) -> None:
        self.steps = order.steps
        self.order, self.finish, self.augment, self.color, self.seed = order, finish, augment, color, seed
        self.policy = Policy(augment.auto_augment, seed) if augment.auto_augment != "none" else None
        self.images = data.images if self.policy else data.images.to(finish.device)
        self.labels, self.upload = data.labels.to(finish.device), Upload(finish.device)
        more = (self.policy, color, finish.erasing, finish.image_size)
        self.raw = raw and all(part is None for part in more)

    def epoch(self, epoch: int = 0, start: int = 0) -> Iterator[Any]:
        indices = self.order.indices(epoch)
        crops = None
        if (own := self.augment).crop_padding or own.flip:
            generator = torch.Generator().manual_seed(derive_seed(self.seed, "augment", epoch))
            drawn = draw_crop_flip(len(indices), own.crop_padding, own.flip, generator, own.padding_mode)
            crops = drawn.to(self.finish.device)
        gathered = self._gathered(indices.to(self.images.device), epoch, start)
        indices = indices.to(self.finish.device)
        for step, images in enumerate(gathered, start):
            share = self.order.share(step)
            if self.raw:
                finish = self.finish
                batch = RawBatch(images, crops[share] if crops else None, finish.mean, finish.std, finish.channels_last)
                yield batch, self.labels.index_select(0, indices[share])
                continue
            if crops:
                images = crops[share].apply(images)
            if self.color:
                images = self.color.draw(epoch, step).apply(images)
            yield self.finish(images, epoch, step), self.labels.index_select(0, indices[share])

    def _gathered(self, indices: Tensor, epoch: int, start: int) -> Iterator[Tensor]:
        """Yield the images of each step; a policy is applied to those of the next step in a thread meanwhile."""
        shares = [self.order.share(step) for step in range(start, self.steps)]
        gathered = (self.images.index_select(0, indices[share]) for share in shares)
        if not self.policy:
            yield from gathered
            return
        with ThreadPoolExecutor(1, "augment") as thread:
            ready: Future[Tensor] | None = None
            for share, images in zip(shares, gathered, strict=True):
                following = thread.submit(self.policy.plan(images, epoch, share.start))
                if ready:
                    yield self.upload([ready.result()])[0]
                ready = following
            if ready:
                yield self.upload([ready.result()])[0]


# ---- sets of files ----

_AHEAD = 2
"""Batches that threads make beside the one that is waited for."""

Job = Callable[[], None]


class Samples(Protocol):
    """Makes the batches of a :class:`FileLoader`."""

    def begin(self, epoch: int, indices: list[int]) -> tuple[list[Job], Callable[[], Any]]:
        """Return jobs, one a sample, to run in any thread and order, and a function that makes the batch after them.

        The indices are the ``draws`` of the order.
        """


class _Files:
    """Encoded images, each written by its job into its place in one uint8 batch."""

    def __init__(self, data: FileSet, transform: Any, image_size: int, seed: int, pin_memory: bool) -> None:
        self.paths, self.labels, self.channels, self.transform = data.paths, data.labels, data.in_chans, transform
        self.image_size, self.seed, self.pin_memory = image_size, seed, pin_memory

    def begin(self, epoch: int, indices: list[int]) -> tuple[list[Job], Callable[[], Batch]]:
        shape = len(indices), self.channels, self.image_size, self.image_size
        images = torch.empty(shape, dtype=torch.uint8, pin_memory=self.pin_memory)
        samples = [split_draw(draw) for draw in indices]
        jobs = [
            self._job((epoch, *repeats), index, place)
            for (index, repeats), place in zip(samples, images.numpy(), strict=True)
        ]
        return jobs, lambda: (images, self.labels[[index for index, _ in samples]])

    def _job(self, turn: tuple[int, ...], index: int, place: np.ndarray) -> Job:
        """Return a job that decodes and transforms one file, with the same draws in any thread and batch."""
        policy = self.transform.plan(derive_seed(self.seed, "policy", *turn, index))

        def run() -> None:
            generator = torch.Generator().manual_seed(derive_seed(self.seed, "augment", *turn, index))
            place[:] = self.transform(self.paths[index], generator, policy).transpose(2, 0, 1)

        return run


class _TestFiles(_Files):
    def _job(self, turn: tuple[int, ...], index: int, place: np.ndarray) -> Job:
        def run() -> None:
            place[:] = self.transform(self.paths[index]).transpose(2, 0, 1)

        return run


def _file_loader(
    make: type[_Files],
    data: FileSet,
    transform: Any,
    order: TrainOrder | TestOrder,
    finish: _Finish,
    workers: int,
    seed: int = 0,
    color: _Color | None = None,
) -> "FileLoader":
    """Return the loader of a file set: threads write uint8, the device colours and normalizes."""
    assert finish.image_size is not None
    files = make(data, transform, finish.image_size, seed, pin_memory=finish.device.type == "cuda")

    upload = Upload(finish.device)

    def finish_batch(batch: Batch, epoch: int, step: int) -> Batch:
        images, labels = upload(batch)
        return finish(color.draw(epoch, step).apply(images) if color else images, epoch, step), labels

    return FileLoader(files, order, finish_batch, workers)


class FileLoader:
    """Batches of samples that threads make ahead of the loop; epochs of one loader do not disturb each other.

    ``finish`` is called with the batch, the epoch and the step. Without workers, samples are made in the thread of the
    loop.
    """

    def __init__(
        self,
        samples: Samples,
        order: TrainOrder | TestOrder,
        finish: Callable[[Any, int, int], Any],
        workers: int,
    ) -> None:
        self.samples, self.order, self.finish, self.steps = samples, order, finish, order.steps
        self.workers = workers

    @cached_property
    def threads(self) -> ThreadPoolExecutor | None:
        """The threads, started when the first batch is asked for; None without workers."""
        return decoding_threads(self.workers) if self.workers else None

    def epoch(self, epoch: int = 0, start: int = 0) -> Iterator[Any]:
        """Yield the batches from one on; the first error among the samples of a batch is raised in its place."""
        draws = self.order.draws(epoch)
        begun = (self._begin(epoch, draws, step) for step in range(start, self.steps))
        waiting = deque(itertools.islice(begun, _AHEAD if self.threads else 0))
        try:
            for step in range(start, self.steps):
                waiting.extend(itertools.islice(begun, 1))
                futures, jobs, batch = waiting.popleft()
                for job in jobs:
                    job()
                for future in futures:
                    future.result()
                yield self.finish(batch(), epoch, step)
        finally:
            for future in itertools.chain.from_iterable(futures for futures, *_ in waiting):
                future.cancel()

    def _begin(self, epoch: int, draws: Tensor, step: int) -> tuple[list[Future[None]], list[Job], Callable[[], Any]]:
        """Return the futures of a batch, its jobs if there are no threads, and the function that makes the batch."""
        jobs, batch = self.samples.begin(epoch, draws[self.order.share(step)].tolist())
        return ([self.threads.submit(job) for job in jobs], [], batch) if self.threads else ([], jobs, batch)


_SMALL = 1 << 16  # bytes that a CUDA GPU takes from any memory of the host without a wait


class Upload:
    """Copies batches to a device; to a CUDA GPU in a stream of its own, so that a copy runs beside a step."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.stream = torch.cuda.Stream(device) if device.type == "cuda" else None

    def __call__(self, parts: Iterable[torch.Tensor]) -> list[torch.Tensor]:
        """Return tensors of the host on the device; only their use waits for them."""
        if self.stream:  # the copy of a large one is pinned first, as a GPU waits for others
            parts = [p if p.nbytes <= _SMALL or p.is_pinned() else p.pin_memory() for p in parts]
        with torch.cuda.stream(self.stream):  # None has no effect
            there = [part.to(self.device, non_blocking=True) for part in parts]
        if self.stream:
            using = torch.cuda.current_stream(self.device)
            using.wait_stream(self.stream)
            for part in there:
                part.record_stream(using)  # its memory is not used again before the step has read it
        return there
