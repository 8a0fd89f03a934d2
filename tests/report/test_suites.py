"""The report card in the page: sections, definitions one click away, differences, the paper's numbers beside."""

import json
import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from markupsafe import Markup
from scipy import stats

from cutmix.errors import InputError
from cutmix.report.suites import calibration, definitions, localization, out_of_distribution, robustness
from cutmix.report.summary import write_report
from cutmix.runs.read import read_runs
from cutmix.runs.record import Record, append_records, read_records

SECTIONS = (calibration, robustness, out_of_distribution, localization)
N = 300
VOID = {"meta", "img", "br", "path", "use"}


def records_of(shift: float, **of_run) -> list[Record]:
    """Records of every suite, as they are written."""

    def rate(suite: str, metric: str, value: float | None = 30.0, **more) -> Record:
        ends = {"low": None, "high": None} if value is None else {"low": value + shift - 3, "high": value + shift + 3}
        moved = None if value is None else value + shift
        return Record(**of_run | {"suite": suite, "metric": metric, "value": moved, "n": N} | ends | more)

    eps = 8 / 255
    found = [rate("classification", "top1_err"), rate("calibration", "ece", bins=15, note="biased upwards")]
    found += [rate("calibration", "temperature", 1.5), rate("calibration", "ece_scaled", of="held-out half", at=1.5)]
    found += [rate("robustness", "clean_err"), rate("robustness", "noise_err", at=eps)]
    found += [rate("robustness", "fgsm_err", 30.0 + k, at=k / 255) for k in (0, 4, 8, 64)]
    found += [rate("robustness", "same_classes_twice", 1.0 - 2 * shift, at=None)]
    found += [rate("robustness", "occlusion_center_err", at=float(side), of="black") for side in (0, 4, 8)]
    found += [rate("robustness", "between_mixup_neither", at=at) for at in (0.0, 0.5, 1.0)]
    for of in ("uniform", "gaussian", "mean of 2 sets"):
        usual = {"of": of, "convention": "exact", "score": "max-softmax"}
        found += [rate("ood", f"ood_{name}", **usual) for name in ("auroc", "tnr95", "aupr_in")]
        found += [rate("ood", "ood_detection_acc", **usual, chosen_on="test")]
        found += [rate("ood", "ood_auroc", of=of, convention="exact", score="energy")]
    missing = {"of": "isun", "convention": "exact", "score": "max-softmax", "n": 0, "note": "not run: no archive"}
    found += [rate("ood", "ood_auroc", None, **missing)]
    found += [rate("localization", "top1_loc", at=0.15), rate("localization", "max_box_acc", at=0.2, chosen_on="test")]
    return found


def make_run(folder: Path, shift: float = 0.0, *, evaluated: str | None = None, **recipe) -> Path:
    recipe = {"name": folder.name, "data": "digits", "mix": "none", "epochs": 1, "seed": 0} | recipe
    (folder / "predictions").mkdir(parents=True)
    config = (
        {"recipe": recipe, "command": "cutmix"}
        if evaluated is None
        else {"recipe": {"name": folder.name, "data": "digits"}}
    )
    config |= {} if evaluated is None else {"evaluated": evaluated}
    (folder / "config.json").write_text(json.dumps(config))
    which = "last" if evaluated is None else "file"
    of_run = {"data": recipe["data"], "split": "test", "which": which, "epoch": None if evaluated else 1}
    append_records(folder / "results.jsonl", records_of(shift, **of_run))
    random = np.random.default_rng(0)
    right = random.random((2, N)) < 0.7 - shift / 10
    table = np.array([[0, 0.5, 100, 0.4, 0.3], [0.5, 1, 200, 0.8, 0.9]])
    confidence = random.uniform(0, 1, N)
    arrays = {
        "calibration": {"confidence": confidence, "right": right[0], "reliability": table},
        "robustness": {"labels": np.arange(N), "clean_right": right[0], "fgsm_right": right[1]},
        "ood": {f"max-softmax/{of}": np.log(random.uniform(0.1, 1, N)) for of in ("id", "uniform", "gaussian")},
        "localization": {"iou": confidence, "right": right[0], "true_boxes": np.ones((N, 1, 4))},
    }
    for suite, content in arrays.items():
        np.savez(folder / "predictions" / f"{suite}-last.npz", **content)
    return folder


@pytest.fixture
def pair(tmp_path) -> tuple[Path, Path]:
    return make_run(tmp_path / "plain"), make_run(tmp_path / "mixed", 1.0, mix="cutmix")


