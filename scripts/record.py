"""Keep the runs of ``cutmix compare`` in results/: ``python scripts/record.py NAME FOLDER BASELINE METHOD ...``.

Adds to NAME.jsonl the errors of each finished run of these methods after its last epoch, to NAME-suites.jsonl what
``cutmix evaluate`` found of it (usual score and convention), to NAME.log.jsonl its errors by epoch, and to
NAME-comparison.log.jsonl the comparison of each method with the baseline, where all seeds of the baseline are finished,
without its single classes. What the files hold of the same runs is replaced. Paths lose the folders above the one that
holds the runs.
"""

import json
import re
import sys
from pathlib import Path
from typing import Any

from cells import RESULTS
from cutmix.report.verdict import compare_runs
from cutmix.runs.read import Run, read_run
from cutmix.runtime.files import read_lines

ERRORS = ("train_loss", "train_err", "test_loss", "top1_err")
_RUN = ("recipe", "recipe_changes", "model", "epochs", "seed")
_SETTING = ("model", "per_class", "steps")


def main(name: str, folder: Path, baseline: str, *methods: str) -> None:
    """Write the files."""
    groups: dict[tuple[Any, ...], dict[str, list[Run]]] = {}  # by the setting, then by the method
    for config in sorted(folder.glob("*/config.json")):
        run = read_run(config.parent)
        method = _method(run, {baseline, *methods})
        if run.finished and method is not None:
            setting = (run.recipe["model"], run.recipe["train_per_class"], run.epochs[-1]["step"])
            groups.setdefault(setting, {}).setdefault(method, []).append(run)
    records: list[dict[str, Any]] = []
    suites: list[dict[str, Any]] = []
    log, compared = [], []
    for setting, by_method in groups.items():
        own = dict(zip(_SETTING, setting, strict=True))
        for method, runs in by_method.items():
            for run in runs:
                for one in run.results:
                    if one.which == "last" and one.usual:
                        (suites if one.suite else records).append(_public(one.to_json(), folder))
                log += [
                    own | {"method": method, "seed": run.recipe["seed"], "epoch": one["epoch"], "step": one["step"]}
                    | {key: one[key] for key in ERRORS if key in one}
                    for one in run.epochs if "top1_err" in one
                ]  # fmt: skip
        compared += [own | one for one in _compared(by_method, baseline)]
    _merge(RESULTS / f"{name}.jsonl", records, (*_RUN, "metric"))
    _merge(RESULTS / f"{name}-suites.jsonl", suites, (*_RUN, "metric", "of", "at"))
    _merge(RESULTS / f"{name}.log.jsonl", log, (*_SETTING, "method", "seed", "epoch"))
    _merge(RESULTS / f"{name}-comparison.log.jsonl", compared, ("data", *_SETTING, "method", "baseline"))


def _compared(by_method: dict[str, list[Run]], baseline: str) -> list[dict[str, Any]]:
    """Return the comparisons with the baseline of the methods that have all of its seeds, without single classes."""
    seeds = {run.recipe["seed"] for run in by_method.get(baseline, ())}
    whole = {name: runs for name, runs in by_method.items() if {run.recipe["seed"] for run in runs} == seeds}
    if baseline not in whole:
        return []
    found = compare_runs(
        [run for runs in whole.values() for run in runs], [name for name, runs in whole.items() for _ in runs], baseline
    )
    return [{key: value for key, value in one.to_json().items() if key != "classes"} for one in found]


def _method(run: Run, methods: set[str]) -> str | None:
    """Return which of the methods a run is, by the end of its name; None if it is another."""
    name = re.sub(r"-\d+-per-class$", "", run.recipe["name"])
    ends = [method for method in methods if name.endswith("-" + re.sub("[:,=]", "-", method))]
    return max(ends, key=len, default=None)


def _public(line: dict[str, Any], folder: Path) -> dict[str, Any]:
    """Return a record whose command and file have no path of this machine."""
    paths = {key: re.sub(r"\S*/(?=" + re.escape(folder.name) + r"\b)", "runs/", line[key])
             for key in ("command", "file") if key in line}  # fmt: skip
    return line | {key: re.sub(r"(?<=\s)/\S+/", "", path) for key, path in paths.items()}


def _merge(path: Path, new: list[dict[str, Any]], keys: tuple[str, ...]) -> None:
    """Write the lines of a file, of which new ones replace those with the same key."""
    if new:
        found = {json.dumps([one.get(key) for key in keys]): one for one in [*read_lines(path), *new]}
        path.write_text("".join(json.dumps(one, ensure_ascii=False) + "\n" for one in found.values()), encoding="utf-8")


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]), *sys.argv[3:])
