"""Random streams: their distributions, and one for each transform, process and worker."""

import pickle
from collections import Counter

import pytest
import torch
import torch.distributed as dist
from scipy import stats
from torch.multiprocessing import start_processes
from torch.utils.data import DataLoader, TensorDataset

from cutmix import CutMix, Cutout, FeatureCutMix, InputError, Mixup, RandomChoice, collate
from cutmix.mixing.draw import _SMALL_ALPHA, RandomStream, draw_beta, draw_cycle, process_rank


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


@pytest.mark.parametrize("alpha", [1e-300, 1e-6, 1e-3, 3e-3, 0.01, _SMALL_ALPHA - 1e-9, _SMALL_ALPHA])
def test_weights_of_a_tiny_alpha_are_beta(alpha):
    n = 40_000
    lam = draw_beta(alpha, n, torch.Generator().manual_seed(0)).numpy()
    # Most weights are too close to 0 or 1 for float64, so that the distributions are compared where it has numbers.
    for point in (1e-300, 1e-200, 1e-100, 1e-30, 1e-10, 1e-3, 0.3, 0.5, 0.9, 1 - 1e-10):
        share = stats.beta.cdf(point, alpha, alpha)
        assert (lam <= point).mean() == pytest.approx(share, abs=4.5 * (share * (1 - share) / n) ** 0.5 + 1e-9)
    assert (lam == 0.5).sum() <= 1  # which torch's sampler returns where both of its variates are too small


def test_usual_weights_are_those_of_torch():
    with torch.random.fork_rng():
        torch.manual_seed(5)
        alpha = torch.full((100,), 0.3, dtype=torch.float64)
        theirs = torch.distributions.Beta(alpha, alpha).sample()
    assert torch.equal(draw_beta(0.3, 100, torch.Generator().manual_seed(5)), theirs)


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
    monkeypatch.setenv(name, "")  # as a container passes a variable on that is not set
    assert process_rank() == 0


def draw_in_a_group(rank, folder):
    dist.init_process_group("gloo", init_method=f"file://{folder}/group", rank=rank, world_size=2)
    torch.save(CutMix(per_sample=True, seed=0).draw((64, 3, 32, 32)).boxes, folder / f"{rank}.pt")
    dist.destroy_process_group()


def test_processes_of_a_group_draw_differently_without_a_launcher(monkeypatch, tmp_path):
    """As in PyTorch's tutorials, which start processes by ``torch.multiprocessing`` and leave the environment alone."""
    for name in ("RANK", "SLURM_PROCID", "LOCAL_RANK"):
        monkeypatch.delenv(name, raising=False)
    start_processes(draw_in_a_group, (tmp_path,), nprocs=2, start_method="fork")
    first, second = (torch.load(tmp_path / f"{rank}.pt") for rank in (0, 1))
    assert torch.equal(first, CutMix(per_sample=True, seed=0).draw((64, 3, 32, 32)).boxes)
    assert not torch.equal(first, second)


# Loaders.

IMAGES, LABELS = torch.arange(24.0).reshape(24, 1, 1, 1).expand(24, 1, 40, 40).contiguous(), torch.arange(24)


def weights(mix, method, *, workers=2, seed=0, persistent=False):
    """Return λ of each of the four batches of two epochs."""
    loader = DataLoader(
        TensorDataset(IMAGES, LABELS), batch_size=6, num_workers=workers, collate_fn=collate(mix),
        persistent_workers=persistent, generator=torch.Generator().manual_seed(seed), multiprocessing_context=method,
    )  # fmt: skip
    found = []
    for _ in range(2):
        for images, targets in loader:
            own = (images == targets.labels.reshape(-1, 1, 1, 1)).float().mean((1, 2, 3))
            torch.testing.assert_close(targets.lam, own)
            found.append(tuple(targets.lam.tolist()))
    return found


@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
def test_no_worker_and_no_epoch_repeats_another():
    forked = weights(CutMix(per_sample=True, seed=0), "fork")
    assert len(set(forked)) == 8
    assert weights(CutMix(per_sample=True, seed=0), "fork") == forked
    assert not set(weights(CutMix(per_sample=True, seed=0), "fork", seed=1)) & set(forked)
    assert not set(weights(CutMix(per_sample=True, seed=1), "fork")) & set(forked)
    persistent = weights(CutMix(per_sample=True, seed=0), "fork", persistent=True)
    assert len(set(persistent)) == 8
    assert persistent[:4] == forked[:4]


@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
@pytest.mark.parametrize("method", ["forkserver", pytest.param("spawn", marks=pytest.mark.slow)])
def test_workers_draw_alike_however_they_are_started(method):
    mix = RandomChoice([CutMix(per_sample=True, seed=0), CutMix(seed=1)], seed=0)
    started = weights(mix, method, workers=1, persistent=True)
    assert started == weights(mix, "fork", workers=1, persistent=True)


@pytest.mark.parametrize(
    "mix", [CutMix(seed=0), Mixup(seed=0), Cutout(4, seed=0), RandomChoice([CutMix(seed=0)], seed=0)]
)
def test_what_a_loader_gets_can_be_pickled(mix):
    samples = list(zip(IMAGES[:6], LABELS[:6].tolist(), strict=True))
    copy = pickle.loads(pickle.dumps(collate(mix)))
    images, targets = copy(samples)
    expected, same = collate(mix)(samples)
    assert torch.equal(images, expected)
    assert all(map(torch.equal, targets, same))


def test_a_mix_inside_the_network_cannot_be_in_a_loader():
    with pytest.raises(
        InputError, match="mix is of type FeatureCutMix; expected a transform of images, such as CutMix"
    ):
        collate(FeatureCutMix())


@pytest.mark.parametrize(
    ("sample", "sentence"),
    [
        ((torch.zeros(1, 4, 4), 1, 2), "the batch is of type list of 3 parts; expected images and labels"),
        ({"image": torch.zeros(1, 4, 4), "label": 1}, "the batch is of type dict of 2 parts; expected images"),
        (torch.zeros(1, 4, 4), "the batch is of type Tensor; expected images and labels"),
        ((torch.zeros(1, 4, 4), "cat"), "labels are of type tuple; expected a tensor of class ids"),
    ],
)  # fmt: skip
def test_other_samples_are_refused(sample, sentence):
    with pytest.raises(InputError, match=sentence):
        collate(CutMix())([sample] * 4)