@pytest.fixture(scope="module")
def bodies(tmp_path_factory) -> dict[str, Markup]:
    """Each section of two runs."""
    folder = tmp_path_factory.mktemp("pair")
    runs = read_runs([make_run(folder / "plain"), make_run(folder / "mixed", 1.0, mix="cutmix")])
    return {made.anchor: made.body for section in SECTIONS if (made := section(runs)) is not None}


class Tags(HTMLParser):
    """Ids and links of a page whose tags are balanced."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.open: list[str] = []
        self.ids: list[str] = []
        self.links: list[str] = []
        self.feed(path.read_text(encoding="utf-8"))
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.handle_startendtag(tag, attrs)
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        found = dict(attrs)
        self.ids += [found["id"]] if "id" in found else []
        self.links += [found["href"][1:]] if found.get("href", "").startswith("#") else []

    def handle_endtag(self, tag):
        if tag not in VOID:
            assert self.open.pop() == tag


def test_every_link_has_its_definition_and_no_other_is_there(tmp_path, pair) -> None:
    page = Tags(write_report(pair, tmp_path / "page.html"))
    assert len(page.ids) == len(set(page.ids))
    assert set(page.links) <= set(page.ids)
    defined = {each for each in page.ids if each.startswith("metric-")}
    assert {f"metric-{name}" for name in ("ece", "fgsm_err", "ood_auroc_energy", "max_box_acc")} <= defined
    assert defined == {each for each in page.links if each.startswith("metric-")}
    assert "metric-pgd_err" not in defined  # which was not evaluated


def test_no_section_without_its_records(tmp_path) -> None:
    run = make_run(tmp_path / "a")
    records = read_records(run / "results.jsonl")
    (run / "results.jsonl").unlink()
    append_records(run / "results.jsonl", [one for one in records if one.suite in ("classification", "ood")])
    runs = read_runs([run])
    assert [section(runs) is None for section in SECTIONS] == [
        True, True, False, True
    ]  # fmt: skip
    assert [title for title, _ in definitions(runs)] == ["Out-of-distribution detection"]


def test_seeds_are_compared_in_pairs(tmp_path) -> None:
    """Against SciPy's paired t test; a seed that only one recipe has does not count."""
    random, errors = np.random.default_rng(1), {}
    for mix, seeds in (("none", (0, 1, 2)), ("cutmix", (2, 1, 0, 7))):
        for seed in seeds:
            run = make_run(tmp_path / f"{mix}{seed}", mix=mix, seed=seed, name=mix)
            wrong = random.random(N) < (0.3 if mix == "none" else 0.2)
            np.savez(run / "predictions/robustness-last.npz", labels=np.arange(N), clean_right=~wrong)
            errors[mix, seed] = 100 * wrong.mean()
    body = robustness(read_runs(sorted(tmp_path.iterdir()))).body.striptags()
    gains = [errors["cutmix", seed] - errors["none", seed] for seed in range(3)]
    found = stats.ttest_1samp(gains, 0)
    low, high = found.confidence_interval()
    expected = f"{np.mean(gains):+.1f} [{low:+.1f}, {high:+.1f}], 3 seeds, ".replace("-", "−")
    said = body.partition("Mean difference over seeds")[2].partition(expected)[2]
    assert said.startswith(f"not significant (p = {found.pvalue:.3f})")
    assert "Mean difference" not in robustness(read_runs([tmp_path / "none0", tmp_path / "cutmix0"])).body


def test_differences_name_the_baseline_and_the_method(pair, bodies) -> None:
    ways = {"calibration": "ece", "robustness": "rates", "ood": "auroc", "localization": "rates"}
    for anchor, way in ways.items():
        assert "Difference to none on the same images" in bodies[anchor]
        assert f'href="#paired-{way}"' in bodies[anchor]
    assert re.search(r"Error on unchanged images, %\s*\+\d+\.\d \[", bodies["robustness"].striptags())
    found = definitions(read_runs(pair))
    assert {entry.anchor for entry in found[-1][1]} == {"paired-ece", "paired-rates", "paired-auroc"}
    alone = read_runs(pair[:1])
    assert "Difference to" not in calibration(alone).body
    assert [title for title, _ in definitions(alone)] == [
        "Calibration",
        "Robustness",
        "Out-of-distribution detection",
        "Localization",
    ]


def test_a_difference_that_is_not_significant_is_called_so(tmp_path) -> None:
    runs = read_runs([make_run(tmp_path / "a"), make_run(tmp_path / "b", mix="mixup")])
    for section in (calibration, localization):
        assert "not significant (p = 1.000)" in section(runs).body


def test_sweeps_are_plots_and_the_attack_is_a_row_too(bodies) -> None:
    body = bodies["robustness"]
    assert len(re.findall(r'role="img"', body)) == 3
    assert "FGSM error, %" in body.striptags()
    table = body.partition("Checks")[0]
    assert "8/255" in table
    assert "64/255" not in table
    assert "<td>holds</td>" in body
    assert "<td>fails</td>" in body


