"""The demo, shortened."""

from pathlib import Path

import pytest

from cutmix.cli import main
from cutmix.runs.record import read_records


def test_the_demo_trains_twice_and_makes_a_page(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for _ in range(2):  # an earlier demo is replaced
        main(["demo", "--epochs", "1", "--device", "cpu", "--out", str(tmp_path / "demo")])
    said = capsys.readouterr().out
    for name, mix in (("digits-resnet20", "none"), ("digits-resnet20-cutmix", "cutmix")):
        line = read_records(tmp_path / "demo" / name / "results.jsonl")[0]
        assert (line.mix, line.n, line.epoch) == (mix, 797, 1)
        assert f"{line.value:.2f}" in said
    page = (tmp_path / "demo/report.html").read_text()
    assert "<html" in page
    assert "digits-resnet20-cutmix" in page
