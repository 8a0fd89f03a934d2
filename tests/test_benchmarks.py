"""Every benchmark runs, and writes what it measured with its circumstances."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

FOLDER = Path(__file__).parent.parent / "benchmarks"
RUNS = (
    "average_precision", "captioning", "describe", "input", "localization", "mixing", "ood", "predict", "shards",
    *(
        f"training --only {part}"
        for part in ("memory", "step", "loop", "network", "small", "pair", "smmix", "attention")
    ),
)  # fmt: skip


def test_every_benchmark_is_among_them() -> None:
    scripts = {path.stem for path in FOLDER.glob("*.py") if "__main__" in path.read_text()}
    assert {run.split()[0] for run in RUNS} == scripts - {"defaults", "gpu"}  # whose file is the record; tested below


@pytest.mark.slow
@pytest.mark.parametrize("run", RUNS)
def test_it_runs(run: str, tmp_path: Path) -> None:
    script, *flags = run.split()
    command = [sys.executable, str(FOLDER / f"{script}.py"), *flags, "--quick", "--threads", "1", "--json", "rows.json"]
    subprocess.run(command, cwd=tmp_path, check=True, capture_output=True, timeout=600)
    record = json.loads((tmp_path / "rows.json").read_text())
    assert {"torch", "device", "threads", "cores", "commit", "load_before"} <= set(record["circumstances"])
    assert record["rows"]
    for row in record["rows"]:
        assert row["ratio"] == pytest.approx(row["ours"] / row["theirs"])
        assert row["ours"] > 0


def test_the_gpu_benchmark_writes_each_row_and_resumes(tmp_path: Path) -> None:
    command = [sys.executable, str(FOLDER / "gpu.py"), "--quick", "--threads", "1", "--json", "rows.json", "--resume"]

    def run(*flags: str) -> list[dict[str, Any]]:
        subprocess.run([*command, *flags], cwd=tmp_path, check=True, capture_output=True, timeout=600)
        return json.loads((tmp_path / "rows.json").read_text())

    rows = run()
    assert {row["part"] for row in rows} == {"waits", "kernels", "network", "large", "pairs"}
    assert not [row["error"] for row in rows if "error" in row]
    assert all({"device", "torch", "precision", "seed", "command", "commit", "seconds"} <= set(row) for row in rows)
    assert run("--only", "kernels") == rows  # nothing is measured again
