"""The page: what it shows of run folders, that it is one safe file, and what it says when a folder is not right."""

import io
import json
import math
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from scipy import stats

from cutmix.data import open_splits
from cutmix.errors import InputError
from cutmix.evaluation.classification import LabelledLogits, predictions_arrays
from cutmix.report.compare import calibration_findings, comparisons, lead, pairs, verdict
from cutmix.report.figures import Curve, key, learning_curves, lines, outlines, reliability
from cutmix.report.mistakes import show_mistakes
from cutmix.report.summary import SECTIONS, write_report
from cutmix.report.verdict import compare_runs
from cutmix.runs.outcomes import crossed_difference, estimate
from cutmix.runs.read import differing_fields, groups, read_runs
from cutmix.runs.record import Record, append_records

VOID = {"meta", "img", "br", "hr", "input", "link", "col"}


def make_run(
    folder: Path, *, error=31.2, epochs=3, logged=None, finished=True, n=10_000, samples=True, **recipe
) -> Path:
    """Write a run folder as training does, with errors that fall to ``error``."""
    recipe = {"name": "small", "data": "cifar-100", "model": "resnet20", "mix": "none", "seed": 0} | recipe
    recipe["epochs"] = epochs
    folder.mkdir(parents=True)
    config = {"recipe": recipe, "command": f"cutmix train small --seed {recipe['seed']}"}
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "environment.json").write_text(json.dumps({"torch": "2.15.0", "device": "cpu (a)", "commit": "1a2b3c4"}))
    log = []
    for epoch in range(1, (logged if logged is not None else epochs) + 1):
        log.append({"kind": "train", "epoch": epoch, "step": epoch * 10 - 5, "loss": 2.0})
        log.append(
            {"kind": "epoch", "epoch": epoch, "step": epoch * 10, "train_loss": 3 / epoch, "seconds": 10.0 * epoch}
        )
        log[-1]["top1_err"] = error + 5 * (epochs - epoch)
    (folder / "log.jsonl").write_text("".join(json.dumps(line) + "\n" for line in log))
    if finished:
        shared = {"source": "training", "recipe": recipe["name"], "data": recipe["data"], "split": "test", "n": n}
        shared |= {"seed": recipe["seed"], "parameters": 278_324, "seconds": 812.3, "date": "2026-01-02"}
        shared |= {"device": "cpu (b)"}
        records = []
        for which, epoch, better in (("last", epochs, 0.0), ("best", epochs - 1, 0.5)):
            for metric, value in (("top1_err", error - better), ("top5_err", error / 4)):
                interval = stats.binomtest(round(value * n / 100), n).proportion_ci(method="wilson")
                bounds = {"low": 100 * interval.low, "high": 100 * interval.high}
                records.append(Record(metric=metric, which=which, epoch=epoch, value=value, **bounds, **shared))
        append_records(folder / "results.jsonl", records)
    if samples:
        Image.fromarray(np.full((20, 30, 3), 99, np.uint8)).save(folder / "samples.png")
    return folder


