"""Where a network that was trained with SMMix looks, for the page. No torch here."""

from collections.abc import Sequence

from cutmix.page import HTML, Section, picture
from cutmix.runs import Run

_LEGEND = (
    "Top: training images. Middle: the attention of the trained network’s last block, mean over its heads and, but for "
    "CaiT, over the image’s tokens that ask; the brighter, the more; each image has its own scale. Bottom: what SMMix "
    "makes of the images, with the shares of the labels. The square with the most attention is given to another image, "
    "which loses the one with the least for it."
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
