"""Detection as a task of the training loop, and COCO's metrics of it, computed by COCO's own program."""

import contextlib
import io
import json
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor, nn

from cutmix.config.tasks import Detection
from cutmix.data.loaders import FileLoader, Loader, Upload, check_batch_size
from cutmix.data.transforms import TestOrder, TrainOrder
from cutmix.errors import InputError, missing_extra, printable
from cutmix.runs.record import Record
from cutmix.runtime.device import World
from cutmix.runtime.files import outline, png_of
from cutmix.training.classification import Evaluation
from cutmix.transfer.average_precision import (
    Detections,
    Interpolation,
    Judged,
    Objects,
    checked,
    inclusive,
    judge,
    precision_of,
    tally,
    voc_average_precision,
    voc_interval,
)
from cutmix.transfer.backbone import Backbone, TransferTask
from cutmix.transfer.detection import faster_rcnn_c4, ssd300
from cutmix.transfer.detection_data import (
    DetectionSamples,
    DetectionSet,
    faster_rcnn_transform,
    load_image,
    ssd_transform,
)

# ---- COCO's metrics ----


class CocoMetrics(NamedTuple):
    """The twelve metrics of COCO, each in [0, 1]; NaN where no object is counted.

    All but ``at_50`` and ``at_75`` are means over the ten IoU thresholds 0.50, 0.55, …, 0.95. All are means over the
    classes with objects, with at most 100 detections of an image and class unless stated otherwise. Small objects are
    of at most 32² pixels, medium ones of at most 96².
    """

    mean: float  # average precision
    at_50: float
    at_75: float
    small: float
    medium: float
    large: float
    recall_1: float  # with at most one detection of an image and class
    recall_10: float
    recall_100: float
    recall_small: float
    recall_medium: float
    recall_large: float
    per_class: np.ndarray  # average precision of each class, (C,) float64


def coco_metrics(
    found: Detections, objects: Objects, num_classes: int, images: int, areas: np.ndarray | None = None
) -> CocoMetrics:
    """Return COCO's metrics, computed by faster-coco-eval or, where that is not installed, by pycocotools.

    Each detection takes the best object that is still free, precision is read at 101 recalls, and at most 100
    detections of an image and class count. ``difficult`` marks COCO's crowds: a detection in one counts neither way.
    ``areas``, (M,) in pixels, decide which objects are small, medium or large; COCO's files give that of the object's
    outline. By default they are those of the boxes.

    Source: Lin et al. 2014, the data set's evaluation.
    """
    found, objects = checked(found, objects, num_classes, plus_one=False)
    coco_class, eval_class = _coco_program()
    truth, answers = _coco_records(found, objects, num_classes, images, areas)
    with contextlib.redirect_stdout(io.StringIO()):  # both packages print as they go
        coco = coco_class()
        coco.dataset = truth
        coco.createIndex()
        evaluation = eval_class(coco, coco.loadRes(answers) if answers else _no_detections(coco_class, truth), "bbox")
        evaluation.evaluate()
        evaluation.accumulate()
    # IoU (× recall) × class × size (all, small, medium, large) × detections (1, 10, 100); -1 where nothing is counted
    precision, recall = (
        np.where(table < 0, np.nan, table) for table in (evaluation.eval["precision"], evaluation.eval["recall"])
    )
    whole = precision[..., 0, -1]
    present = ~np.isnan(whole).all((0, 1))
    per_class = np.full(num_classes, np.nan)
    per_class[present] = whole[..., present].mean((0, 1))
    return CocoMetrics(
        _mean(whole), _mean(whole[0]), _mean(whole[5]),
        _mean(precision[..., 1, -1]), _mean(precision[..., 2, -1]), _mean(precision[..., 3, -1]),
        _mean(recall[..., 0, 0]), _mean(recall[..., 0, 1]), _mean(recall[..., 0, 2]),
        _mean(recall[..., 1, -1]), _mean(recall[..., 2, -1]), _mean(recall[..., 3, -1]),
        per_class,
    )  # fmt: skip


def _mean(table: np.ndarray) -> float:
    return float("nan") if np.isnan(table).all() else float(np.nanmean(table))


def _coco_program() -> tuple[Any, Any]:
    try:
        from faster_coco_eval import COCO, COCOeval_faster

        return COCO, COCOeval_faster
    except ImportError:
        pass
    try:
        from pycocotools.coco import COCO
        from pycocotools.cocoeval import COCOeval
    except ImportError:
        raise missing_extra("COCO's average precision", "coco") from None
    return COCO, COCOeval