class Page(HTMLParser):
    """Balanced tags, tables by caption, attributes and text of a page."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str]]] = []
        self.text = ""
        self.tables: dict[str, list[list[str]]] = {}
        self._caption = ""
        self.feed(path.read_text(encoding="utf-8"))
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)
        if tag == "caption":
            self._caption = ""
        if tag == "tr":
            self.tables.setdefault(self._caption, []).append([])
        if tag in ("td", "th"):
            self.tables[self._caption][-1].append("")

    def handle_startendtag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if "style" in self.open:
            return
        self.text += data
        if "caption" in self.open:
            self._caption += data
        elif "td" in self.open or "th" in self.open:
            self.tables[self._caption][-1][-1] += data

    def table(self, caption: str) -> dict[str, list[str]]:
        """The body rows of the table whose caption starts so, by their heading."""
        rows = next(rows for name, rows in self.tables.items() if name.startswith(caption))
        return {row[0]: row[1:] for row in rows[1:]}


def page_of(tmp_path: Path, *runs: Path) -> Page:
    return Page(write_report(runs, tmp_path / "page.html"))


@pytest.fixture
def pair(tmp_path):
    return make_run(tmp_path / "a", error=33.3), make_run(tmp_path / "b", error=31.2, mix="cutmix", alpha=0.5)


def test_the_page_needs_nothing_else(tmp_path, pair):
    out = write_report(pair, tmp_path / "new" / "page.html")
    page = Page(out)
    assert not {"script", "link", "iframe", "object"} & {tag for tag, _ in page.tags}
    for _, attrs in page.tags:
        assert not any(name.startswith("on") for name in attrs)
        for name in ("src", "href", "xlink:href"):
            assert attrs.get(name, "#").startswith(("#", "data:image/png;base64,"))
    source = out.read_text(encoding="utf-8")
    assert "http" not in source
    assert "@import" not in source
    assert list(out.parent.iterdir()) == [out]


def test_ids_are_unique_and_every_reference_has_one(tmp_path, pair):
    page = page_of(tmp_path, *pair)
    ids = [attrs["id"] for _, attrs in page.tags if "id" in attrs]
    assert len(ids) == len(set(ids))
    links = {attrs["href"][1:] for _, attrs in page.tags if attrs.get("href", "").startswith("#")}
    clips = {attrs["clip-path"][5:-1] for _, attrs in page.tags if "clip-path" in attrs}
    labels = {attrs["aria-labelledby"] for _, attrs in page.tags if "aria-labelledby" in attrs}
    assert clips
    assert links | clips | labels <= set(ids)


def test_tables_hold_the_values_of_the_files(tmp_path, pair):
    page = page_of(tmp_path, *pair)
    last, best = page.table("Last epoch"), page.table("Best epoch: chosen on the test set")
    interval = stats.binomtest(3120, 10_000).proportion_ci(method="wilson")
    assert last["cutmix"][0] == f"31.20 [{100 * interval.low:.2f}, {100 * interval.high:.2f}]"
    assert last["cutmix"][1].startswith("7.80 [")
    assert last["cutmix"][2:] == ["10,000", "cifar-100 test", "3", "model"]
    assert best["none"][0].startswith("32.80 [")
    assert best["none"][4] == "2"
    run = page.table("Every run")["none"]
    assert run == ["finished", "small", "cifar-100", "resnet20", "278,324", "none", "3", "0"]
    circumstances = page.table("Circumstances of each run")["none"]
    assert circumstances == ["2026-01-02", "cpu (b)", "2.15.0", "1a2b3c4", "13 min 32 s"]
    assert page.table("Fields") == {"mix": ["none", "cutmix"], "alpha": ["1.0", "0.5"]}  # 1 is the default
    assert "cutmix train small --seed 0" in page.text


def test_a_lead_that_may_be_chance_is_not_called_the_best(tmp_path) -> None:
    opening, _ = verdict(read_runs(made(tmp_path, none=12, cutmix=9)))
    said = "No method is shown to be better than the baseline, none: 86.7 % of the images right, against 90 %"
    assert opening.startswith(said)
    assert "with cutmix (90 test images" in opening


def test_every_section_is_there_in_order(tmp_path, pair):
    page = page_of(tmp_path, *pair)
    anchors = [attrs["id"] for tag, attrs in page.tags if tag == "h2"]
    assert anchors == [made.anchor for section in SECTIONS if (made := section(read_runs(pair)))]


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (
            31.2,
            "68.8 of 100 images right, 95\u00a0% interval 67.9 to 69.7, 2.1 more than none. The two intervals do",
        ),
        (32.9, "0.4 more than none. The two intervals overlap, so the difference is not established by one run of"),
        (36.0, "2.7 fewer than none. The two intervals do not overlap"),
        (33.3, "to one decimal the same as none. The two intervals overlap"),
    ],
)
def test_the_summary_says_what_the_intervals_allow(tmp_path, error, said):
    baseline, mixed = make_run(tmp_path / "a", error=33.3), make_run(tmp_path / "b", error=error, mix="cutmix")
    (first, text), (second, sentence) = comparisons(read_runs([mixed, baseline]))
    assert (first, second) == ("none", "cutmix")  # the one without mixing is the baseline, wherever it is given
    assert text.startswith(
        "66.7 of 100 images right, 95\u00a0% interval 65.8 to 67.6 on 10,000 test images of cifar-100."
    )
    assert said in sentence
    assert said in page_of(tmp_path, mixed, baseline).text


def test_a_difference_in_more_than_the_mixing_is_said(tmp_path):
    runs = make_run(tmp_path / "a"), make_run(tmp_path / "b", mix="cutmix", lr=0.2, epochs=9)
    assert "also differ in epochs and lr" in comparisons(read_runs(runs))[1][1]


def test_an_interval_over_seeds_ends_where_shares_do(tmp_path):
    """Student's interval of 6.67 and 10 % would begin at -12.8 %."""
    runs = read_runs([make_run(tmp_path / str(seed), error=error, seed=seed) for seed, error in ((0, 6.67), (1, 10))])
    found = estimate(runs, "top1_err", "last")
    assert found is not None
    assert (found.low, found.high) == (0, pytest.approx(29.5, abs=0.05))


