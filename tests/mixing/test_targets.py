"""Losses: equal to PyTorch's with soft labels, in value and in gradient, and honest about wrong input."""

import re
from collections.abc import Callable
from itertools import product

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd import gradcheck

from cutmix import CutMix, InputError, MixedTargets, MultiTargets, mixed_binary_cross_entropy, mixed_cross_entropy

N, K = 9, 5


def a_batch(dtype: torch.dtype = torch.float32, scale: float = 3.0) -> tuple[Tensor, MixedTargets]:
    """Logits and targets, among them λ = 0 and 1 and samples whose two labels are the same."""
    generator = torch.Generator().manual_seed(0)
    labels = torch.tensor([0, 1, 2, 3, 4, 0, 1, 2, 4])
    partner_labels = torch.tensor([1, 1, 4, 3, 0, 0, 2, 2, 3])
    lam = torch.tensor([0.0, 1.0, 0.5, 0.25, 0.9, 0.0, 0.7001, 1e-6, 0.1])
    logits = scale * torch.randn(N, K, generator=generator, dtype=torch.float64)
    return logits.to(dtype), MixedTargets(labels, partner_labels, lam)


def test_dense_labels_by_hand() -> None:
    mixed = MixedTargets(torch.tensor([0, 2, 1]), torch.tensor([1, 2, 0]), torch.tensor([0.25, 0.3, 1.0]))
    assert mixed.dense(3).tolist() == [[0.25, 0.75, 0.0], [0.0, 0.0, 1.0], [0.0, 1.0, 0.0]]


@pytest.mark.parametrize(
    "dtype",
    [torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64, torch.uint16, torch.uint32, torch.uint64],
    ids=str,
)
def test_class_ids_of_every_integer_dtype(dtype: torch.dtype) -> None:
    logits, mixed = a_batch()
    narrow = mixed._replace(labels=mixed.labels.to(dtype), partner_labels=mixed.partner_labels.to(dtype))
    assert torch.equal(narrow.dense(K), mixed.dense(K))
    assert torch.equal(mixed_cross_entropy(logits, narrow), mixed_cross_entropy(logits, mixed))
    assert torch.equal(mixed_cross_entropy(logits, narrow.labels), mixed_cross_entropy(logits, mixed.labels))
    assert torch.equal(mixed_binary_cross_entropy(logits, narrow), mixed_binary_cross_entropy(logits, mixed))


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@pytest.mark.parametrize("label_smoothing", [0.0, 0.1, 1.0])
@pytest.mark.parametrize("weighted", [False, True])
def test_equals_cross_entropy_with_soft_labels(reduction: str, label_smoothing: float, weighted: bool) -> None:
    weight = torch.tensor([0.5, 2.0, 0.0, 1.0, 3.0], dtype=torch.float64) if weighted else None
    options = {"label_smoothing": label_smoothing, "reduction": reduction, "weight": weight}
    logits, mixed = a_batch(torch.float64)
    logits.requires_grad_()
    upstream = torch.linspace(-1, 2, N, dtype=torch.float64) if reduction == "none" else torch.tensor(1.7).double()
    ours = mixed_cross_entropy(logits, mixed, **options)
    soft = F.cross_entropy(logits, mixed.dense(K).double(), **options)
    torch.testing.assert_close(ours, soft, rtol=1e-6, atol=1e-6)  # 1 − λ is of float32.
    for loss in (ours, soft):
        assert loss.dtype == torch.float64
    gradients = [torch.autograd.grad(loss, logits, upstream)[0] for loss in (ours, soft)]
    torch.testing.assert_close(*gradients, rtol=1e-6, atol=1e-6)
    assert gradcheck(lambda logits: mixed_cross_entropy(logits, mixed, **options), logits)


