"""How pixels move: boxes pasted, batches blended, masks composed, holes cut.

Every function takes ``partner`` (N,), the index of the sample that each sample takes pixels from, and is
deterministic. On a CPU, large images are worked on one after another along the cycles of ``partner``, so that only
the bytes inside a box move and one spare image is all the memory that is needed. Small images, other devices,
``torch.compile`` and inputs that carry a gradient take whole-batch index operations: no loop over samples, and
nothing that waits for the device.
"""

from collections.abc import Iterator

import torch
from torch import Tensor

# Bytes of a sample's region from which one copy a sample is faster than one index operation for the batch; see
# benchmarks/mixing.py --crossover.
_LARGE_PATCH = 16 * 1024


def paste_boxes(x: Tensor, partner: Tensor, boxes: Tensor, *, inplace: bool) -> Tensor:
    """Replace a box of every sample by the same box of its partner: x̃ = M ⊙ x_A + (1 − M) ⊙ x_B, M = 0 in the box.

    Args:
        x: (N, ..., H, W), any dtype, any memory format.
        partner: (N,) int64 on the CPU.
        boxes: (1, 4) or (N, 4) int64 on the CPU, half-open x1, y1, x2, y2 inside the image.
        inplace: Write into ``x`` and return it.
    """
    if torch.compiler.is_compiling() or (len(boxes) > 1 and not _copies_by_sample(x, x[:1].nbytes)):
        # A box known only as a tensor: what is compiled once serves every box.
        return _select(inside_boxes(x, boxes), x.index_select(0, _to(partner, x)), x, inplace)
    target = x if inplace else x.clone()
    if len(boxes) > 1:
        _paste_by_sample(target, x, partner, boxes.tolist())
        return target
    x1, y1, x2, y2 = boxes[0].tolist()
    if x1 < x2 and y1 < y2:
        source = x[..., y1:y2, x1:x2]
        patch = source if inplace else target[..., y1:y2, x1:x2]
        if _copies_by_sample(x, patch[:1].nbytes):
            _paste_by_sample(patch, source, partner)
        else:
            patch.copy_(source.index_select(0, _to(partner, x)))
    return target


def blend(x: Tensor, partner: Tensor, lam: Tensor, *, inplace: bool) -> Tensor:
    """Blend every sample with its partner: x̃ = λ x_A + (1 − λ) x_B.

    Half-precision images are blended in float32, so that λ is not rounded to the images' precision; integer images
    are rounded to the nearest value.

    Args:
        x: (N, ...), floating or integer.
        partner: (N,) int64 on the CPU.
        lam: (N,) float32 on the CPU, the weight of the own sample.
        inplace: Write into ``x`` and return it.
    """
    if inplace and x.dtype in (torch.float32, torch.float64) and _copies_by_sample(x, x[:1].nbytes):
        samples, weights = x.unbind(0), lam.tolist()
        for i, source in _moves(samples, partner):
            torch.lerp(source, samples[i], weights[i], out=samples[i])
        return x
    work = _working_dtype(x.dtype)
    own, other = x.to(work), x.index_select(0, _to(partner, x)).to(work)
    mixed = torch.lerp(other, own, _per_sample(_to(lam, x), x).to(work))
    return _store(x, mixed if x.dtype.is_floating_point else mixed.round_(), inplace)


def compose(x: Tensor, partner: Tensor, mask: Tensor, *, inplace: bool) -> Tensor:
    """Mix every sample with its partner under a mask: x̃ = M ⊙ x_A + (1 − M) ⊙ x_B.

    Args:
        x: (N, ..., H, W), floating or integer.
        partner: (N,) int64 on the CPU.
        mask: (H, W) or (N, H, W), bool (True keeps the own pixel) or floating in [0, 1].
        inplace: Write into ``x`` and return it.
    """
    own = _to(mask, x).reshape(-1, *[1] * (x.ndim - 3), *mask.shape[-2:])
    other = x.index_select(0, _to(partner, x))
    if mask.dtype == torch.bool:
        return _select(own, x, other, inplace, into=x)
    work = _working_dtype(x.dtype)
    mixed = torch.lerp(other.to(work), x.to(work), own.to(work))
    return _store(x, mixed if x.dtype.is_floating_point else mixed.round_(), inplace)


