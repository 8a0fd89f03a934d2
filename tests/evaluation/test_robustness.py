"""The suite against the plain functions, image by image, and a planted failure for each of its checks."""

import contextlib
import dataclasses
import math
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

import cutmix.evaluation.attacks
from cutmix.errors import InputError
from cutmix.evaluation import robustness
from cutmix.evaluation.attacks import fgsm, uniform
from cutmix.evaluation.classifier import Classifier, SuiteResult
from cutmix.evaluation.occlusion import between_classes, occlusion_classes, side_grid
from cutmix.evaluation.robustness import robustness_suite

EPS = 8 / 255
SWEEP = (0.0, 2 / 255, EPS)


class Toy(nn.Module):
    """Two classes; the margin of class 0 is a function of the pixels."""

    def __init__(self, margin: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.margin = margin
        self.unused = nn.Parameter(torch.zeros(1), requires_grad=False)

    def forward(self, x: Tensor) -> Tensor:
        margin = self.margin(x)
        return torch.stack([margin, -margin], 1)


def toy_classifier(margin: Callable[[Tensor], Tensor], n: int = 40) -> Classifier:
    """Return a classifier of n equal images of one pixel, 128/255, all of class 0."""
    images, labels = torch.full((n, 1, 1, 1), 128, dtype=torch.uint8), torch.zeros(n, dtype=torch.int64)
    network = Toy(lambda x: margin(x.flatten(1).sum(1) - 128 / 255)).eval()
    context = contextlib.nullcontext()
    return Classifier(network, (0.0,), (1.0,), images, labels, ("a", "b"), "toy", context, batch_size=16)


def make_classifier(n: int = 40) -> Classifier:
    """Return a small network on random images; most labels are what it says."""
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (n, 3, 8, 8), generator=generator, dtype=torch.uint8)
    torch.manual_seed(0)
    layers = nn.Conv2d(3, 8, 3, 2), nn.BatchNorm2d(8), nn.Tanh(), nn.Flatten(), nn.Linear(72, 4)
    network = nn.Sequential(*layers).eval().requires_grad_(False)
    labels, context = torch.zeros(n, dtype=torch.int64), contextlib.nullcontext()
    made = Classifier(network, (0.5,) * 3, (0.25,) * 3, images, labels, tuple("abcd"), "toy", context, batch_size=16)
    labels[:] = made.predict().argmax(1)
    labels[:5] = (labels[:5] + 1) % 4
    return made


def attacked(classifier: Classifier, **options: Any) -> dict[str, dict[str, Any]]:
    """Return the records by metric, those at ε where there are several."""
    defaults: dict[str, Any] = {"sweep": SWEEP, "pairs": 5, "lams": [], "between_sides": [], "occlusion_sides": []}
    records = robustness_suite(classifier, **defaults | options).records
    return {record.metric: record for record in records if record.at in (None, EPS, 1.0)}


@pytest.fixture(scope="module")
def found() -> tuple[Classifier, SuiteResult]:
    classifier = make_classifier()
    return classifier, robustness_suite(classifier, sweep=SWEEP, pgd_images=10, pairs=60)


def test_records_say_all_that_a_record_must(found: tuple[Classifier, SuiteResult]) -> None:
    records = found[1].records
    for record in records:
        assert (record.steps is not None) == (record.metric in ("pgd_err", "pgd_unbounded_err"))
        assert record.suite == "robustness"
        assert isinstance(record.value, float)
        assert isinstance(record.n, int)
        if record.low is not None:
            assert 0 <= record.low <= record.value <= record.high <= 100
    names = [(record.metric, record.at, record.of) for record in records]
    assert len(set(names)) == len(names)
    assert {name for name, _, _ in names} == {
        "clean_err", "fgsm_err", "noise_err", "pgd_err", "pgd_unbounded_err", "fgsm_subset_err", "worst_case_err",
        "fgsm_max_perturbation", "pgd_max_perturbation", "pgd_unbounded_max_perturbation", "fgsm_zero_gradients",
        "pgd_not_weaker_than_fgsm", "fgsm_sweep_monotone", "unbounded_attack_fools_all", "same_classes_twice",
        "occlusion_center_err", "occlusion_boundary_err", "between_mixup_neither", "between_mixup_err",
        "between_cutmix_neither", "between_cutmix_err",
    }  # fmt: skip