def test_equals_the_two_losses_of_the_authors() -> None:
    logits, mixed = a_batch()
    mixed = mixed._replace(lam=torch.full((N,), 0.37))
    # clovaai/CutMix-PyTorch: loss = criterion(output, target_a) * lam + criterion(output, target_b) * (1. - lam)
    two = F.cross_entropy(logits, mixed.labels) * 0.37 + F.cross_entropy(logits, mixed.partner_labels) * (1.0 - 0.37)
    torch.testing.assert_close(mixed_cross_entropy(logits, mixed), two)


@pytest.mark.parametrize("extreme", [80.0, 1e4, 1e30], ids=str)
def test_extreme_logits(extreme: float) -> None:
    logits, mixed = a_batch()
    logits = (logits.sign() * extreme).requires_grad_()
    ours, soft = mixed_cross_entropy(logits, mixed), F.cross_entropy(logits, mixed.dense(K))
    torch.testing.assert_close(ours, soft)
    torch.testing.assert_close(torch.autograd.grad(ours, logits)[0], torch.autograd.grad(soft, logits)[0])
    shifted = (a_batch()[0] + 1000).requires_grad_()
    torch.testing.assert_close(mixed_cross_entropy(shifted, mixed), F.cross_entropy(shifted, mixed.dense(K)))


def test_a_backward_pass_can_be_repeated_and_is_of_first_order() -> None:
    logits, mixed = a_batch()
    logits.requires_grad_()
    loss = mixed_cross_entropy(logits, mixed, label_smoothing=0.1)
    first = torch.autograd.grad(loss, logits, retain_graph=True)[0]
    assert torch.equal(first, torch.autograd.grad(loss, logits, retain_graph=True)[0])
    with pytest.raises(RuntimeError, match="no second derivative"):  # Rather than a gradient that lacks a part.
        torch.autograd.grad(mixed_cross_entropy(logits, mixed), logits, create_graph=True)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_half_precision_is_computed_in_float32(dtype: torch.dtype) -> None:
    logits, mixed = a_batch(dtype)
    logits.requires_grad_()
    for targets in (mixed, mixed.labels, mixed.dense(K).to(dtype)):
        loss = mixed_cross_entropy(logits, targets)
        plain = targets.dense(K) if isinstance(targets, MixedTargets) else targets
        plain = plain.float() if plain.ndim == 2 else plain
        assert loss.dtype == torch.float32
        torch.testing.assert_close(loss, F.cross_entropy(logits.float(), plain))
        assert torch.autograd.grad(loss, logits)[0].dtype == dtype
    assert mixed_binary_cross_entropy(logits, mixed).dtype == torch.float32


def test_under_autocast() -> None:
    features, mixed = a_batch()
    layer = torch.nn.Linear(K, K)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        logits = layer(features)
        assert logits.dtype == torch.bfloat16
        losses = [
            mixed_cross_entropy(logits, mixed, label_smoothing=0.1),
            F.cross_entropy(logits, mixed.dense(K), label_smoothing=0.1),
        ]
    torch.testing.assert_close(*losses)
    ours, soft = (torch.autograd.grad(loss, layer.weight, retain_graph=True)[0] for loss in losses)
    torch.testing.assert_close(ours, soft, rtol=1e-2, atol=1e-2)


def test_plain_and_soft_labels_go_through() -> None:
    logits, mixed = a_batch()
    weight = torch.rand(K)
    for targets in (mixed.labels, mixed.dense(K)):
        for options in ({}, {"label_smoothing": 0.1}, {"weight": weight}, {"reduction": "none"}):
            expected = F.cross_entropy(logits, targets, **options)
            assert torch.equal(mixed_cross_entropy(logits, targets, **options), expected)


def test_an_unmixed_batch_counts_as_plain_labels() -> None:
    logits, (labels, partner_labels, _) = a_batch()
    for mixed in (
        MixedTargets(labels, partner_labels, torch.ones(N)),
        MixedTargets(partner_labels, labels, torch.zeros(N)),
    ):
        for smoothing in (0.0, 0.2):
            loss = mixed_cross_entropy(logits, mixed, label_smoothing=smoothing)
            torch.testing.assert_close(loss, F.cross_entropy(logits, labels, label_smoothing=smoothing))


