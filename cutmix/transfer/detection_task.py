"""Detection as a task of the training loop."""

import contextlib
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor, nn

from cutmix.config.transfer import Detection
from cutmix.data.loaders import FileLoader, Loader, TestOrder, TrainOrder
from cutmix.errors import InputError
from cutmix.runs.record import Record
from cutmix.runtime.distributed import World, gather, send_buffers
from cutmix.training.classification import Evaluation
from cutmix.training.state import State
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
from cutmix.transfer.backbone import Backbone
from cutmix.transfer.coco_precision import coco_metrics
from cutmix.transfer.detection import faster_rcnn_c4, ssd300
from cutmix.transfer.detection_data import DetectionSamples, DetectionSet, collate, faster_rcnn_transform, ssd_transform
from cutmix.transfer.galleries import gallery_of_detections

COCO_METRICS = (
    "coco_map", "coco_map_50", "coco_map_75", "coco_map_small", "coco_map_medium", "coco_map_large",
    "coco_ar_1", "coco_ar_10", "coco_ar_100", "coco_ar_small", "coco_ar_medium", "coco_ar_large",
)  # fmt: skip
_INTERPOLATIONS: dict[str, Interpolation] = {"map": "11-point", "map_all_point": "all-point"}


@dataclass
class DetectionTask:
    """Detection, evaluated by Pascal VOC's mean average precision.

    Attributes:
        recipe: The recipe of the run.
        state: The detector and its optimizer.
        world: The processes.
        train_set: The training split.
        test_set: The test split.
        test_batches: Test batches of this process.
        autocast: Context of the forward pass.
        backbone: The backbone of the detector.
    """

    recipe: Detection
    state: State
    world: World
    train_set: DetectionSet
    test_set: DetectionSet
    test_batches: Loader
    autocast: contextlib.AbstractContextManager[Any]
    backbone: Backbone

    key: ClassVar[str] = "map"
    less_is_better: ClassVar[bool] = False
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

    def evaluate(self, model: nn.Module) -> Evaluation:
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

    def notes(self) -> list[str]:
        """Return what was left out or assumed when the data were read."""
        return [*self.train_set.notes, *self.test_set.notes]

    def circumstances(self) -> dict[str, Any]:
        """Return the detector and the source of its backbone."""
        return {
            "task": "detection", "arch": self.recipe.arch, "backbone": self.backbone.source,
            "backbone_recipe": self.backbone.recipe,
            "training_images": len(self.train_set),
        }  # fmt: skip

    def fingerprint(self) -> str:
        """Return the fingerprint of the training split."""
        return self.train_set.fingerprint()

    def about(self, epoch: int) -> dict[str, str]:
        """Return what is needed to use the weights."""
        about = {"recipe": self.recipe.to_dict(), "classes": self.train_set.classes, "epoch": epoch,
                 "mean": self.backbone.mean, "std": self.backbone.std}  # fmt: skip
        return {"model": self.backbone.model} | {name: json.dumps(value) for name, value in about.items()}

    def samples(self) -> None:
        """Return no figure: images are drawn with their detections after training."""

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
    shared: dict[str, Any] = {"collate": collate, "pin_memory": world.device.type == "cuda"}

    def finish(batch: Any, epoch: int, step: int) -> Any:
        images, targets = batch
        moved = [{name: column.to(world.device) for name, column in target.items()} for target in targets]
        return [image.to(world.device, non_blocking=True) for image in images], moved

    # Faster R-CNN pads the smaller images of a batch, which changes their detections
    order = TestOrder(len(test_set), recipe.batch_size if ssd else world.size, world.rank, world.size)
    return (
        FileLoader(training, TrainOrder(len(train_set), *shape), finish, workers, **shared),
        FileLoader(DetectionSamples(test_set), order, finish, workers, **shared),
    )


def _detections(arrays: dict[str, np.ndarray]) -> Detections:
    return Detections(arrays["images"], arrays["labels"], arrays["scores"], arrays["boxes"])
