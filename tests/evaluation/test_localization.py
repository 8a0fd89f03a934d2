"""Maps against the logits that they are parts of, and OpenCV; accuracies against counting."""

import contextlib
from typing import Any

import numpy as np
import pytest
import torch
from scipy import stats
from torch import Tensor, nn

from cutmix.errors import InputError
from cutmix.evaluation.boxes import best_thresholds, box_from_map, box_iou, center_iou, max_box_accuracy
from cutmix.evaluation.classifier import Classifier
from cutmix.evaluation.localization import (
    class_activation_map,
    class_maps,
    keep_features,
    localization_accuracy,
    localization_suite,
    normalize_maps,
    resize_maps,
)
from cutmix.models import create_model
from cutmix.runs.record import Record

V2 = (0.3, 0.5, 0.7)


class Brightness(nn.Module):
    """A network whose logits are the mean brightness of the first and of the second channel."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(2, 2)
        nn.init.eye_(self.fc.weight)
        nn.init.zeros_(self.fc.bias)

    def forward_features(self, x: Tensor) -> Tensor:
        return x[:, :2]

    def forward_head(self, x: Tensor) -> Tensor:
        return self.fc(x.mean((2, 3)))

    def forward(self, x: Tensor) -> Tensor:
        return self.forward_head(self.forward_features(x))

    def get_classifier(self) -> nn.Linear:
        return self.fc


def classifier(network: nn.Module, images: Tensor, labels: Tensor, **more: Any) -> Classifier:
    more = {"mean": (0.0,) * 3, "std": (1.0,) * 3, "batch_size": 4} | more
    return Classifier(
        network.eval().requires_grad_(False), images=images, labels=labels, classes=("a", "b", "c"), data="drawn",
        autocast=contextlib.nullcontext(), **more,
    )  # fmt: skip


def bright_boxes(n: int = 10, side: int = 24) -> tuple[Classifier, list[np.ndarray]]:
    """Return images that are black but for their true box, which is bright in the channel of their class.

    The benchmark's extra pixel costs a box of 8×8 an IoU of 64 / 81, which is still above 0.7.
    """
    draws = np.random.default_rng(0)
    images, labels, boxes = torch.zeros(n, 3, side, side, dtype=torch.uint8), torch.arange(n) % 2, []
    for i in range(n):
        (x0, y0), (width, height) = draws.integers(0, side // 2, 2), draws.integers(8, side // 2, 2)
        images[i, i % 2, y0 : y0 + height, x0 : x0 + width] = 255
        boxes.append(np.array([[x0, y0, x0 + width, y0 + height]]))
    return classifier(Brightness(), images, labels), boxes


def by_metric(records: list[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    return {record.metric: record for record in records}


def test_the_mean_of_a_map_and_the_bias_are_the_logit() -> None:
    torch.manual_seed(0)
    network = create_model("resnet20", 3).eval()
    images = torch.randint(256, (6, 3, 20, 28), dtype=torch.uint8)
    with torch.no_grad():
        features = network.forward_features(images.float() / 255)
        for label in range(3):
            cam = class_activation_map(features, network.fc.weight, torch.full((6,), label))
            logits = network(images.float() / 255)
            torch.testing.assert_close(
                cam.mean((1, 2)) + network.fc.bias[label], logits[:, label], rtol=1e-5, atol=1e-5
            )


def test_a_map_is_grad_cam_of_the_features_before_the_mean() -> None:
    """Behind a mean over h×w positions, Grad-CAM's weights are the classifier's over h·w."""
    library = pytest.importorskip("pytorch_grad_cam")
    targets = pytest.importorskip("pytorch_grad_cam.utils.model_targets")
    torch.manual_seed(0)
    network, images, ids = create_model("resnet20", 3).eval(), torch.rand(3, 3, 20, 28), [2, 0, 1]
    found: list[np.ndarray] = []

    class Features(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return network.forward_features(x)

    class Recorded(library.GradCAM):
        def get_cam_image(self, *arguments: Any) -> np.ndarray:
            found.append(super().get_cam_image(*arguments))
            return found[-1]

    model = nn.Sequential(Features(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), network.fc)
    with Recorded(model, [model[0]]) as theirs:
        theirs(images, [targets.ClassifierOutputTarget(each) for each in ids])
    with torch.no_grad():
        torch.testing.assert_close(model(images), network(images))
        ours = class_activation_map(network.forward_features(images), network.fc.weight, torch.tensor(ids))
    np.testing.assert_allclose(found[0] * ours[0].numel(), ours.numpy(), rtol=1e-4, atol=1e-5)


def test_a_map_is_the_sum_over_channels_of_its_own_class() -> None:
    features, weight = torch.randn(4, 5, 2, 3), torch.randn(7, 5)
    ids = torch.tensor([6, 0, 3, 3])
    cams = class_activation_map(features, weight, ids)
    for n in range(4):
        expected = sum(weight[ids[n], c] * features[n, c] for c in range(5))
        torch.testing.assert_close(cams[n], expected)
    assert torch.equal(class_activation_map(features, weight, ids.byte()), cams)


def test_maps_are_enlarged_as_opencv_does() -> None:
    cv2 = pytest.importorskip("cv2")
    maps = torch.randn(3, 7, 5, generator=torch.Generator().manual_seed(0))
    expected = np.stack([cv2.resize(cam, (60, 56), interpolation=cv2.INTER_CUBIC) for cam in maps.numpy()])
    np.testing.assert_allclose(resize_maps(maps, (56, 60)).numpy(), expected, atol=2e-3)


def test_normalized_maps_go_from_0_to_1_or_are_zero() -> None:
    maps = torch.randn(4, 6, 6)
    maps[1], maps[2, 3, 3], maps[3] = 5.0, float("nan"), maps[0] * 100 - 7
    normal = normalize_maps(maps)
    assert normal[0].min() == 0
    assert normal[0].max() == 1
    assert not normal[1:3].any()
    torch.testing.assert_close(normal[3], normal[0], rtol=1e-4, atol=1e-5)


def test_accuracies_are_counted_and_top_1_loc_needs_both() -> None:
    draws = np.random.default_rng(0)
    corners = np.sort(draws.integers(0, 20, (200, 2, 2)), axis=1)
    predicted = np.concatenate([corners[:, 0], corners[:, 1] + 2], axis=1)  # so that moved corners stay in order
    boxes = [box[None] + draws.integers(-1, 2, 4) for box in predicted]
    right = draws.random(200) < 0.6
    found = localization_accuracy(predicted, boxes, right)
    located = np.array([box_iou(p, b[0]) > 0.5 for p, b in zip(predicted, boxes, strict=True)])
    assert found["gt_known_loc"].value == pytest.approx(100 * located.mean())
    assert found["top1_loc"].value == pytest.approx(100 * (located & right).mean())
    assert found["top1_cls"].value == pytest.approx(100 * right.mean())
    assert found["top1_loc"].value <= min(found["top1_cls"].value, found["gt_known_loc"].value)
    half = localization_accuracy(np.array([[0, 0, 2, 2]]), [np.array([[0, 0, 4, 2]])], np.array([True]))
    assert half["top1_loc"].value == 0  # an IoU of 0.5 is not above 0.5


def test_activations_at_the_object_find_every_box() -> None:
    drawn, boxes = bright_boxes()
    suite = localization_suite(drawn, boxes)
    found = by_metric(suite.records)
    assert [found[name].value for name in ("top1_cls", "gt_known_loc", "top1_loc")] == [100, 100, 100]
    np.testing.assert_array_equal(suite.arrays["predicted_boxes"], np.concatenate(boxes))
    assert (found["max_box_acc"].value, found["max_box_acc_v2"].value) == (100, 100)
    assert found["center_max_box_acc"].value < 100
    assert found["max_box_acc"].chosen_on == found["center_max_box_acc"].chosen_on == "test"
    assert found["top1_loc"].at == 0.15
    assert all(record.low <= record.value <= record.high for record in suite.records)
    assert {record.n for record in suite.records} == {10}
    assert [Record.from_json(record.to_json(), "here") for record in suite.records] == list(suite.records)


def test_wrong_classes_do_not_change_gt_known_localization() -> None:
    drawn, boxes = bright_boxes()
    drawn.network.fc.bias[1] = 1.0  # everything is called class 1; maps have no bias
    found = by_metric(localization_suite(drawn, boxes).records)
    assert [found[name].value for name in ("top1_cls", "gt_known_loc", "top1_loc")] == [50, 100, 50]


def test_the_suite_is_its_parts_on_a_real_network() -> None:
    torch.manual_seed(0)
    images = torch.randint(256, (10, 3, 32, 32), dtype=torch.uint8)
    drawn = classifier(create_model("resnet20", 3), images, torch.arange(10) % 3, mean=(0.5,) * 3, std=(0.2,) * 3)
    corners = np.sort(np.random.default_rng(0).integers(0, 32, (10, 2, 2)), axis=1)
    boxes = [np.concatenate([c[0], c[1] + 1])[None] for c in corners]
    suite = localization_suite(drawn, boxes)
    found = by_metric(suite.records)
    maps, logits = class_maps(keep_features(drawn), drawn.pixels(slice(None)), drawn.labels)
    assert torch.equal(logits, drawn.logits(drawn.pixels(slice(None))))
    assert found["top1_cls"].value == pytest.approx(100 * (logits.argmax(1) == drawn.labels).double().mean().item())
    expected = np.stack([box_from_map(cam) for cam in maps.numpy()])
    np.testing.assert_array_equal(suite.arrays["predicted_boxes"], expected)
    normal = normalize_maps(maps).numpy()
    version2 = max_box_accuracy(normal, boxes, V2, "all")
    assert found["max_box_acc"].value == max_box_accuracy(normal, boxes).value
    assert found["max_box_acc_v2"].value == version2.value
    np.testing.assert_array_equal(suite.arrays["max_box_v2_hits"], version2.hits)
    share = 100 * version2.hits.mean(0)  # of the three IoUs at which each image is right
    ends = stats.norm.interval(0.95, share.mean(), stats.sem(share))
    record = found["max_box_acc_v2"]
    assert (record.low, record.high) == pytest.approx((max(ends[0], 0), min(ends[1], 100)))


def test_maps_of_enlarged_small_images_have_the_size_of_the_boxes() -> None:
    drawn, boxes = bright_boxes()
    large = classifier(Brightness(), drawn.images, drawn.labels, image_size=48)
    two = slice(0, 2)
    assert class_maps(keep_features(large), large.pixels(two), large.labels[two])[0].shape == (2, 24, 24)
    assert by_metric(localization_suite(large, boxes).records)["gt_known_loc"].value == 100


class DarkIsNan(Brightness):
    """Has no finite logits of images in which a pixel is exactly 0, as random ones have none."""

    def forward_head(self, x: Tensor) -> Tensor:
        return super().forward_head(x) / (x != 0).all()


def test_logits_that_are_not_finite_are_refused() -> None:
    drawn, boxes = bright_boxes()
    with pytest.raises(InputError, match="8 of the logits are NaN or infinite"):
        localization_suite(classifier(DarkIsNan(), drawn.images, drawn.labels), boxes)
    drawn.network.fc.weight[0, 0] = float("nan")
    with pytest.raises(InputError, match="Brightness gives logits that are NaN or infinite"):
        localization_suite(drawn, boxes)


def test_the_floor_is_the_best_centred_box() -> None:
    boxes = [np.array([[8, 8, 24, 24]]), np.array([[0, 0, 32, 32]]), np.array([[0, 0, 4, 4]])]
    table, peaks = center_iou(boxes, (32, 32))
    assert table.shape == (3, 255)
    assert peaks.tolist() == [255] * 3
    assert table[0].max() > 0.8
    assert table[1].max() == 1
    assert table[2].max() < 0.1
    bell = np.exp(-(np.linspace(-2, 2, 32)[:, None] ** 2 + np.linspace(-2, 2, 32) ** 2) / 2)
    maps = np.stack([(bell - bell.min()) / (bell.max() - bell.min())] * 3)
    np.testing.assert_array_equal(best_thresholds(table, peaks, V2).hits, max_box_accuracy(maps, boxes, V2, "all").hits)


def test_wrong_input_is_one_sentence() -> None:
    drawn, boxes = bright_boxes()
    with pytest.raises(InputError, match="there are 10 images and boxes of 9 images"):
        localization_suite(drawn, boxes[1:])
    with pytest.raises(InputError, match="has no class activation map"):
        localization_suite(classifier(nn.Sequential(nn.Linear(1, 1)), drawn.images, drawn.labels), boxes)
    with pytest.raises(InputError, match="a box of image 0 reaches outside its map of 24×24"):
        localization_suite(drawn, [np.array([[0, 0, 30, 20]]), *boxes[1:]])
    features, weight = torch.zeros(2, 3, 4, 4), torch.zeros(5, 3)
    with pytest.raises(InputError, match=r"expected \(N, C, h, w\) and \(K, C\)"):
        class_activation_map(features, weight.T, torch.zeros(2, dtype=torch.int64))
    with pytest.raises(InputError, match="expected one for each of the 2 images"):
        class_activation_map(features, weight, torch.zeros(3, dtype=torch.int64))
    with pytest.raises(InputError, match="class_ids go from 0 to 5; expected 0 to 4"):
        class_activation_map(features, weight, torch.tensor([0, 5]))
    with pytest.raises(InputError, match=r"features are torch\.float16 and the weight is torch\.float32"):
        class_activation_map(features.half(), weight, torch.tensor([0, 4]))
    for ids in (torch.tensor([0.0, 1.0]), torch.tensor([True, False])):
        with pytest.raises(InputError, match=f"class_ids are {ids.dtype}; expected integers"):
            class_activation_map(features, weight, ids)
    with pytest.raises(InputError, match=r"iou is 1; expected a number in \[0, 1\)"):
        localization_accuracy(np.zeros((1, 4)), [np.ones((1, 4))], np.ones(1, dtype=bool), iou=1)
    with pytest.raises(InputError, match=r"right is int64 of shape \(2,\); expected \(N,\) bool"):
        localization_accuracy(np.zeros((2, 4)), [np.ones((1, 4))] * 2, np.array([2, 0]))
    with pytest.raises(InputError, match="confidence is 95: expected a share between 0 and 1"):
        localization_accuracy(np.zeros((1, 4)), [np.ones((1, 4))], np.ones(1, dtype=bool), confidence=95)
    with pytest.raises(InputError, match="there are 1 boxes and 2 predictions"):
        localization_accuracy(np.zeros((1, 4)), [np.ones((1, 4))], np.ones(2, dtype=bool))
