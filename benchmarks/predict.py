"""Images to predictions: ``predict`` beside the test loader and the same network.

Both sides decode JPEG files, resize and crop them to 224×224 and run the network, in one process that takes turns; the
speed is images for each second of a core, by the CPU time of the process. "pixels" is a network of one linear layer, so
that decoding is nearly all of the work. The files are JPEGs of three sizes, made of scikit-learn's two photographs or
of those in --images.
"""

import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from torch import Tensor, nn

from cutmix.config.recipe import Recipe
from cutmix.data import FileSet, test_loader
from cutmix.data.transforms import IMAGENET_MEAN, IMAGENET_STD
from cutmix.inference.model import Model, Preprocessing
from cutmix.models import create_model
from input import SIZES, in_turns, write_files
from measuring import Row, arguments, report, versions

TARGET = 0.9
BATCH = 16
CLASSES = tuple(map(str, range(10)))


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--images", type=Path, help="folder of photographs to make the files of")
    args = parser.parse_args()
    torch.set_num_threads(1)  # a core
    about: dict[str, object] = {"sources": args.images.name if args.images else "scikit-learn's two photographs"}
    about |= versions("timm", "pillow", "simplejpeg")
    with tempfile.TemporaryDirectory() as scratch:
        report("predict", rows(Path(scratch), args.images, args.quick), args, about)


def rows(scratch: Path, images: Path | None, quick: bool) -> Iterator[Row]:
    """Yield the comparison of every size of files and both networks."""
    networks = {"pixels": Pixels(), "resnet18": create_model("resnet18", len(CLASSES)).eval()}
    for size, (width, height, quality, count) in SIZES.items():
        data = write_files(scratch / size, images, (width, height), quality, 4 if quick else min(count, 48))
        for name, network in networks.items():
            found = in_turns(sides(data, network), 1 if quick else 7, time.process_time, len(data))
            yield Row(
                f"predict, {name}", "images/s", found["predict"], "test loader", found["test loader"], TARGET, size
            )


def sides(data: FileSet, network: nn.Module) -> dict[str, Callable[[int], None]]:
    """Return what each side does for all files."""
    preprocessing = Preprocessing(224, 3, IMAGENET_MEAN, IMAGENET_STD, small=False, decoder="fast")
    model = Model(network, CLASSES, preprocessing, source=Path("model.safetensors"), recipe=Recipe(model="resnet18"))
    loader = test_loader(data, batch_size=BATCH, device="cpu", image_size=224, workers=1, decoder="fast")
    files = list(data.paths)

    def predict(_: int) -> None:
        assert len(list(model.predict(files, batch_size=BATCH, workers=1))) == len(files)

    def load(_: int) -> None:
        with torch.inference_mode():
            assert sum(len(network(images)) for images, _ in loader.epoch()) == len(files)

    return {"predict": predict, "test loader": load}


class Pixels(nn.Module):
    """One linear layer on the mean colour."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(3, len(CLASSES))

    def forward(self, images: Tensor) -> Tensor:
        """(N, 3, H, W) -> (N, K)."""
        return self.fc(images.mean((2, 3)))


if __name__ == "__main__":
    main()