def test_seeds_are_pooled_with_the_t_interval(tmp_path):
    errors = [20.52, 20.10, 19.72]  # the authors' three runs of one recipe
    runs = [make_run(tmp_path / str(seed), error=error, seed=seed) for seed, error in enumerate(errors)]
    found = estimate(read_runs(runs), "top1_err", "last")
    wanted = stats.ttest_1samp(errors, 0).confidence_interval(0.95)
    assert (found.low, found.high) == pytest.approx((wanted.low, wanted.high))
    table = page_of(tmp_path, *runs).table("Last epoch")
    assert table["small: mean of 3 runs"][0] == f"20.11 [{wanted.low:.2f}, {wanted.high:.2f}]"
    assert [table[f"small, seed {seed}"][0][:5] for seed in range(3)] == ["20.52", "20.10", "19.72"]


def test_a_repeated_seed_is_no_second_draw(tmp_path):
    runs = read_runs([make_run(tmp_path / "a", error=30.0), make_run(tmp_path / "b", error=32.0)])
    found = estimate(runs, "top1_err", "last")
    assert (found.value, found.low, found.high) == (31.0, None, None)
    assert [run.label for run in runs] == ["small, seed 0 (a)", "small, seed 0 (b)"]


def test_two_recipes_of_one_name_are_told_apart(tmp_path):
    runs = read_runs([make_run(tmp_path / "x" / "run"), make_run(tmp_path / "y" / "run", lr=0.2)])
    assert len({run.label for run in runs}) == len(groups(runs)) == 2
    assert differing_fields(runs) == ["lr"]
    several = [make_run(tmp_path / where, **recipe) for where, recipe in
               {"a": {"mix": "mixup"}, "b": {"mix": "mixup", "lr": 0.2}, "c": {"name": "large"}}.items()]  # fmt: skip
    assert [run.label for run in read_runs(several)] == ["small (a)", "small (b)", "large"]


def test_an_unfinished_run_is_shown_and_not_compared(tmp_path, pair):
    going = make_run(tmp_path / "c", mix="mixup", finished=False, epochs=9, logged=4)
    with open(going / "log.jsonl", "a") as log:
        log.write('{"kind":"epoch","epoch":5,"top1_')
    page = page_of(tmp_path, *pair, going)
    assert "mixup: unfinished, epoch 4 of 9" in page.text
    assert page.table("Last epoch")["mixup (unfinished)"][:2] == ["not run", "not run"]
    assert page.table("Circumstances")["mixup"][-1] == "0 min 40 s"  # the log counts from the start of the run
    assert [name for name, _ in comparisons(read_runs([*pair, going]))] == ["none", "cutmix"]


def test_results_before_the_planned_end_do_not_make_a_run_finished(tmp_path):
    run = make_run(tmp_path / "a", epochs=3)
    config = json.loads((run / "config.json").read_text())
    config["recipe"]["epochs"] = 30
    (run / "config.json").write_text(json.dumps(config))
    assert not read_runs([run])[0].finished


def test_a_run_with_nothing_but_its_configuration(tmp_path):
    run = make_run(tmp_path / "a", finished=False, logged=0, samples=False)
    (run / "log.jsonl").unlink()
    (run / "environment.json").unlink()
    page = page_of(tmp_path, run)
    assert "unfinished, no epoch logged" in page.text
    assert {tag for tag, _ in page.tags}.isdisjoint({"svg", "img"})


def test_epochs_that_were_not_measured_are_left_out(tmp_path):
    run = make_run(tmp_path / "a", epochs=4)
    lines = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    lines[-3]["top1_err"] = None
    (run / "log.jsonl").write_text("\n".join(map(json.dumps, lines)) + "\n")
    alt = next(
        attrs["aria-label"] for tag, attrs in page_of(tmp_path, run).tags if "aria-label" in attrs and tag == "svg"
    )
    assert alt == "Test error by epoch. small: 46.2 at epoch 1, 31.2 at epoch 4."


def test_runs_on_different_data_are_not_compared(tmp_path):
    runs = make_run(tmp_path / "a"), make_run(tmp_path / "b", mix="cutmix", data="cifar-10")
    page = page_of(tmp_path, *runs)
    assert "not comparable" in page.text.split("Summary")[2]
    assert " than " not in page.text.partition("Summary")[2].partition("Results")[0]


def test_what_a_file_says_cannot_become_markup(tmp_path):
    evil = '<script>alert("1")</script>&amp;$x_1$'
    run = make_run(tmp_path / "a", name=evil, data=evil, model=evil, mix="cutmix")
    page = page_of(tmp_path, run, make_run(tmp_path / "b", mix="none"))
    assert "script" not in {tag for tag, _ in page.tags}
    assert page.table("Every run")["cutmix"][1:4] == [evil, evil, evil]


def test_images_are_embedded_with_their_size(tmp_path, pair):
    images = [attrs for tag, attrs in page_of(tmp_path, *pair).tags if tag == "img"]
    assert [(image["width"], image["height"]) for image in images] == [("30", "20")] * 2
    assert all(image["alt"] for image in images)