def test_what_was_not_run_and_what_was_chosen_is_said(bodies) -> None:
    body = bodies["ood"]
    assert "not run</td>" not in body  # no run has the set, and the note below says why
    assert "isun: not run: no archive." in body.striptags()
    assert body.count("the value is optimistic") == 1
    assert (
        "Detection accuracy of the largest softmax probability, test images against other images (higher is better); "
        in body
    )


@pytest.mark.parametrize(
    ("section", "data", "title", "number"),
    [
        (robustness, "imagenet", "Table 11", "31.0"),
        (out_of_distribution, "cifar-100", "Tables 12 and A3", "69.0; 94.4; 89.1"),
        (localization, "imagenet", "Table 9", "54.81"),
    ],
)
def test_the_papers_numbers_stand_above_what_was_run_by_its_protocol(tmp_path, section, data, title, number) -> None:
    body = section(read_runs([make_run(tmp_path / "a", data=data)])).body
    table = body.rpartition(f"<span>{title}:")[2].partition("</table>")[0]
    rows = [re.findall(r"<td[^>]*>(.*?)</td>", row) for row in table.split("<tr")[2:]]
    assert rows[0][3] == number
    assert rows[1] == ["not run"] * 4
    own = section(read_runs([make_run(tmp_path / "b", data="my photos")])).body
    assert "paper" not in own  # the data are not the paper's
    assert "not run" not in own.partition('<ul class="notes">')[0]


def test_a_part_of_the_test_set_is_said_to_be_one(tmp_path) -> None:
    run = make_run(tmp_path / "a")
    records = [replace(one, test_images=500) for one in read_records(run / "results.jsonl")]
    (run / "results.jsonl").unlink()
    append_records(run / "results.jsonl", records)
    body = calibration(read_runs([run])).body
    assert "Confidence against accuracy, on 300 of 500 test images" in body
    assert "<td>300 of 500</td>" in body
    assert "300 of 500" in robustness(read_runs([run])).body
    whole = calibration(read_runs([make_run(tmp_path / "b")])).body
    assert "Confidence against accuracy, on all test images" in whole
    assert "<td>300</td>" in whole


def test_a_classifier_from_elsewhere_has_a_page(tmp_path) -> None:
    run = make_run(tmp_path / "resnet50", evaluated="weights/resnet50.pth")
    out = write_report([run], tmp_path / "page.html")
    page, text = Tags(out), out.read_text(encoding="utf-8")
    assert "error-curves" not in page.ids
    assert {"calibration", "robustness", "ood", "localization"} <= set(page.ids)
    assert "weights are those of the file <code>weights/resnet50.pth</code>" in text
    assert "How they were trained is not known" in text
    assert "Best epoch: chosen" not in text
    assert "unfinished" not in text.partition("Definitions</h2>")[0]


def test_an_evaluation_without_results_is_no_page(tmp_path) -> None:
    run = make_run(tmp_path / "resnet50", evaluated="resnet50.pth")
    (run / "results.jsonl").unlink()
    with pytest.raises(InputError, match="resnet50 holds an evaluation that has no results yet; evaluate again"):
        write_report([run], tmp_path / "page.html")
    assert not (tmp_path / "page.html").exists()


def test_a_classifier_with_suites_alone_says_so_in_the_summary(tmp_path) -> None:
    run = make_run(tmp_path / "resnet50", evaluated="resnet50.pth")
    records = read_records(run / "results.jsonl")
    (run / "results.jsonl").unlink()
    append_records(run / "results.jsonl", [one for one in records if one.suite != "classification"])
    text = write_report([run], tmp_path / "page.html").read_text(encoding="utf-8")
    assert "top-1 error not run; other results are below (calibration, robustness, ood, localization)" in text


def test_a_run_keeps_its_style_where_another_was_not_measured(tmp_path, pair) -> None:
    (pair[0] / "results.jsonl").write_text("")
    alone = robustness(read_runs(pair)).body
    assert "#d4622a" in alone  # the second run's colour on the whole page
    assert "#2e7fd0" not in alone


def test_what_a_file_says_cannot_become_markup(tmp_path) -> None:
    run = make_run(tmp_path / "a")
    evil = {"suite": "ood", "metric": "<script>", "of": "<b>x</b>", "note": "<i>note</i>", "value": 1.0, "n": 1}
    append_records(run / "results.jsonl", [Record(data="digits", split="test", epoch=1, **evil)])
    text = write_report([run], tmp_path / "page.html").read_text(encoding="utf-8")
    assert not re.search(r"<script>|<b>|<i>", text)
