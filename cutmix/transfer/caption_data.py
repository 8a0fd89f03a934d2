"""Batches of pictures with captions to train on, and of pictures to caption: the same whenever they are asked for."""

import os
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from cutmix.data import normalize
from cutmix.data.decode import read_image
from cutmix.data.loaders import TestOrder, TrainOrder
from cutmix.errors import InputError
from cutmix.runtime.seeding import derive_seed
from cutmix.transfer.captions import CaptionSet
from cutmix.transfer.vocabulary import Vocabulary, collate

_LARGE = 2**31  # bytes: a set that needs more is decoded batch by batch, in every epoch


class Pictures:
    """Picture files as squares of uint8: decoded once and kept on the device, or anew for each batch of a large set.

    Args:
        paths: The N files.
        size: Side that the whole picture is resized to; its proportions are not kept.
        device: Where the batches are wanted.
        most: Bytes up to which everything is kept.
    """

    def __init__(self, paths: Sequence[Path], size: int, device: torch.device | str, most: int = _LARGE) -> None:
        self.paths, self.size, self.device = paths, size, torch.device(device)
        self.kept: Tensor | None = None
        if len(paths) * 3 * size * size <= most:
            with ThreadPoolExecutor(os.cpu_count()) as threads:
                kept = torch.empty((len(paths), 3, size, size), dtype=torch.uint8)
                for i, picture in enumerate(threads.map(self._read, paths)):
                    kept[i] = picture
            self.kept = kept.to(self.device)

    def batches(self, choices: Iterable[Tensor]) -> Iterator[Tensor]:
        """Yield (n, 3, size, size) uint8 on the device for each tensor of n indices."""
        if self.kept is not None:
            for choice in choices:
                yield self.kept.index_select(0, choice.to(self.device))
            return
        with ThreadPoolExecutor(os.cpu_count()) as threads:
            ahead: deque = deque()
            for choice in choices:
                ahead.append([threads.submit(self._read, self.paths[i]) for i in choice.tolist()])
                if len(ahead) > 2:  # two batches are decoded while one is used
                    yield self._gather(ahead.popleft())
            while ahead:
                yield self._gather(ahead.popleft())

    def _gather(self, pending: list) -> Tensor:
        return torch.stack([picture.result() for picture in pending]).to(self.device, non_blocking=True)

    def _read(self, path: Path) -> Tensor:
        picture = read_image(path).resize((self.size, self.size), Image.Resampling.BILINEAR)
        return torch.from_numpy(np.asarray(picture).transpose(2, 0, 1).copy())


