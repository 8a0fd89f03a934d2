"""``cutmix preview``: figures of samples unmixed and mixed, with their labels, and of the attention in SMMix."""

import math
from collections.abc import Callable, Mapping
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from torch import Tensor, nn

from cutmix.config.options import PreviewOptions
from cutmix.config.recipe import FILE_SIZE
from cutmix.data import ArraySet, ImageSet, open_data, test_loader
from cutmix.data.sets import random_subset, take
from cutmix.data.transforms import denormalize, drawable
from cutmix.errors import InputError, shorten
from cutmix.mixing import CutMix, Cutout, Mixup
from cutmix.mixing.smmix import AttentionDraw, SMMix
from cutmix.mixing.targets import Targets
from cutmix.models.create import create_model, trying_images
from cutmix.models.transformers import predict_and_attend
from cutmix.runtime.files import outline, png_of, write_atomic
from cutmix.runtime.seeding import derive_seed
from cutmix.runtime.terminal import say


def preview_grid(
    data: ImageSet,
    mixes: Mapping[str, Callable[[Tensor, Tensor], tuple[Tensor, Targets]] | None],
    *,
    image_size: int | None = None,
    count: int = 6,
    seed: int = 0,
) -> bytes:
    """Draw a grid as PNG: a row for each transform, a column for each sample, the mixed labels beneath.

    The images are prepared and normalized as for testing, mixed, and shown with the normalization undone. Cutout's
    holes therefore have the mean colour. A transform of None shows the images unmixed.
    """
    images, labels = pick_samples(data, image_size, count, seed)
    rows = {name: mix(images.clone(), labels) if mix else (images, labels) for name, mix in mixes.items()}
    figure = Figure(figsize=(1.0 + 1.7 * len(images), 2.1 * len(rows)), dpi=120, layout="constrained")
    axes = figure.subplots(len(rows), len(images), squeeze=False)
    for row, (name, (x, targets)) in zip(axes, rows.items(), strict=True):
        pixels = drawable(denormalize(x, data.mean, data.std))
        for i, axis in enumerate(row):
            axis.imshow(pixels[i], interpolation="nearest")
            axis.set(xticks=[], yticks=[])
            axis.set_xlabel(caption(targets, i, data.classes), fontsize=8, parse_math=False)
        row[0].set_ylabel(name, fontsize=10)
    return png_of(figure)


def caption(targets: Targets, i: int, classes: tuple[str, ...]) -> str:
    """Return a sample's labels in words, e.g. "0.62 cat" over "0.38 dog"."""
    if isinstance(targets, Tensor) and targets.ndim == 2:
        shares = {label: share for label, share in enumerate(targets[i].tolist()) if share > 0}
        return "\n".join(f"{share:.2f} {_caption(classes[label])}" for label, share in shares.items()) or "no label"
    if isinstance(targets, Tensor):
        return _caption(classes[int(targets[i])])
    shares = {}
    for label, share in zip(*(terms[i].tolist() for terms in targets.terms()), strict=True):
        shares[label] = shares.get(label, 0.0) + share
    return "\n".join(f"{share:.2f} {_caption(classes[label])}" for label, share in shares.items() if share > 0)


def _caption(name: str) -> str:
    return shorten(name.split(",")[0].strip(), 18)


def pick_samples(data: ImageSet, image_size: int | None, count: int, seed: int) -> tuple[Tensor, Tensor]:
    """Load random samples, prepared as for testing."""
    few = take(data, random_subset(len(data), count, derive_seed(seed, "preview")))
    if not isinstance(data, ArraySet) and image_size is None:
        image_size = FILE_SIZE
    loader = test_loader(few, batch_size=count, device="cpu", image_size=image_size)
    return next(iter(loader.epoch()))


_MOST, _LEAST = "#ff9f1c", "#2ec4ff"  # distinguishable with colour blindness, and visible on any image