# Ignored labels.

PLAIN = torch.tensor([0, 1, -100, 3, 4, -100, 1, 2, 4])
OPTIONS = list(product((0.0, 0.1), (False, True), ("mean", "sum", "none")))


@pytest.mark.parametrize("ignored", [-100, -1, 255])
@pytest.mark.parametrize(("label_smoothing", "weighted", "reduction"), OPTIONS)
def test_ignored_class_ids_are_pytorchs(ignored: int, label_smoothing: float, weighted: bool, reduction: str) -> None:
    logits, labels = a_batch()[0].requires_grad_(), torch.where(PLAIN == -100, ignored, PLAIN)
    options = {"ignore_index": ignored, "label_smoothing": label_smoothing, "reduction": reduction}
    weight = torch.rand(K, generator=torch.Generator().manual_seed(1)) if weighted else None
    expected = F.cross_entropy(logits, labels, weight, **options)
    assert torch.equal(mixed_cross_entropy(logits, labels, weight=weight, **options), expected)
    if not weighted:  # whose mean PyTorch divides by the weights of class ids, and not by those of soft labels
        for lam in (torch.ones(N), torch.zeros(N)):
            unmixed = MixedTargets(labels, labels, lam)
            ours = mixed_cross_entropy(logits, unmixed, **options)
            torch.testing.assert_close(ours, expected)
            upstream = torch.linspace(-1, 2, N) if reduction == "none" else torch.tensor(1.0)
            gradients = [
                torch.autograd.grad(loss, logits, upstream)[0]
                for loss in (ours, F.cross_entropy(logits, labels, **options))
            ]
            torch.testing.assert_close(*gradients)


def one_by_one(
    logits: Tensor, mixed: MixedTargets, ignored: int, smoothing: float, weight: Tensor
) -> tuple[Tensor, Tensor]:
    """Each sample's loss and the weight of its labels that are not ignored, term by term."""
    losses, kept = [], []
    for row, *labels, lam in zip(logits, mixed.labels.tolist(), mixed.partner_labels.tolist(), mixed.lam, strict=True):
        loss, left = torch.zeros(()).double(), 0.0
        for label, share in zip(labels, (lam, 1 - lam), strict=True):
            if label != ignored:
                soft = torch.full((K,), smoothing / K).double()
                soft[label] += 1 - smoothing
                loss = loss - share * (soft * weight * row.log_softmax(0)).sum()
                left += float(share)
        losses.append(loss)
        kept.append(left)
    return torch.stack(losses), torch.tensor(kept).double()


@pytest.mark.parametrize(("label_smoothing", "weighted", "reduction"), OPTIONS)
def test_an_ignored_label_leaves_the_other_its_weight(label_smoothing: float, weighted: bool, reduction: str) -> None:
    logits, mixed = a_batch(torch.float64)
    logits.requires_grad_()
    weight = torch.tensor([0.5, 2.0, 0.0, 1.0, 3.0], dtype=torch.float64) if weighted else torch.ones(K).double()
    mixed = mixed._replace(labels=PLAIN, partner_labels=torch.tensor([1, -100, -100, 3, -100, 0, 2, -100, 3]))
    each, kept = one_by_one(logits, mixed, -100, label_smoothing, weight)
    expected = {"none": each, "sum": each.sum(), "mean": each.sum() / kept.sum()}[reduction]
    options = {"label_smoothing": label_smoothing, "weight": weight, "reduction": reduction}
    ours = mixed_cross_entropy(logits, mixed, **options)
    torch.testing.assert_close(ours, expected, rtol=1e-6, atol=1e-6)
    upstream = torch.linspace(-1, 2, N).double() if reduction == "none" else torch.tensor(1.0).double()
    gradients = [torch.autograd.grad(loss, logits, upstream)[0] for loss in (ours, expected)]
    torch.testing.assert_close(*gradients, rtol=1e-6, atol=1e-6)
    assert gradcheck(lambda logits: mixed_cross_entropy(logits, mixed, **options), logits)
    several = MultiTargets(*mixed.terms())
    torch.testing.assert_close(mixed_cross_entropy(logits, several, **options), ours)


