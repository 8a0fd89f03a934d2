"""What stands beside the paper's numbers: only runs by the paper's protocol, with the right interval and test."""

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy import stats

from cutmix.config.recipes import RECIPES, recipe_changes
from cutmix.paper.compare import SMOKE, Found, Result, find, results_of, sheets, sweeps
from cutmix.paper.tables import find_tables
from cutmix.report.summary import write_report
from cutmix.runs.record import Record, append_records

PYRAMID = "cifar100-pyramidnet200"
(TABLE5,) = find_tables("table5")


def lines(recipe: str, error: float, *, seed: int = 0, n: int = 10_000, **changes: Any) -> list[Record]:
    """Return the results that a run of a recipe writes; the best epoch is half a point better than the last."""
    own = RECIPES[recipe.partition("+")[0]]
    shared = {"source": "training", "recipe": recipe, "recipe_changes": {}, "data": own.data, "split": "test",
              "model": own.model, "epochs": own.epochs, "seed": seed, "commit": "1a2b3c4", "date": "2026-01-02",
              "seconds": 9.5 + seed, "command": f"cutmix train {recipe} --seed {seed}"} | changes  # fmt: skip
    made = []
    for which, better in (("last", 0.0), ("best", 0.5)):
        for metric, value in (("top1_err", error - better), ("top5_err", error / 4)):
            interval = stats.binomtest(round(value * n / 100), n).proportion_ci(method="wilson")
            bounds = {"low": 100 * interval.low, "high": 100 * interval.high, "n": n}
            its = {"metric": metric, "which": which, "epoch": shared["epochs"], "value": value}
            made.append(Record(**shared | its | bounds))
    return made


