"""``cutmix preview``: a figure of mixed images of a data set, with the mixed labels."""

import math
from pathlib import Path

from cutmix.config.options import PreviewOptions
from cutmix.data import ArraySet, ImageSet, open_data
from cutmix.errors import InputError
from cutmix.mixing import CutMix, Cutout, Mixup
from cutmix.models.create import create_model, trying_images
from cutmix.preview.attention import attention_picture
from cutmix.preview.drawing import pick_samples, preview_grid
from cutmix.runtime.files import write_atomic


def run_preview(options: PreviewOptions) -> Path:
    """Write a grid of images of a data set: the originals, Cutout, Mixup and CutMix."""
    if options.count < 2:
        raise InputError(f"--count is {options.count}; expected at least 2, as images are mixed with one another")
    if not 0 < options.alpha < math.inf:
        raise InputError(f"--alpha is {options.alpha}; expected a number above 0")
    if options.cutout_size is not None and options.cutout_size < 1:
        raise InputError(f"--cutout-size is {options.cutout_size}; expected at least 1 pixel")
    data = open_data(options.data, "train", skip_unreadable=options.skip_unreadable)
    side = options.image_size or (min(data.images.shape[-2:]) if isinstance(data, ArraySet) else 224)
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
        png = attention_picture(
            network, images, labels, classes=data.classes, mean=data.mean, std=data.std, seed=options.seed
        )
    return _write(options, png)


def _write(options: PreviewOptions, png: bytes) -> Path:
    write_atomic(options.out, lambda file: file.write(png))
    print(f"wrote {options.out}")
    return options.out