def test_fgsm_errors_are_those_of_the_plain_function(found: tuple[Classifier, SuiteResult]) -> None:
    classifier, suite = found
    model = classifier.exact.eval()
    pixels, labels = classifier.pixels(slice(None)), classifier.labels
    curve = {record.at: record for record in suite.records if record.metric == "fgsm_err"}
    assert list(curve) == list(SWEEP)
    for i, eps in enumerate(SWEEP):
        right = model(fgsm(model, pixels, labels, eps)).argmax(1) == labels
        assert np.array_equal(suite.arrays["fgsm_sweep_right"][i], right.numpy())
        assert curve[eps].value == pytest.approx(100 * float((~right).double().mean()))
    assert "does not show robustness" in curve[EPS].note
    assert curve[0.0].value == 100 * 5 / 40 == suite.records[0].value
    assert curve[EPS].value > 50


def test_every_rate_can_be_computed_again_from_the_arrays(found: tuple[Classifier, SuiteResult]) -> None:
    classifier, records, arrays = found[0], found[1].records, found[1].arrays
    by = {(r.metric, r.at, r.of): r.value for r in records}
    for name in ("fgsm", "noise", "pgd"):
        assert by[f"{name}_err", EPS, None] == pytest.approx(100 * (~arrays[f"{name}_right"]).mean())
    index = arrays["pgd_index"]
    assert len(set(index.tolist())) == 10
    right = arrays["fgsm_right"][index]
    assert by["fgsm_subset_err", EPS, None] == pytest.approx(100 * (~right).mean())
    worst = ~(right & arrays["pgd_right"] & arrays["clean_right"][index])
    assert by["worst_case_err", EPS, None] == pytest.approx(100 * worst.mean())
    for where in ("center", "boundary"):
        for fill in ("black", "mean"):
            for side, row in zip(arrays["occlusion_sides"], arrays[f"occlusion_{where}_{fill}_right"], strict=True):
                assert by[f"occlusion_{where}_err", side, fill] == pytest.approx(100 * (~row).mean())
    for what in ("mixup_neither", "mixup_err", "cutmix_neither", "cutmix_err"):
        grid = arrays[f"between_{what.split('_')[0]}_at"]
        for at, row in zip(grid, arrays[f"between_{what}"], strict=True):
            assert by[f"between_{what}", at, None] == pytest.approx(100 * row.mean())
    assert np.array_equal(arrays["labels"], classifier.labels.numpy())


def test_the_defaults_do_not_grow_with_the_images() -> None:
    sides = {side: side_grid(torch.zeros(1, 3, side, side), 8) for side in (32, 64, 224, 1024)}
    assert {len(grid) for grid in sides.values()} == {9}
    assert sides[224] == [0, 28, 56, 84, 112, 140, 168, 196, 224]
    for n, pairs in ((4, 20), (40, 200)):
        suite = robustness_suite(make_classifier(n), sweep=SWEEP, lams=[], between_sides=[], occlusion_sides=[])
        assert len(suite.arrays["between_pairs"]) == pairs
        assert {r.steps for r in suite.records if r.metric in ("pgd_err", "pgd_unbounded_err")} == {10}


def test_curves_begin_and_end_where_they_must(found: tuple[Classifier, SuiteResult]) -> None:
    records, arrays = found[1].records, found[1].arrays
    by = {(r.metric, r.at, r.of): r.value for r in records}
    clean = by["clean_err", None, None]
    assert arrays["occlusion_sides"].tolist() == list(range(9))
    assert arrays["between_cutmix_at"].tolist() == [0, 2, 4, 6, 8]
    for fill in ("black", "mean"):
        assert by["occlusion_center_err", 0.0, fill] == by["occlusion_boundary_err", 8.0, fill] == clean
        assert by["occlusion_center_err", 8.0, fill] == by["occlusion_boundary_err", 0.0, fill]
    first, second = (100 * float((~arrays["clean_right"][column]).mean()) for column in arrays["between_pairs"].T)
    assert by["between_mixup_err", 1.0, None] == by["between_cutmix_err", 0.0, None] == pytest.approx(first)
    assert by["between_mixup_err", 0.0, None] == by["between_cutmix_err", 8.0, None] == pytest.approx(second)