def fill_boxes(x: Tensor, boxes: Tensor, *, inplace: bool) -> Tensor:
    """Set a box of every sample to zero.

    Args:
        x: (N, ..., H, W), any dtype.
        boxes: (1, 4) or (N, 4) int64 on the CPU, half-open x1, y1, x2, y2 inside the image.
        inplace: Write into ``x`` and return it.
    """
    if torch.compiler.is_compiling() or (len(boxes) > 1 and not _copies_by_sample(x, x[:1].nbytes)):
        inside = inside_boxes(x, boxes)
        return x.masked_fill_(inside, 0) if inplace else x.masked_fill(inside, 0)
    target = x if inplace else x.clone()
    parts = [target] if len(boxes) == 1 else target.unbind(0)
    for part, (x1, y1, x2, y2) in zip(parts, boxes.tolist(), strict=True):
        part[..., y1:y2, x1:x2].zero_()
    return target


def inside_boxes(x: Tensor, boxes: Tensor) -> Tensor:
    """Return where ``x`` lies inside its box: bool, (1 or N, 1, ..., H, W) on the device of ``x``."""
    height, width = x.shape[-2:]
    x1, y1, x2, y2 = _to(boxes, x).reshape(-1, *[1] * (x.ndim - 1), 4).unbind(-1)
    rows = torch.arange(height, device=x.device).unsqueeze(-1)
    columns = torch.arange(width, device=x.device)
    return ((rows >= y1) & (rows < y2)) & ((columns >= x1) & (columns < x2))


def _paste_by_sample(target: Tensor, x: Tensor, partner: Tensor, boxes: list[list[int]] | None = None) -> None:
    """Copy one box a sample, or all of it; where ``target`` is not ``x``, the untouched ``x`` needs no order."""
    samples, sources = target.unbind(0), x.unbind(0)
    if target.data_ptr() == x.data_ptr():
        moves = _moves(samples, partner)
    else:
        moves = ((i, sources[j]) for i, j in enumerate(partner.tolist()))
    for i, source in moves:
        if boxes is None:
            samples[i].copy_(source)
        else:
            x1, y1, x2, y2 = boxes[i]
            samples[i][..., y1:y2, x1:x2].copy_(source[..., y1:y2, x1:x2])


def _moves(samples: tuple[Tensor, ...], partner: Tensor) -> Iterator[tuple[int, Tensor]]:
    """Yield (i, the untouched partner of i) in an order in which no sample is overwritten before it has been read.

    A permutation is walked cycle by cycle, with the first sample of each cycle put aside. Where samples share a
    partner there are no cycles, and every partner that is itself overwritten is put aside first.
    """
    follow = partner.tolist()
    if len(set(follow)) < len(follow):
        aside = {j: samples[j].clone() for j in set(follow) if follow[j] != j}
        yield from ((i, aside.get(j, samples[j])) for i, j in enumerate(follow) if i != j)
        return
    seen = [False] * len(follow)
    for start in range(len(follow)):
        if seen[start] or follow[start] == start:
            continue
        spare, i = samples[start].clone(), start
        while not seen[i]:
            seen[i], j = True, follow[i]
            yield i, spare if j == start else samples[j]
            i = j


def _copies_by_sample(x: Tensor, nbytes: int) -> bool:
    """Whether one copy a sample is allowed (eager, on the CPU, no gradient) and worth it for so many bytes each."""
    if torch.compiler.is_compiling() or x.device.type != "cpu" or nbytes < _LARGE_PATCH:
        return False
    return not (x.requires_grad and torch.is_grad_enabled())


def _select(where: Tensor, yes: Tensor, no: Tensor, inplace: bool, into: Tensor | None = None) -> Tensor:
    """Choose pixel by pixel, keeping the memory format of the images (``into``, or ``no``)."""
    return _store(no if into is None else into, torch.where(where, yes, no), inplace)


def _store(x: Tensor, mixed: Tensor, inplace: bool) -> Tensor:
    if inplace:
        return x.copy_(mixed)
    mixed = mixed.to(x.dtype)
    return mixed if mixed.stride() == x.stride() else torch.empty_like(x).copy_(mixed)


def _working_dtype(dtype: torch.dtype) -> torch.dtype:
    """Return the precision to blend in: float64 where float32 could not hold the values exactly."""
    return torch.float64 if dtype in (torch.float64, torch.int32, torch.int64) else torch.float32


def _per_sample(values: Tensor, x: Tensor) -> Tensor:
    return values.reshape(-1, *[1] * (x.ndim - 1))


def _to(values: Tensor, x: Tensor) -> Tensor:
    return values.to(x.device, non_blocking=True)