def write_results(path: Path, *runs: list[Record]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    append_records(path, [record for run in runs for record in run])
    return path


def write_run(folder: Path, recipe: str, error: float, *, right: np.ndarray | None = None, **changes: Any) -> Path:
    """Write a run folder, with predictions of which these are right."""
    folder.mkdir(parents=True)
    own = replace(RECIPES[recipe.partition("+")[0]], name=recipe, **changes)
    its = {"model": own.model, "epochs": own.epochs, "recipe_changes": recipe_changes(own)}
    (folder / "config.json").write_text(json.dumps({"recipe": own.to_dict(), "command": "cutmix train"}))
    write_results(folder / "results.jsonl", lines(recipe, error, **its))
    if right is not None:
        (folder / "predictions").mkdir()
        labels = np.arange(len(right)) % 2
        logits = np.eye(2, dtype=np.float32)[np.where(right, labels, 1 - labels)]
        np.savez(folder / "predictions" / "last.npz", logits=logits, labels=labels)
    return folder


def cells(found: list[Found], row: str, table=TABLE5) -> list[str]:
    """Return a row of the table of the paper's protocol."""
    return next(list(cells) for cells in sheets(table, found)[0][0].rows if cells[0].startswith(row))


def ours(found: list[Found]) -> list[Result]:
    """Return the results of all rows of table 5."""
    return [one for row in TABLE5.rows for one in results_of([row], found)]


def test_without_results_everything_is_not_run() -> None:
    ((sheet,), _) = sheets(TABLE5, [])
    assert sheet.header == ("Row", "Paper", "Best epoch here", "Last epoch here")
    assert ("CutMix [b]", "14.47; 2.97", "not run", "not run") in sheet.rows


def test_one_run_has_wilsons_interval_and_its_epochs_stay_apart(tmp_path: Path) -> None:
    found = find([], [write_results(tmp_path / "a.jsonl", lines(f"{PYRAMID}-cutmix", 15.07))])
    wilson = stats.binomtest(1507, 10_000).proportion_ci(method="wilson")
    _, paper, best, last, seeds = cells(found, "CutMix [b]")
    assert (paper, seeds) == ("14.47; 2.97", "1")
    assert last.startswith(f"15.07 [{100 * wilson.low:.2f}, {100 * wilson.high:.2f}]; 3.77 [")
    assert best.startswith("14.57 [")


def test_seeds_have_students_interval_and_a_test_over_seeds(tmp_path: Path) -> None:
    mixed, plain = (20.52, 20.10, 19.72), (23.0, 23.5, 22.9)
    runs = [lines("cifar100-resnet110-cutmix", error, seed=seed) for seed, error in enumerate(mixed)]
    runs += [lines("cifar100-resnet110", error, seed=seed) for seed, error in enumerate(plain)]
    found = find([], [write_results(tmp_path / "a.jsonl", *runs)])
    interval = stats.ttest_1samp(mixed, 0).confidence_interval(0.95)
    _, _, _, last, seeds, against = cells(found, "ResNet-110 + CutMix", *find_tables("table6"))
    assert last.startswith(f"20.11 [{interval.low:.2f}, {interval.high:.2f}]")
    assert seeds == "3"
    p = stats.ttest_ind(mixed, plain, equal_var=False).pvalue
    assert against == ("-3.02; p < 0.001" if p < 0.001 else f"-3.02; p = {p:.3f}")


def test_accuracy_is_turned(tmp_path: Path) -> None:
    found = find([], [write_results(tmp_path / "a.jsonl", lines("imagenet-resnet50-cutmix", 21.4, n=50_000))])
    wilson = stats.binomtest(50_000 - 10_700, 50_000).proportion_ci(method="wilson")
    row = cells(found, "CutMix", *find_tables("table1"))
    assert row[1] == "78.6"
    assert row[3] == f"78.60 [{100 * wilson.low:.2f}, {100 * wilson.high:.2f}]"


@pytest.mark.parametrize(
    ("suffix", "changes", "how"),
    [
        ("+resnet20+short", {"model": "resnet20", "epochs": 10}, "network resnet20, 10 of 300 epochs"),
        ("+smoke", {"epochs": 1, "n": 32}, SMOKE),
        ("", {"n": 5000}, "5,000 test images"),
        ("", {"data": "cifar-10"}, "data cifar-10"),
        ("", {"weights": "ema"}, "averaged weights"),
        ("", {"recipe_changes": {"lr": 0.5, "nesterov": False}}, "lr and nesterov changed"),
        ("", {"recipe_changes": {"precision": "float32", "compile": "model"}}, ""),
        ("", {"recipe_changes": None}, "how it was trained is not known"),
    ],
)
def test_another_protocol_never_stands_beside_the_papers_number(
    tmp_path: Path, suffix: str, changes: dict, how: str
) -> None:
    found = find([], [write_results(tmp_path / "a.jsonl", lines(PYRAMID + suffix, 40.0, **changes))])
    assert [one.how for one in ours(found)] == [how]
    assert ("not run" in cells(found, "Baseline")) == bool(how)
    others = sheets(TABLE5, found)[0][1:]
    assert [how in sheet.caption and "not comparable" in sheet.caption for sheet in others] == [True] * bool(how)
    assert all("Paper" not in sheet.header for sheet in others)


def test_a_run_folder_knows_what_was_changed(tmp_path: Path) -> None:
    write_run(tmp_path / "runs/reproduce/a", PYRAMID, 17.0, weight_decay=5e-4)
    write_run(tmp_path / "runs/b", f"{PYRAMID}-cutmix", 15.0)
    changed, same = sorted(ours(find([tmp_path / "runs"], [])), key=lambda one: one.recipe)
    assert (changed.how, same.how) == ("weight_decay changed", "")


def test_a_run_found_twice_counts_once(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "a", PYRAMID, 17.0)
    copy = write_results(tmp_path / "a.jsonl", lines(PYRAMID, 17.0), lines(PYRAMID, 18.0, seed=1))
    assert sorted(one.seed for one in ours(find([folder], [copy]))) == [0, 1]


def test_evaluations_and_other_recipes_are_passed_over(tmp_path: Path) -> None:
    evaluated = lines(PYRAMID, 17.0, source="evaluation", file="model.safetensors")
    other = [replace(record, recipe="digits-resnet20") for record in lines(PYRAMID, 17.0)]
    assert ours(find([], [write_results(tmp_path / "a.jsonl", evaluated, other)])) == []


def test_one_run_of_each_is_tested_in_pairs(tmp_path: Path) -> None:
    plain = np.arange(10_000) >= 1700
    write_run(tmp_path / "a", PYRAMID, 17.0, right=plain)
    write_run(tmp_path / "b", f"{PYRAMID}-cutmix", 16.9, right=np.roll(plain, 10) | (np.arange(10_000) < 10))
    write_run(tmp_path / "c", f"{PYRAMID}-cutout", 14.0, right=np.arange(10_000) >= 1400)
    found = find([tmp_path], [])
    assert cells(found, "CutMix [b]")[-1] == f"-0.10; not significant (p = {stats.binomtest(10, 20).pvalue:.3f})"
    assert cells(found, "Cutout")[-1] == "-3.00; p < 0.001"
    (tmp_path / "c/predictions/last.npz").unlink()
    assert cells(find([tmp_path], []), "Cutout")[-1] == "-3.00; not tested"


def test_sweeps_join_points_that_were_run_alike() -> None:
    (table,) = find_tables("figure3-alpha")
    rows = [str(row.recipe) for row in table.rows]
    short = [lines(name, 50.0, epochs=10) for name in rows[:4]]
    smoke = [lines(f"{name}+smoke", 50.0, epochs=1) for name in rows[:4]]
    found = [Found(tuple(run)) for run in (*short, *smoke, lines(rows[5], 50.0))]
    (sweep,) = sweeps(table, found)
    assert sweep == ("10 of 300 epochs", [(0.1, 50.0), (0.25, 50.0), (0.5, 50.0)], 50.0)


def test_the_page_shows_tables_pairs_and_sweeps(tmp_path: Path) -> None:
    right = np.arange(10_000) >= 4000
    names = [PYRAMID, f"{PYRAMID}-cutmix-alpha-0.1", f"{PYRAMID}-cutmix"]
    runs = [
        write_run(
            tmp_path / str(i), f"{name}+resnet20+short", 40.0 - i, model="resnet20", epochs=10, right=np.roll(right, i)
        )
        for i, name in enumerate(names)
    ]
    page = write_report(runs, tmp_path / "page.html").read_text(encoding="utf-8")
    for sentence in ("The paper’s tables", "Figure 3, not comparable", "In pairs", "Sweeps", "not significant"):
        assert sentence in page
    assert "Table 7" not in page


def test_torch_is_not_imported() -> None:
    code = "import sys, cutmix.paper.compare; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
