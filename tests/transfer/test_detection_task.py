"""Detection as a task of the loop: parts, losses, measures that can be made again, and what does not fit."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from cutmix.config.options import RunOptions
from cutmix.config.tasks import FASTER_RCNN, Detection
from cutmix.errors import InputError
from cutmix.report.metrics import METRICS
from cutmix.runtime.device import World
from cutmix.training.state import make_optimizer
from cutmix.transfer.average_precision import Detections, Judged, precision_of, tally, voc_average_precision
from cutmix.transfer.backbone import load_backbone
from cutmix.transfer.command import prepare_transfer
from cutmix.transfer.detection_layouts import open_detection
from cutmix.transfer.detection_task import COCO_METRICS, DetectionTask, make_batches, make_detector

WORLD = World(0, 1, torch.device("cpu"))
SMALL = Detection(
    model="test_resnet", batch_size=4, image_size=64, min_size=32, max_size=48, val_fraction=0.25, precision="float32"
)


def task(data: Path, **changes: object) -> DetectionTask:
    recipe = replace(SMALL, data=str(data), **changes)  # type: ignore[arg-type]
    found = prepare_transfer(recipe, RunOptions(workers=0), WORLD).task
    assert isinstance(found, DetectionTask)
    return found


def test_parts_are_the_batch(voc_folder: Path) -> None:
    images, targets = [torch.rand(3, 64, 64) for _ in range(7)], [{"n": torch.tensor(i)} for i in range(7)]
    for parts, sizes in ((1, [7]), (2, [4, 3]), (3, [3, 3, 1]), (9, [1] * 7)):
        divided = task(voc_folder, accumulate=parts).split(images, targets, 0.5)
        assert [len(x) for x, _ in divided] == sizes
        assert all(a is b for a, b in zip([x for part, _ in divided for x in part], images, strict=True))
        assert [y["n"].item() for _, part in divided for y in part] == list(range(7))


def test_a_run_has_the_fingerprint_of_both_splits(voc_folder: Path) -> None:
    it = task(voc_folder)
    others = replace(it, train_set=it.test_set), replace(it, test_set=it.train_set)
    assert len({each.fingerprint() for each in (it, *others)}) == 3
    assert task(voc_folder).fingerprint() == it.fingerprint()


@pytest.mark.parametrize("arch", ["ssd300", "faster-rcnn"])
def test_the_loss_is_the_sum_of_the_detectors(voc_folder: Path, arch: str) -> None:
    it = task(voc_folder, arch=arch)
    detector = it.state.model.train()
    images, targets = next(iter(it.test_batches.epoch()))
    torch.manual_seed(0)
    loss = it.loss(detector, images, targets)
    loss.backward()
    torch.manual_seed(0)  # Faster R-CNN draws its regions
    losses = detector(images, targets)
    assert len(losses) == (2 if arch == "ssd300" else 4)
    assert loss.item() == pytest.approx(sum(part.item() for part in losses.values()), rel=1e-5)
    assert all(p.grad is not None for p in detector.parameters() if p.requires_grad)


def test_given_classes_are_stored_with_the_run(voc_folder: Path, tmp_path: Path) -> None:
    (tmp_path / "names.txt").write_text("dog\r\ncat\r\nzebra\r\n")
    for given in ((str(tmp_path / "names.txt"),), ("dog", "cat", "zebra")):
        it = task(voc_folder, classes=given)
        assert it.recipe.classes == it.train_set.classes == it.test_set.classes == ("dog", "cat", "zebra")
    assert Detection.from_dict(json.loads(json.dumps(it.recipe.to_dict()))) == it.recipe


@pytest.mark.parametrize("arch", ["ssd300", "faster-rcnn"])
def test_bfloat16_runs_on_every_cpu(voc_folder: Path, arch: str) -> None:
    it = task(voc_folder, arch=arch, precision="bfloat16")
    images, targets = next(iter(it.test_batches.epoch()))
    loss = it.loss(it.state.model.train(), images, targets)
    loss.backward()
    assert loss.isfinite()
    assert 0 <= it.evaluate(it.state.exported).metrics["map"] <= 100


@pytest.mark.parametrize("arch", ["ssd300", "faster-rcnn"])
def test_records_can_be_made_again_from_the_arrays(voc_folder: Path, arch: str) -> None:
    it = task(voc_folder, arch=arch)
    training = it.state.model.training
    figures, arrays = it.evaluate(it.state.exported)
    assert it.state.model.training is training
    records = it.records(arrays)
    first = records[0]
    assert (first.metric, first.value, first.n) == ("map", figures[it.key], 3)
    assert 0 <= first.low <= first.value <= first.high <= 100
    second = records[1]
    assert second.metric == "map_all_point"
    assert 0 <= second.low <= second.value <= second.high <= 100
    assert [r.of for r in records if r.metric == "ap"] == ["cat", "dog"]
    assert [r.value for r in records if r.metric == "ap"] == pytest.approx([first.value] * 2, abs=100)
    assert [r.metric for r in records][4:] == list(COCO_METRICS)
    note = next(r for r in records if r.metric == "coco_ar_large").note
    assert note == "not run: the test images have no object of this size"
    assert {r.metric for r in records} == {name for name, m in METRICS.items() if m.suite == "detection"}


def test_verdicts_are_kept_and_give_the_precision_without_the_data(voc_folder: Path) -> None:
    it = task(voc_folder)
    figures, arrays = it.evaluate(it.state.exported)
    judged = Judged(*(arrays[name] for name in Judged._fields))
    assert 100 * precision_of(tally(judged, it.test_set.num_classes)).mean == figures["map"]
    assert len(judged.verdicts) == len(arrays["boxes"])


def test_the_measure_has_the_areas_of_both_code_bases(voc_folder: Path) -> None:
    it = task(voc_folder)
    objects = it.test_set.objects()
    random = np.random.default_rng(0)
    moved = objects.boxes + random.uniform(-9, 9, objects.boxes.shape)
    found = Detections(objects.images, objects.labels, random.random(len(moved)), moved)
    for iou in (0.3, 0.5, 0.7):
        without = voc_average_precision(found, objects, it.test_set.num_classes, iou=iou, plus_one=False)
        if iou == 0.5:
            assert precision(it, found) == without.mean
    exact = Detections(objects.images, objects.labels, np.ones(len(objects.labels)), objects.boxes)
    assert precision(it, exact) == pytest.approx(1)


def precision(it: DetectionTask, found: Detections) -> float:
    """Return what the task's records say of detections."""
    columns = found._asdict()
    return it.records(columns)[0].value / 100


