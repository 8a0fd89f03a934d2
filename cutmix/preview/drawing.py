"""Grids of samples, mixed and unmixed, with their labels in words."""

from collections.abc import Callable, Mapping
from dataclasses import replace

import torch
from matplotlib.figure import Figure
from torch import Tensor

from cutmix.data import ArraySet, ImageSet, test_loader
from cutmix.evaluation.gallery import png_of
from cutmix.mixing.targets import Targets
from cutmix.runtime.seeding import derive_seed


def preview_grid(
    data: ImageSet,
    mixes: Mapping[str, Callable[[Tensor, Tensor], tuple[Tensor, Targets]] | None],
    *,
    image_size: int | None = None,
    count: int = 6,
    seed: int = 0,
) -> bytes:
    """Draw a grid: a row for each transform, a column for each sample, the mixed labels beneath.

    The images are prepared and normalised as for testing, mixed, and shown with the normalisation undone.
    Cutout's holes therefore have the mean colour.

    Args:
        data: The data set to choose samples from.
        mixes: Transforms by the name of their row; None shows the images unmixed.
        image_size: Side in pixels; by default a small set's own, and 224 for photographs.
        count: Number of samples.
        seed: Seed of the choice of samples.

    Returns:
        A PNG file.
    """
    images, labels = pick_samples(data, image_size, count, seed)
    rows = {name: mix(images.clone(), labels) if mix else (images, labels) for name, mix in mixes.items()}
    mean, std = (torch.tensor(values).view(1, -1, 1, 1) for values in (data.mean, data.std))
    figure = Figure(figsize=(1.0 + 1.7 * len(images), 2.1 * len(rows)), dpi=120, layout="constrained")
    axes = figure.subplots(len(rows), len(images), squeeze=False)
    for row, (name, (x, targets)) in zip(axes, rows.items(), strict=True):
        pixels = (x.float() * std + mean).clamp(0, 1).permute(0, 2, 3, 1).squeeze(-1)
        for i, axis in enumerate(row):
            axis.imshow(pixels[i].numpy(), cmap="gray", vmin=0, vmax=1, interpolation="nearest")
            axis.set(xticks=[], yticks=[])
            axis.set_xlabel(caption(targets, i, data.classes), fontsize=8, parse_math=False)
        row[0].set_ylabel(name, fontsize=10)
    return png_of(figure)


def caption(targets: Targets, i: int, classes: tuple[str, ...]) -> str:
    """Return a sample's labels in words, e.g. "0.62 cat" over "0.38 dog"."""
    if isinstance(targets, Tensor):
        return _short(classes[int(targets[i])])
    shares: dict[int, float] = {}
    for label, share in zip(*(terms[i].tolist() for terms in targets.terms()), strict=True):
        shares[label] = shares.get(label, 0.0) + share
    return "\n".join(f"{share:.2f} {_short(classes[label])}" for label, share in shares.items() if share > 0)


def _short(name: str, length: int = 18) -> str:
    name = name.split(",")[0].strip()
    return name if len(name) <= length else name[: length - 1] + "…"


def pick_samples(data: ImageSet, image_size: int | None, count: int, seed: int) -> tuple[Tensor, Tensor]:
    """Load random samples, prepared as for testing."""
    generator = torch.Generator().manual_seed(derive_seed(seed, "preview"))
    chosen = torch.randperm(len(data), generator=generator)[:count]
    if isinstance(data, ArraySet):
        few: ImageSet = replace(data, labels=data.labels[chosen], images=data.images[chosen])
    else:
        few = replace(data, labels=data.labels[chosen], paths=tuple(data.paths[i] for i in chosen.tolist()))
        image_size = 224 if image_size is None else image_size
    loader = test_loader(few, batch_size=count, device="cpu", image_size=image_size)
    return next(iter(loader.epoch()))
