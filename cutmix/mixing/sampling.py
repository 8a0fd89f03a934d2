"""A transform's own random stream, the draws that every mix needs (partners and weights), and mixing in a loader."""

import os
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import default_collate, get_worker_info

from cutmix.errors import InputError
from cutmix.mixing.protocol import BatchTransform
from cutmix.mixing.targets import Targets
from cutmix.runtime.seeding import derive_seed


class RandomStream:
    """A private CPU generator, independent of the global ones.

    The stream follows from (seed, name, rank); the rank is what the launcher puts into the environment (RANK,
    SLURM_PROCID or LOCAL_RANK), so that the processes of one run draw differently. In a worker of a DataLoader it
    follows from the worker's seed too: otherwise every worker would hold a copy of the same generator, and repeat its
    draws each epoch.

    Args:
        seed: Any integer; None takes fresh entropy.
        name: Name of the stream, so that two transforms with one seed are unrelated.
    """

    def __init__(self, seed: int | None, name: str) -> None:
        self._generator = torch.Generator()
        self._seed = self._generator.seed() if seed is None else seed
        self._name, self._rank = name, process_rank()
        self._worker_seed: int | None = None
        self._generator.manual_seed(derive_seed(self._seed, name, self._rank))

    @property
    def generator(self) -> torch.Generator:
        """The generator of this process."""
        worker = get_worker_info()
        if worker is not None and worker.seed != self._worker_seed:
            self._worker_seed = worker.seed
            self._generator.manual_seed(derive_seed(self._seed, self._name, self._rank, worker.seed))
        return self._generator

    def state_dict(self) -> dict[str, Any]:
        """Return the state of the generator and the rank of its process."""
        return {"generator": self.generator.get_state(), "rank": self._rank}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore a state; if it is another process's, derive a stream from it and from this process's rank.

        Frameworks save the first process's state and load it in all of them, which would then all draw the same.
        """
        self.generator.set_state(state["generator"])
        if state.get("rank", self._rank) != self._rank:
            number = int(torch.randint(2**62, (), generator=self._generator))
            self._generator.manual_seed(derive_seed(number, self._name, self._rank))

    def __getstate__(self) -> dict[str, Any]:
        # bytes: a temporary tensor would be in shared memory that is gone before a spawned worker opens it
        return self.__dict__ | {"_generator": self._generator.get_state().numpy().tobytes()}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._generator = torch.Generator()
        self._generator.set_state(torch.frombuffer(bytearray(state["_generator"]), dtype=torch.uint8))


def process_rank() -> int:
    """Return the rank of this process, which its launcher puts into the environment; 0 without a launcher."""
    return next((int(os.environ[name]) for name in ("RANK", "SLURM_PROCID", "LOCAL_RANK") if name in os.environ), 0)


def draw_cycle(n: int, generator: torch.Generator) -> Tensor:
    """Draw one cycle through n ≥ 2 samples, uniform over all of them: partner (n,) int64.

    Each sample's partner is its successor in a random order. Each cycle comes from exactly n orders, so that the
    distribution is that of Sattolo's algorithm, without its loop.
    """
    order = torch.randperm(n, generator=generator).numpy()
    partner = np.empty_like(order)
    partner[order[:-1]] = order[1:]
    partner[order[-1]] = order[0]
    return torch.from_numpy(partner)


# Below this α, both of the Gamma variates that λ is made of may be too small for float64 (a chance of e^-1416α), and
# torch's sampler then returns ½.
_SMALL_ALPHA = 0.02


def draw_beta(alpha: float, n: int, generator: torch.Generator) -> Tensor:
    """Draw λ ~ Beta(α, α), (n,) float64.

    As ``torch.distributions.Beta`` does, with the given generator; for a tiny α in log space, as NumPy does:
    λ = G₁ / (G₁ + G₂) with log G(α) = log G(α + 1) + (log U) / α.
    """
    if alpha >= _SMALL_ALPHA:
        concentration = torch.full((n, 2), alpha, dtype=torch.float64)
        return torch._sample_dirichlet(concentration, generator=generator)[:, 0]
    gamma = torch._standard_gamma(torch.full((2, n), alpha + 1, dtype=torch.float64), generator=generator).log()
    uniform = (1 - torch.rand((2, n), generator=generator, dtype=torch.float64)).log()  # of numbers in (0, 1]
    return torch.sigmoid(gamma[0] - gamma[1] + (uniform[0] - uniform[1]) / alpha)


def collate(
    mix: BatchTransform, batch: Callable[[list[Any]], Any] = default_collate
) -> Callable[[list[Any]], tuple[Tensor, Targets]]:
    """Return a ``collate_fn`` for a ``DataLoader`` whose workers mix the batches.

        loader = DataLoader(dataset, batch_size=64, num_workers=4, collate_fn=cutmix.collate(cutmix.CutMix(seed=0)))

    It can be pickled, so that it works with workers that are forked, spawned or started by a fork server. Each worker
    draws from a generator of its own, seeded by the transform's seed, the process's rank and the worker's seed. The
    loader draws the workers' seeds from its ``generator`` at the start of every epoch: no worker or epoch repeats
    another, and a loader with a seeded ``generator`` repeats a run. Persistent workers continue their streams.

    Args:
        mix: A transform of images; what changes in it later does not reach workers that have started.
        batch: Makes images (N, ..., H, W) and labels of the samples.

    Raises:
        InputError: If ``mix`` is not a transform of images, or, from the loader, if a batch is not images and labels.
    """
    if not callable(mix):
        raise InputError(f"mix is of type {type(mix).__name__}; expected a transform of images, such as CutMix")
    return partial(_collate, mix, batch)


def _collate(mix: BatchTransform, batch: Callable[[list[Any]], Any], samples: list[Any]) -> tuple[Tensor, Targets]:
    made = batch(samples)
    if not isinstance(made, tuple | list) or len(made) != 2:
        parts = f" of {len(made)} parts" if isinstance(made, tuple | list | dict) else ""
        raise InputError(f"the batch is of type {type(made).__name__}{parts}; expected images and labels")
    images, labels = made
    return mix(images, labels)