class CaptionBatches:
    """Shuffled pairs of a picture, randomly cropped and flipped, and one of its captions.

    A sample is a pair, so that an epoch shows each picture as often as it has captions. Order, crops and flips depend
    on the seed and the epoch alone.

    Args:
        data: The training split.
        vocabulary: What the captions are encoded with.
        batch_size: Pairs of all processes together; 20 in the paper.
        seed: Of order, crops and flips.
        device: Where the batches are wanted.
        size: Side that pictures are resized to before the crop.
        crop: Side of the random crop.
        flip: Mirror half of the crops.
        channels_last: The memory format of the images.
        rank: This process.
        world_size: All processes.

    Attributes:
        steps: Batches an epoch.

    Raises:
        InputError: An argument is out of its range, or a picture cannot be read.

    Source: resize to 256×256, random crop of 224, flip: the code base of CutMix's table A2.
    """

    def __init__(
        self,
        data: CaptionSet,
        vocabulary: Vocabulary,
        *,
        batch_size: int = 20,
        seed: int = 0,
        device: torch.device | str = "cpu",
        size: int = 256,
        crop: int = 224,
        flip: bool = True,
        channels_last: bool = False,
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        _check(batch_size, size, crop, rank, world_size)
        self.data, self.seed, self.crop, self.flip, self.channels_last = data, seed, crop, flip, channels_last
        self.picture_of = torch.tensor([i for i, captions in enumerate(data.captions) for _ in captions])
        encoded = [vocabulary.encode(caption) for captions in data.captions for caption in captions]
        self.tokens, self.lengths = collate(encoded), torch.tensor([len(caption) for caption in encoded])
        self.order = TrainOrder(len(encoded), batch_size, seed, rank, world_size)
        self.steps = self.order.steps
        self.pictures = Pictures(data.paths, size, device)

    def epoch(self, epoch: int = 0, start: int = 0) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield (images, tokens) from batch ``start`` on: (n, 3, crop, crop) float32 and (n, longest) int64."""
        order = self.order.indices(epoch)
        generator = torch.Generator().manual_seed(derive_seed(self.seed, "augment", epoch))
        room, device = self.pictures.size - self.crop + 1, self.pictures.device
        offsets = torch.randint(room, (len(order), 2), generator=generator).to(device)
        flips = (torch.rand(len(order), generator=generator) < (0.5 if self.flip else 0.0)).to(device)
        shares = [self.order.share(step) for step in range(start, self.steps)]
        pictures = self.pictures.batches(self.picture_of[order[share]] for share in shares)
        for share, batch in zip(shares, pictures, strict=True):
            images = crop_and_flip(batch, offsets[share], flips[share], self.crop)
            chosen = order[share]
            tokens = self.tokens[chosen, : int(self.lengths[chosen].max())].to(device, non_blocking=True)
            yield normalize(images, self.data.mean, self.data.std, channels_last=self.channels_last), tokens


class PictureBatches:
    """The central squares of the pictures to caption, in their order, nothing of them random.

    Process r of R has the pictures r, r + R, and so on, and no others.

    Args:
        data: The split to caption.
        batch_size: Pictures of all processes together.
        device: Where the batches are wanted.
        size: Side that pictures are resized to before the crop.
        crop: Side of the central crop.
        channels_last: The memory format of the images.
        rank: This process.
        world_size: All processes.

    Attributes:
        steps: Batches.

    Raises:
        InputError: An argument is out of its range, or a picture cannot be read.
    """

    def __init__(
        self,
        data: CaptionSet,
        *,
        batch_size: int = 20,
        device: torch.device | str = "cpu",
        size: int = 256,
        crop: int = 224,
        channels_last: bool = False,
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        _check(batch_size, size, crop, rank, world_size)
        self.data, self.crop, self.channels_last = data, crop, channels_last
        self.order = TestOrder(len(data), batch_size, rank, world_size)
        self.steps = self.order.steps
        self.pictures = Pictures(data.paths, size, device)

    def epoch(self, epoch: int = 0, start: int = 0) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield (images, indices): (n, 3, crop, crop) float32 and the pictures' places in the set, (n,) int64."""
        chosen = [self.order.indices(epoch)[self.order.share(step)] for step in range(start, self.steps)]
        edge = (self.pictures.size - self.crop) // 2
        inner = slice(edge, edge + self.crop)
        for indices, batch in zip(chosen, self.pictures.batches(chosen), strict=True):
            images = normalize(
                batch[:, :, inner, inner], self.data.mean, self.data.std, channels_last=self.channels_last
            )
            yield images, indices.to(self.pictures.device)


def crop_and_flip(images: Tensor, offsets: Tensor, flips: Tensor, size: int) -> Tensor:
    """Cut a square out of each image, and mirror some of the squares, without a loop over them.

    Args:
        images: (n, C, H, W), any dtype.
        offsets: (n, 2) int64: top and left.
        flips: (n,) bool.
        size: Side of the squares.

    Returns:
        (n, C, size, size) of the same dtype.
    """
    n, channels, _, width = images.shape
    across = torch.arange(size, device=images.device)
    rows = offsets[:, :1] + across
    cols = offsets[:, 1:] + torch.where(flips[:, None], size - 1 - across, across)
    pixels = (rows * width)[:, :, None] + cols[:, None, :]
    index = pixels.view(n, 1, size * size).expand(-1, channels, -1)
    return images.flatten(2).gather(2, index).view(n, channels, size, size)


def _check(batch_size: int, size: int, crop: int, rank: int, world_size: int) -> None:
    if batch_size < 1 or batch_size % world_size:
        raise InputError(f"batch_size is {batch_size}: expected a positive multiple of the {world_size} processes")
    if not 0 <= rank < world_size:
        raise InputError(f"rank is {rank}: expected 0 to {world_size - 1} for {world_size} processes")
    if not 1 <= crop <= size:
        raise InputError(f"pictures of {size} pixels and a crop of {crop}: expected 1 ≤ crop ≤ size")
