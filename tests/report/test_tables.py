"""The tables of a suite: rows, cells, notes, what was not run, checks."""

from dataclasses import replace
from pathlib import Path

import pytest

from cutmix.report.metrics import METRICS
from cutmix.report.page import Key, cell, gather, name, notes, refusals, table, table_of_checks, table_of_sets
from cutmix.runs.read import Run
from cutmix.runs.record import Record


def make_run(label: str, *lines: dict) -> Run:
    results = tuple(Record(**{"data": "x", "n": 100, "value": 12.345} | line) for line in lines)
    return Run(Path(label), {"mix": label}, "", {}, (), results, None, label, label)


def rate(metric: str, value: float | None = 12.345, **more) -> dict:
    return {"suite": "robustness", "metric": metric, "value": value, "low": 10.0, "high": 15.04} | more


def test_a_cell_has_value_and_interval_in_the_measures_digits() -> None:
    line = Record(metric="x", value=-1.26, low=-2.0, high=0.449)
    assert cell(METRICS["fgsm_err"], line) == "−1.3 [−2.0, 0.4]"
    assert cell(METRICS["nll"], line) == "−1.260 [−2.000, 0.449]"
    assert cell(METRICS["temperature"], replace(line, low=None)) == "−1.260"
    assert cell(METRICS["max_box_acc"], replace(line, at=0.234, chosen_on="test")) == "−1.3 [−2.0, 0.4] at 0.23"
    assert cell(METRICS["fgsm_err"], replace(line, at=0.5)) == "−1.3 [−2.0, 0.4]"
    assert cell(METRICS["nll"], None) == cell(METRICS["nll"], replace(line, value=None)) == "not run"


def test_runs_stand_side_by_side_in_the_order_of_the_measures() -> None:
    one = make_run("one", rate("pgd_err", at=8 / 255), rate("clean_err", 3.0))
    other = make_run("other", rate("clean_err", 4.0), rate("noise_err", at=8 / 255))
    card = gather([one, other, make_run("third")], "robustness")
    assert [run.label for run in card.runs] == ["one", "other"]
    assert [row.name for row in card.rows] == ["clean_err", "noise_err", "pgd_err"]
    html = table(card, "caption", list(card.rows))
    assert html.count("<td") == 3 * 4
    assert html.count(">not run<") == 2
    assert 'href="#metric-pgd_err"' in html
    assert table(card, "caption", []) == ""
    assert gather([make_run("third")], "robustness") is None


def test_what_makes_a_row() -> None:
    lines = [rate("fgsm_err", at=1 / 255), rate("fgsm_err", at=2 / 255), rate("max_box_acc", at=0.2)]
    lines += [rate("max_box_acc", at=0.3), rate("occlusion_center_err", of="black", at=4.0)]
    card = gather([make_run("a", *lines)], "robustness")
    assert {(row.name, row.of, row.at) for row in card.rows} == {
        ("fgsm_err", "", 1 / 255), ("fgsm_err", "", 2 / 255), ("occlusion_center_err", "black", 4.0),
        ("max_box_acc", "", None),  # whose threshold is a result
    }  # fmt: skip
    assert name(Key("occlusion_center_err", "black", 4.0)).striptags().replace("\u00a0", " ") == (
        "Center occlusion error, %, black, side 4 px"
    )


def test_curves_begin_at_three_points() -> None:
    sides = [
        rate("occlusion_center_err", of=of, at=float(at)) for of, n in (("black", 3), ("mean", 2)) for at in range(n)
    ]
    checks = [rate("fgsm_max_perturbation", at=k / 255) for k in range(5)]
    card = gather([make_run("a", *sides[::-1], *checks)], "robustness")
    assert {same: [row.at for row in rows] for same, rows in card.sweeps().items()} == {
        ("occlusion_center_err", "black"): [0.0, 1.0, 2.0]
    }


def test_a_note_stands_once_with_what_it_is_about() -> None:
    shared, own = "pairs share images", "drawn with seed 0"
    one = make_run(
        "one", rate("between_mixup_err", at=0.0, note=shared), rate("between_mixup_err", at=1.0, note=shared)
    )
    other = make_run("other", rate("between_mixup_err", at=0.0, note=shared), rate("pgd_err", at=0.1, note=own))
    card = gather([one, other], "robustness")
    said = notes(card, list(card.rows)).striptags()
    assert said == f"PGD error, other: {own}. Mixup of two images: error: {shared}."
    assert notes(card, []) == ""


def test_what_was_chosen_on_the_test_set_is_marked_and_explained() -> None:
    line = {"suite": "localization", "metric": "max_box_acc", "at": 0.2, "chosen_on": "test"}
    card = gather([make_run("a", line, {"suite": "localization", "metric": "top1_cls"})], "localization")
    html = table(card, "caption", list(card.rows))
    assert html.count("threshold chosen on the test images<") == 1
    assert html.count("the value is optimistic") == 1
    assert "optimistic" not in table(card, "caption", [row for row in card.rows if row.name == "top1_cls"])


def test_what_was_not_run_says_why() -> None:
    whole = {"suite": "ood", "metric": "ood", "value": None, "n": None, "note": "not run: no outliers"}
    part = {"suite": "ood", "metric": "ood_auroc", "value": None, "n": 0, "of": "isun", "note": "not run: no isun"}
    card = gather([make_run("a", whole), make_run("b", part)], "ood")
    assert refusals(card).striptags() == "a: not run: no outliers."
    assert notes(card, list(card.rows)).striptags() == "isun, b: not run: no isun."
    assert refusals(gather([make_run("a", whole, part)], "ood")) == ""  # of which some was run after all


def test_sets_are_rows_and_their_mean_stands_out() -> None:
    lines = [
        {"suite": "ood", "metric": "ood_detection_acc", "of": of, "chosen_on": "test"} for of in ("a", "mean of 2 sets")
    ]
    card = gather([make_run("a", *lines)], "ood")
    html = table_of_sets(card, "caption", list(card.rows))
    assert "caption (higher is better); threshold chosen on the test images" in html
    assert html.count('<tr class="strong">') == 1
    assert 'href="#metric-ood_detection_acc"' in html
    assert table_of_sets(card, "caption", []) == ""


@pytest.mark.parametrize(
    ("lines", "said"),
    [
        ([rate("same_classes_twice", 1.0)], "holds"),
        ([rate("same_classes_twice", 0.0, note="it is random")], "fails: it is random"),
        ([rate("fgsm_zero_gradients", 2.5, note="masked")], "fails for 2.5 % of the images: masked"),
        ([rate("fgsm_max_perturbation", k / 255, at=k / 255) for k in (1, 8)], "holds"),
        ([rate("fgsm_max_perturbation", 0.05, at=k / 255) for k in (8, 64)], "fails at ε = 8/255"),
    ],
)
def test_checks_hold_or_fail(lines: list[dict], said: str) -> None:
    card = gather([make_run("a", *lines), make_run("b", rate("clean_err"))], "robustness")
    html = table_of_checks(card, "caption", [row for row in card.rows if row.name != "clean_err"])
    assert f">{said}<" in html.replace("\u00a0", " ")
    assert html.count(">not run<") == 1
    assert html.count("<tr") == 2
