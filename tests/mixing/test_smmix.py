"""SMMix from first principles: planted attention, counted tokens, losses as slow loops, steps taken by hand."""

import copy
import math
import os
import pickle
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import timm
import torch
import torch.distributed as dist
import torch.nn.functional as F
from scipy import stats
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from cutmix import InputError, MixedTargets, mixed_cross_entropy
from cutmix.mixing.smmix import (
    AttentionDraw,
    SMMix,
    consistency_loss,
    fine_grained_loss,
    side_range,
    smmix_loss,
)
from cutmix.models.transformers import PyramidVisionTransformer, WithTokenHead


def some_attention(n: int = 5, height: int = 6, width: int = 7, seed: int = 0) -> Tensor:
    return torch.rand(n, height, width, generator=torch.Generator().manual_seed(seed))


def with_head(seed: int = 0, **options: object) -> WithTokenHead:
    torch.manual_seed(seed)
    shape = {"img_size": 16, "patch_size": 4, "embed_dim": 24, "num_heads": 3, "depth": 2, "num_classes": 4}
    return WithTokenHead(timm.create_model("vit_tiny_patch16_224", **shape | options)).train()


def batch(n: int = 5) -> tuple[Tensor, Tensor]:
    return torch.randn(n, 3, 16, 16, generator=torch.Generator().manual_seed(1)), torch.arange(n) % 4


# The squares.


def test_planted_squares_are_found() -> None:
    attention = torch.ones(3, 8, 8)
    most, least = [(0, 0), (5, 2), (3, 5)], [(4, 4), (1, 5), (0, 1)]
    for i, ((y, x), (v, u)) in enumerate(zip(most, least, strict=True)):
        attention[i, y : y + 3, x : x + 3] = 2
        attention[i, v : v + 3, u : u + 3] = 0
    partner = torch.tensor([2, 0, 1])
    draw = AttentionDraw.from_attention(attention, partner, 3)
    assert draw.target.tolist() == [list(corner) for corner in least]
    assert draw.source.tolist() == [list(most[j]) for j in partner.tolist()]
    mixed = draw.apply(attention)
    for i, (y, x) in enumerate(least):
        assert bool((mixed[i, y : y + 3, x : x + 3] == 2).all()), "the source's maximum covers the target's minimum"
    assert bool((mixed > 0).all())


@pytest.mark.parametrize("side", [1, 2, 5, 6])
def test_squares_are_those_of_an_exhaustive_search(side: int) -> None:
    attention = some_attention()
    draw = AttentionDraw.from_attention(attention, torch.tensor([1, 2, 3, 4, 0]), side)
    for i in range(5):
        sums = {
            (y, x): math.fsum(attention[i, y : y + side, x : x + side].flatten().tolist())
            for y in range(6 - side + 1)
            for x in range(7 - side + 1)
        }
        assert tuple(draw.target[i].tolist()) == min(sums, key=sums.__getitem__)
        assert tuple(draw.source[i - 1].tolist()) == max(sums, key=sums.__getitem__)


def test_exactly_r_squared_tokens_change_and_lambda_is_their_share(numbered: Callable) -> None:
    smmix = SMMix(seed=0)
    for n, height, width in ((2, 14, 14), (5, 7, 7), (3, 6, 9), (4, 2, 2)):
        draw = smmix.draw(some_attention(n, height, width))
        own, pasted = draw.token_masks()
        assert own.shape == (n, height * width)
        assert torch.equal(own, ~pasted)
        assert pasted.sum(1).tolist() == [draw.side**2] * n
        # every token of every sample has a number of its own
        tokens = torch.arange(n * height * width).reshape(n, 1, height, width)
        changed = (draw.apply(tokens) != tokens).reshape(n, -1)
        assert torch.equal(changed, pasted)
        mixed = draw.apply(numbered(n, 3, 2 * height, 4 * width))
        own_pixels = mixed == torch.arange(n).reshape(n, 1, 1, 1)
        from_partner = mixed == draw.partner.reshape(n, 1, 1, 1)
        assert bool((own_pixels ^ from_partner).all())
        share = own_pixels.double().mean((1, 2, 3))
        assert draw.lam.tolist() == share.float().tolist()
        labels = torch.arange(n)
        targets = draw.targets(labels)
        assert isinstance(targets, MixedTargets)
        assert torch.equal(targets.partner_labels, draw.partner)
        assert torch.equal(targets.lam, draw.lam)