def test_the_measure_does_not_depend_on_the_batches(voc_folder: Path) -> None:
    for arch in ("ssd300", "faster-rcnn"):
        it = task(voc_folder, arch=arch)
        whole = it.evaluate(it.state.exported).arrays
        alone = task(voc_folder, arch=arch, batch_size=1)
        alone.state.model.load_state_dict(it.state.model.state_dict())
        single = alone.evaluate(alone.state.exported).arrays
        np.testing.assert_array_equal(single["images"], whole["images"])
        np.testing.assert_allclose(single["scores"], whole["scores"], atol=1e-5)


@pytest.mark.parametrize("arch", ["ssd300", "faster-rcnn"])
def test_nothing_found_scores_nothing(voc_folder: Path, arch: str) -> None:
    it = task(voc_folder, arch=arch)
    nothing = {"boxes": np.zeros((0, 4)), "scores": np.zeros(0)}
    nothing |= {name: np.zeros(0, dtype=np.int64) for name in ("labels", "images")}
    assert it.records(nothing)[0].value == 0
    assert it.figures(nothing)["detections"].startswith(b"\x89PNG")


def test_difficult_objects_are_learned_by_faster_rcnn_only(voc_folder: Path) -> None:
    data = open_detection(voc_folder)
    hard = replace(data[0], images=tuple(p._replace(difficult=~p.difficult) for p in data[0].images))
    for arch, count in (("ssd300", 0), ("faster-rcnn", 1)):
        recipe = replace(SMALL, arch=arch)
        batches, _ = make_batches(recipe, hard, data[1], (0.5, 0.5, 0.5), WORLD, 0)
        assert [len(target["labels"]) for target in next(iter(batches.epoch()))[1]] == [
            count
        ] * 3  # of six images, in two batches of a size


