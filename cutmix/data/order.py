"""Which samples make a batch, on every process: functions of the seed and the epoch."""

import math

import numpy as np
import torch
from torch import Tensor

from cutmix.runtime.seeding import derive_seed

WINDOW = 16
"""Shards that are read at a time, in random order: disks and networks read few places faster than many."""

_INDEX_BITS = 32


class TrainOrder:
    """Which samples, shuffled by the seed and the epoch, this rank has in each batch.

    All ranks have equally many: the last ones are filled up from the start of the epoch's order. The batches of a rank
    differ by one sample at most, and none is a single sample, which batch normalisation cannot take.

    Args:
        size: Number of samples.
        batch_size: Of all processes together.
        seed: Decides the order of each epoch.
        rank: This process.
        world_size: All processes.
        balance: Class ids (size,), of which each class is drawn equally often; None draws each sample once.
        repeats: Copies of a sample in a row; the epoch has as many samples as before, so fewer different ones.
        shards: The shard of each sample, (size,), if they are read a few shards at a time.

    Source: Hoffer et al. 2020, "Augment your batch", and Berman et al. 2019, for ``repeats``; timm's
    ``RepeatAugSampler`` gives the copies to different processes, here they are in one batch.
    """

    def __init__(
        self, size: int, batch_size: int, seed: int, rank: int, world_size: int, balance: Tensor | None = None,
        repeats: int = 1, shards: np.ndarray | None = None,
    ) -> None:  # fmt: skip
        self.shards = None if shards is None else np.unique(shards, return_inverse=True)[1].astype(np.uint16)
        self.size, self.batch_size, self.seed, self.repeats = size, batch_size, seed, repeats
        self.members = [] if balance is None else [(balance == label).nonzero()[:, 0] for label in balance.unique()]
        self.rank, self.world_size = rank, world_size
        own = batch_size // world_size
        self.bounds = _divide(max(math.ceil(size / world_size), min(2, own, size)), own)
        self.steps = len(self.bounds) - 1

    def indices(self, epoch: int) -> Tensor:
        """Return the epoch's order, begun again until the last batch is full."""
        generator = torch.Generator().manual_seed(derive_seed(self.seed, "order", epoch))
        order = self._balanced(generator) if self.members else torch.randperm(self.size, generator=generator)
        order = order if self.shards is None else self._in_windows(order, generator)
        order = order.repeat_interleave(self.repeats)[: self.size]
        length = max(self.steps * self.batch_size, self.bounds[-1] * self.world_size)
        return order[torch.arange(length) % self.size]

    def draws(self, epoch: int) -> Tensor:
        """Return the epoch's order, each index with how often it came before where samples are drawn repeatedly.

        So a repeated image is augmented differently each time; ``split_draw`` splits a draw.
        """
        indices = self.indices(epoch)
        return indices + (_repeats(indices) << _INDEX_BITS) if self.members or self.repeats > 1 else indices

    def _in_windows(self, order: Tensor, generator: torch.Generator) -> Tensor:
        """Return an order that goes through ``WINDOW`` random shards at a time; unchanged for fewer shards."""
        assert self.shards is not None
        count = int(self.shards.max()) + 1
        if count <= WINDOW:
            return order
        window = (torch.randperm(count, generator=generator) // WINDOW).numpy().astype(np.uint16)
        return order[np.argsort(window[self.shards[order.numpy()]], kind="stable")]

    def _balanced(self, generator: torch.Generator) -> Tensor:
        """Return equally many samples of each class, one more of some; none again before all others of its class."""
        share, rest = divmod(self.size, len(self.members))
        more = torch.randperm(len(self.members), generator=generator) < rest
        drawn = []
        for own, extra in zip(self.members, more.tolist(), strict=True):
            rounds = math.ceil((share + extra) / len(own))
            shuffled = [own[torch.randperm(len(own), generator=generator)] for _ in range(rounds)]
            drawn.append(torch.cat([own[:0], *shuffled])[: share + extra])
        return torch.cat(drawn)[torch.randperm(self.size, generator=generator)]

    def batch(self, step: int) -> slice:
        """Return the positions of a batch of all ranks in the epoch's order."""
        return slice(self.bounds[step] * self.world_size, self.bounds[step + 1] * self.world_size)

    def share(self, step: int) -> slice:
        """Return this rank's positions in the epoch's order."""
        first, share = self.batch(step).start, self.bounds[step + 1] - self.bounds[step]
        return slice(first + self.rank * share, first + (self.rank + 1) * share)


def _divide(count: int, size: int) -> list[int]:
    """Return the bounds of the batches of one rank: as few as can be of at most ``size``, as equal as can be."""
    steps = math.ceil(count / size)
    if size > 1:
        steps = max(min(steps, count // 2), 1)  # batches of two, and one of three
    return [step * count // steps for step in range(steps + 1)]


class TestOrder:
    """Which samples, in their order, this rank has in each batch: r, r + world_size, ..."""

    def __init__(self, size: int, batch_size: int, rank: int, world_size: int) -> None:
        self.all = torch.arange(rank, size, world_size)
        self.batch_size = batch_size // world_size
        self.steps = math.ceil(len(self.all) / self.batch_size)

    def indices(self, epoch: int) -> Tensor:
        """Return this rank's indices, the same in every epoch."""
        return self.all

    def draws(self, epoch: int) -> Tensor:
        """Return ``indices``: no sample is repeated."""
        return self.all

    def share(self, step: int) -> slice:
        """Return the positions of a batch in them."""
        return slice(step * self.batch_size, (step + 1) * self.batch_size)


def _repeats(indices: Tensor) -> Tensor:
    """Return how often each value came before, (n,) int64."""
    ordered, order = indices.sort(stable=True)
    before = torch.empty_like(order)
    before[order] = torch.arange(len(order)) - torch.searchsorted(ordered, ordered)
    return before


def split_draw(draw: int) -> tuple[int, tuple[int, ...]]:
    """Return the index of a draw, and how often the sample came before in the epoch: () for never."""
    index, repeats = draw & ((1 << _INDEX_BITS) - 1), draw >> _INDEX_BITS
    return index, (repeats,) if repeats else ()
