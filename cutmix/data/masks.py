"""Masks of objects in the format of wsolevaluation's OpenImages30k, as PxAP takes them."""

from pathlib import Path

import numpy as np

from cutmix.data.cub import read_rows
from cutmix.data.decode import read_image
from cutmix.data.sets import FileSet
from cutmix.errors import InputError


def read_masks(folder: Path, masks: Path, data: FileSet, side: int = 224) -> np.ndarray:
    """Read the masks of a data set's images, squashed to a square.

    Args:
        folder: A split's metadata: ``localization.txt`` with the columns image, mask, region to leave out; one line a
            mask, the region in an image's first line only.
        masks: The folder that the names of the files are relative to.
        data: The opened test images, whose order the masks get; their files are named in the metadata by their
            last parts.
        side: Of the maps that they are compared with.

    Returns:
        (N, side, side) uint8: 1 in any of the image's masks, 255 in the region and no mask, 0 elsewhere.

    Raises:
        InputError: A file is missing, no image, or an image has no mask.

    Source: ``get_mask`` of clovaai/wsolevaluation; pixels are picked as OpenCV's INTER_NEAREST does.
    """
    file = folder / "localization.txt"
    rows: dict[str, list[tuple[str, str]]] = {}
    for _, (name, mask, ignored) in read_rows(file, ",", 3):
        rows.setdefault(name, []).append((mask, ignored))
    depths = {name.count("/") + 1 for name in rows}
    result = np.zeros((len(data), side, side), dtype=np.uint8)
    for target, path in zip(result, data.paths, strict=True):
        names = ("/".join(path.parts[-depth:]) for depth in depths)
        own = next((rows[name] for name in names if name in rows), None)
        if own is None:
            raise InputError(f"{file} has no mask for {path.name}; expected at least one for each image")
        for _, ignored in own:
            if ignored:
                target[_squashed(masks / ignored, side)] = 255
        for mask, _ in own:
            target[_squashed(masks / mask, side)] = 1
    return result


def _squashed(file: Path, side: int) -> np.ndarray:
    """Return where a picture is not black, (side, side) bool."""
    grey = np.asarray(read_image(file).convert("L"))
    # in OpenCV's order of operations: where a position is whole, the rounding decides between two pixels
    rows, columns = (np.floor(np.arange(side) * (1 / (side / length))).astype(np.int64) for length in grey.shape)
    return grey[rows[:, None], columns] > 0
