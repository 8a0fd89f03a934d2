"""Mixed targets and their losses."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from cutmix.errors import InputError


class MixedTargets(NamedTuple):
    """Two class ids per sample and the weight of the first: ỹ = λ y_A + (1 − λ) y_B.

    A named tuple of tensors, so that loaders, pinned memory, ``accelerate`` and Lightning move it like any batch.

    Attributes:
        labels: Own class ids, (N,) int64.
        partner_labels: Class ids of the partners, (N,) int64.
        lam: Weight of ``labels``, (N,) float32 in [0, 1].
    """

    labels: Tensor
    partner_labels: Tensor
    lam: Tensor

    def dense(self, num_classes: int, *, ignore_index: int = -100) -> Tensor:
        """Return soft labels, (N, num_classes) float32; a row sums to 1, less the weights of ignored labels."""
        ids, weights, _ = known_terms(self, ignore_index)
        return _dense(ids, weights, num_classes)

    def terms(self) -> tuple[Tensor, Tensor]:
        """Return all class ids, (N, 2) int64, and their weights, (N, 2) float32."""
        ids = torch.stack((self.labels, self.partner_labels), dim=1).long()
        return ids, torch.stack((self.lam, 1 - self.lam), dim=1)


class MultiTargets(NamedTuple):
    """Any number of class ids per sample and their weights: ỹ = Σⱼ wⱼ yⱼ.

    Attributes:
        labels: Class ids, (N, m) int64; the same id may occur more than once.
        weights: Their weights, (N, m) float32; every row sums to 1.
    """

    labels: Tensor
    weights: Tensor

    def dense(self, num_classes: int, *, ignore_index: int = -100) -> Tensor:
        """Return soft labels, (N, num_classes) float32; a row sums to 1, less the weights of ignored labels."""
        ids, weights, _ = known_terms(self, ignore_index)
        return _dense(ids, weights, num_classes)

    def terms(self) -> tuple[Tensor, Tensor]:
        """Return all class ids, (N, m) int64, and their weights, (N, m) float32."""
        return self.labels.long(), self.weights


Targets = MixedTargets | MultiTargets | Tensor


def per_image(targets: Targets) -> Targets:
    """Return class ids as ``MultiTargets``, whose weighted loss is divided by their number; others unchanged."""
    if isinstance(targets, Tensor) and targets.ndim == 1:
        return MultiTargets(targets[:, None], torch.ones_like(targets, dtype=torch.float32)[:, None])
    return targets


def known_terms(targets: MixedTargets | MultiTargets, ignore_index: int) -> tuple[Tensor, Tensor, Tensor]:
    """Return class ids and weights (N, m), both 0 where a label is ignored, and the weight that remains, (N,)."""
    ids, weights = targets.terms()
    known = ids != ignore_index
    weights = weights * known
    return ids * known, weights, torch.where(known.all(1), 1.0, weights.sum(1))  # without the rounding of a sum to 1


def _dense(ids: Tensor, weights: Tensor, num_classes: int) -> Tensor:
    if _readable(ids):
        _check_range(ids, 0, num_classes - 1, None, "class ids")
    return weights.new_zeros(len(ids), num_classes).scatter_add_(1, ids, weights)


def mixed_cross_entropy(
    logits: Tensor,
    targets: Targets,
    *,
    label_smoothing: float = 0.0,
    weight: Tensor | None = None,
    ignore_index: int = -100,
    reduction: str = "mean",
) -> Tensor:
    """Compute the cross-entropy with mixed targets: −λ log p_A − (1 − λ) log p_B.

    It takes one softmax and one gather, and builds no (N, K) target. The result is that of
    ``torch.nn.functional.cross_entropy`` with the soft labels ``targets.dense(K)``, which also defines ``weight`` and
    ``reduction="mean"``: every class's term is weighted, and the mean is over the N samples. Class ids and soft labels
    go to that function unchanged; with class ids it divides the mean by the sum of the weights. The second derivative
    is refused.

    An ignored label drops out of its pair: the sample's loss is the other label's term alone, with the weight that it
    has, λ or 1 − λ, and the mean is over the weight that remains, Σ over the samples of the weights of labels that are
    not ignored. Unmixed samples thus count as in PyTorch, 0 or 1, and a batch of ignored labels has the mean NaN.

    Args:
        logits: (N, K) floating; half precision is computed in float32.
        targets: ``MixedTargets``, ``MultiTargets``, class ids (N,) of an integer dtype, or soft labels (N, K).
        label_smoothing: In [0, 1]; the share of the target spread over all K classes.
        weight: (K,) weight of each class, or None.
        ignore_index: Class id that is ignored, own or partner's; soft labels have none.
        reduction: "mean", "sum" or "none".

    Returns:
        A scalar, or (N,) with ``reduction="none"``; float32, or float64 for float64 logits.

    Raises:
        InputError: If shapes, dtypes, ``label_smoothing`` or ``reduction`` do not fit, or a class id is out of range.

    Source:
        Yun et al., CutMix, ICCV 2019, eq. 1; the authors' ``train.py`` adds two cross-entropies, which is the same.
        Checked against ``torch.nn.functional.cross_entropy`` with soft labels and with ignored class ids.
    """
    all_known = _check(logits, targets, label_smoothing, reduction, ignore_index)
    weight = _check_weight("weight", weight, logits, logits.shape[1:])
    if isinstance(targets, Tensor):
        logits = logits.to(_accurate(logits.dtype))
        options: dict[str, Any] = {"reduction": reduction, "label_smoothing": label_smoothing}
        if targets.ndim == 2:
            check_soft(targets)
            return F.cross_entropy(logits, targets.to(logits.dtype), weight, **options)
        return F.cross_entropy(logits, targets.long(), weight, ignore_index=ignore_index, **options)
    if all_known:
        (classes, share), known = targets.terms(), torch.ones((), device=logits.device)
    else:
        classes, share, known = known_terms(targets, ignore_index)
    share = share.to(_accurate(logits.dtype)) * (1 - label_smoothing)
    spread = None
    if weight is not None:
        share = share * weight[classes]
    if label_smoothing:
        spread = share.new_full((logits.shape[1],), label_smoothing / logits.shape[1])
        spread = spread if weight is None else spread * weight
    loss = _SparseCrossEntropy.apply(logits.to(share.dtype), classes, share, spread, known)
    if reduction == "mean":
        return loss.mean() if all_known else loss.sum() / known.sum()
    return loss if reduction == "none" else loss.sum()


class _SparseCrossEntropy(torch.autograd.Function):
    """−Σⱼ shareⱼ log p(classⱼ) − known · Σₖ spreadₖ log pₖ, a row: (N, K), (N, m), (N, m), (K,) or None, (N,) → (N,).

    One softmax serves the loss and the gradient p · Σ − share − known · spread, where autograd would take exponentials
    twice and fill an (N, K) tensor with zeros for the gradient of the gather. log pₖ = zₖ − max z + log max p is exact,
    because max p is at least 1/K.
    """

    @staticmethod
    def forward(
        ctx: Any, logits: Tensor, classes: Tensor, share: Tensor, spread: Tensor | None, known: Tensor
    ) -> Tensor:
        p = F.softmax(logits, dim=1)
        ctx.save_for_backward(p, classes, share, spread, known)
        shift = p.amax(1, keepdim=True).log_() - logits.amax(1, keepdim=True)
        loss = -(share * (logits.gather(1, classes) + shift)).sum(1)
        return loss if spread is None else loss - known * ((logits + shift) * spread).sum(1)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None, None, None]:
        # once_differentiable refuses only an upstream gradient that needs one, and would silently lose this part.
        if torch.is_grad_enabled() and not torch.compiler.is_compiling():
            raise RuntimeError("mixed_cross_entropy has no second derivative; use soft labels, targets.dense(K)")
        p, classes, share, spread, known = ctx.saved_tensors
        total = share.sum(1) if spread is None else share.sum(1) + known * spread.sum()
        grad_logits = p * (grad * total)[:, None]
        if spread is not None:
            grad_logits -= (grad * known)[:, None] * spread
        return grad_logits.scatter_add_(1, classes, -grad[:, None] * share), None, None, None, None


def mixed_binary_cross_entropy(
    logits: Tensor,
    targets: Targets,
    *,
    weight: Tensor | None = None,
    pos_weight: Tensor | None = None,
    ignore_index: int = -100,
    reduction: str = "mean",
) -> Tensor:
    """Compute the binary cross-entropy of every class, for multi-label images or as in ViT recipes.

    Args:
        logits: (N, K) floating; half precision is computed in float32.
        targets: Multi-label targets (N, K) in [0, 1], as ``draw.targets`` mixes them; or ``MixedTargets``,
            ``MultiTargets`` or class ids (N,), which are taken as soft one-hot labels.
        weight: (K,) or (N, K) weight of each term, or None.
        pos_weight: (K,) weight of the positive part of each class, or None.
        ignore_index: Value of (N, K) targets whose terms are ignored, e.g. -1 for unknown labels, which cannot be
            mixed; of class ids, see ``mixed_cross_entropy``.
        reduction: "mean" (over the N·K terms, less those ignored), "sum" or "none".

    Returns:
        A scalar, or (N, K) with ``reduction="none"``.

    Raises:
        InputError: If shapes, dtypes or values do not fit.

    Source:
        Checked against ``torch.nn.functional.binary_cross_entropy_with_logits``.
    """
    _check(logits, targets, 0.0, reduction, ignore_index)
    weight = _check_weight("weight", weight, logits, logits.shape[1:], logits.shape)
    pos_weight = _check_weight("pos_weight", pos_weight, logits, logits.shape[1:])
    logits = logits.to(_accurate(logits.dtype))
    if isinstance(targets, Tensor) and targets.ndim == 2:
        soft = targets.to(logits.dtype)
        check_soft(soft, ignore_index)
        known = soft != ignore_index
        soft = soft * known
    else:
        targets = per_image(targets)
        assert not isinstance(targets, Tensor)
        ids, shares, kept = known_terms(targets, ignore_index)
        known = kept[:, None].expand(logits.shape)
        shares = shares / torch.where(kept > 0, kept, 1.0)[:, None]
        soft = _dense(ids, shares, logits.shape[1]).to(logits.dtype)
    loss = F.binary_cross_entropy_with_logits(logits, soft, weight, pos_weight=pos_weight, reduction="none") * known
    return loss if reduction == "none" else loss.sum() / known.sum() if reduction == "mean" else loss.sum()


def _accurate(dtype: torch.dtype) -> torch.dtype:
    return torch.float64 if dtype == torch.float64 else torch.float32


def _check_weight(name: str, weight: Tensor | None, logits: Tensor, *shapes: Sequence[int]) -> Tensor | None:
    """Return a weight in the precision of the loss; raise InputError if its shape is none of these."""
    if weight is None:
        return None
    if weight.shape not in shapes:
        more = ", or one for each logit" if len(shapes) > 1 else ""
        raise InputError(
            f"{name} is {tuple(weight.shape)}; expected one for each of the {logits.shape[1]} classes{more}"
        )
    return weight.to(_accurate(logits.dtype))


def _readable(values: Tensor) -> bool:
    """Return whether values can be read without waiting for a device or breaking a compiled graph."""
    return values.device.type == "cpu" and not torch.compiler.is_compiling()


def _check(logits: Tensor, targets: Targets, label_smoothing: float, reduction: str, ignore_index: int) -> bool:
    """Raise InputError for invalid input, and return whether it is known that no class id is to be ignored.

    Values are read only on the CPU, where that waits for nothing.
    """
    if reduction not in ("mean", "sum", "none"):
        raise InputError(f'reduction is "{reduction}"; expected "mean", "sum" or "none"')
    if not 0 <= label_smoothing <= 1:
        raise InputError(f"label_smoothing is {label_smoothing}; expected a number in [0, 1]")
    if logits.ndim != 2 or not logits.is_floating_point():
        raise InputError(f"logits are {logits.dtype} {tuple(logits.shape)}; expected floating (N, K)")
    columns: Sequence[Tensor]
    if isinstance(targets, Tensor):
        columns, share = (targets,), None
    else:
        columns = targets[:2] if isinstance(targets, MixedTargets) else targets.labels.unbind(1)
        share = targets[-1]
        if len({*(ids.shape for ids in columns), share.shape[:1]}) > 1 or share.shape[1:] not in ((), (len(columns),)):
            shapes = ", ".join(str(tuple(part.shape)) for part in targets)
            raise InputError(f"the parts of mixed targets are {shapes}; expected the same number of samples in each")
    rows = columns[0]
    if len(rows) != len(logits):
        raise InputError(f"there are {len(rows)} targets for {len(logits)} rows of logits; expected one a row")
    if rows.ndim == 2 and rows.shape != logits.shape:
        raise InputError(f"soft targets are {tuple(rows.shape)}; expected the logits' {tuple(logits.shape)}")
    if rows.ndim > 2:
        raise InputError(f"targets are {tuple(rows.shape)}; expected class ids (N,) or soft labels (N, K)")
    if rows.ndim == 1 and (rows.is_floating_point() or rows.dtype == torch.bool):
        raise InputError(f"class ids are {rows.dtype}; expected an integer dtype, or soft labels of shape (N, K)")
    if rows.ndim == 2 or not _readable(rows):
        return False
    if share is not None:
        _check_range(share, -1e-3, 1.001, None, "weights of labels")
    in_range = [_check_range(ids.long(), 0, logits.shape[1] - 1, ignore_index, "class ids") for ids in columns]
    return all(in_range) and not 0 <= ignore_index < logits.shape[1]


def check_soft(targets: Tensor, ignore_index: int | None = None) -> None:
    """Raise InputError unless targets (N, K) are in [0, 1], but for rounding, or ignored; read only on the CPU."""
    if _readable(targets):
        _check_range(targets, -1e-3, 1.001, ignore_index, "targets (N, K)")


def _check_range(values: Tensor, low: float, high: float, ignore_index: int | None, what: str) -> bool:
    """Return whether all values are in range; raise InputError if one is neither in range nor ignored."""
    least, greatest = _extremes(values, low)
    if low <= least and greatest <= high:
        return True
    ignored = "" if ignore_index is None else f", or {ignore_index}, which is ignored"
    if ignored:
        least, greatest = _extremes(values[values != ignore_index], low)
    if not (low <= least and greatest <= high):
        raise InputError(f"{what} go from {least:g} to {greatest:g}; expected {round(low)} to {round(high)}{ignored}")
    return False


def _extremes(values: Tensor, default: float) -> tuple[float, float]:
    if not values.numel():
        return default, default
    least, greatest = (bound.item() for bound in values.aminmax())
    return least, greatest