def test_the_page_has_a_dark_and_a_printed_form_and_figures_follow(tmp_path, pair):
    source = write_report(pair, tmp_path / "page.html").read_text(encoding="utf-8")
    assert "@media screen and (prefers-color-scheme: dark)" in source
    assert "@media print" in source
    assert "stroke: currentColor" in source
    assert "#010203" not in source
    assert "#000000" not in source


def test_tables_and_figures_are_accessible(tmp_path, pair):
    page = page_of(tmp_path, *pair)
    assert all("scope" in attrs for tag, attrs in page.tags if tag == "th")
    assert all(attrs.get("role") == "img" or attrs.get("aria-hidden") for tag, attrs in page.tags if tag == "svg")
    kinds = [tag for tag, _ in page.tags]
    assert kinds.count("caption") == kinds.count("table")
    assert kinds.count("figcaption") == kinds.count("figure")
    assert kinds.count("h1") == 1


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        (
            "log.jsonl",
            '{"kind":"epoch","epoch":1}\n{"kind":"ep\n{"kind":"epoch","epoch":2}\n',
            "log.jsonl, line 2 is not JSON",
        ),
        ("log.jsonl", '{"kind":"epoch","epoch":1}\n[1]\n', "log.jsonl, line 2 is a list; expected one JSON object"),
        ("log.jsonl", '{"kind":"epoch","epoch":"one"}\n', 'log.jsonl, line 1: epoch is "one"; expected a whole number'),
        ("log.jsonl", '{"kind":"epoch","epoch":1,"top1_err":"3"}\n', 'line 1: top1_err is "3"; expected a number'),
        ("results.jsonl", '{"metric":"x","value":1}\n', "results.jsonl, line 1: schema is None; expected 1"),
        ("config.json", '{"recipe":', "config.json is not JSON"),
        ("config.json", '{"recipe": 3}', "config.json: recipe is 3; expected an object"),
        ("config.json", "[]", "config.json is a list"),
        ("environment.json", "no", "environment.json is not JSON"),
        ("environment.json", '{"torch": ["2"]}', "environment.json: torch is a list; expected a text or a number"),
        ("samples.png", "no image", "samples.png is not a PNG image"),
    ],
)
def test_a_damaged_file_is_named(tmp_path, name, content, said):
    run = make_run(tmp_path / "a")
    (run / name).write_text(content)
    with pytest.raises(InputError, match=said.replace("[", r"\[")):
        write_report([run], tmp_path / "page.html")
    assert not (tmp_path / "page.html").exists()


def test_what_is_no_run_is_refused(tmp_path):
    run = make_run(tmp_path / "a")
    for runs, said in (
        ([], "no run was given"),
        ([tmp_path / "missing"], "is not a folder"),
        ([tmp_path], "has no config.json"),
        ([run, tmp_path / "." / "a"], "more than once"),
    ):
        with pytest.raises(InputError, match=said):
            write_report(runs, tmp_path / "page.html")


def test_a_page_that_cannot_be_written_leaves_the_old_one(tmp_path, monkeypatch):
    run = make_run(tmp_path / "a")
    out = write_report([run], tmp_path / "pages" / "page.html")
    before = out.read_bytes()

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.replace", full)
    with pytest.raises(InputError, match="could not be written: No space left on device"):
        write_report([run], out)
    assert out.read_bytes() == before
    assert list(out.parent.iterdir()) == [out]
    with pytest.raises(InputError, match="is a folder"):
        write_report([run], out.parent)


def test_an_epoch_logged_twice_counts_once(tmp_path):
    run = make_run(tmp_path / "a", error=30.0)
    with open(run / "log.jsonl", "a") as log:
        log.write(json.dumps({"kind": "epoch", "epoch": 3, "top1_err": 29.0}))  # the newline is still to come
    (read,) = read_runs([run])
    assert [(entry["epoch"], entry["top1_err"]) for entry in read.epochs] == [(1, 40.0), (2, 35.0), (3, 29.0)]
    assert math.isclose(read.result("top1_err", "last").value, 30.0)


def test_a_measure_made_twice_takes_the_place_of_the_later_and_leaves_the_own_data(tmp_path):
    run = make_run(tmp_path / "a", finished=False)
    made = [("a", "ece", 1), ("b", "ece", 2), ("a", "nll", 3), ("a", "ece", 4), ("a", "nll", 5), ("a", "brier", 6)]
    shared = {"which": "file", "suite": "calibration", "n": 9, "file": "w.pth"}
    records = [Record(data=data, metric=metric, value=value, **shared) for data, metric, value in made]
    append_records(run / "results.jsonl", records)
    config = json.loads((run / "config.json").read_text()) | {"evaluated": "w.pth"}
    (run / "config.json").write_text(json.dumps(config))
    (read,) = read_runs([run])
    assert [record.value for record in read.suite("calibration")] == [4, 5, 6]
    assert (read.data, [record.value for record in read.results]) == ("a", [4, 5, 6, 2])
    (run / "results.jsonl").unlink()
    append_records(run / "results.jsonl", (*records[:2], records[3]))
    assert read_runs([run])[0].data == "a"  # the first that it was measured on, though all of that is newer


