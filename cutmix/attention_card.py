"""Where a network that was trained with SMMix looks, for the page. No torch here."""

from collections.abc import Sequence

from cutmix.report.page import HTML, Section, picture
from cutmix.runs.read import Run

_LEGEND = (
    "Top: training images. Middle: how much attention the trained network’s last block pays to each token, the mean "
    "over its heads and over the image’s tokens (in CaiT, that of the class token); each image has a scale of its own. "
    "Bottom: what SMMix makes of the images, with the shares of their labels: the square with the least attention is "
    "overwritten by the one with the most of another image."
)


def attention(runs: Sequence[Run]) -> Section | None:
    """The pictures that runs with SMMix have drawn at their end."""
    files = [(run, run.folder / "pictures" / "attention.png") for run in runs]
    images = [
        picture(
            path.read_bytes(),
            path,
            alt=f"Grid of images, the attention of {run.label} to them, the squares that it looks at most and least, "
            "and the images mixed by SMMix",
            caption=f"{run.label}, after training",
        )
        for run, path in files
        if path.is_file()
    ]
    return Section("Attention", "attention", HTML.note(_LEGEND) + HTML.images(images)) if images else None