def attention_figure(
    network: nn.Module,
    images: Tensor,
    labels: Tensor,
    *,
    classes: tuple[str, ...],
    mean: tuple[float, ...],
    std: tuple[float, ...],
    seed: int = 0,
) -> bytes:
    """Draw a PNG with a column for each sample: its image, its attention, and its mixed image with the labels.

    ``images`` are at least two, (N, C, H, W), normalized and on the device of the network, which is not wrapped;
    ``mean`` and ``std`` undo the normalization.
    """
    _, attention = predict_and_attend(network, images)
    draw = SMMix(1.0, seed=seed).draw(attention)
    targets = draw.targets(labels.cpu())
    plain, mixed = (drawable(denormalize(x, mean, std)) for x in (images, draw.apply(images)))
    figure = Figure(figsize=(max(1.0 + 1.7 * len(images), 5.0), 6.3), dpi=120, layout="constrained")
    axes = figure.subplots(3, len(images))
    for i, (top, middle, bottom) in enumerate(axes.T):
        for axis, pixels in ((top, plain), (bottom, mixed)):
            axis.imshow(pixels[i], interpolation="nearest")
        middle.imshow(plain[i].mean(-1), cmap="gray", vmin=0, vmax=1)
        extent = (-0.5, images.shape[3] - 0.5, images.shape[2] - 0.5, -0.5)
        middle.imshow(attention[i].cpu().numpy(), cmap="magma", alpha=0.75, extent=extent, interpolation="nearest")
        taken = draw.source[draw.partner == i].cpu()[0]
        for axis in (top, middle):
            _outline(axis, draw, draw.target[i], images, _LEAST)
            _outline(axis, draw, taken, images, _MOST)
        _outline(bottom, draw, draw.target[i], images, _MOST)
        top.set_title(f"{i + 1}", fontsize=9)
        top.set_xlabel(caption(labels.cpu(), i, classes), fontsize=8, parse_math=False)
        origin = f"square of image {int(draw.partner[i]) + 1}"
        bottom.set_xlabel(f"{caption(targets, i, classes)}\n{origin}", fontsize=8, parse_math=False)
    for axis in axes.flat:
        axis.set(xticks=[], yticks=[])
    for axis, name in zip(axes[:, 0], ("image", "attention", "SMMix"), strict=True):
        axis.set_ylabel(name, fontsize=10)
    lines = [Line2D([], [], color=color, linewidth=3) for color in (_MOST, _LEAST)]
    meanings = ("most attention: given to another", "least attention: overwritten")
    figure.legend(lines, meanings, loc="outside lower center", ncols=2, fontsize=8, frameon=False)
    return png_of(figure)


def _outline(axis: Axes, draw: AttentionDraw, corner: Tensor, images: Tensor, color: str) -> None:
    """Draw the border of a square of tokens."""
    height, width = (size // tokens for size, tokens in zip(images.shape[-2:], draw.grid, strict=True))
    row, column = corner.tolist()
    left, top = column * width - 0.5, row * height - 0.5
    outline(axis, (left, top, left + draw.side * width, top + draw.side * height), color)


def run_preview(options: PreviewOptions) -> Path:
    """Write a grid of images of a data set: the originals, Cutout, Mixup and CutMix."""
    if options.count < 2:
        raise InputError(f"--count is {options.count}; expected at least 2, as images are mixed with one another")
    if not 0 < options.alpha < math.inf:
        raise InputError(f"--alpha is {options.alpha}; expected a number above 0")
    if options.cutout_size is not None and options.cutout_size < 1:
        raise InputError(f"--cutout-size is {options.cutout_size}; expected at least 1 pixel")
    data = open_data(options.data, "train", skip_unreadable=options.skip_unreadable, channels=options.channels)
    side = options.image_size or (min(data.images.shape[-2:]) if isinstance(data, ArraySet) else FILE_SIZE)
    if options.mix == "smmix":
        return _preview_smmix(options, data)
    mixes = {
        "original": None,
        "Cutout": Cutout(max(side // 2, 1) if options.cutout_size is None else options.cutout_size, seed=options.seed),
        "Mixup": Mixup(options.alpha, per_sample=True, seed=options.seed),
        "CutMix": CutMix(options.alpha, per_sample=True, seed=options.seed),
    }
    return _write(
        options, preview_grid(data, mixes, image_size=options.image_size, count=options.count, seed=options.seed)
    )


def _preview_smmix(options: PreviewOptions, data: ImageSet) -> Path:
    """Write a figure of a model's attention and SMMix; without weights the attention is that of a random model."""
    network = create_model(
        options.model, data.num_classes, in_chans=data.in_chans, pretrained=options.weights or False
    ).eval()
    images, labels = pick_samples(data, options.image_size, options.count, options.seed)
    with trying_images(options.model, tuple(images.shape[-2:])):
        png = attention_figure(
            network, images, labels, classes=data.classes, mean=data.mean, std=data.std, seed=options.seed
        )
    return _write(options, png)


def _write(options: PreviewOptions, png: bytes) -> Path:
    write_atomic(options.out, lambda file: file.write(png))
    say(f"wrote {options.out}")
    return options.out
