"""Keep the runs of ``cutmix compare`` in results/: ``python scripts/record.py NAME FOLDER [FOLDER ...]``.

Adds to NAME.jsonl the errors of each finished run after its last epoch, to NAME-suites.jsonl what ``cutmix evaluate``
found of it (usual score and convention), to NAME.log.jsonl its errors by epoch, and to NAME-comparison.log.jsonl the
comparison without its single classes. What the files hold of the same runs is replaced. Paths lose the folders above
the one that holds the runs.
"""

import json
import re
import sys
from pathlib import Path
from typing import Any

from cells import RESULTS
from cutmix.runs.read import Run, read_run
from cutmix.runtime.files import read_lines

ERRORS = ("train_loss", "train_err", "test_loss", "top1_err")
_RUN = ("recipe", "recipe_changes", "epochs", "seed")
_SETTING = ("model", "per_class", "steps")


def main(name: str, *folders: Path) -> None:
    """Write the files."""
    records: list[dict[str, Any]] = []
    suites: list[dict[str, Any]] = []
    log, compared = [], []
    for folder in folders:
        file = folder / "comparison.json"
        found = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else []
        methods = {one[side] for one in found for side in ("method", "baseline")}
        settings: dict[int | None, dict[str, Any]] = {}  # of the runs, by the images of a class
        for config in sorted(folder.glob("*/config.json")):
            run = read_run(config.parent)
            if run.finished:
                per_class, steps = run.recipe["train_per_class"], run.epochs[-1]["step"]
                settings[per_class] = {"model": run.recipe["model"], "per_class": per_class, "steps": steps}
                own = settings[per_class] | {"method": _method(run, methods), "seed": run.recipe["seed"]}
                for one in run.results:
                    if one.which == "last" and one.usual:
                        (suites if one.suite else records).append(_public(one.to_json(), folder))
                log += [
                    own | {"epoch": one["epoch"], "step": one["step"]} | {key: one[key] for key in ERRORS if key in one}
                    for one in run.epochs if "top1_err" in one
                ]  # fmt: skip
        for one in found:
            kept = {key: value for key, value in one.items() if key != "classes"}
            compared.append(kept | settings[one["per_class"]])
    _merge(RESULTS / f"{name}.jsonl", records, (*_RUN, "metric"))
    _merge(RESULTS / f"{name}-suites.jsonl", suites, (*_RUN, "metric", "of", "at"))
    _merge(RESULTS / f"{name}.log.jsonl", log, (*_SETTING, "method", "seed", "epoch"))
    _merge(RESULTS / f"{name}-comparison.log.jsonl", compared, ("data", *_SETTING, "method", "baseline"))


def _method(run: Run, methods: set[str]) -> str:
    """Return which of the compared methods a run is, by the end of its name."""
    name = re.sub(r"-\d+-per-class$", "", run.recipe["name"])
    ends = [method for method in methods if name.endswith("-" + re.sub("[:,=]", "-", method))]
    return max(ends, key=len, default=run.recipe["mix"])


def _public(line: dict[str, Any], folder: Path) -> dict[str, Any]:
    """Return a record whose command and file have no path of this machine."""
    paths = {key: line[key].replace(str(folder), f"runs/{folder.name}") for key in ("command", "file") if key in line}
    return line | {key: re.sub(r"(?<=\s)/\S+/", "", path) for key, path in paths.items()}


def _merge(path: Path, new: list[dict[str, Any]], keys: tuple[str, ...]) -> None:
    """Write the lines of a file, of which new ones replace those with the same key."""
    if new:
        found = {json.dumps([one.get(key) for key in keys]): one for one in [*read_lines(path), *new]}
        path.write_text("".join(json.dumps(one, ensure_ascii=False) + "\n" for one in found.values()), encoding="utf-8")


if __name__ == "__main__":
    main(sys.argv[1], *map(Path, sys.argv[2:]))
