"""The page shows where networks look that were trained with SMMix, and says nothing of others."""

import json
from pathlib import Path

import pytest
from PIL import Image

from cutmix.config.recipes import find_recipe
from cutmix.errors import InputError
from cutmix.report.suites import attention
from cutmix.report.summary import write_report
from cutmix.runs.read import read_runs


def run_folder(path: Path, mix: str) -> Path:
    path.mkdir()
    recipe = find_recipe(f"cifar100-deit-tiny-{mix}").to_dict()
    (path / "config.json").write_text(json.dumps({"recipe": recipe, "command": "cutmix train"}))
    (path / "log.jsonl").write_text("")
    return path


def test_a_figure_of_each_run_that_has_one(tmp_path: Path) -> None:
    folders = [run_folder(tmp_path / mix, mix) for mix in ("smmix", "cutmix")]
    assert attention(read_runs(folders)) is None
    (folders[0] / "figures").mkdir()
    Image.new("RGB", (31, 17)).save(folders[0] / "figures" / "attention.png")
    section = attention(read_runs(folders))
    assert section is not None
    assert section.body.count("<img") == 1
    assert 'width="31" height="17"' in section.body
    assert "smmix, after training" in section.body
    page = write_report(folders, tmp_path / "report.html").read_text()
    assert 'id="attention"' in page


def test_what_is_no_figure_is_named(tmp_path: Path) -> None:
    folder = run_folder(tmp_path / "run", "smmix")
    (folder / "figures").mkdir()
    (folder / "figures" / "attention.png").write_text("no figure")
    with pytest.raises(InputError, match=r"attention\.png is not a PNG image"):
        attention(read_runs([folder]))