def test_the_same_seed_gives_the_same_suite_and_another_other_draws(found: tuple[Classifier, SuiteResult]) -> None:
    classifier, suite = found
    state = torch.get_rng_state()
    again = robustness_suite(classifier, sweep=SWEEP, pgd_images=10, pairs=60)
    assert torch.equal(torch.get_rng_state(), state)
    assert again.records == suite.records
    assert all(np.array_equal(again.arrays[name], array) for name, array in suite.arrays.items())
    other = robustness_suite(make_classifier_with_seed(classifier, 1), sweep=SWEEP, pgd_images=10, pairs=60)
    assert not np.array_equal(other.arrays["between_pairs"], suite.arrays["between_pairs"])
    assert not np.array_equal(other.arrays["pgd_index"], suite.arrays["pgd_index"])


def test_no_record_depends_on_the_size_of_the_batches() -> None:
    classifier = make_classifier(12)
    suites = [
        robustness_suite(dataclasses.replace(classifier, batch_size=size), sweep=SWEEP, pgd_images=10, pairs=20)
        for size in (3, 12)
    ]
    ours, theirs = ([r for r in suite.records if r.metric != "same_classes_twice"] for suite in suites)  # of a batch
    assert ours == theirs
    noise = [torch.cat([uniform(part, seeds) for part, seeds in batches]) for batches in (
        [(torch.zeros(2, 3, 4, 4), [5, 6]), (torch.zeros(1, 3, 4, 4), [7])], [(torch.zeros(3, 3, 4, 4), [5, 6, 7])],
    )]  # fmt: skip
    assert torch.equal(*noise)
    assert 0.4 < float(noise[0].mean()) < 0.6
    assert len(noise[0].unique()) == noise[0].numel()


def make_classifier_with_seed(of: Classifier, seed: int) -> Classifier:
    return Classifier(
        of.network, of.mean, of.std, of.images, of.labels, of.classes, of.data, of.autocast, of.batch_size, seed
    )


def test_the_runs_own_precision_is_used_for_all_but_the_gradient() -> None:
    plain = make_classifier()
    half = Classifier(
        plain.network, plain.mean, plain.std, plain.images, plain.labels, plain.classes, plain.data,
        torch.autocast("cpu", torch.bfloat16), plain.batch_size,
    )  # fmt: skip
    suite = robustness_suite(half, sweep=SWEEP, pgd_images=10, pairs=20)
    assert np.array_equal(suite.arrays["clean_right"], (half.predict().argmax(1) == half.labels).numpy())
    assert next(r.value for r in suite.records if r.metric == "fgsm_zero_gradients") == 0


class Reads(TorchDispatchMode):
    """Counts the values that Python reads, each of which would wait for a GPU."""

    count = 0

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += function is torch.ops.aten._local_scalar_dense.default
        return function(*args, **kwargs or {})


def test_the_values_that_are_read_do_not_grow_with_the_batches() -> None:
    counts = []
    for batch_size in (4, 8, 16):
        classifier = dataclasses.replace(make_classifier(16), batch_size=batch_size)
        with Reads() as reads:
            robustness_suite(classifier, sweep=SWEEP, pgd_images=16, pgd_steps=2, pairs=16)
        counts.append(reads.count)
    assert counts[0] == counts[1] == counts[2]


class Copies(TorchDispatchMode):
    """Counts copies from the host to a device that wait for it; meta tensors stand for those of a GPU."""

    count = 0

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = function(*args, **(kwargs or {}))
        if function in (torch.ops.aten._to_copy.default, torch.ops.aten.copy_.default):
            source = args[0] if function is torch.ops.aten._to_copy.default else args[1]
            free = (kwargs or {}).get("non_blocking") or (len(args) > 2 and args[2])
            self.count += source.device.type == "cpu" and result.device.type == "meta" and not free
        return result

    def tensor(self, *args: Any, original: Any = torch.tensor, **kwargs: Any) -> Tensor:
        """Make a tensor of values, which no dispatch shows."""
        result: Tensor = original(*args, **kwargs)
        self.count += result.device.type == "meta"
        return result


