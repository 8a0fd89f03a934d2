"""Compare runs with the first of them, image by image: ``python scripts/pairs.py FILE RUN RUN [RUN ...]``.

Writes exact McNemar tests over the test images, adjusted by Holm's method over all of them. They need the predictions
in the run folders; the folders of the results here are not kept.
"""

import json
import sys
from pathlib import Path

from cutmix.report.compare import pairs
from cutmix.runs.read import read_runs


def main(out: Path, *folders: Path) -> None:
    """Write the discordant counts and the p-values of each pair."""
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