def test_torch_is_not_imported():
    code = "import sys, cutmix.report.summary; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_the_baseline_has_no_method_at_all(tmp_path):
    smooth = make_run(tmp_path / "a", name="smooth", label_smoothing=0.1)
    plain, mixed = make_run(tmp_path / "b", name="plain"), make_run(tmp_path / "c", name="mixed", mix="cutmix")
    said = dict(comparisons(read_runs([smooth, mixed, plain])))
    assert " than " not in said["plain"]
    assert "plain" in said["smooth"]
    assert "plain" in said["mixed"]


def test_the_baseline_of_a_folder_has_no_mixing_whatever_all_runs_share(tmp_path):
    """The recipe for a folder smooths the labels of every run; a shell lists ``runs/*`` with CutMix first."""
    mixed = make_run(tmp_path / "a", name="photos-net-cutmix-alpha-0.5", mix="cutmix", alpha=0.5, label_smoothing=0.1)
    again = make_run(tmp_path / "b", name="photos-net-cutmix", mix="cutmix", label_smoothing=0.1)
    plain = make_run(tmp_path / "c", name="photos-net-none", label_smoothing=0.1)
    assert comparisons(read_runs([mixed, again, plain]))[0][0] == "none"


@pytest.mark.parametrize(("names", "labels"), [
    (("x-net-none-10-per-class", "x-net-cutmix-alpha-0.5-10-per-class"), ("none", "cutmix-alpha-0.5")),
    (("x-net-none-10-per-class", "x-net-none-25-per-class"), ("10-per-class", "25-per-class")),
    (("net-cutmix-alpha-0.5", "net-cutmix-alpha-2"), ("alpha-0.5", "alpha-2")),
    (("net-cutmix", "net-cutmix-cutout"), ("cutmix", "cutmix-cutout")),
    (("net", "net-cutmix"), ("net", "net-cutmix")),
])  # fmt: skip
def test_runs_are_labelled_by_what_their_names_do_not_share(tmp_path, names, labels):
    runs = [make_run(tmp_path / name, name=name, mix="cutmix", alpha=n + 1.0) for n, name in enumerate(names)]
    assert tuple(run.label for run in read_runs(runs)) == labels


def test_a_doubling_axis_has_its_points_at_equal_distances():
    curve = Curve((0, 1, 2, 4, 8, 16), (9, 8, 7, 6, 5, 4), 0)
    svg = lines([curve], xlabel="x", ylabel="y", alt="a", axis="doubling", from_zero=True)
    places = [
        float(x)
        for x in re.findall(r'<use href="#f[0-9a-f]{8}-m[0-9a-f]+" x="([\d.]+)" y="[\d.]+" style="fill: #2e7fd0', svg)
    ]
    assert len(places) == 6
    assert np.diff(places)[1:] == pytest.approx(np.diff(places)[1], abs=0.01)
    assert [f">{tick}</text>" in svg for tick in (0, 1, 2, 4, 8, 16)] == [True] * 6


def test_a_single_epoch_is_the_only_tick():
    svg = lines([Curve((1,), (90.0,), 0), Curve((1,), (80.0,), 1)], xlabel="epoch", ylabel="error", alt="a")
    texts = re.findall(r">([^<]+)</text>", svg)
    assert texts[: texts.index("epoch")] == ["1"]


def test_a_share_has_its_quarters():
    svg = lines([Curve((0, 0.25, 1), (1, 2, 3), 1)], xlabel="x", ylabel="y", alt="a", axis="share")
    assert [f">{tick}</text>" in svg for tick in ("0.00", "0.25", "0.50", "0.75", "1.00")] == [True] * 5


def test_outlines_are_told_apart_without_colour():
    both = [Curve((0, 0.5, 1), (20, 80), style) for style in (0, 1)]
    svg = outlines(both, xlabel="x", ylabel="y", alt="a & b", small=True)
    assert svg.count("stroke-dasharray") == 1
    assert 'aria-label="a &amp; b"' in svg
    assert "<use" in key(1)
    assert "<use" not in key(1, marker=False)


def test_a_reliability_diagram_has_its_diagonal():
    plain, curve = (reliability(curves, alt="a") for curves in ([], [Curve((10, 90), (20, 80), 0)]))
    assert plain.count("stroke-opacity: 0.5") == curve.count("stroke-opacity: 0.5") == 1
    assert curve.count("#2e7fd0") > plain.count("#2e7fd0") == 0


