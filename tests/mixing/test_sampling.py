"""Random numbers of one's own: their distribution, and whose they are."""

from collections import Counter

import pytest
import torch
from scipy import stats

from cutmix import CutMix, Mixup
from cutmix.mixing.sampling import RandomStream, draw_beta, draw_cycle


@pytest.mark.parametrize("n", [2, 3, 5, 64])
def test_partners_form_one_cycle(n):
    partner = draw_cycle(n, torch.Generator().manual_seed(n)).tolist()
    visited, at = [], 0
    for _ in range(n):
        at = partner[at]
        visited.append(at)
    assert sorted(visited) == list(range(n))
    assert at == 0


def test_every_cycle_is_as_likely():
    generator = torch.Generator().manual_seed(3)
    cycles = Counter(tuple(draw_cycle(4, generator).tolist()) for _ in range(6000))
    assert len(cycles) == 6
    assert stats.chisquare(list(cycles.values())).pvalue > 1e-4


@pytest.mark.parametrize("alpha", [0.1, 1, 4])
def test_weights_are_beta(alpha):
    lam = draw_beta(alpha, 10_000, torch.Generator().manual_seed(0))
    assert lam.dtype == torch.float64
    assert stats.kstest(lam.numpy(), stats.beta(alpha, alpha).cdf).pvalue > 1e-4


def test_a_stream_follows_from_its_seed_and_its_name():
    def numbers(seed, name):
        return torch.rand(4, generator=RandomStream(seed, name).generator).tolist()

    assert numbers(0, "cutmix") == numbers(0, "cutmix")
    assert (
        len({tuple(numbers(*which)) for which in ((0, "cutmix"), (1, "cutmix"), (0, "mixup"), (None, "cutmix"))}) == 4
    )


def test_transforms_with_one_seed_are_unrelated():
    draws = [CutMix(per_sample=True, seed=0), Mixup(per_sample=True, seed=0)]
    partners = [transform.draw((64, 3, 8, 8)).partner for transform in draws]
    assert (partners[0] == partners[1]).sum() < 8


@pytest.mark.parametrize("name", ["RANK", "SLURM_PROCID", "LOCAL_RANK"])
def test_a_state_that_the_first_process_saved_does_not_make_all_draw_alike(name, monkeypatch):
    first = CutMix(per_sample=True, seed=0)
    first.draw((4, 3, 32, 32))
    state = first.state_dict()
    drawn = [first.draw((64, 3, 32, 32)).boxes]
    for rank in (0, 1, 2):
        monkeypatch.setenv(name, str(rank))
        for _ in range(2):
            other = CutMix(per_sample=True, seed=0)
            other.load_state_dict(state)
            drawn.append(other.draw((64, 3, 32, 32)).boxes)
    assert torch.equal(drawn[0], drawn[1])  # the same process goes on
    for again in (1, 3, 5):
        assert torch.equal(drawn[again], drawn[again + 1])
    assert not torch.equal(drawn[1], drawn[3])
    assert not torch.equal(drawn[3], drawn[5])
