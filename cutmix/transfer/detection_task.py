"""Detection as a task of the training loop."""

import json
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
from matplotlib import patheffects
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from torch import Tensor, nn

from cutmix.config.transfer import Detection
from cutmix.data.loaders import FileLoader, Loader
from cutmix.data.transforms import TestOrder, TrainOrder
from cutmix.errors import InputError, printable
from cutmix.runs.record import Record
from cutmix.runtime.distributed import World, gather, send_buffers
from cutmix.runtime.files import png_of
from cutmix.training.classification import Evaluation
from cutmix.transfer.average_precision import (
    Detections,
    Interpolation,
    Judged,
    Objects,
    inclusive,
    judge,
    precision_of,
    tally,
    voc_average_precision,
    voc_interval,
)
from cutmix.transfer.backbone import Backbone, TransferTask
from cutmix.transfer.coco_precision import coco_metrics
from cutmix.transfer.detection import faster_rcnn_c4, ssd300
from cutmix.transfer.detection_data import (
    DetectionSamples,
    DetectionSet,
    faster_rcnn_transform,
    load_image,
    ssd_transform,
)

COCO_METRICS = (
    "coco_map", "coco_map_50", "coco_map_75", "coco_map_small", "coco_map_medium", "coco_map_large",
    "coco_ar_1", "coco_ar_10", "coco_ar_100", "coco_ar_small", "coco_ar_medium", "coco_ar_large",
)  # fmt: skip
_INTERPOLATIONS: dict[str, Interpolation] = {"map": "11-point", "map_all_point": "all-point"}