def _coco_records(
    found: Detections, objects: Objects, num_classes: int, images: int, areas: np.ndarray | None
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Return the objects and the detections as in COCO's files, with class ids from 1."""
    corners = [np.asarray(part.boxes, dtype=np.float64) for part in (objects, found)]
    sides = [np.hstack((box[:, :2], box[:, 2:] - box[:, :2])) for box in corners]
    sizes = sides[0][:, 2] * sides[0][:, 3] if areas is None else areas
    columns = objects.images, objects.labels, objects.difficult, sides[0], sizes
    truth = {
        "info": {},
        "images": [{"id": i} for i in range(images)],
        "categories": [{"id": label + 1, "name": str(label)} for label in range(num_classes)],
        "annotations": [
            {"id": i, "image_id": image, "category_id": label + 1, "iscrowd": int(crowd), "bbox": box, "area": area}
            for i, (image, label, crowd, box, area) in enumerate(zip(*(x.tolist() for x in columns), strict=True), 1)
        ],
    }  # fmt: skip
    rows = zip(found.images.tolist(), found.labels.tolist(), found.scores.tolist(), sides[1].tolist(), strict=True)
    return truth, [
        {"image_id": image, "category_id": label + 1, "score": score, "bbox": box} for image, label, score, box in rows
    ]


def _no_detections(coco_class: Any, truth: dict[str, Any]) -> Any:
    coco = coco_class()
    coco.dataset = truth | {"annotations": []}
    coco.createIndex()
    return coco


# ---- the task ----

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

    def _outputs(self, model: nn.Module) -> list[Any]:
        return [
            {name: column.float().cpu() for name, column in found.items()}
            for images, _ in self.test_batches.epoch()
            for found in model(images)
        ]

    def _score(self, outputs: list[Any]) -> Evaluation:
        """Return the mean average precision in percent, and every detection with its verdict."""
        arrays = {name: torch.cat([found[name] for found in outputs]).numpy() for name in ("boxes", "scores", "labels")}
        arrays["images"] = np.repeat(np.arange(len(outputs)), [len(found["labels"]) for found in outputs])
        arrays["labels"] = arrays["labels"].astype(np.int64)
        judged = self._judge(_detections(arrays))
        precision = precision_of(tally(judged, self.test_set.num_classes))
        return Evaluation({"map": 100 * precision.mean}, arrays | judged._asdict())

    def records(self, arrays: dict[str, np.ndarray]) -> list[Record]:
        """Return VOC's mean average precision with its interval, that of each class, and COCO's metrics."""
        found = _detections(arrays)
        objects, classes, n = self.test_set.objects(), self.test_set.classes, len(self.test_set)
        scene, records = (inclusive(found), inclusive(objects), len(classes)), []
        precisions = {how: voc_average_precision(*scene, interpolation=how) for how in _INTERPOLATIONS.values()}
        for metric, how in _INTERPOLATIONS.items():
            interval = voc_interval(*scene, n, interpolation=how)._asdict()
            records.append(Record(metric=metric, value=100 * precisions[how].mean, **interval, n=n, suite="detection"))
        precision = precisions["11-point"]
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
        """Return the header of the weights, with the class names."""
        return super().about(epoch) | {"classes": json.dumps(self.train_set.classes)}

    def figures(self, arrays: dict[str, np.ndarray]) -> dict[str, bytes]:
        """Return test images with their true boxes and their detections."""
        found = _detections(arrays)
        return {"detections": gallery_of_detections(self.test_set, found)}


def make_detector(recipe: Detection, backbone: Backbone, num_classes: int) -> nn.Module:
    """Return the recipe's detector on a backbone."""
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
    """Return the training batches, augmented as in the recipe's code base, and the test batches."""
    check_batch_size(recipe.batch_size, world.size, "--batch-size")
    ssd = recipe.arch == "ssd300"
    transform = ssd_transform(recipe.image_size, fill=mean) if ssd else faster_rcnn_transform()
    keep = not ssd and not train_set.crowds
    training = DetectionSamples(train_set, transform, seed=recipe.seed, keep_difficult=keep)
    shape, upload = (recipe.batch_size, recipe.seed, world.rank, world.size), Upload(world.device)

    def finish(batch: Any, epoch: int, step: int) -> Any:
        images, targets = batch
        there = iter(upload([*images, *(column for target in targets for column in target.values())]))
        return [next(there) for _ in images], [{name: next(there) for name in target} for target in targets]

    # Faster R-CNN pads the smaller images of a batch, which changes their detections
    order = TestOrder(len(test_set), recipe.batch_size if ssd else world.size, world.rank, world.size)
    return (
        FileLoader(training, TrainOrder(len(train_set), *shape), finish, workers),
        FileLoader(DetectionSamples(test_set), order, finish, workers),
    )


def _detections(arrays: dict[str, np.ndarray]) -> Detections:
    return Detections(arrays["images"], arrays["labels"], arrays["scores"], arrays["boxes"])


# ---- figures ----

_SOLID, _DASHED, _DOTTED = "-", (0, (5, 3)), (0, (1, 2))


def gallery_of_detections(data: DetectionSet, found: Detections, *, images: Sequence[int] | None = None) -> bytes:
    """Draw images in pairs: with true boxes on the left, with detections and their scores on the right; a PNG file.

    All detections from a score of 0.5 are drawn, and at least as many as the image has objects, so that a
    detector with low scores shows some too. Lines are black and white, to be visible on any image and in print: solid
    for objects, dotted for difficult ones, dashed for detections. ``images`` are indices, by default the first eight.
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
        top = every[: max(int((found.scores[every] >= 0.5).sum()), len(names))]
        texts = [f"{data.classes[found.labels[i]]} {found.scores[i]:.2f}" for i in top]
        boxes = zip(found.boxes[top].tolist(), texts, [_DASHED] * len(texts), strict=True)
        _draw(right, pixels, reversed([*boxes]))  # the highest score on top
        right.set_title(f"detected: the top {len(top)} of {len(every)}", fontsize=9, loc="left")
    return png_of(figure)


def _draw(axis: Axes, pixels: np.ndarray, boxes: Iterable[tuple[list[float], str, object]]) -> None:
    axis.imshow(pixels)
    for (left, top, right, bottom), text, style in boxes:
        outline(axis, (left - 0.5, top - 0.5, right - 0.5, bottom - 0.5), "white", style)
        above = "bottom" if top > len(pixels) / 12 else "top"  # beside the object, where there is room
        axis.text(
            left, top, text, fontsize=7, va=above, parse_math=False, clip_on=True,
            bbox={"facecolor": "white", "edgecolor": "black", "pad": 1, "linewidth": 0.5},
        )  # fmt: skip