@pytest.mark.parametrize("part", ["fgsm", "pgd", "noise", "occlusion", "between"])
def test_no_batch_waits_for_a_copy(part: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Classifier, "check", lambda _: None)
    monkeypatch.setattr(robustness, "check_gradients", lambda _: None)
    for module in (robustness, cutmix.evaluation.attacks):  # there are no generators of meta tensors
        monkeypatch.setattr(module, "uniform", lambda images, seeds: torch.zeros_like(images))
    clean, index, pairs = torch.zeros(16, dtype=torch.int64), torch.arange(16), torch.arange(32).view(16, 2) % 16
    parts: dict[str, Callable[[Classifier], object]] = {
        "fgsm": lambda it: robustness._fgsm_sweep(it, clean, SWEEP),
        "pgd": lambda it: robustness._attack(it, index, robustness.ascend, EPS, 2),
        "noise": lambda it: robustness._noise(it, EPS),
        "occlusion": lambda it: occlusion_classes(it, clean, (0, 2, 4)),
        "between": lambda it: between_classes(it, clean, pairs, (0.5,), (4,)),
    }
    counts = []
    for batch_size in (4, 16):
        it = dataclasses.replace(make_classifier(16), batch_size=batch_size)
        it.network.to("meta")
        assert it.exact  # its own copies are made once
        with Copies() as copies, monkeypatch.context() as patch:
            patch.setattr(torch, "tensor", copies.tensor)
            with pytest.raises(NotImplementedError, match="meta"):  # the result is read at the end
                parts[part](it)
        counts.append(copies.count)
    assert counts[0] == counts[1]


# ---- a healthy network passes the checks; each planted failure is found ----

CHECKS = ("pgd_not_weaker_than_fgsm", "fgsm_sweep_monotone", "unbounded_attack_fools_all", "same_classes_twice")


def test_a_smooth_network_passes_every_check() -> None:
    records = attacked(toy_classifier(lambda d: EPS / 2 - d))  # fooled by changes beyond ε/2
    assert [records[name].value for name in CHECKS] == [1.0] * 4
    assert [name for name in CHECKS if records[name].note] == []
    assert records["fgsm_zero_gradients"].value == 0
    assert records["fgsm_zero_gradients"].note is None
    for name in ("fgsm", "pgd"):
        assert records[f"{name}_max_perturbation"].value == pytest.approx(EPS, abs=1e-6)
        assert records[f"{name}_max_perturbation"].note is None
        assert records[f"{name}_err"].value == 100
    assert records["worst_case_err"].value == 100
    assert 20 < records["noise_err"].value < 80  # half of the pixels go up
    assert records["noise_err"].note is None


def test_saturated_logits_have_no_gradient() -> None:
    records = attacked(toy_classifier(lambda d: 1000 * (EPS / 2 - d)))
    assert records["fgsm_zero_gradients"].value == 0  # e⁻³¹ is small, and still a gradient
    records = attacked(toy_classifier(lambda d: 10_000 * (EPS / 2 - d)))
    assert records["fgsm_zero_gradients"].value == 100
    assert "does not show robustness" in records["fgsm_zero_gradients"].note
    assert records["fgsm_err"].value == 0  # it only looks robust
    assert records["noise_err"].value > 0
    assert "random noise fools the model more often than FGSM" in records["noise_err"].note


def test_one_step_is_masked_where_many_are_not() -> None:
    """The margin is a wave of period ε: the step of FGSM lands where it began, in the next period."""
    # from the part of a wave that ends at ε, a share of 0.02 / 4π of all starts, PGD goes to ε too, and stays there
    records = attacked(toy_classifier(lambda d: torch.cos(2 * math.pi * d / EPS + 0.02)), sweep=(0, EPS / 2, EPS))
    assert records["fgsm_err"].value == 0
    assert records["pgd_err"].value == records["worst_case_err"].value == 100
    assert records["pgd_not_weaker_than_fgsm"].value == 1
    assert records["fgsm_sweep_monotone"].value == 0
    assert "falls by 100.00 points from ε = 0.01569 to 0.03137" in records["fgsm_sweep_monotone"].note


def test_pgd_that_is_stuck_is_found() -> None:
    """Local maxima of the loss hold PGD where the margin is positive; only at ±ε, without a slope, is it negative."""
    margin = lambda d: 0.5 + 0.3 * torch.cos(6 * math.pi * d / EPS + 0.5) - 10 * (d.abs() > 0.999 * EPS)  # noqa: E731
    records = attacked(toy_classifier(margin))
    assert records["fgsm_err"].value == records["worst_case_err"].value == 100
    assert records["pgd_err"].value < 100
    assert records["pgd_not_weaker_than_fgsm"].value == 0
    assert "and FGSM 40 images" in records["pgd_not_weaker_than_fgsm"].note


