"""Runs against the baseline: which are compared, on which images, and that the values are those of the records."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from cutmix.errors import InputError
from cutmix.report.paired import against_baseline, differences
from cutmix.runs.read import Run, read_arrays, read_runs
from cutmix.runs.record import Record, append_records, read_records

N = 400


def make_run(folder: Path, *, good: float = 0.7, eps: float = 8 / 255, draw_seed: int = 0, **recipe) -> Path:
    """Write a run of which a share of the images is right, with the arrays of every suite."""
    recipe = {"name": folder.name, "data": "digits", "mix": "none", "epochs": 1, "seed": 0} | recipe
    (folder / "predictions").mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps({"recipe": recipe}))
    of_run = {"recipe": folder.name, "data": "digits", "split": "test", "epoch": 1, "draw_seed": draw_seed}

    def record(metric: str, suite: str, **more) -> Record:
        return Record(metric=metric, suite=suite, value=1.0, n=N, **of_run, **more)

    append_records(folder / "results.jsonl", [
        replace(record("top1_err", "classification"), source="training", suite=None, draw_seed=None),
        record("ece", "calibration", bins=15),
        record("noise_err", "robustness", at=eps),
        record("ood_auroc", "ood", of="uniform"),
        record("top1_loc", "localization", at=0.15),
        *(record(f"{name}_err", "robustness") for name in ("clean", "fgsm", "pgd")),
        *(record(name, "localization") for name in ("gt_known_loc", "top1_cls")),
    ])  # fmt: skip
    random = np.random.default_rng(int(100 * good))
    right = random.random((4, N)) < good
    arrays = {
        "calibration": {"confidence": random.uniform(0.3, 1, N), "right": right[0]},
        "robustness": {
            "labels": np.arange(N) % 10, "clean_right": right[0], "fgsm_right": right[1], "noise_right": right[2],
            "pgd_index": np.arange(0, N, 4), "pgd_right": right[3, ::4],
        },
        "ood": {"max-softmax/id": random.normal(size=N) + good, "max-softmax/uniform": random.normal(size=N)},
        "localization": {"iou": random.uniform(0, 1, N) ** good, "right": right[0], "true_boxes": np.ones((N, 1, 4))},
    }  # fmt: skip
    for suite, content in arrays.items():
        np.savez(folder / "predictions" / f"{suite}-last.npz", **content)
    return folder


def edit(folder: Path, **fields) -> None:
    """Change fields of all results of a run."""
    records = [replace(record, **fields) for record in read_records(folder / "results.jsonl")]
    (folder / "results.jsonl").unlink()
    append_records(folder / "results.jsonl", records)


def change(folder: Path, suite: str, **arrays: np.ndarray) -> None:
    path = folder / "predictions" / f"{suite}-last.npz"
    np.savez(path, **(read_arrays(path) | arrays))


@pytest.fixture
def pair(tmp_path) -> tuple[Path, Path]:
    return make_run(tmp_path / "mixed", good=0.8, mix="cutmix"), make_run(tmp_path / "plain")


def compared(paths: tuple[Path, ...], suite: str) -> dict[str, float]:
    return {one.name: one.difference.value for one in differences(read_runs(paths), suite)}


def test_differences_are_those_of_the_measures(pair) -> None:
    mixed, plain = (read_arrays(path / "predictions" / "robustness-last.npz") for path in pair)
    found = compared(pair, "robustness")
    assert list(found) == ["clean_err", "fgsm_err", "noise_err", "pgd_err"]
    for name, value in found.items():
        key = name.replace("_err", "_right")
        assert value == pytest.approx(100 * (plain[key].mean() - mixed[key].mean()))  # the mixed run less the plain one
    mixed, plain = (read_arrays(path / "predictions" / "ood-last.npz") for path in pair)
    labels = np.repeat([1, 0], N)
    areas = [roc_auc_score(labels, np.concatenate([*each.values()])) for each in (mixed, plain)]
    assert compared(pair, "ood") == pytest.approx({"ood_auroc": 100 * (areas[0] - areas[1])})
    mixed, plain = (read_arrays(path / "predictions" / "localization-last.npz") for path in pair)
    found = compared(pair, "localization")
    located = [((each["iou"] > 0.5) & each["right"]).mean() for each in (mixed, plain)]
    assert found["top1_loc"] == pytest.approx(100 * (located[0] - located[1]))
    assert set(found) == {"top1_loc", "gt_known_loc", "top1_cls"}
    assert set(compared(pair, "calibration")) == {"ece"}


def test_p_values_are_adjusted_for_all_that_were_compared(pair, tmp_path) -> None:
    two = {(d.name, d.run): d.difference.p for d in differences(read_runs(pair), "robustness")}
    third = make_run(tmp_path / "third", good=0.75, mix="mixup")
    three = {(d.name, d.run): d.difference.p for d in differences(read_runs((*pair, third)), "robustness")}
    assert len(three) == 2 * len(two)
    assert sum(three.values()) > sum(two.values())


def test_the_baseline_is_the_one_without_a_method(pair) -> None:
    assert {one.baseline for one in differences(read_runs(pair), "robustness")} == {"none"}
    assert differences(read_runs(pair[:1]), "robustness") == []


def test_runs_of_a_seed_are_compared_with_each_other(tmp_path) -> None:
    runs = [
        make_run(tmp_path / f"{mix}{seed}", mix=mix, name="x", seed=seed)
        for mix in ("none", "mixup")
        for seed in (0, 1)
    ]
    found = [(one.label, other.label) for one, other in against_baseline(read_runs(runs))]
    assert found == [("none, seed 0", "mixup, seed 0"), ("none, seed 1", "mixup, seed 1")]
    assert against_baseline([]) == []


def test_runs_of_a_fold_are_compared_with_each_other(tmp_path) -> None:
    runs = [
        make_run(tmp_path / f"{mix}{fold}", mix=mix, name="x", folds=2, fold=fold)
        for mix in ("none", "mixup")
        for fold in (1, 2)
    ]
    found = [(one.folder.name, other.folder.name) for one, other in against_baseline(read_runs(runs))]
    assert found == [("none1", "mixup1"), ("none2", "mixup2")]


@pytest.mark.parametrize(
    ("suite", "name", "arrays"),
    [
        ("robustness", "pgd_err", {"pgd_index": np.arange(1, N, 4)}),
        ("robustness", "fgsm_err", {"labels": np.zeros(N, int)}),
        ("localization", "top1_loc", {"true_boxes": np.zeros((N, 1, 4))}),
        ("ood", "ood_auroc", {"max-softmax/uniform": np.zeros(7)}),
        ("ood", "ood_auroc", {"labels": np.zeros(N, int)}),
        ("calibration", "ece", {"labels": np.zeros(N, int)}),
    ],
)
def test_other_images_are_not_compared(pair, suite, name, arrays) -> None:
    assert name in compared(pair, suite)
    change(pair[0], suite, **arrays)
    assert name not in compared(pair, suite)


def test_only_the_same_files_are_compared(pair) -> None:
    """Other files can have the same labels, as those of a test folder whose images were replaced."""
    change(pair[0], "calibration", images=np.array("one"))
    assert "ece" in compared(pair, "calibration")  # which files the other has is not known
    for images, same in (("two", False), ("one", True)):
        change(pair[1], "calibration", images=np.array(images))
        assert ("ece" in compared(pair, "calibration")) == same


def test_other_bounds_data_and_draws_are_not_compared(tmp_path) -> None:
    plain = make_run(tmp_path / "plain")
    stronger = make_run(tmp_path / "a", eps=4 / 255, mix="cutmix")
    assert set(compared((plain, stronger), "robustness")) == {"clean_err"}
    drawn = make_run(tmp_path / "b", mix="mixup", draw_seed=3)
    assert compared((plain, drawn), "ood") == {}
    other = make_run(tmp_path / "c", mix="cutout")
    edit(other, split="val")
    assert compared((plain, other), "calibration") == {}


def test_only_the_same_images_of_a_draw_are_compared(tmp_path) -> None:
    runs = [make_run(tmp_path / "a"), make_run(tmp_path / "b", mix="cutmix")]

    def drawn(*facts: dict[str, int]) -> bool:
        for run, more in zip(runs, facts, strict=True):
            edit(run, **more)
        return bool(compared(runs, "calibration"))

    assert drawn({"drawn": 400, "draw_seed": 0}, {"drawn": 400, "draw_seed": 0})
    assert not drawn({"draw_seed": 1}, {})
    assert not drawn({"draw_seed": 0, "drawn": 300}, {})


def rewrite(folder: Path, *evaluations: list[dict]) -> None:
    """Write evaluations one after another below what the training itself has measured."""
    own = read_records(folder / "results.jsonl")[0]
    its = replace(own, source="evaluation", file="model.safetensors", draw_seed=0)
    (folder / "results.jsonl").unlink()
    append_records(folder / "results.jsonl", [own, *(replace(its, **line) for each in evaluations for line in each)])


def test_only_the_latest_evaluation_says_on_which_images_it_was(pair) -> None:
    whole = [{"metric": name, "suite": "robustness"} for name in ("clean_err", "corruption_mean_err")]

    def drawn(seed: int) -> list[dict]:
        return [{"metric": "clean_err", "suite": "robustness", "drawn": N, "draw_seed": seed}]

    rewrite(pair[0], whole, drawn(0))
    rewrite(pair[1], whole, drawn(1))
    assert compared(pair, "robustness") == {}  # though both have an older line of all images
    rewrite(pair[1], drawn(0))
    assert set(compared(pair, "robustness")) == {"clean_err"}  # though only one of them has


def test_a_set_of_outliers_that_was_measured_again_is_compared(pair) -> None:
    def outliers(of: str, **more) -> list[dict]:
        return [{"metric": name, "suite": "ood", "of": of, **more} for name in ("ood_auroc", "ood_tnr95")]

    rewrite(pair[0], outliers("uniform"), outliers("gaussian", drawn=7), outliers("uniform"))
    rewrite(pair[1], outliers("uniform"))
    assert set(compared(pair, "ood")) == {"ood_auroc"}


@pytest.mark.parametrize("split", ["val", "test"])
def test_images_held_out_by_other_seeds_are_other_images(split: str, tmp_path: Path) -> None:
    paths = make_run(tmp_path / "a"), make_run(tmp_path / "b", mix="mixup", seed=1)
    other = make_run(tmp_path / "c", mix="mixup", split_seed=1), make_run(tmp_path / "d", mix="mixup", val_fraction=0.1)
    for path in (*paths, *other):
        edit(path, split=split)
    assert len(compared(paths, "calibration")) == 1
    assert [compared((paths[0], path), "calibration") for path in other] == [{}, {}]


def test_a_run_without_the_suite_is_passed_over(pair) -> None:
    (pair[0] / "predictions" / "ood-last.npz").unlink()
    assert differences(read_runs(pair), "ood") == []


def test_what_has_no_record_is_not_compared(pair) -> None:
    for path in pair:
        text = (path / "results.jsonl").read_text()
        (path / "results.jsonl").write_text(text.replace("pgd_err", "other_err"))
    assert set(compared(pair, "robustness")) == {"clean_err", "fgsm_err", "noise_err"}


def test_damaged_arrays_are_named(pair) -> None:
    path = pair[0] / "predictions" / "ood-last.npz"
    path.write_bytes(path.read_bytes()[:50])
    with pytest.raises(InputError, match=r"ood-last\.npz cannot be read as arrays"):
        differences(read_runs(pair), "ood")


def test_nothing_of_a_run_is_changed(pair) -> None:
    runs: tuple[Run, ...] = read_runs(pair)
    assert differences(runs, "calibration") == differences(runs, "calibration")  # seeded