def test_the_authors_way_of_unfolding_gives_the_same() -> None:
    """The specification, §2: unfold into windows and patches, reversed batch, flat offsets, fold back."""
    n, grid, side, patch = 6, 7, 3, 4
    attention, images = some_attention(n, grid, grid), torch.randn(n, 3, grid * patch, grid * patch)
    windows = F.unfold(attention.unsqueeze(1), side).sum(1)
    ids = torch.arange(grid**2).reshape(1, 1, grid, grid)
    of_window = F.unfold(ids.double(), side)[0].long().T  # window -> ids of its tokens
    offsets = torch.arange(n)[:, None] * grid**2
    least = of_window[windows.argmin(1)] + offsets
    most = of_window[windows.argmax(1)].flip(0) + offsets
    patches = F.unfold(images, patch, stride=patch).transpose(1, 2).flatten(0, 1)
    mixed = patches.clone()
    mixed[least.flatten()] = patches.reshape(n, grid**2, -1).flip(0).flatten(0, 1)[most.flatten()]
    mixed = F.fold(mixed.reshape(n, grid**2, -1).transpose(1, 2), (grid * patch,) * 2, patch, stride=patch)
    draw = AttentionDraw.from_attention(attention, torch.arange(n).flip(0), side)
    assert torch.equal(draw.apply(images), mixed)