def test_the_same_drawing_twice_has_ids_of_its_own(tmp_path):
    runs = [make_run(tmp_path / name, error=31.0, mix=name) for name in ("none", "cutmix", "mixup")]
    for run in runs:  # two plots that are alike
        lines = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
        same = [line | {"train_loss": line.get("top1_err")} for line in lines]
        (run / "log.jsonl").write_text("".join(json.dumps(line) + "\n" for line in same))
    ids = [attrs["id"] for _, attrs in page_of(tmp_path, *runs).tags if "id" in attrs]
    assert len(ids) == len(set(ids))


FIGURES = (("Test error", "top1_err", "error, %"), ("Training loss", "train_loss", "loss"))


def test_what_is_drawn_is_said(tmp_path: Path) -> None:
    runs = read_runs([make_run(tmp_path / "a", epochs=3, error=30.0), make_run(tmp_path / "b", mix="cutmix", logged=0)])
    made = learning_curves(runs, {runs[0].group: 0, runs[1].group: 1}, FIGURES, "What it is")
    assert "Test error by epoch. none: 40 at epoch 1, 30 at epoch 3." in made
    assert "Training loss by epoch. none: 3 at epoch 1, 1 at epoch 3." in made
    assert "cutmix" not in made  # nothing was logged
    assert made.count("<svg") == 3  # two plots and a key
    assert made.rstrip().endswith("<figcaption>What it is</figcaption>\n</figure>")


def test_seeds_share_a_style_and_a_name(tmp_path: Path) -> None:
    runs = read_runs([make_run(tmp_path / str(seed), seed=seed) for seed in range(3)])
    made = learning_curves(runs, {runs[0].group: 0}, FIGURES[:1], "")
    assert "(3 runs)" in made
    assert made.count("<svg") == 2


def test_without_epochs_there_is_nothing(tmp_path: Path) -> None:
    runs = read_runs([make_run(tmp_path / "a", logged=0)])
    assert learning_curves(runs, {runs[0].group: 0}, FIGURES, "") == ""


def test_the_loss_of_smmix_is_said_to_be_another_one(tmp_path, pair):
    assert "SMMix" not in page_of(tmp_path, *pair).text
    smmix = make_run(tmp_path / "s", mix="smmix")
    assert "SMMix’s is a sum of three losses" in page_of(tmp_path, *pair, smmix).text


# ---- the verdict, classes and images ----

CLASSES = ("cat", "dog", "eel")
N = 90


def predict(folder: Path, wrong: np.ndarray, *, figures: bool = True) -> Path:
    """Write predictions of 90 images, of which some are taken for the next class."""
    labels = np.arange(N) % 3
    predicted = np.where(wrong, (labels + 1) % 3, labels)
    logits = 2.0 * np.eye(3, dtype=np.float32)[predicted]
    (folder / "predictions").mkdir()
    files = [f"{CLASSES[k]}/{i:03d}.jpg" for i, k in enumerate(labels)]
    np.savez(folder / "predictions/last.npz", logits=logits, labels=labels, classes=CLASSES, files=files)
    if figures:
        (folder / "figures").mkdir()
        file = io.BytesIO()
        Image.new("RGB", (32, 16)).save(file, "png")
        for i in range(N):
            (folder / f"figures/example-{i}.png").write_bytes(file.getvalue())
    return folder


def first(n: int) -> np.ndarray:
    return np.arange(N) < n


def test_images_that_changed_under_their_names_are_not_compared_image_by_image(tmp_path) -> None:
    """As after a folder was cleaned: the same names and labels, but other files."""
    folders = []
    for mix, images in (("none", "a-b-c"), ("cutmix", "a-b-d"), ("mixup", "e-b-c")):
        folders.append(predict(make_run(tmp_path / mix, mix=mix, name=mix, n=N), first(9), figures=False))
        (folders[-1] / "environment.json").write_text(json.dumps({"images": images}))  # of train, val and test
    none, cutmix, mixup = read_runs(folders)
    assert [pair[:2] for pair in pairs([none, cutmix, mixup])] == [(none.label, mixup.label)]
    assert "Image by image" in dict(comparisons([none, mixup]))["mixup"]
    assert "Image by image" not in dict(comparisons([none, cutmix]))["cutmix"]
    assert "The runs have different test images" in page_of(tmp_path, *folders[:2]).text
    assert "The runs have different test images" not in page_of(tmp_path, *folders[::2]).text


def made(tmp_path: Path, **errors: int) -> list[Path]:
    return [predict(make_run(tmp_path / mix, mix=mix, n=N, error=100 * n / N), first(n)) for mix, n in errors.items()]


def test_the_verdict_of_two_runs_is_the_exact_test(tmp_path) -> None:
    opening, closing = verdict(read_runs(made(tmp_path, none=30, cutmix=9)))
    assert opening == (
        "The best method is cutmix: 90 % of the images right, against 66.7 % of the images right with the baseline, "
        "none (90 test images of cifar-100)."
    )
    assert stats.binomtest(0, 21).pvalue < 0.001
    assert closing.startswith("The difference is more than chance (for these two models, p < 0.001). Another seed")