@dataclass
class DetectionTask(TransferTask[Detection, DetectionSet]):
    """Detection, evaluated by Pascal VOC's mean average precision."""

    key: ClassVar[str] = "map"
    title: ClassVar[str] = "mean average precision"
    unit: ClassVar[str] = " %"
    command: ClassVar[str] = "cutmix transfer detection"

    def split(self, images: list[Tensor], targets: list[Any], progress: float) -> Sequence[tuple[Any, Any]]:
        """Split a batch; a loss is a mean over the objects of a part, so it differs a little from that of the batch."""
        size = -(-len(images) // self.recipe.accumulate)
        return [(images[i : i + size], targets[i : i + size]) for i in range(0, len(images), size)]

    def loss(self, network: nn.Module, images: Any, targets: Any) -> Tensor:
        """Return the sum of the detector's losses."""
        with self.autocast:
            return torch.stack(list(network(images, targets).values())).sum()

    def evaluate(self, model: nn.Module, split: str = "test") -> Evaluation:
        """Return the mean average precision in percent, and every detection with its verdict."""
        send_buffers(model, self.world)
        training, own = model.training, []
        model.eval()
        with torch.inference_mode(), self.autocast:
            for images, _ in self.test_batches.epoch():
                own += [{name: column.float().cpu() for name, column in found.items()} for found in model(images)]
        model.train(training)
        every: list[Any] = [None] * len(self.test_set)
        for rank, share in enumerate(gather(own, self.world)):
            every[rank :: self.world.size] = share
        arrays = {name: torch.cat([found[name] for found in every]).numpy() for name in ("boxes", "scores", "labels")}
        arrays["images"] = np.repeat(np.arange(len(every)), [len(found["labels"]) for found in every])
        arrays["labels"] = arrays["labels"].astype(np.int64)
        judged = self._judge(_detections(arrays))
        precision = precision_of(tally(judged, self.test_set.num_classes))
        return Evaluation({"map": 100 * precision.mean}, arrays | judged._asdict())

    def records(self, arrays: dict[str, np.ndarray]) -> list[Record]:
        """Return VOC's mean average precision with its interval, that of each class, and COCO's metrics."""
        found = _detections(arrays)
        objects, classes, n = self.test_set.objects(), self.test_set.classes, len(self.test_set)
        scene, records = (inclusive(found), inclusive(objects), len(classes)), []
        for metric, interpolation in _INTERPOLATIONS.items():
            value = voc_average_precision(*scene, interpolation=interpolation).mean
            interval = voc_interval(*scene, n, interpolation=interpolation)._asdict()
            records.append(Record(metric=metric, value=100 * value, **interval, n=n, suite="detection"))
        precision = voc_average_precision(*scene)
        for name, value, count in zip(classes, precision.per_class.tolist(), precision.objects.tolist(), strict=True):
            if count:
                records.append(Record(metric="ap", of=name, value=100 * value, n=count, suite="detection"))
        return [*records, *self._coco_records(found, objects)]

    def _coco_records(self, found: Detections, objects: Objects) -> list[Record]:
        """Return COCO's twelve metrics, without values where its program is not installed."""
        n = len(self.test_set)
        try:
            coco = coco_metrics(found, objects, self.test_set.num_classes, n, self.test_set.areas())
        except InputError as error:
            note = f"not run: {error}"
            return [Record(metric="coco_map", value=None, n=n, suite="detection", note=note)]
        values: dict[str, Any] = dict(zip(COCO_METRICS, coco[: len(COCO_METRICS)], strict=True))
        none = "not run: the test images have no object of this size"
        return [
            Record(metric=name, value=None, n=n, suite="detection", note=none)
            if math.isnan(value)
            else Record(metric=name, value=100 * value, n=n, suite="detection")
            for name, value in values.items()
        ]

    def _judge(self, found: Detections) -> Judged:
        # SSD's code base has boxes that end with their edge and no VOC's + 1: the same areas
        return judge(inclusive(found), inclusive(self.test_set.objects()))

    def opening(self) -> str:
        """Return the detector, its backbone and the data."""
        return (
            f"{self.recipe.arch} on {self.backbone.title}; {self.train_set.name}: "
            f"{len(self.train_set):,} training images, {len(self.test_set):,} test images, "
            f"{self.train_set.num_classes} classes"
        )

    def circumstances(self) -> dict[str, Any]:
        """Return the detector and the source of its backbone."""
        return {"task": "detection", "arch": self.recipe.arch, **super().circumstances()}

    def about(self, epoch: int) -> dict[str, str]:
        """Return what is needed to use the weights."""
        return super().about(epoch) | {"classes": json.dumps(self.train_set.classes)}

    def pictures(self, arrays: dict[str, np.ndarray]) -> dict[str, bytes]:
        """Return test images with their true boxes and their detections."""
        found = _detections(arrays)
        return {"detections": gallery_of_detections(self.test_set, found)}


def make_detector(recipe: Detection, backbone: Backbone, num_classes: int) -> nn.Module:
    """Return the recipe's detector on a backbone.

    Raises:
        InputError: If the backbone's layers or the image size do not fit the detector.
    """
    mean, std, network = backbone.mean, backbone.std, backbone.network
    try:
        if recipe.arch == "ssd300":
            return ssd300(network, num_classes, image_size=recipe.image_size, mean=mean, std=std)
        return faster_rcnn_c4(
            network, num_classes, min_size=recipe.min_size, max_size=recipe.max_size, freeze=recipe.freeze, mean=mean,
            std=std,
        )  # fmt: skip
    except InputError as error:
        raise InputError(f"{recipe.arch} does not fit {backbone.title}: {error}") from None


def make_batches(
    recipe: Detection,
    train_set: DetectionSet,
    test_set: DetectionSet,
    mean: Sequence[float],
    world: World,
    workers: int,
) -> tuple[Loader, Loader]:
    """Return the training batches, augmented as in the recipe's code base, and the test batches.

    Raises:
        InputError: If the batch size is not a multiple of the processes, or no object of the test split is counted.
    """
    if recipe.batch_size % world.size:
        raise InputError(
            f"--batch-size is {recipe.batch_size}; expected a positive multiple of the {world.size} processes"
        )
    if test_set.objects().difficult.all():
        raise InputError(
            f"every object of the {len(test_set)} test images of {test_set.name} is difficult; expected one that counts"
        )
    ssd = recipe.arch == "ssd300"
    transform = ssd_transform(recipe.image_size, fill=mean) if ssd else faster_rcnn_transform()
    keep = not ssd and not train_set.crowds
    training = DetectionSamples(train_set, transform, seed=recipe.seed, keep_difficult=keep)
    shape = (recipe.batch_size, recipe.seed, world.rank, world.size)

    def finish(batch: Any, epoch: int, step: int) -> Any:
        images, targets = batch
        moved = [{name: column.to(world.device) for name, column in target.items()} for target in targets]
        return [image.to(world.device, non_blocking=True) for image in images], moved

    # Faster R-CNN pads the smaller images of a batch, which changes their detections
    order = TestOrder(len(test_set), recipe.batch_size if ssd else world.size, world.rank, world.size)
    return (
        FileLoader(training, TrainOrder(len(train_set), *shape), finish, workers),
        FileLoader(DetectionSamples(test_set), order, finish, workers),
    )


def _detections(arrays: dict[str, np.ndarray]) -> Detections:
    return Detections(arrays["images"], arrays["labels"], arrays["scores"], arrays["boxes"])


_SOLID, _DASHED, _DOTTED = "-", (0, (5, 3)), (0, (1, 2))


def gallery_of_detections(
    data: DetectionSet, found: Detections, *, images: Sequence[int] | None = None, threshold: float = 0.5
) -> bytes:
    """Draw images in pairs: with true boxes on the left, with detections and their scores on the right.

    All detections from a score of ``threshold`` are drawn, and at least as many as the image has objects, so that a
    detector with low scores has some too. Lines are black and white, to be visible on any image and in print: solid
    for objects, dotted for difficult ones, dashed for detections.

    Args:
        data: The split.
        found: Its detections, in pixels, with images numbered by their order.
        images: Indices of the images to draw; by default the first eight.
        threshold: The score from which all detections are drawn.

    Returns:
        A PNG file.

    Raises:
        InputError: If an index is out of range, or an image cannot be read.
    """
    chosen = list(range(min(8, len(data))) if images is None else images)
    if not chosen or not 0 <= min(chosen) <= max(chosen) < len(data):
        raise InputError(f"the images to draw are {chosen}; expected indices from 0 to {len(data) - 1}")
    rows = -(-len(chosen) // 2)
    figure = Figure(figsize=(14, 0.3 + 2.9 * rows), dpi=100, layout="constrained")
    axes = figure.subplots(rows, 4, squeeze=False).reshape(-1, 2)
    for axis in axes.flat:
        axis.axis("off")
    for number, (left, right) in zip(chosen, axes, strict=False):
        image = data.images[number]
        pixels = load_image(image).permute(1, 2, 0).numpy()
        names = [data.classes[label] for label in image.labels.tolist()]
        styles = [_DOTTED if is_difficult else _SOLID for is_difficult in image.difficult.tolist()]
        _draw(left, pixels, zip(image.boxes.tolist(), names, styles, strict=True))
        left.set_title(f"{printable(image.path.stem)}: true", fontsize=9, loc="left", parse_math=False)
        every = np.flatnonzero(found.images == number)
        every = every[np.argsort(-found.scores[every], kind="stable")]
        top = every[: max(int((found.scores[every] >= threshold).sum()), len(names))]
        texts = [f"{data.classes[found.labels[i]]} {found.scores[i]:.2f}" for i in top]
        boxes = zip(found.boxes[top].tolist(), texts, [_DASHED] * len(texts), strict=True)
        _draw(right, pixels, reversed([*boxes]))  # the highest score on top
        right.set_title(f"detected: the top {len(top)} of {len(every)}", fontsize=9, loc="left")
    return png_of(figure)


def _draw(axis: Axes, pixels: np.ndarray, boxes: Iterable[tuple[list[float], str, object]]) -> None:
    axis.imshow(pixels)
    edge = [patheffects.Stroke(linewidth=3.5, foreground="black"), patheffects.Normal()]
    for (left, top, right, bottom), text, style in boxes:
        box = Rectangle((left - 0.5, top - 0.5), right - left, bottom - top, fill=False, color="white", linewidth=1.5)
        box.set_linestyle(style)  # type: ignore[arg-type]
        box.set_path_effects(edge)
        axis.add_patch(box)
        above = "bottom" if top > len(pixels) / 12 else "top"  # beside the object, where there is room
        axis.text(
            left, top, text, fontsize=7, va=above, parse_math=False, clip_on=True,
            bbox={"facecolor": "white", "edgecolor": "black", "pad": 1, "linewidth": 0.5},
        )  # fmt: skip
