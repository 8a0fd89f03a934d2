"""A line of results has one type: what is written is read back, and anything else is refused with its place."""

import json
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cutmix.config.recipes import RECIPES, recipe_changes
from cutmix.errors import InputError
from cutmix.runs.record import SCHEMA, Record, append_records, read_records

RESULTS = Path(__file__).parents[2] / "results"
LINE = Record(metric="top1_err", value=1.5, recipe="one", data="digits", split="test").to_json()


def write(path: Path, *lines: dict[str, Any] | str) -> Path:
    path.write_text("".join((line if isinstance(line, str) else json.dumps(line)) + "\n" for line in lines))
    return path


def test_a_record_is_read_as_it_was_written(tmp_path: Path) -> None:
    full = Record(
        metric="fgsm_err", value=np.float64(12.5), low=1, high=20.25, n=797, at=8 / 255, source="training",
        recipe_changes={"epochs": 1, "milestones": [0.5, 0.75], "weights": None}, seconds=3, note="λ – 'x'",
    )  # fmt: skip
    append_records(tmp_path / "results.jsonl", [full, Record(metric="ece", value=None)])
    assert read_records(tmp_path / "results.jsonl") == [full, Record(metric="ece", value=None)]
    assert read_records(tmp_path / "absent.jsonl") == []
    line = json.loads((tmp_path / "results.jsonl").read_text().splitlines()[1])
    assert (line["schema"], line["value"]) == (SCHEMA, None)
    assert "low" not in line  # what is None is left out


def test_every_committed_result_is_a_record_and_written_as_it_stands() -> None:
    files = [path for path in RESULTS.glob("*.jsonl") if not path.name.endswith(".log.jsonl")]
    assert len(files) >= 7
    for path in files:
        again = [json.dumps(record.to_json(), ensure_ascii=False) for record in read_records(path)]
        assert again == path.read_text(encoding="utf-8").splitlines()


def test_a_value_that_is_not_finite_is_no_result() -> None:
    record = Record(metric="nll", value=float("nan"), low=1.0, high=2.0, note="few")
    assert (record.value, record.low, record.high) == (None, None, None)
    assert record.note == "few; the nll is nan, so there is no result"
    assert Record(metric="nll", value=1.0, low=0.5, high=float("inf")).low is None


@pytest.mark.parametrize("field", [field.name for field in fields(Record)])
def test_every_field_has_a_type(tmp_path: Path, field: str) -> None:
    for wrong in ([1], [[]], True if field != "few" else 1, {"a": 1} if field != "recipe_changes" else 5):
        with pytest.raises(InputError, match=rf"r\.jsonl, line 2: {field} is .*; expected "):
            read_records(write(tmp_path / "r.jsonl", LINE, LINE | {field: wrong}))


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (LINE | {"measure": "top1_err"}, "has an unknown field 'measure'"),
        (LINE | {"schema": 2}, "schema is 2; expected 1"),
        (LINE | {"schema": True}, "schema is True; expected 1"),
        ({k: v for k, v in LINE.items() if k != "schema"}, "schema is None"),
        ({k: v for k, v in LINE.items() if k != "source"}, "has no field 'source'; expected one of training"),
        (LINE | {"source": "guess"}, "source is \"guess\"; expected one of training, evaluation"),
        (LINE | {"value": "1.5"}, "value is \"1.5\"; expected a number or null"),
        (LINE | {"n": 1.0}, "n is 1.0; expected a whole number or null"),
        (LINE | {"metric": None}, "metric is null; expected a text"),
        (LINE | {"note": "x" * 999, "recipe": 5}, "recipe is 5"),
        (json.dumps(LINE | {"value": float("nan")}), "NaN is not a JSON number"),
        (json.dumps(LINE).replace("1.5", "1e999"), "value is Infinity"),
        (json.dumps(LINE).replace("1.5", "9" * 400), "value is 9"),
        (json.dumps(LINE | {"note": "\ud800"}), "has half a surrogate pair"),
        ("[" * 200_000 + "]" * 200_000, "is nested too deeply"),
        ('{"a":' * 200_000 + "1" + "}" * 200_000, "is nested too deeply"),
        ("[1]", "is a list; expected one JSON object"),
        ("null", "is null; expected one JSON object"),
        ('"text"', 'is "text"; expected one JSON object'),
        ("{", "is not JSON in UTF-8"),
    ],
    ids=range(20),
)  # fmt: skip
def test_another_line_is_refused_in_one_sentence(tmp_path: Path, line: dict[str, Any] | str, message: str) -> None:
    with pytest.raises(InputError) as refused:
        read_records(write(tmp_path / "results.jsonl", LINE, line, LINE))
    assert "results.jsonl, line 2" in str(refused.value)
    assert message in str(refused.value)
    assert len(str(refused.value)) < 400
    assert "\n" not in str(refused.value)


def test_bytes_that_are_not_utf_8_are_refused(tmp_path: Path) -> None:
    (tmp_path / "results.jsonl").write_bytes(b'{"metric": "\xff"}\n')
    with pytest.raises(InputError, match=r"line 1 is not JSON in UTF-8 \('utf-8' codec"):
        read_records(tmp_path / "results.jsonl")
    (tmp_path / "folder.jsonl").mkdir()
    with pytest.raises(InputError, match=r"folder\.jsonl cannot be read: Is a directory"):
        read_records(tmp_path / "folder.jsonl")


def test_a_file_name_that_is_not_utf_8_comes_back(tmp_path: Path) -> None:
    odd = Record(metric="ece", value=1.0, file=b"runs/\xff.pth".decode(errors="surrogateescape"))
    append_records(tmp_path / "results.jsonl", [odd])
    assert read_records(tmp_path / "results.jsonl") == [odd]


def test_what_differs_from_the_named_recipe() -> None:
    own = RECIPES["cifar100-resnet20-cutmix"]
    assert recipe_changes(own) == {}
    assert recipe_changes(replace(own, seed=3, data="/d/cifar-100", precision="bfloat16")) == {}
    assert recipe_changes(replace(own, lr=0.2, crop_scale=(0.5, 1.0))) == {"lr": 0.2, "crop_scale": [0.5, 1.0]}
    assert recipe_changes(replace(own, name="cifar100-resnet20-cutmix+short", epochs=3)) == {"epochs": 3}
    assert recipe_changes(replace(own, name="mine")) is None
    photos = RECIPES["photos"]
    assert recipe_changes(replace(photos, image_size=224)) == {}
    assert recipe_changes(replace(photos, image_size=96)) == {"image_size": 96}
