"""The flags that are no part of a recipe."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from cutmix.config.options import DataOptions, PreviewOptions, ReportOptions, TrainOptions
from cutmix.errors import InputError


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"workers": -1}, "--workers is -1; expected 0 to 1,024"),
        ({"log_every": 0}, "--log-every is 0; expected at least 1"),
        ({"checkpoint_every": -1}, "--checkpoint-every is -1; expected at least 0"),
        ({"resume": True, "overwrite": True}, "--resume and --overwrite are both given"),
    ],
)
def test_what_cannot_be_is_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        TrainOptions(**changes)


@pytest.mark.parametrize(
    ("kind", "ending"), [(DataOptions, ".png"), (PreviewOptions, ".png"), (ReportOptions, ".html")]
)
def test_an_output_has_the_ending_of_its_kind(kind: Any, ending: str) -> None:
    kind("run", out=Path(f"a{ending.upper()}"))
    for name in ("run/results.jsonl", "photos/a.jpg", "run", ".png"):
        with pytest.raises(InputError, match=f"--out is {name}; expected a name that ends in {ending}"):
            kind("run", out=Path(name))


def test_the_processes_of_a_machine_share_its_cores() -> None:
    script = "from cutmix.config.options import CORES, WORKERS; print(CORES, WORKERS)"

    def cores(**where: str) -> list[int]:
        done = subprocess.run([sys.executable, "-c", script], env=os.environ | where, capture_output=True, check=True)
        return [*map(int, done.stdout.split())]

    every, workers = cores()
    assert workers == min(8, every)
    assert cores(LOCAL_WORLD_SIZE=str(every)) == [1, 1]
    assert cores(LOCAL_WORLD_SIZE=str(2 * every)) == [1, 1]
