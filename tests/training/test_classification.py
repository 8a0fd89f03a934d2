"""Classification as the loop asks for it."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from cutmix.config.options import TrainOptions
from cutmix.config.recipes import DIGITS
from cutmix.data.transforms import normalize
from cutmix.evaluation.classifier import Classifier
from cutmix.mixing import mixed_cross_entropy
from cutmix.runs.outcomes import examples
from cutmix.runtime.device import World
from cutmix.training.classification import Classification
from cutmix.training.setup import prepare

WORLD = World(0, 1, torch.device("cpu"))


def task(**changes: object) -> Classification:
    run = prepare(replace(DIGITS, precision="float32", **changes), TrainOptions(workers=0), WORLD)  # type: ignore[arg-type]
    assert isinstance(run.task, Classification)
    return run.task


def test_parts_are_mixed_as_one_batch() -> None:
    images, labels = torch.rand(7, 1, 8, 8), torch.arange(7)
    whole = task(mix="cutmix").split(images.clone(), labels, 0.5)
    parts = task(mix="cutmix", accumulate=3).split(images.clone(), labels, 0.5)
    assert [len(x) for x, _ in parts] == [3, 2, 2]
    assert torch.equal(torch.cat([x for x, _ in parts]), whole[0][0])
    assert torch.equal(torch.cat([y.partner_labels for _, y in parts]), whole[0][1].partner_labels)


def test_losses_of_the_parts_add_up() -> None:
    it = task(mix="mixup", accumulate=2, label_smoothing=0.1)
    network = it.state.model.eval()
    parts = it.split(torch.rand(6, 1, 8, 8), torch.arange(6), 0.0)
    total = sum(it.loss(network, x, y) * len(x) / 6 for x, y in parts)
    logits = torch.cat([network(x) for x, _ in parts])
    targets = type(parts[0][1])(*(torch.cat(column) for column in zip(*(y for _, y in parts), strict=True)))
    assert torch.allclose(total, mixed_cross_entropy(logits, targets, label_smoothing=0.1))


def test_scheduled_mixing_is_told_how_far_it_is() -> None:
    it = task(mix="cutmix-scheduled")
    it.split(torch.rand(4, 1, 8, 8), torch.arange(4), 0.75)
    assert it.state.mix.progress == 0.75  # type: ignore[union-attr]


def test_records_can_be_made_again_from_the_arrays() -> None:
    it = task()
    evaluated = it.evaluate(it.state.exported, "test")
    records = it.records(evaluated.arrays)
    assert {r.metric: r.value for r in records} == {name: evaluated.metrics[name] for name in ("top1_err", "top5_err")}
    assert it.key in evaluated.metrics


def test_weights_say_what_they_need() -> None:
    about = task().about(3)
    assert (about["model"], about["epoch"], about["image_size"], about["num_classes"]) == ("resnet20", "3", "8", "10")


def test_another_set_than_the_recipes_is_said() -> None:
    assert "digits (not cifar-10, the data of the recipe): 1,000 images" in task(name="cifar10-resnet20").opening()
    for name in ("digits-resnet20", "photos", "a recipe of one's own"):
        assert "digits: 1,000 images" in task(name=name).opening()


def test_drawn_test_images_are_those_that_were_evaluated(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(0)
    for number in range(20):
        (folder := tmp_path / "photos" / ("ant", "bee")[number % 2]).mkdir(parents=True, exist_ok=True)
        pixels = rng.integers(0, 256, (96, 80, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{number}.jpg", quality=95)
    it = task(data=str(tmp_path / "photos"), image_size=16, decoder="fast")
    drawn: list[Classifier] = []

    def draw(classifier: Classifier, shown: dict[int, int]) -> dict[str, bytes]:
        drawn.append(classifier)
        return {}

    monkeypatch.setattr("cutmix.training.classification.example_figures", draw)
    arrays = it.evaluate(it.state.exported, "val").arrays
    it.figures(arrays)
    assert it.test_batches
    evaluated = torch.cat([images for images, _ in it.test_batches.epoch()])
    assert torch.equal(normalize(drawn[0].images, drawn[0].mean, drawn[0].std), evaluated[[*examples(arrays)]])