@pytest.mark.parametrize("arch", ["ssd300", "faster-rcnn"])
def test_crowds_are_learned_by_neither(voc_folder: Path, arch: str) -> None:
    data = replace(open_detection(voc_folder)[0], crowds=True)
    crowd = [p._replace(boxes=p.boxes.repeat(2, 1), labels=p.labels.repeat(2), difficult=torch.tensor([False, True]))
             for p in data.images]  # fmt: skip
    it = task(voc_folder, arch=arch)
    recipe = replace(SMALL, arch=arch)
    batches, _ = make_batches(recipe, replace(data, images=tuple(crowd)), data, (0.5, 0.5, 0.5), WORLD, 0)
    assert [len(target["labels"]) for target in next(iter(batches.epoch()))[1]] == [1] * 3
    alone = [p._replace(difficult=torch.tensor([True])) for p in data.images]  # nothing but a crowd is a background
    batches, _ = make_batches(recipe, replace(data, images=tuple(alone)), data, (0.5, 0.5, 0.5), WORLD, 0)
    images, targets = next(iter(batches.epoch()))
    assert [target["boxes"].shape for target in targets] == [(0, 4)] * 3
    assert torch.isfinite(it.loss(it.state.model.train(), images, targets))


@pytest.mark.parametrize(
    ("arch", "changes"),
    [("ssd300", {"min_size": 40, "max_size": 50, "freeze": False}), ("faster-rcnn", {"image_size": 96})],
)
def test_what_a_detector_does_not_read_makes_no_other_run(
    voc_folder: Path, arch: str, changes: dict[str, object]
) -> None:
    assert task(voc_folder, arch=arch).recipe == task(voc_folder, arch=arch, **changes).recipe
    assert task(voc_folder, arch=arch, lr=0.5).recipe != task(voc_folder, arch=arch).recipe


def test_random_weights_are_not_frozen(voc_folder: Path, tmp_path: Path) -> None:
    it = task(voc_folder, arch="faster-rcnn", freeze=True)
    assert it.recipe.freeze is False
    assert all(p.requires_grad for p in it.state.model.parameters())
    backbone = load_backbone(SMALL)
    torch.save(backbone.network.state_dict(), tmp_path / "w.pth")
    trained = task(voc_folder, arch="faster-rcnn", backbone=str(tmp_path / "w.pth"))
    frozen = [name for name, p in trained.state.model.named_parameters() if not p.requires_grad]
    assert trained.recipe.freeze
    assert any("layer4.0.bn1" in name for name in frozen)


def test_faster_rcnns_biases_do_not_decay() -> None:
    recipe = replace(FASTER_RCNN, model="test_resnet", min_size=32, max_size=48)
    detector = make_detector(recipe, load_backbone(recipe), 2)
    decayed, spared = make_optimizer(recipe, detector).param_groups
    biases = {id(p) for name, p in detector.named_parameters() if name.endswith("bias") and p.requires_grad}
    assert biases == {id(p) for p in spared["params"]}
    assert (decayed["weight_decay"], spared["weight_decay"]) == (1e-4, 0)


@pytest.mark.parametrize("arch", ["ssd300", "faster-rcnn"])
def test_layers_that_do_not_fit_are_refused_by_the_backbones_name(arch: str) -> None:
    recipe = replace(SMALL, arch=arch, model="resnet20")
    with pytest.raises(InputError, match=rf"{arch} does not fit resnet20 with random weights: .* timm's ResNets"):
        make_detector(recipe, load_backbone(recipe), 2)


def test_batches_that_cannot_be_shared_are_refused(voc_folder: Path) -> None:
    data = open_detection(voc_folder)
    with pytest.raises(InputError, match="--batch-size is 4; expected a positive multiple of the 3 processes"):
        make_batches(SMALL, *data, (0.5, 0.5, 0.5), World(0, 3, torch.device("cpu")), 0)


def test_the_gallery_is_an_image(voc_folder: Path, tmp_path: Path) -> None:
    it = task(voc_folder)
    arrays = it.evaluate(it.state.exported).arrays
    (tmp_path / "x.png").write_bytes(it.figures(arrays)["detections"])
    with Image.open(tmp_path / "x.png") as image:
        assert image.width == 1400