@pytest.mark.parametrize("dtype", [torch.uint8, torch.bool, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("inplace", [False, True])
def test_pixels_move_as_one_by_one(dtype: torch.dtype, inplace: bool) -> None:
    draw = SMMix(seed=3).draw(some_attention(5, 6, 7))
    x = torch.randint(0, 2 if dtype == torch.bool else 200, (5, 2, 12, 21)).to(dtype)
    for images in (x, x.to(memory_format=torch.channels_last), x[:, 0]):
        expected = images.clone()
        for i in range(5):
            (row, column), (from_row, from_column) = draw.target[i].tolist(), draw.source[i].tolist()
            for y in range(2 * draw.side):
                for z in range(3 * draw.side):
                    pixel = images[draw.partner[i], ..., 2 * from_row + y, 3 * from_column + z]
                    expected[i, ..., 2 * row + y, 3 * column + z] = pixel
        given = images.clone()
        mixed = draw.apply(given, inplace=inplace)
        assert torch.equal(mixed, expected)
        assert (mixed is given) is inplace
        assert torch.equal(given, expected if inplace else images)
        assert mixed.stride() == images.stride() or images is not x


def test_sizes_and_partners_are_drawn_as_specified() -> None:
    assert side_range((14, 14)) == (3, 10)
    assert side_range((7, 7)) == (1, 5)
    assert side_range((2, 9)) == (1, 1)
    smmix, attention = SMMix(seed=4), some_attention(3, 14, 14)
    draws = [smmix.draw(attention) for _ in range(800)]
    sides = Counter(draw.side for draw in draws)
    assert sorted(sides) == list(range(3, 11))
    assert stats.chisquare(list(sides.values())).pvalue > 1e-4
    share = 1 - torch.stack([draw.lam for draw in draws]).mean()
    assert abs(float(share) - 0.242) < 0.02  # the mean that the specification gives
    cycles = Counter(tuple(draw.partner.tolist()) for draw in draws)
    assert set(cycles) == {(1, 2, 0), (2, 0, 1)}
    assert stats.chisquare(list(cycles.values())).pvalue > 1e-4


# The losses.


def cross_entropy_by_hand(logits: list[float], target: list[float]) -> float:
    norm = math.log(sum(math.exp(z) for z in logits))
    return -sum(t * (z - norm) for t, z in zip(target, logits, strict=True))


def smoothed(label: int, smoothing: float, classes: int = 4) -> list[float]:
    off = smoothing / classes
    return [1 - smoothing + off if k == label else off for k in range(classes)]


def test_the_losses_are_those_of_a_slow_loop() -> None:
    torch.manual_seed(2)
    n, smoothing = 5, 0.1
    logits, region_logits, predictions = torch.randn(n, 4), torch.randn(n, 2, 4), 2 * torch.randn(n, 4)
    labels = torch.tensor([0, 3, 1, 1, 2])
    draw = SMMix(seed=5).draw(some_attention(n))
    lam = 1 - draw.side**2 / 42
    classification = fine = consistency = 0.0
    for i in range(n):
        j = int(draw.partner[i])
        own, other = smoothed(int(labels[i]), smoothing), smoothed(int(labels[j]), smoothing)
        mixed = [lam * a + (1 - lam) * b for a, b in zip(own, other, strict=True)]
        classification += cross_entropy_by_hand(logits[i].tolist(), mixed) / n
        of_own, of_pasted = region_logits[i].tolist()
        fine += (cross_entropy_by_hand(of_own, own) + cross_entropy_by_hand(of_pasted, other)) / 2 / n
        teacher = [
            lam * a + (1 - lam) * b for a, b in zip(predictions[i].tolist(), predictions[j].tolist(), strict=True)
        ]
        total = sum(math.exp(z) for z in teacher)
        q = [math.exp(z) / total for z in teacher]
        entropy = -sum(p * math.log(p) for p in q)
        consistency += (cross_entropy_by_hand(logits[i].tolist(), q) - entropy) / n
    assert float(fine_grained_loss(region_logits, labels, draw.partner)) == pytest.approx(fine, rel=1e-5)
    assert float(consistency_loss(logits, predictions, draw)) == pytest.approx(consistency, rel=1e-5)
    whole = smmix_loss(logits, region_logits, predictions, labels, draw)
    assert float(whole) == pytest.approx(classification + fine + consistency, rel=1e-5)
    soft = smmix_loss(logits, region_logits, predictions, F.one_hot(labels, 4), draw)
    assert float(soft) == pytest.approx(float(whole), rel=1e-5)
    one_hot, weight = F.one_hot(labels, 4).float(), torch.tensor([1.0, 4.0, 0.5, 2.0])
    other = one_hot[draw.partner]
    expected = (
        F.cross_entropy(region_logits[:, 0], one_hot, weight) + F.cross_entropy(region_logits[:, 1], other, weight)
    ) / 2  # torch divides by the images with soft labels, and by the sum of the weights with class ids
    found = fine_grained_loss(region_logits, labels, draw.partner, label_smoothing=0, weight=weight)
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("shape", [(7, 1), (7, 5), (3, 13)])
def test_predictions_of_another_shape_are_refused(shape: tuple[int, int]) -> None:
    draw = AttentionDraw.from_attention(torch.rand(7, 4, 4), torch.arange(7).roll(1), 2)
    with pytest.raises(InputError, match=r"logits are \(7, 13\), but predictions"):
        consistency_loss(torch.rand(7, 13), torch.rand(shape), draw)


def test_consistent_predictions_cost_nothing_and_get_no_gradient() -> None:
    predictions = torch.randn(5, 4, requires_grad=True)
    draw = SMMix(seed=6).draw(some_attention())
    logits = (draw.lam[:, None] * predictions + (1 - draw.lam[:, None]) * predictions[draw.partner]).detach()
    logits.requires_grad_()
    loss = consistency_loss(logits + 3, predictions, draw)
    loss.backward()
    torch.testing.assert_close(loss, torch.tensor(0.0), atol=1e-6, rtol=0)
    torch.testing.assert_close(logits.grad, torch.zeros(5, 4), atol=1e-6, rtol=0)
    assert predictions.grad is None


# A step.


def test_a_step_is_that_by_hand() -> None:
    head, (images, labels) = with_head(), batch()
    other = copy.deepcopy(head)
    smmix = SMMix(1.0, seed=7)
    draws = copy.deepcopy(smmix)
    before = images.clone()
    loss = smmix.loss(head, images, labels)
    assert torch.equal(images, before)
    predictions, attention = other.attend(images)
    draw = draws.draw(attention)
    logits, region_logits = other(draw.apply(images), draw.token_masks()[0])
    expected = mixed_cross_entropy(logits, draw.targets(labels), label_smoothing=0.1)
    expected = expected + fine_grained_loss(region_logits, labels, draw.partner)
    expected = expected + consistency_loss(logits, predictions, draw)
    assert torch.equal(loss, expected)
    loss.backward()
    expected.backward()
    for (name, ours), theirs in zip(head.named_parameters(), other.parameters(), strict=True):
        assert torch.equal(ours.grad, theirs.grad), name
    assert head.token_head.weight.grad.any()


def test_the_other_batches_get_mixup_and_every_parameter_a_gradient() -> None:
    head, (images, labels) = with_head(), batch()
    smmix = SMMix(0.0, seed=8)
    mixed, targets = copy.deepcopy(smmix).mixup(images, labels)
    loss = smmix.loss(head, images, labels, label_smoothing=0.2)
    expected = mixed_cross_entropy(head.network(mixed), targets, label_smoothing=0.2)
    torch.testing.assert_close(loss, expected)
    loss.backward()
    assert not [name for name, p in head.named_parameters() if p.grad is None]
    assert not head.token_head.weight.grad.any()


def test_inplace_and_half_precision() -> None:
    images, labels = batch()
    plain, given = with_head(), images.clone()
    loss = SMMix(1.0, seed=9).loss(plain, images, labels)
    assert torch.equal(SMMix(1.0, inplace=True, seed=9).loss(with_head(), given, labels), loss)
    assert not torch.equal(given, images)
    with torch.autocast("cpu", torch.bfloat16):
        half = SMMix(1.0, seed=9).loss(head := with_head(), images, labels)
    assert half.dtype == torch.float32
    torch.testing.assert_close(half, loss, atol=0.1, rtol=0.05)
    half.backward()
    assert not [name for name, p in head.named_parameters() if p.grad is None]


def trained(steps: int, stop: int | None = None) -> tuple[list[float], list[Tensor]]:
    """Train for some steps; stopped and resumed, from what a checkpoint holds, after ``stop`` of them."""
    images, labels = batch()

    def start() -> tuple[WithTokenHead, torch.optim.Optimizer, SMMix]:
        head = with_head(drop_path_rate=0.3)
        return head, torch.optim.AdamW(head.parameters(), lr=1e-3), SMMix(seed=13)

    head, optimizer, smmix = start()
    losses = []
    torch.manual_seed(11)
    for step in range(steps):
        if step == stop:
            saved = pickle.dumps([part.state_dict() for part in (head, optimizer, smmix)])
            random = torch.get_rng_state()
            head, optimizer, smmix = start()
            for part, state in zip((head, optimizer, smmix), pickle.loads(saved), strict=True):
                part.load_state_dict(state)
            torch.set_rng_state(random)
        loss = smmix.loss(head, images, labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses, [p.detach() for p in head.parameters()]


def test_goes_on_bit_for_bit() -> None:
    losses, weights = trained(7)
    again, same = trained(7, stop=3)
    assert again == losses
    assert all(map(torch.equal, same, weights))


def test_a_state_holds_the_choice_of_the_batches_also_without_a_seed() -> None:
    first, second = SMMix(), SMMix()
    chosen(first, 5)
    second.load_state_dict(pickle.loads(pickle.dumps(first.state_dict())))
    assert chosen(second, 20) == chosen(first, 20)


def test_copies_go_on_alike_and_the_global_generator_is_left_alone() -> None:
    attention, smmix = some_attention(), SMMix(seed=12)
    before = torch.get_rng_state()
    smmix.draw(attention)
    copies = [copy.deepcopy(smmix), pickle.loads(pickle.dumps(smmix))]
    drawn = [
        [(d.side, d.partner.tolist()) for d in (one.draw(attention) for _ in range(9))] for one in (smmix, *copies)
    ]
    assert drawn[0] == drawn[1] == drawn[2]
    assert torch.equal(torch.get_rng_state(), before)
    assert repr(SMMix(0.25)) == "SMMix(prob=0.25, mixup_alpha=0.8, inplace=False)"


# Several processes, compilation.


def chosen(smmix: SMMix, batches: int) -> list[bool]:
    """Which batches get SMMix, seen in which loss is computed."""
    head, (images, labels) = with_head(), batch(2)
    seen: list[bool] = []
    for _ in range(batches):
        attended = []
        head.attend = lambda x, to=attended: to.append(1) or WithTokenHead.attend(head, x)
        smmix.loss(head, images, labels)
        seen.append(bool(attended))
    return seen


def test_processes_choose_the_same_batches_and_other_squares(monkeypatch: pytest.MonkeyPatch) -> None:
    choices, draws, mixups = [], [], []
    for rank in ("0", "1"):
        monkeypatch.setenv("RANK", rank)
        choices.append(chosen(SMMix(seed=13), 10))
        smmix = SMMix(seed=13)
        draws.append([(d.side, d.partner.tolist()) for d in (smmix.draw(some_attention()) for _ in range(5))])
        mixups.append(smmix.mixup.draw((5, 3)).lam.tolist())
    assert choices[0] == choices[1]
    assert 0 < sum(choices[0]) < 10
    assert draws[0] != draws[1]
    assert mixups[0] != mixups[1]


def test_share_of_the_batches() -> None:
    for prob in (0.0, 0.3, 1.0):
        smmix = SMMix(prob, seed=14)
        count = sum(smmix.choose() for _ in range(3000))
        assert stats.binomtest(count, 3000, prob).pvalue > 1e-4


@pytest.fixture
def one_process(tmp_path: Path) -> Iterator[None]:
    dist.init_process_group("gloo", init_method=f"file://{tmp_path / 'meet'}", rank=0, world_size=1)
    yield
    dist.destroy_process_group()


def test_distributed_needs_no_search_for_unused_parameters(one_process: None) -> None:
    images, labels = batch()
    head, other = with_head(), with_head()
    wrapped = DistributedDataParallel(other)
    ours, theirs = SMMix(seed=15), SMMix(seed=15)
    for _ in range(4):  # of both kinds; the second step would fail if a parameter had had no gradient
        expected, loss = ours.loss(head, images, labels), theirs.loss(wrapped, images, labels)
        assert torch.equal(loss, expected)
        loss.backward()
        expected.backward()
        for mine, its in zip(head.parameters(), other.parameters(), strict=True):
            torch.testing.assert_close(its.grad, mine.grad)


TWO_RANKS = """
import os, sys
import torch
import cutmix.training.loop
from cutmix.cli import main
from cutmix.mixing import SMMix

torch.set_num_threads(1)
seen = {"chosen": [], "draws": []}

def choose(smmix, original=SMMix.choose):
    seen["chosen"].append(original(smmix))
    return seen["chosen"][-1]

def draw(smmix, attention, original=SMMix.draw):
    made = original(smmix, attention)
    seen["draws"].append((made.side, made.partner.tolist()))
    return made

def finish(run, original=cutmix.training.loop.finish):
    seen["weights"] = [p.detach() for p in run.state.model.parameters()]
    SMMix.draw = seen.pop("original")
    original(run)

seen["original"] = SMMix.draw
SMMix.choose, SMMix.draw, cutmix.training.loop.finish = choose, draw, finish
main(["train", "cifar100-deit-tiny-smmix", "--data", "digits", "--model", "deit_tiny_patch2_8",
      "--auto-augment", "none", "--crop-padding", "1", "--epochs", "1", "--warmup-epochs", "0", "--batch-size", "126",
      "--out", "run"])
torch.save(seen, f"{os.environ['RANK']}.pt")
"""


@pytest.mark.slow
def test_two_processes_choose_alike_draw_for_themselves_and_train_one_network(tmp_path: Path) -> None:
    (tmp_path / "driver.py").write_text(TWO_RANKS)
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    done = subprocess.run(
        [*launcher, "driver.py"], cwd=tmp_path, env=os.environ | {"OMP_NUM_THREADS": "1"}, capture_output=True,
        text=True, timeout=500,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    first, second = (torch.load(tmp_path / f"{rank}.pt") for rank in (0, 1))
    assert first["chosen"] == second["chosen"]
    assert len(first["chosen"]) == 8
    assert 0 < sum(first["chosen"]) < 8
    assert {len(partner) for _, partner in first["draws"][1:]} <= {63, 59}  # odd shares of a batch
    assert first["draws"][1:] != second["draws"]  # the first process drew the figure of samples before
    assert all(map(torch.equal, first["weights"], second["weights"]))


def test_compiled_without_compiling_again(no_recompilation: None) -> None:
    images, labels = batch()
    head = with_head()
    compiled = torch.compile(head, backend="eager", fullgraph=True)
    ours, theirs = SMMix(seed=17), SMMix(seed=17)
    for _ in range(5):
        assert torch.equal(theirs.loss(compiled, images, labels), ours.loss(head, images, labels))


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of what the compiler imports
@pytest.mark.parametrize("precision", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
@pytest.mark.parametrize("family", ["vit", "cait", "pvt"])
def test_the_compiled_network_has_the_same_losses_and_gradients(
    family: str, precision: torch.dtype, no_recompilation: None
) -> None:
    def make() -> WithTokenHead:
        torch.manual_seed(0)
        if family == "pvt":
            return WithTokenHead(PyramidVisionTransformer((1, 1, 1, 2), 4, img_size=16, patch_size=1))
        name = {"vit": "vit_tiny_patch16_224", "cait": "cait_xxs24_224"}[family]
        shape = {"img_size": 16, "patch_size": 4, "embed_dim": 24, "num_heads": 3, "depth": 2, "num_classes": 4}
        return WithTokenHead(timm.create_model(name, **shape))

    images, labels = batch()
    plain, wrapped = make().train(), make().train()
    compiled = torch.compile(wrapped)
    ours, theirs = SMMix(seed=17), SMMix(seed=17)
    assert len(set(chosen(SMMix(seed=17), 4))) == 2  # of both kinds
    near = {"rtol": 1e-4, "atol": 1e-5} if precision == torch.float32 else {"rtol": 0.05, "atol": 0.02}
    for _ in range(4):
        losses = []
        for mix, network in ((ours, plain), (theirs, compiled)):
            with torch.autocast("cpu", precision, enabled=precision != torch.float32):
                losses.append(mix.loss(network, images, labels))
            losses[-1].backward()
        torch.testing.assert_close(losses[1], losses[0], **near)
    for mine, its in zip(plain.parameters(), wrapped.parameters(), strict=True):
        assert mine.grad is not None
        assert its.grad is not None
        assert (mine.grad - its.grad).norm() <= 10 * near["rtol"] * mine.grad.norm() + 1e-5


# What is refused, in one sentence.


def test_a_batch_of_one() -> None:
    for prob in (0.0, 1.0):
        with pytest.raises(InputError, match=r"^the batch has 1 image; SMMix pairs them, so at least 2 are expected$"):
            SMMix(prob).loss(with_head(), *batch(1))
    with pytest.raises(InputError, match="the batch has 1 image"):
        SMMix().draw(some_attention(1))


def test_a_network_that_does_not_return_its_attention() -> None:
    for net in (nn.Linear(3, 3), with_head().network, torch.compile(nn.Linear(3, 3))):
        with pytest.raises(InputError, match=r"does not return its attention; give SMMix a vision transformer"):
            SMMix().loss(net, *batch())


def test_images_that_tokens_do_not_divide() -> None:
    draw = SMMix().draw(some_attention(5, 6, 7))
    with pytest.raises(InputError, match=r"x is \(5, 3, 12, 20\), which 6×7 tokens do not divide"):
        draw.apply(torch.zeros(5, 3, 12, 20))
    with pytest.raises(InputError, match="tokens of 4×4 pixels do not divide"):
        SMMix(1.0).loss(with_head(img_size=18), torch.zeros(2, 3, 18, 18), torch.arange(2))
    with pytest.raises(ValueError, match="the draw is for a batch of 5"):
        draw.apply(torch.zeros(4, 3, 12, 21))


def test_arguments_out_of_range() -> None:
    with pytest.raises(ValueError, match=r"prob is 1\.5; expected a probability"):
        SMMix(1.5)
    with pytest.raises(ValueError, match="alpha"):
        SMMix(mixup_alpha=0.0)
    with pytest.raises(InputError, match="at least 2×2 tokens"):
        SMMix().draw(torch.zeros(5, 1, 1))
    with pytest.raises(InputError, match="side is 7; expected 1 to 6"):
        AttentionDraw.from_attention(some_attention(), torch.arange(5), 7)
    with pytest.raises(InputError, match=r"attention is \(5, 6, 7\) for 4 partners"):
        AttentionDraw.from_attention(some_attention(), torch.arange(4), 2)
