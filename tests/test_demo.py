"""The demo, shortened."""

from pathlib import Path

import pytest

from cutmix.cli import main
from cutmix.config.recipes import find_recipe
from cutmix.runs.folder import saved_recipe
from cutmix.runs.record import read_records


def test_the_demo_compares_two_methods_and_is_not_run_twice(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["demo", "--epochs", "1", "--device", "cpu", "--out", str(tmp_path / "demo")]
    main(words)
    said = capsys.readouterr().out
    written = {}
    for mix in ("none", "cutmix"):
        file = tmp_path / f"demo/digits-resnet20-{mix}-seed0/results.jsonl"
        line, written[file] = read_records(file)[0], file.stat().st_mtime_ns
        assert (line.mix, line.n, line.epoch) == (mix, 797, 1)
        assert f"{line.value:.2f}" in said
        assert f"{100 - line.value:.1f}" in said
    assert saved_recipe(file.parent).mix_prob == find_recipe("digits-resnet20-cutmix").mix_prob
    assert "note: cutmix has" not in said  # other settings than its recipe
    assert "digits-resnet20-cutmix" in (tmp_path / "demo/report.html").read_text()
    main(words)
    assert {file: file.stat().st_mtime_ns for file in written} == written
    assert "of 100 images right" in capsys.readouterr().out
