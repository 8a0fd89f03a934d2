"""Compare runs with the first of them, image by image: python results/pairs.py FILE RUN RUN [RUN ...].

Exact McNemar tests over the test images, adjusted by Holm over all of them. Per-image answers are in the run folders,
which are not kept here.
"""

import json
import sys
from pathlib import Path

from cutmix.report.compare import pairs
from cutmix.runs.read import read_runs


def main(out: Path, *folders: Path) -> None:
    """Write what was counted and its p-values."""
    runs = read_runs(folders)
    names = {run.label: str(run.recipe["name"]) for run in runs}
    found = [
        {"first": names[pair.first], "second": names[pair.second], "only_first_right": pair.counts.first,
         "only_second_right": pair.counts.second, "p": pair.counts.p, "p_holm": pair.p}
        for pair in pairs(runs) if runs[0].label in (pair.first, pair.second)
    ]  # fmt: skip
    out.write_text("[\n" + ",\n".join(map(json.dumps, found)) + "\n]\n", encoding="utf-8")


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:]))
