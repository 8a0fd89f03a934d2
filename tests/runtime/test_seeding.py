"""Seeds: stable for ever, and unlike for whatever differs."""

import random

import numpy as np
import torch

from cutmix.runtime.seeding import derive_seed


def test_a_seed_is_63_bits_and_never_changes() -> None:
    # A literal: a run made today must be drawn again by every later version, in every process.
    assert derive_seed(0, "order", 3) == derive_seed(0, "order", 3) == 386106667988085106
    assert all(0 <= derive_seed(k) < 2**63 for k in (-1, 0, 2**80, "text"))


def test_parts_are_told_apart() -> None:
    seeds = [derive_seed(*parts) for parts in ((1, 23), (12, 3), (123,), ("1", 23), ("1, 23",), (1, "23"), (23, 1), ())]
    assert len(set(seeds)) == len(seeds)


def test_neighbours_are_unrelated() -> None:
    bits = np.array([[derive_seed(0, k) >> bit & 1 for bit in range(63)] for k in range(2000)])
    flips = (bits[1:] != bits[:-1]).mean(axis=0)
    assert np.abs(bits.mean(axis=0) - 0.5).max() < 0.06  # Five standard deviations of 2000 fair coins.
    assert np.abs(flips - 0.5).max() < 0.06


def test_global_generators_are_left_alone() -> None:
    before = (random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state())  # noqa: NPY002
    derive_seed(1, "a")
    assert random.getstate() == before[0]
    assert np.random.get_state()[1].tolist() == before[1]  # noqa: NPY002
    assert torch.equal(torch.get_rng_state(), before[2])
