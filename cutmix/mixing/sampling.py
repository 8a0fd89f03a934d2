"""Random numbers of a transform's own, and the two things that every mix draws: who is with whom, and how much."""

import os
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import get_worker_info

from cutmix.runtime.seeding import derive_seed


class RandomStream:
    """A CPU generator of one's own, which neither reads nor moves a global one.

    The stream follows from (seed, name, rank), the rank being what the launcher puts into the environment (RANK,
    SLURM_PROCID or LOCAL_RANK), so that the processes of one run draw differently. In a worker of a DataLoader it
    follows from the worker's seed too: otherwise every worker would carry a copy of the same generator, and draw the
    same again each epoch.

    Args:
        seed: Any integer; None takes fresh entropy.
        name: What is drawn, so that two transforms with one seed are unrelated.
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
        """Return the state of the generator, and whose it is."""
        return {"generator": self.generator.get_state(), "rank": self._rank}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from a state; from another process's, with a stream that follows from it and from the own rank.

        Frameworks save the first process's state and load it in all: they would then all draw the same.
        """
        self.generator.set_state(state["generator"])
        if state.get("rank", self._rank) != self._rank:
            number = int(torch.randint(2**62, (), generator=self._generator))
            self._generator.manual_seed(derive_seed(number, self._name, self._rank))

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_generator": self._generator.get_state()}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._generator = torch.Generator()
        self._generator.set_state(state["_generator"])


def process_rank() -> int:
    """Return the number of this process among all of its run, as its launcher says it; 0 without one."""
    return next((int(os.environ[name]) for name in ("RANK", "SLURM_PROCID", "LOCAL_RANK") if name in os.environ), 0)


def draw_cycle(n: int, generator: torch.Generator) -> Tensor:
    """Draw one cycle through n ≥ 2 samples, uniform over all of them: partner (n,) int64.

    Everybody's partner is his successor in a random order. Each cycle comes from exactly n orders, so that this is
    the distribution of Sattolo's algorithm, without its loop.
    """
    order = torch.randperm(n, generator=generator).numpy()
    partner = np.empty_like(order)
    partner[order[:-1]] = order[1:]
    partner[order[-1]] = order[0]
    return torch.from_numpy(partner)


def draw_beta(alpha: float, n: int, generator: torch.Generator) -> Tensor:
    """Draw λ ~ Beta(α, α), (n,) float64: what ``torch.distributions.Beta`` does, with a generator of one's own."""
    concentration = torch.full((n, 2), alpha, dtype=torch.float64)
    return torch._sample_dirichlet(concentration, generator=generator)[:, 0]
