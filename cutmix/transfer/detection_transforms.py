"""From a picture and its boxes to what a detector trains on: SSD's augmentation, Faster R-CNN's, and batches."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset
from torchvision import tv_tensors
from torchvision.transforms import v2

from cutmix.data.decode import read_image
from cutmix.errors import InputError
from cutmix.runtime.seeding import derive_seed
from cutmix.transfer.detection_data import DetectionSet, Picture, check_size

Target = dict[str, Tensor]
Sample = tuple[Tensor, Target]


def ssd_transform(image_size: int = 300, fill: Sequence[float] = (0.485, 0.456, 0.406)) -> Callable[[Any], Any]:
    """Return SSD's augmentation: colours, a larger canvas, a crop that keeps objects, a flip, and the network's size.

    Brightness, contrast, saturation, hue and the order of the channels change in half of the cases each; half of the
    pictures go on a canvas of up to four times the side; then a crop of 0.3 to 1 of each side keeps an object by an
    IoU of at least 0, 0.1, 0.3, 0.5, 0.7 or 0.9 (or nothing is cropped) and loses objects whose centre is outside.

    Args:
        image_size: Side in pixels of what comes out.
        fill: Colour of the canvas, 0 to 1: the mean of the backbone's weights.

    Source: Liu et al. 2016, data augmentation, as torchvision's transforms have it.
    """
    return v2.Compose(
        [
            v2.RandomPhotometricDistort(),
            v2.RandomZoomOut([255 * value for value in fill]),
            v2.RandomIoUCrop(),
            v2.RandomHorizontalFlip(0.5),
            v2.Resize((image_size, image_size), antialias=False),  # as the network resizes in tests
            v2.ClampBoundingBoxes(),
            v2.SanitizeBoundingBoxes(labels_getter=lambda inputs: inputs[1]["labels"]),
        ]
    )


def faster_rcnn_transform() -> Callable[[Any], Any]:
    """Return Faster R-CNN's augmentation: a flip in half of the cases; the network resizes.

    Source: Ren et al. 2015 and the paper's code base, which doubles the set by its flipped pictures.
    """
    return v2.RandomHorizontalFlip(0.5)


class DetectionSamples(Dataset[Any]):
    """Decodes and augments one picture; asked for by (epoch, index), and always the same one.

    Args:
        data: The split.
        transform: Of training; it draws from PyTorch's global generator, which is seeded for each sample by the seed,
            the epoch and the index, and left as it was. None for tests.
        seed: Of the augmentation.
        keep_difficult: Whether difficult objects are among the targets. The paper's code bases differ: SSD leaves them
            out, Faster R-CNN learns them. COCO's crowds are marked in the same way and belong to no training.
    """

    def __init__(
        self,
        data: DetectionSet,
        transform: Callable[[Any], Any] | None = None,
        *,
        seed: int = 0,
        keep_difficult: bool = False,
    ) -> None:
        self.data, self.transform, self.seed, self.keep_difficult = data, transform, seed, keep_difficult

    def __len__(self) -> int:
        return len(self.data)

    def __getitem__(self, key: tuple[int, int]) -> Sample | InputError:
        """Return the image, (3, H, W) uint8, and its ``boxes`` (n, 4) float32 and ``labels`` (n,) int64."""
        epoch, index = key
        picture = self.data.pictures[index]
        try:
            image = load_picture(picture)
        except InputError as error:
            return error  # as a value: raised in a worker, it would reach the user as a traceback in a sentence
        kept = torch.ones_like(picture.difficult) if self.keep_difficult else ~picture.difficult
        boxes, labels = picture.boxes[kept], picture.labels[kept]
        if self.transform is None:
            return image, {"boxes": boxes, "labels": labels}
        sides = (image.shape[1], image.shape[2])
        wrapped = tv_tensors.BoundingBoxes(boxes, format="XYXY", canvas_size=sides)
        with torch.random.fork_rng(devices=[]):  # of the CPU alone: nothing here draws on a GPU
            torch.default_generator.manual_seed(derive_seed(self.seed, "augment", epoch, index))
            image, target = self.transform((tv_tensors.Image(image), {"boxes": wrapped, "labels": labels}))
        return image.as_subclass(Tensor), {"boxes": target["boxes"].as_subclass(Tensor), "labels": target["labels"]}


def load_picture(picture: Picture) -> Tensor:
    """Decode a picture, (3, H, W) uint8, RGB.

    Raises:
        InputError: It cannot be read or has another size than its annotation says.
    """
    image = read_image(picture.path)
    check_size(picture, image.size)
    return v2.functional.pil_to_tensor(image)


def collate(samples: Sequence[Any]) -> tuple[list[Tensor], list[Target]] | InputError:
    """Return images and targets as two lists, as images differ in size; or the first error among the samples."""
    error = next((sample for sample in samples if isinstance(sample, InputError)), None)
    return error or ([image for image, _ in samples], [target for _, target in samples])