def test_of_worse_methods_the_best_is_named(tmp_path) -> None:
    """A difference that is far from chance, that of the worst, says nothing about the others."""
    opening, closing = verdict(read_runs(made(tmp_path, none=9, cutmix=12, mixup=40)))
    assert opening.startswith("No method is better than the baseline, none: 90 % of the images right, against 86.7 %")
    assert closing.startswith("The difference may be chance")


def test_a_method_that_is_shown_to_be_better_is_named_before_a_better_one_that_is_not(tmp_path) -> None:
    runs = made(tmp_path, none=20, cutmix=10)
    apart = np.arange(N) >= N - 9  # other images than those that the baseline gets wrong
    runs.append(predict(make_run(tmp_path / "mixup", mix="mixup", n=N, error=10), apart))
    assert stats.binomtest(9, 29).pvalue > 0.05 > 2 * stats.binomtest(0, 10).pvalue
    opening, closing = verdict(read_runs(runs))
    assert opening.startswith("cutmix is better than the baseline, none: 88.9 % of the images right, against 77.8 %")
    assert closing.startswith("The difference is more than chance (for these two models, p = 0.004).")


def test_a_difference_that_may_be_chance_is_no_reason_to_decide(tmp_path) -> None:
    opening, closing = verdict(read_runs(made(tmp_path, none=9, cutmix=12)))
    assert opening.startswith("No method is better than the baseline, none: 90 % of the images right, against 86.7 %")
    p = stats.binomtest(0, 3).pvalue
    assert closing.startswith(f"The difference may be chance (for these two models, p = {p:.3f}): do not decide by it.")


def test_several_seeds_are_compared_over_seeds_and_images(tmp_path) -> None:
    random = np.random.default_rng(0)
    wrong = {mix: random.random((3, N)) < rate for mix, rate in (("none", 0.3), ("cutmix", 0.28))}
    folders = [
        predict(make_run(tmp_path / f"{mix}{seed}", mix=mix, seed=seed, n=N, error=100 * its[seed].mean()), its[seed])
        for mix, its in wrong.items() for seed in range(3)
    ]  # fmt: skip
    found = crossed_difference(wrong["cutmix"], wrong["none"])
    assert f"over 3 seeds, p = {found.p:.3f}" in verdict(read_runs(folders))[1]


def test_methods_are_compared_with_as_many_training_images(tmp_path) -> None:
    """``cutmix compare --train-per-class 5 50`` makes such runs: more images, and not CutMix, made the best of them."""
    wrong = {(5, "none"): 30, (5, "cutmix"): 20, (50, "none"): 9, (50, "cutmix"): 8}
    folders = [
        predict(make_run(tmp_path / name, name=name, mix=mix, n=N, error=100 * n / N, train_per_class=count), first(n))
        for (count, mix), n in wrong.items() for name in [f"{mix}-{count}"]
    ]  # fmt: skip
    opening, _ = verdict(read_runs(folders))
    assert opening.startswith("The best method is cutmix-5: 77.8 % of the images right, against 66.7 %")
    assert "the baseline, none-5 (90 test images of cifar-100, 5 training images per class)." in opening
    said = dict(comparisons(read_runs(folders)))
    assert list(said) == ["none-5", "cutmix-5", "none-50", "cutmix-50"]
    assert "points below none-50" in said["cutmix-50"] or "points above none-50" in said["cutmix-50"]
    assert "differ in" not in "".join(said.values())
    assert "p = 0.004" in said["cutmix-5"]  # 2 · 2 · 0.5 ** 10: ten images differ, and two comparisons were made


def test_one_run_names_its_weakest_class(tmp_path) -> None:
    folder = predict(make_run(tmp_path / "a", n=N, error=100 * 5 / N), np.isin(np.arange(N), [1, 4, 7, 10, 2]))
    opening, closing = verdict(read_runs([folder]))
    assert opening.startswith("small: 94.4 % of the images right (95\u00a0% interval ")
    assert closing == "The weakest class is dog, with 26 of 30 right; 4 of its images are taken for eel."


def test_a_weak_model_hints_at_no_label_errors_and_few_steps_are_said(tmp_path) -> None:
    text = page_of(tmp_path, *made(tmp_path, none=9)).text
    assert "point to label errors" not in text
    weak = made(tmp_path / "weak", none=60)
    text = page_of(tmp_path, *weak).text
    assert "wrong on 67% of the images: its contradictions do not point to label errors" in text
    log = [{"kind": "epoch", "epoch": k, "step": 7 * k, "train_loss": 1.0} for k in (1, 2)]
    (weak[0] / "log.jsonl").write_text("".join(json.dumps(line) + "\n" for line in log))
    assert "Trained for so few steps that the results mean little: small (14 steps)." in page_of(tmp_path, *weak).text


