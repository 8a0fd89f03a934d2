"""Mixed targets and their losses."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor


class MixedTargets(NamedTuple):
    """Two class ids a sample and the weight of the first: ỹ = λ y_A + (1 − λ) y_B.

    A named tuple of tensors, so that loaders, pinned memory, ``accelerate`` and Lightning move it like any batch.

    Attributes:
        labels: Own class ids, (N,) int64.
        partner_labels: Class ids of the partners, (N,) int64.
        lam: Weight of ``labels``, (N,) float32 in [0, 1].
    """

    labels: Tensor
    partner_labels: Tensor
    lam: Tensor

    def dense(self, num_classes: int) -> Tensor:
        """Return soft labels, (N, num_classes) float32; every row sums to 1."""
        return _dense(*self.terms(), num_classes)

    def terms(self) -> tuple[Tensor, Tensor]:
        """Return all class ids, (N, 2) int64, and their weights, (N, 2) float32."""
        ids = torch.stack((self.labels, self.partner_labels), dim=1).long()
        return ids, torch.stack((self.lam, 1 - self.lam), dim=1)


class MultiTargets(NamedTuple):
    """Any number of class ids a sample and their weights: ỹ = Σⱼ wⱼ yⱼ.

    Attributes:
        labels: Class ids, (N, m) int64; one may occur more than once.
        weights: Their weights, (N, m) float32; every row sums to 1.
    """

    labels: Tensor
    weights: Tensor

    def dense(self, num_classes: int) -> Tensor:
        """Return soft labels, (N, num_classes) float32; every row sums to 1."""
        return _dense(*self.terms(), num_classes)

    def terms(self) -> tuple[Tensor, Tensor]:
        """Return all class ids, (N, m) int64, and their weights, (N, m) float32."""
        return self.labels.long(), self.weights


Targets = MixedTargets | MultiTargets | Tensor


def _dense(ids: Tensor, weights: Tensor, num_classes: int) -> Tensor:
    return weights.new_zeros(len(ids), num_classes).scatter_add_(1, ids, weights)


def mixed_cross_entropy(
    logits: Tensor,
    targets: Targets,
    *,
    label_smoothing: float = 0.0,
    weight: Tensor | None = None,
    reduction: str = "mean",
) -> Tensor:
    """Cross entropy with mixed targets: −λ log p_A − (1 − λ) log p_B.

    One softmax and one gather of all classes, and no (N, K) target at all. Equal to
    ``torch.nn.functional.cross_entropy`` with the soft labels ``targets.dense(K)``, which therefore also decides what
    ``weight`` and ``reduction="mean"`` mean: every class's term is weighted, and the mean is over the N samples.
    Class ids and soft labels go to that function as they are; with class ids it divides the mean by the sum of the
    weights. The gradient is that of first order: a second one is refused, not wrong.

    Args:
        logits: (N, K) floating; half precision is computed in float32.
        targets: ``MixedTargets``, ``MultiTargets``, class ids (N,) of an integer dtype, or soft labels (N, K).
        label_smoothing: In [0, 1]; the share of the target spread over all K classes.
        weight: (K,) weight of each class, or None.
        reduction: "mean", "sum" or "none".

    Returns:
        A scalar, or (N,) with ``reduction="none"``; float32, or float64 for float64 logits.

    Raises:
        ValueError: If shapes, dtypes, ``label_smoothing`` or ``reduction`` do not fit.

    Source:
        Yun et al., CutMix, ICCV 2019, eq. 1; the authors' ``train.py`` adds two cross entropies, which is the same.
        Checked against ``torch.nn.functional.cross_entropy`` with soft labels.
    """
    _check(logits, targets, label_smoothing, reduction)
    if weight is not None and weight.shape != logits.shape[1:]:
        raise ValueError(f"weight is {tuple(weight.shape)}; expected one for each of the {logits.shape[1]} classes")
    if isinstance(targets, Tensor):
        logits = logits.to(_accurate(logits.dtype))
        targets = targets.to(logits.dtype) if targets.ndim == 2 else targets.long()
        return F.cross_entropy(logits, targets, weight, reduction=reduction, label_smoothing=label_smoothing)
    classes, share = targets.terms()
    share = share.to(_accurate(logits.dtype)) * (1 - label_smoothing)
    spread = None
    if weight is not None:
        share = share * weight[classes]
    if label_smoothing:
        spread = share.new_full((logits.shape[1],), label_smoothing / logits.shape[1])
        spread = spread if weight is None else spread * weight
    loss = _SparseCrossEntropy.apply(logits.to(share.dtype), classes, share, spread)
    return loss if reduction == "none" else loss.mean() if reduction == "mean" else loss.sum()


class _SparseCrossEntropy(torch.autograd.Function):
    """−Σⱼ shareⱼ log p(classⱼ) − Σₖ spreadₖ log pₖ, a row: (N, K), (N, m), (N, m), (K,) or None → (N,).

    One softmax serves the loss and the gradient p · Σ − share − spread, where autograd would take exponentials twice
    and fill an (N, K) tensor with zeros for the gradient of the gather. log pₖ = zₖ − max z + log max p is exact,
    because max p is at least 1/K.
    """

    @staticmethod
    def forward(ctx: Any, logits: Tensor, classes: Tensor, share: Tensor, spread: Tensor | None) -> Tensor:
        p = F.softmax(logits, dim=1)
        ctx.save_for_backward(p, classes, share, spread)
        shift = p.amax(1, keepdim=True).log_() - logits.amax(1, keepdim=True)
        loss = -(share * (logits.gather(1, classes) + shift)).sum(1)
        return loss if spread is None else loss - ((logits + shift) * spread).sum(1)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None, None]:
        # once_differentiable would refuse only an upstream gradient that needs one, and lose this part in silence.
        if torch.is_grad_enabled() and not torch.compiler.is_compiling():
            raise RuntimeError("mixed_cross_entropy has no second derivative; use soft labels, targets.dense(K)")
        p, classes, share, spread = ctx.saved_tensors
        total = share.sum(1) if spread is None else share.sum(1) + spread.sum()
        grad_logits = p * (grad * total)[:, None]
        if spread is not None:
            grad_logits -= grad[:, None] * spread
        return grad_logits.scatter_add_(1, classes, -grad[:, None] * share), None, None, None


def mixed_binary_cross_entropy(
    logits: Tensor,
    targets: Targets,
    *,
    weight: Tensor | None = None,
    pos_weight: Tensor | None = None,
    reduction: str = "mean",
) -> Tensor:
    """Binary cross entropy of every class on its own, for multi-label images or as in ViT recipes.

    Args:
        logits: (N, K) floating; half precision is computed in float32.
        targets: Multi-label targets (N, K) in [0, 1], as ``draw.targets`` mixes them; or ``MixedTargets``,
            ``MultiTargets`` or class ids (N,), which are taken as soft one-hot labels.
        weight: (K,) or (N, K) weight of each term, or None.
        pos_weight: (K,) weight of the positive part of each class, or None.
        reduction: "mean" (over N·K terms), "sum" or "none".

    Returns:
        A scalar, or (N, K) with ``reduction="none"``.

    Raises:
        ValueError: If shapes or dtypes do not fit.

    Source:
        Checked against ``torch.nn.functional.binary_cross_entropy_with_logits``.
    """
    _check(logits, targets, 0.0, reduction)
    logits = logits.to(_accurate(logits.dtype))
    if not isinstance(targets, Tensor):
        targets = targets.dense(logits.shape[1])
    elif targets.ndim == 1:
        targets = F.one_hot(targets.long(), logits.shape[1])
    return F.binary_cross_entropy_with_logits(
        logits, targets.to(logits.dtype), weight, pos_weight=pos_weight, reduction=reduction
    )


def _accurate(dtype: torch.dtype) -> torch.dtype:
    return torch.float64 if dtype == torch.float64 else torch.float32


def _check(logits: Tensor, targets: Targets, label_smoothing: float, reduction: str) -> None:
    """Refuse what cannot be meant; values are looked at only on the CPU, where that waits for nothing."""
    if reduction not in ("mean", "sum", "none"):
        raise ValueError(f'reduction is "{reduction}"; expected "mean", "sum" or "none"')
    if not 0 <= label_smoothing <= 1:
        raise ValueError(f"label_smoothing is {label_smoothing}; expected a number in [0, 1]")
    if logits.ndim != 2 or not logits.is_floating_point():
        raise ValueError(f"logits are {logits.dtype} {tuple(logits.shape)}; expected floating (N, K)")
    columns: Sequence[Tensor]
    if isinstance(targets, Tensor):
        columns = (targets,)
    else:
        columns = targets[:2] if isinstance(targets, MixedTargets) else targets.labels.unbind(1)
    rows = columns[0]
    if len(rows) != len(logits):
        raise ValueError(f"there are {len(rows)} targets for {len(logits)} rows of logits; expected one a row")
    if rows.ndim == 2 and rows.shape != logits.shape:
        raise ValueError(f"soft targets are {tuple(rows.shape)}; expected the logits' {tuple(logits.shape)}")
    if rows.ndim > 2:
        raise ValueError(f"targets are {tuple(rows.shape)}; expected class ids (N,) or soft labels (N, K)")
    if rows.ndim == 1 and (rows.is_floating_point() or rows.dtype == torch.bool):
        raise ValueError(f"class ids are {rows.dtype}; expected an integer dtype, or soft labels of shape (N, K)")
    if rows.ndim == 1 and rows.device.type == "cpu" and not torch.compiler.is_compiling() and rows.numel():
        for ids in columns:
            low, high = (int(bound) for bound in ids.aminmax())
            if low < 0 or high >= logits.shape[1]:
                raise ValueError(
                    f"class ids go from {low} to {high}; expected 0 to {logits.shape[1] - 1}, as there are "
                    f"{logits.shape[1]} logits"
                )