def test_soft_labels_leave_ignored_ones_out() -> None:
    ids, lam = torch.tensor([0, -100, 2]), torch.tensor([0.25, 0.7, 0.4])
    mixed = MixedTargets(ids, ids.flip(0), lam)
    torch.testing.assert_close(mixed.dense(3), torch.tensor([[0.25, 0, 0.75], [0, 0, 0], [0.6, 0, 0.4]]))
    known = MixedTargets(torch.tensor([0, 1]), torch.tensor([2, 0]), torch.tensor([0.25, 0.7]))
    torch.testing.assert_close(known.dense(3, ignore_index=0), torch.tensor([[0, 0, 0.75], [0, 0.7, 0]]))


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
def test_a_batch_of_ignored_labels_and_an_empty_one_are_pytorchs(reduction: str) -> None:
    for n in (0, 4):
        logits, labels = torch.randn(n, K, requires_grad=True), torch.full((n,), -100)
        expected = F.cross_entropy(logits, labels, reduction=reduction)
        for targets in (labels, MixedTargets(labels, labels, torch.rand(n))):
            loss = mixed_cross_entropy(logits, targets, label_smoothing=0.1, reduction=reduction)
            torch.testing.assert_close(loss, expected, equal_nan=True)
            loss.sum().backward()
        if n == 0:
            dense = torch.zeros(0, K)
            for targets in (dense, labels, MixedTargets(labels, labels, torch.rand(0))):
                loss = mixed_binary_cross_entropy(logits, targets, reduction=reduction)
                expected = F.binary_cross_entropy_with_logits(logits, dense, reduction=reduction)
                torch.testing.assert_close(loss, expected, equal_nan=True)


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@pytest.mark.parametrize("dtype", [torch.int8, torch.int64, torch.float32], ids=str)
def test_unknown_multi_labels_are_masked(reduction: str, dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(2)
    logits, targets = a_batch()[0], torch.randint(-1, 2, (N, K), generator=generator)
    known, weight = targets != -1, torch.rand(N, K, generator=generator)
    each = F.binary_cross_entropy_with_logits(logits, targets.float(), weight, reduction="none") * known
    expected = {"none": each, "sum": each.sum(), "mean": each.sum() / known.sum()}[reduction]
    ours = mixed_binary_cross_entropy(logits, targets.to(dtype), weight=weight, ignore_index=-1, reduction=reduction)
    torch.testing.assert_close(ours, expected)
    with pytest.raises(
        InputError, match=r"targets \(N, K\) go from -1 to 1; expected 0 to 1, or -100, which is ignored"
    ):
        mixed_binary_cross_entropy(logits, targets.to(dtype))


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
def test_binary_leaves_ignored_class_ids_out(reduction: str) -> None:
    logits, mixed = a_batch(torch.float64)
    mixed = mixed._replace(labels=PLAIN, partner_labels=torch.tensor([1, -100, -100, 3, -100, 0, 2, -100, 3]))
    each, kept = torch.zeros(N, K).double(), torch.zeros(N, 1).double()
    for ids, share in zip((mixed.labels, mixed.partner_labels), (mixed.lam, 1 - mixed.lam), strict=True):
        share = share.double() * (ids != -100)
        one_hot = F.one_hot(ids.clamp(min=0), K).double()
        each += share[:, None] * F.binary_cross_entropy_with_logits(logits, one_hot, reduction="none")
        kept += share[:, None]
    expected = {"none": each, "sum": each.sum(), "mean": each.sum() / (K * kept.sum())}[reduction]
    ours = mixed_binary_cross_entropy(logits, mixed, reduction=reduction)
    torch.testing.assert_close(ours, expected, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
def test_binary_equals_pytorch(reduction: str) -> None:
    logits, mixed = a_batch(torch.float64)
    logits.requires_grad_()
    labels = (torch.rand(N, K) > 0.6).float()
    soft = CutMix(seed=0).draw((N, 3, 32, 32)).targets(labels)
    one_hot = F.one_hot(mixed.labels, K).double()
    for targets, dense in ((soft, soft.double()), (mixed, mixed.dense(K).double()), (mixed.labels, one_hot)):
        for weight, pos_weight in product((None, torch.rand(K), torch.rand(N, K)), (None, torch.rand(K) * 4)):
            options = {"weight": weight, "pos_weight": pos_weight, "reduction": reduction}
            ours = mixed_binary_cross_entropy(logits, targets, **options)
            torch.testing.assert_close(ours, F.binary_cross_entropy_with_logits(logits, dense, **options))
    assert gradcheck(lambda logits: mixed_binary_cross_entropy(logits, mixed), logits)


@pytest.mark.usefixtures("no_recompilation")
@pytest.mark.parametrize("backend", ["eager", pytest.param("inductor", marks=pytest.mark.slow)])
@pytest.mark.parametrize("label_smoothing", [0.0, 0.1])
def test_compiles_once(backend: str, label_smoothing: float) -> None:
    compiled = torch.compile(mixed_cross_entropy, fullgraph=True, backend=backend)
    for k in range(3):
        logits, mixed = a_batch()
        mixed = mixed._replace(lam=mixed.lam * k / 3, partner_labels=mixed.partner_labels.roll(k))
        mixed.labels[k:3] = -100
        values, gradients = [], []
        for loss in (compiled, mixed_cross_entropy):
            own = logits.clone().requires_grad_()
            values.append(loss(own, mixed, label_smoothing=label_smoothing))
            gradients.append(torch.autograd.grad(values[-1], own)[0])
        torch.testing.assert_close(*values)
        torch.testing.assert_close(*gradients)


ids, logits = torch.zeros(N, dtype=torch.int64), torch.zeros(N, K)
WRONG = {
    "reduction": (lambda: mixed_cross_entropy(logits, ids, reduction="avg"), 'reduction is "avg"'),
    "smoothing": (lambda: mixed_cross_entropy(logits, ids, label_smoothing=1.5), "label_smoothing is 1.5"),
    "logits shape": (lambda: mixed_cross_entropy(logits[None], ids), r"\(1, 9, 5\); expected floating \(N, K\)"),
    "logits dtype": (lambda: mixed_cross_entropy(logits.long(), ids), r"torch.int64 \(9, 5\)"),
    "number of targets": (lambda: mixed_cross_entropy(logits, ids[1:]), "8 targets for 9 rows"),
    "soft shape": (lambda: mixed_cross_entropy(logits, logits[:, 1:]), r"\(9, 4\); expected the logits' \(9, 5\)"),
    "target dimensions": (lambda: mixed_cross_entropy(logits, logits[..., None]), r"targets are \(9, 5, 1\)"),
    "float class ids": (lambda: mixed_cross_entropy(logits, ids.float()), "class ids are torch.float32"),
    "bool class ids": (lambda: mixed_cross_entropy(logits, ids.bool()), "class ids are torch.bool"),
    "id too high": (
        lambda: mixed_cross_entropy(logits, ids + 5),
        "from 5 to 5; expected 0 to 4, or -100, which is ignored",
    ),
    "id beside ignored": (
        lambda: mixed_cross_entropy(logits, torch.tensor([0, 1, -100, 3, -2, -100, 1, 2, 4])),
        "from -2 to 4; expected 0 to 4",
    ),
    "unsigned id": (lambda: mixed_cross_entropy(logits, (ids + 7).to(torch.uint16)), "from 7 to 7; expected 0 to 4"),
    "id negative": (lambda: mixed_cross_entropy(logits, ids - 1), "from -1 to -1; expected 0 to 4"),
    "partner id": (
        lambda: mixed_cross_entropy(logits, MixedTargets(ids, ids + 7, torch.ones(N))),
        "from 7 to 7; expected 0 to 4",
    ),
    "binary": (lambda: mixed_binary_cross_entropy(logits, ids + 5), "from 5 to 5; expected 0 to 4"),
}


@pytest.mark.parametrize(("call", "message"), WRONG.values(), ids=WRONG)
def test_wrong_input_is_named(call: Callable[[], Tensor], message: str) -> None:
    with pytest.raises(ValueError, match=message) as caught:
        call()
    assert not re.search(r"[\n]", str(caught.value))


@pytest.mark.parametrize("length", [3, 7])
def test_weights_of_other_classes_are_refused(length: int) -> None:
    targets = MixedTargets(torch.arange(4), torch.arange(4), torch.rand(4))
    for given in (targets, targets.labels, targets.dense(4)):
        with pytest.raises(ValueError, match="expected one for each of the 4 classes"):
            mixed_cross_entropy(torch.rand(4, 4), given, weight=torch.ones(length))


def test_soft_labels_out_of_range_are_refused_by_the_cross_entropy() -> None:
    soft = torch.tensor([[1.0, -1.0, 0.0], [0.0, 1.0, 1.0]])  # -1: unknown, of images with several labels
    for ignore_index in (-100, -1):
        with pytest.raises(InputError, match=r"targets \(N, K\) go from -1 to 1; expected 0 to 1"):
            mixed_cross_entropy(torch.zeros(2, 3), soft, ignore_index=ignore_index)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.int64])