def test_the_images_are_those_of_the_best_run(tmp_path) -> None:
    runs = read_runs(made(tmp_path, none=30, cutmix=9))
    best = lead(runs)
    assert best is not None
    assert best.label == "cutmix"
    page = page_of(tmp_path, *(run.folder for run in runs))
    assert page.table("Right predictions by class")["cat"] == ["20 of 30", "27 of 30"]
    assert page.table("Wrong predictions")["cat as dog"] == ["10 of 30", "3 of 30"]
    alts = [attrs["alt"] for tag, attrs in page.tags if tag == "img"]
    assert "Test image cat/000.jpg: dog 79\u00a0%; labelled cat" in alts
    assert "Right of each" in page.text


def test_without_images_the_lists_are_tables(tmp_path) -> None:
    folder = predict(make_run(tmp_path / "a", n=N, error=10.0, samples=False), first(9), figures=False)
    page = page_of(tmp_path, folder)
    assert page.table("Wrong predictions with the highest")["dog/001.jpg"] == ["eel 79\u00a0%", "dog"]
    assert "img" not in {tag for tag, _ in page.tags}


def test_many_classes_are_folded_and_runs_without_predictions_have_no_section(tmp_path) -> None:
    assert show_mistakes(read_runs([make_run(tmp_path / "a")])) is None
    folder = make_run(tmp_path / "b", n=40, error=50.0)
    (folder / "predictions").mkdir()
    labels = np.arange(40) % 20
    np.savez(folder / "predictions/last.npz", logits=np.eye(20)[labels // 2], labels=labels)
    page = page_of(tmp_path, folder)
    assert "The other 8 classes" in page.text
    assert len(page.table("Right predictions by class, the worst class first, continued")) == 8


def test_a_confidence_that_is_off_is_a_finding(tmp_path) -> None:
    folder = make_run(tmp_path / "a")
    about = {"data": "cifar-100", "split": "test", "epoch": 3, "suite": "calibration", "n": 250}
    values = {"signed_gap": -27.2, "temperature": 0.35, "signed_gap_scaled": 1.4}
    append_records(
        folder / "results.jsonl",
        [Record(metric=name, value=value, low=value - 3, high=value + 3, **about) for name, value in values.items()],
    )
    ((label, said),) = calibration_findings(read_runs([folder]))
    assert label == "small"
    assert said == (
        "underconfident: the mean confidence is 27 points below the accuracy; a temperature of 0.35 corrects this "
        "(+1 points after it)."
    )
    assert said in page_of(tmp_path, folder).text
    assert calibration_findings(read_runs([make_run(tmp_path / "b")])) == []


def test_a_top5_error_of_five_classes_is_not_applicable(tmp_path) -> None:
    folder = make_run(tmp_path / "a")
    lines = (folder / "results.jsonl").read_text().splitlines()
    kept = [line.replace('"metric"', '"classes": 5, "metric"', 1) for line in lines if "top1_err" in line]
    (folder / "results.jsonl").write_text("\n".join(kept) + "\n")
    assert page_of(tmp_path, folder).table("Last epoch")["small"][1] == "not applicable"


def test_runs_on_other_images_with_equal_labels_are_not_compared_image_by_image(tmp_path):
    """Every random division of a folder holds out as many images of each class, so that its labels are the same."""
    for index in range(24):
        file = tmp_path / "photos" / "ab"[index % 2] / f"{index:02}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.random.default_rng(index).integers(0, 256, (8, 8, 3), np.uint8)).save(file)
    held = [open_splits(str(tmp_path / "photos"), val_fraction=0.5, seed=seed).reported for seed in (0, 1)]
    assert held[0].labels.tolist() == held[1].labels.tolist() == [0] * 6 + [1] * 6
    assert held[0].paths.names() != held[1].paths.names()
    runs = []
    for number, mix in ((0, "none"), (1, "cutmix"), (0, "mixup")):
        folder = make_run(
            tmp_path / mix, mix=mix, name=mix, n=12, data="photos", split_seed=number, train_per_class=None
        )
        logits = np.random.default_rng(len(runs)).normal(size=(12, 2)).astype(np.float32)
        (folder / "predictions").mkdir()
        np.savez(
            folder / "predictions/last.npz",
            **predictions_arrays(LabelledLogits(torch.from_numpy(logits), held[number].labels), held[number]),
        )
        runs.append(folder)
    none, cutmix, mixup = read_runs(runs)
    assert [pair[:2] for pair in pairs([none, cutmix, mixup])] == [(none.label, mixup.label)]
    with pytest.raises(InputError, match="not evaluated on the same images"):
        compare_runs([none, cutmix], ["none", "cutmix"], "none")
