"""Move pixels: paste boxes, blend batches, compose under masks, cut holes.

Every function is deterministic and takes its small tensors on the device of the images: ``partner`` (N,) is the index
of the sample that each sample takes pixels from. On a CPU, images are processed one after another along the cycles of
``partner``, so that only the bytes inside a box move, with one spare image of memory. Small images under one box, other
devices, ``torch.compile`` and inputs that carry a gradient take whole-batch index operations: no loop over samples, and
nothing that waits for the device.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor

# Bytes of a sample's box from which processing one sample after another is faster than one operation for the batch;
# for blending, which only torch does well, four times as many. See benchmarks/mixing.py --crossover.
_LARGE = 16 * 1024

# Pixels are only moved, so any type of the same size will do: NumPy has no bfloat16.
_SAME_SIZE = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}

Samples = TypeVar("Samples", Tensor, np.ndarray)


def paste_boxes(x: Tensor, partner: Tensor, boxes: Tensor, *, corners: Tensor, inplace: bool) -> Tensor:
    """Replace a box of every sample by the same box of its partner: x̃ = M ⊙ x_A + (1 − M) ⊙ x_B, M = 0 in the box.

    ``x`` is (N, ..., H, W) of any dtype and memory format; the boxes, (1, 4) or (N, 4), are half-open x1, y1, x2, y2
    inside the image, and ``corners`` are the same on the CPU. ``inplace`` writes into ``x`` and returns it.
    """
    if torch.compiler.is_compiling() or (len(boxes) != 1 and not _one_by_one(x)):
        # The box stays a tensor here, so that one compiled graph serves every box.
        return _select(inside_boxes(x, boxes), x.index_select(0, partner), x, inplace)
    target = x if inplace else x.clone()
    if len(boxes) != 1:
        pixels, edges = _pixels(target), corners.tolist()
        for i, source in _moves(pixels, _pixels(x), partner, np.copy):
            x1, y1, x2, y2 = edges[i]
            pixels[i, ..., y1:y2, x1:x2] = source[..., y1:y2, x1:x2]
        return _written(target)
    x1, y1, x2, y2 = corners.tolist()[0]
    source_patch = patch = x[..., y1:y2, x1:x2]
    if not inplace:
        patch = target[..., y1:y2, x1:x2]
    if patch.nbytes < _LARGE * len(x) or not _one_by_one(x):
        patch.copy_(source_patch.index_select(0, partner))
        return target
    pixels = _pixels(patch)
    for i, source in _moves(pixels, _pixels(source_patch), partner, np.copy):
        pixels[i] = source
    return _written(target)


def blend(x: Tensor, partner: Tensor, own: Tensor, *, inplace: bool) -> Tensor:
    """Blend every sample with its partner: x̃ = λ x_A + (1 − λ) x_B, λ of (N, 1, ...) float32; see ``compose``."""
    if inplace and x.dtype in (torch.float32, torch.float64) and _one_by_one(x) and x[:1].nbytes >= 4 * _LARGE:
        weights = own.flatten().tolist()
        for i, source in _moves(x, x, partner, torch.clone):
            torch.lerp(source, x[i], weights[i], out=x[i])
        return x
    return compose(x, partner, own, inplace=inplace)


def compose(x: Tensor, partner: Tensor, own: Tensor, *, inplace: bool) -> Tensor:
    """Mix every sample with its partner under a mask: x̃ = M ⊙ x_A + (1 − M) ⊙ x_B.

    The mask broadcasts to ``x`` and is bool (True keeps the own pixel) or floating in [0, 1]. Half-precision images are
    averaged in float32, so that M is not rounded to the images' precision; integer images are rounded to the nearest
    value.
    """
    if own.dtype == torch.bool:
        return _select(own, x, x.index_select(0, partner), inplace, into=x)
    work = _working_dtype(x.dtype)
    same, other = x.to(work), x.index_select(0, partner).to(work)
    mixed = torch.lerp(other, same, own.to(work))
    return _store(x, mixed if x.dtype.is_floating_point else mixed.round_(), inplace)


def fill_boxes(x: Tensor, boxes: Tensor, *, corners: Tensor, inplace: bool) -> Tensor:
    """Set a box of every sample to zero; see ``paste_boxes``."""
    if torch.compiler.is_compiling() or not _one_by_one(x):
        inside = inside_boxes(x, boxes)
        return x.masked_fill_(inside, 0) if inplace else x.masked_fill(inside, 0)
    target = x if inplace else x.clone()
    pixels = _pixels(target)
    for part, (x1, y1, x2, y2) in zip([pixels] if len(boxes) == 1 else pixels, corners.tolist(), strict=True):
        part[..., y1:y2, x1:x2] = 0
    return _written(target)


def inside_boxes(x: Tensor, boxes: Tensor) -> Tensor:
    """Return a mask of the boxes: bool, (1 or N, 1, ..., H, W); both on one device."""
    height, width = x.shape[-2:]
    x1, y1, x2, y2 = boxes.reshape(-1, *[1] * (x.ndim - 1), 4).unbind(-1)
    rows = torch.arange(height, device=x.device).unsqueeze(-1)
    columns = torch.arange(width, device=x.device)
    return ((rows >= y1) & (rows < y2)) & ((columns >= x1) & (columns < x2))


def _moves(
    target: Samples, sources: Samples, partner: Tensor, copy: Callable[[Samples], Samples]
) -> Iterator[tuple[int, Samples]]:
    """Yield (i, the unmodified partner of i) in an order in which no sample is overwritten before it is read.

    Between two tensors, any order will do. In place, a permutation is walked cycle by cycle, with a copy of the first
    sample of each cycle. If samples share a partner there are no cycles, and every partner that is itself overwritten
    is copied first.
    """
    follow: Sequence[int] = partner.tolist()
    if not _same_memory(target, sources):
        yield from ((i, sources[j]) for i, j in enumerate(follow) if i != j)
        return
    if len(set(follow)) < len(follow):
        aside = {j: copy(sources[j]) for j in set(follow) if follow[j] != j}
        yield from ((i, aside.get(j, sources[j])) for i, j in enumerate(follow) if i != j)
        return
    seen = [False] * len(follow)
    for start in range(len(follow)):
        if seen[start] or follow[start] == start:
            continue
        spare, i = copy(sources[start]), start
        while not seen[i]:
            seen[i], j = True, follow[i]
            yield i, spare if j == start else sources[j]
            i = j


def _same_memory(a: Tensor | np.ndarray, b: Tensor | np.ndarray) -> bool:
    return a is b or (isinstance(a, np.ndarray) and isinstance(b, np.ndarray) and np.may_share_memory(a, b))


def _one_by_one(x: Tensor) -> bool:
    """Return whether samples can be processed one after another: eager tensors on the CPU, without a gradient."""
    if torch.compiler.is_compiling() or x.device.type != "cpu" or x.element_size() not in _SAME_SIZE:
        return False
    return not (x.requires_grad and torch.is_grad_enabled())


def _pixels(x: Tensor) -> np.ndarray:
    """Return the memory of ``x`` as an array.

    NumPy copies a box in one thread, with less overhead a call. Torch divides copies of this size among threads and
    waits for all of them: hundreds of times a batch, and for long when other processes use the cores.
    """
    return x.detach().view(_SAME_SIZE[x.element_size()]).numpy()


def _written(x: Tensor) -> Tensor:
    """Tell autograd that ``x`` was written to through NumPy."""
    if not x.is_inference():
        torch.autograd.graph.increment_version(x)
    return x


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