def test_class_weights_of_any_dtype_weigh_alike(dtype: torch.dtype) -> None:
    logits, ids = torch.randn(4, 3), torch.tensor([0, 1, 2, 1])
    weight = torch.tensor([1, 2, 3])
    for targets in (ids, MixedTargets(ids, ids.flip(0), torch.tensor([1.0, 0.5, 0.25, 0.0]))):
        expected = mixed_cross_entropy(logits, targets, weight=weight.float())
        found = mixed_cross_entropy(logits, targets, weight=weight.to(dtype))
        assert found.dtype == torch.float32
        torch.testing.assert_close(found, expected)


@pytest.mark.parametrize(
    ("targets", "said"),
    [
        (MixedTargets(torch.arange(3), torch.arange(2), torch.ones(3)), "parts of mixed targets are"),
        (MixedTargets(torch.arange(3), torch.arange(3), torch.ones(3, 1)), "parts of mixed targets are"),
        (MixedTargets(torch.arange(3), torch.arange(3), torch.full((3,), 2.0)), "weights of labels go from 2 to 2"),
        (MultiTargets(torch.zeros(3, 2, dtype=torch.int64), torch.ones(3, 3)), "parts of mixed targets are"),
        (MultiTargets(torch.zeros(3, 1, dtype=torch.int64), torch.full((3, 1), torch.nan)), "weights of labels"),
    ],
)
def test_targets_made_by_hand_are_checked(targets: MixedTargets | MultiTargets, said: str) -> None:
    for loss in (mixed_cross_entropy, mixed_binary_cross_entropy):
        with pytest.raises(InputError, match=said):
            loss(torch.zeros(3, 4), targets)


def test_class_ids_that_a_dense_target_has_no_column_for_are_refused() -> None:
    for ids in ([1, 5], [1, -1]):
        targets = MixedTargets(torch.tensor(ids), torch.tensor([0, 2]), torch.tensor([0.5, 0.5]))
        with pytest.raises(InputError, match="class ids go from"):
            targets.dense(3)


def test_weights_of_the_binary_cross_entropy_are_checked() -> None:
    logits, soft = torch.zeros(2, 3), torch.zeros(2, 3)
    for name in ("weight", "pos_weight"):
        with pytest.raises(InputError, match=f"{name} is .*; expected one for each of the 3 classes"):
            mixed_binary_cross_entropy(logits, soft, **{name: torch.ones(2)})
