"""The figures of a suite: what they are told to draw, and what a reader who does not see them is told."""

import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from cutmix.errors import InputError
from cutmix.report.figures import curves, histograms, reliability_of, suite_figures
from cutmix.report.page import Card, gather
from cutmix.runs.read import Run
from cutmix.runs.record import Record


def make_card(folder: Path, suite: str, *lines: dict, labels: tuple[str, ...] = ("one", "two")) -> Card:
    common = {"data": "x", "n": 100, "value": 10.0, "suite": suite}
    results = tuple(Record(**common | line) for line in (*lines, {"metric": "clean_err"}))
    for label in labels:
        (folder / label / "predictions").mkdir(parents=True)
        (folder / label / "figures").mkdir()
    runs = [Run(folder / label, {"mix": label}, "", {}, (), results, None, label, label) for label in labels]
    card = gather(runs, suite)
    assert card is not None
    return card


def save(card: Card, **arrays: np.ndarray) -> None:
    for run in card.runs:
        np.savez(run.arrays(card.suite), **arrays)


def alts(html: str) -> list[str]:
    return re.findall(r'aria-label="([^"]*)"', html)


def test_a_sweep_is_one_plot_with_all_runs(tmp_path) -> None:
    lines = [{"metric": "fgsm_err", "at": k / 255, "value": 10.0 + k, "low": 9.0, "high": 12.0} for k in (0, 1, 8)]
    card = make_card(tmp_path, "robustness", *lines)
    html = curves(card, card.sweeps())
    assert alts(html) == [
        "FGSM error, by ε, in 1/255 of the pixels’ range. one: 10.0 at 0, 11.0 at 1, 18.0 at 8; "
        "two: 10.0 at 0, 11.0 at 1, 18.0 at 8."
    ]
    assert "at most ±1.5 points wide" in html
    assert [html.count(f"<span>{name}</span>") for name in ("one", "two")] == [1, 1]
    for tick in ("0", "1", "8"):
        assert f">{tick}</text>" in html
    assert curves(card, {}) == ""


def test_reliability_leaves_empty_bins_out(tmp_path) -> None:
    card = make_card(tmp_path, "calibration", labels=("one",))
    save(card, reliability=np.array([[0, 0.5, 0, np.nan, np.nan], [0.5, 1, 40, 0.9, 0.75]]))
    html = reliability_of(card)
    assert alts(html) == [
        "Accuracy by mean confidence of the bins, in per cent. one: 75 at 90.",
        "Confidences. one: 100 % of the images above 50 %.",
    ]
    assert "nan" not in html.lower()


def test_every_set_has_its_histogram_for_every_run(tmp_path) -> None:
    card = make_card(tmp_path, "ood")
    scores = {f"max-softmax/{of}": np.log(np.full(50, p)) for of, p in (("id", 0.9), ("a", 0.3), ("b", 1.0))}
    save(card, **scores, **{"energy/id": np.ones(50), "energy/a": np.ones(50)})
    html = histograms(card)
    assert len(alts(html)) == 4
    assert "Largest softmax probabilities of two. Test images: median 0.90; b: median 1.00." in alts(html)
    assert html.count("<figcaption>") == 2


def test_nothing_is_drawn_without_arrays(tmp_path) -> None:
    card = make_card(tmp_path, "ood")
    assert histograms(card) == reliability_of(card) == suite_figures(card) == ""


def test_figures_are_those_of_the_suite(tmp_path) -> None:
    card = make_card(tmp_path, "localization")
    for file in ("localization-last-best-maps.png", "localization-best-old.png", "ood-last-x.png"):
        Image.new("RGB", (7, 5)).save(tmp_path / "one" / "figures" / file)
    html = suite_figures(card)
    assert html.count("<img") == 1
    assert "one: best maps" in html
    (tmp_path / "two" / "figures" / "localization-last-x.png").write_text("no figure")
    with pytest.raises(InputError, match=r"localization-last-x\.png is not a PNG image"):
        suite_figures(card)
