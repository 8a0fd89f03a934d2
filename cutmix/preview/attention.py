"""A figure of SMMix: images, the attention of a model, the squares that move, and the mixed batch."""

import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Rectangle
from matplotlib.patheffects import Normal, Stroke
from torch import Tensor, nn

from cutmix.evaluation.gallery import png_of
from cutmix.mixing.smmix import AttentionDraw, SMMix
from cutmix.models.attention import predict_and_attend
from cutmix.preview.drawing import caption

_MOST, _LEAST = "#ff9f1c", "#2ec4ff"  # distinguishable with colour blindness, and visible on photographs


def attention_picture(
    network: nn.Module,
    images: Tensor,
    labels: Tensor,
    *,
    classes: tuple[str, ...],
    mean: tuple[float, ...],
    std: tuple[float, ...],
    seed: int = 0,
) -> bytes:
    """Draw a grid with a column for each sample: its image, its attention, and its mixed image with the labels.

    Args:
        network: A vision transformer, not wrapped; see ``cutmix.models.attention``.
        images: (N, C, H, W) of one or three channels, at least two, normalised and on the network's device.
        labels: Class ids (N,).
        classes: Names of the classes.
        mean: Mean of each channel that the images were normalised with, for pixels in [0, 1].
        std: Standard deviation of each channel that they were normalised with.
        seed: Seed of the size of the squares and of the partners.

    Returns:
        A PNG file.

    Raises:
        InputError: If there is only one image, or the network has no attention over all tokens of such images.
    """
    _, attention = predict_and_attend(network, images)
    draw = SMMix(1.0, seed=seed).draw(attention)
    targets = draw.targets(labels.cpu())
    shift, scale = (torch.tensor(values).view(-1, 1, 1) for values in (mean, std))
    plain, mixed = (
        (x.detach().float().cpu() * scale + shift).clamp(0, 1).permute(0, 2, 3, 1).squeeze(-1).numpy()
        for x in (images, draw.apply(images))
    )
    figure = Figure(figsize=(max(1.0 + 1.7 * len(images), 5.0), 6.3), dpi=120, layout="constrained")
    axes = figure.subplots(3, len(images))
    for i, (top, middle, bottom) in enumerate(axes.T):
        for axis, pixels in ((top, plain), (bottom, mixed)):
            axis.imshow(pixels[i], cmap="gray", vmin=0, vmax=1, interpolation="nearest")
        middle.imshow(plain[i] if plain.ndim == 3 else plain[i].mean(-1), cmap="gray", vmin=0, vmax=1)
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
    place, sides = (column * width - 0.5, row * height - 0.5), (draw.side * width, draw.side * height)
    square = Rectangle(place, sides[0], sides[1], fill=False, edgecolor=color, linewidth=2, clip_on=False)
    square.set_path_effects([Stroke(linewidth=3.5, foreground="black"), Normal()])
    axis.add_patch(square)