def test_an_attack_without_a_bound_that_fails_is_found() -> None:
    records = attacked(toy_classifier(lambda d: 1 + 0.1 * torch.sin(50 * d)))  # never fooled
    assert records["pgd_unbounded_err"].value == records["unbounded_attack_fools_all"].value == 0
    assert "leaves 40 images right" in records["unbounded_attack_fools_all"].note


def test_an_attack_beyond_epsilon_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(robustness, "step", lambda images, gradient, eps: images + 2 * eps * gradient.sign())
    records = attacked(toy_classifier(lambda d: EPS / 2 - d))
    assert records["fgsm_max_perturbation"].value == pytest.approx(2 * EPS)
    assert "exceeds ε: its error is invalid" in records["fgsm_max_perturbation"].note
    assert records["pgd_max_perturbation"].note is None


def test_a_network_that_draws_is_found() -> None:
    torch.manual_seed(0)
    records = attacked(toy_classifier(lambda d: torch.rand_like(d) - 0.5 - d))
    assert records["same_classes_twice"].value == 0
    assert "other classes for the same images" in records["same_classes_twice"].note


def test_apgd_is_reported_beside_pgd() -> None:
    pytest.importorskip("pyautoattack")
    classifier = make_classifier()
    suite = robustness_suite(classifier, sweep=SWEEP, pgd_images=10, pairs=5, apgd=True)
    by = {record.metric: record for record in suite.records}
    assert by["apgd_err"].n == len(suite.arrays["apgd_right"]) == 10
    assert by["apgd_max_perturbation"].value <= EPS + 1e-6
    assert by["worst_case_err"].value >= by["apgd_err"].value >= by["fgsm_subset_err"].value
    assert "apgd" in by["worst_case_err"].note


def test_without_apgds_package_nothing_is_begun(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("pyautoattack", "pyautoattack.autopgd_base"):
        monkeypatch.setitem(sys.modules, name, None)
    monkeypatch.setattr(robustness, "_fgsm_sweep", lambda *_: pytest.fail("begun"))
    with pytest.raises(InputError, match="APGD needs pyautoattack"):
        attacked(make_classifier(), apgd=True)


def test_a_corrupted_set_is_evaluated_too(monkeypatch: pytest.MonkeyPatch) -> None:
    part = SuiteResult([{"metric": "mean_corruption_err"}], {"corruption_right": np.ones(3, dtype=bool)})
    monkeypatch.setattr(robustness, "open_corrupted", lambda classifier, folder: folder)
    monkeypatch.setattr(robustness, "corruption_error", lambda classifier, opened: part)
    suite = robustness_suite(make_classifier(), sweep=SWEEP, pgd_images=4, pairs=5, corruptions=Path("there"))
    assert suite.records[-1] == part.records[0]
    assert "corruption_right" in suite.arrays


def test_a_folder_without_a_corrupted_set_is_refused_before_any_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    classifier = make_classifier()
    monkeypatch.setattr(Classifier, "logits", lambda *_: pytest.fail("begun"))
    with pytest.raises(InputError, match=r"nowhere holds neither labels\.npy"):
        attacked(classifier, corruptions=Path("nowhere"), log=lambda _: pytest.fail("logged"))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"eps": math.nan}, "ε is nan; expected 0 to 1"),
        ({"eps": 8}, "ε is 8; expected 0 to 1"),
        ({"sweep": (0, -0.1)}, "ε is -0.1; expected 0 to 1"),
        ({"pgd_images": 0}, "pgd_images is 0; expected at least 1"),
        ({"pgd_steps": 0}, "PGD has 0 steps"),
        ({"occlusion_sides": [9]}, "side is 9 pixels; expected 0 to 8 in images of 8×8"),
        ({"between_sides": [9]}, "side is 9 pixels; expected 0 to 8 in images of 8×8"),
        ({"lams": [2.0]}, r"λ is 2\.0; expected a share from 0 to 1"),
        ({"pairs": 0}, "0 pairs of 40 images cannot be drawn"),
    ],
)
def test_wrong_options_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        attacked(make_classifier(), **options)


def test_logits_that_are_not_finite_are_refused() -> None:
    with pytest.raises(InputError, match="80 of the logits are NaN or infinite"):
        attacked(toy_classifier(lambda d: d / 0))


def test_a_label_without_a_logit_is_refused() -> None:
    classifier = make_classifier()
    classifier.labels[7] = 4
    with pytest.raises(InputError, match="labels range from 0 to 4; expected 0 to 3"):
        attacked(classifier)
