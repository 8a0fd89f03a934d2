"""``cutmix paper``: every table of the paper by its name, printed with what was measured and what was not."""

from pathlib import Path

import pytest

from cutmix.cli import main
from cutmix.errors import InputError
from cutmix.paper.tables import TABLES, find_runnable
from cutmix.runs.record import Record, append_records

PYRAMID = "cifar100-pyramidnet200"


def write_results(path: Path) -> None:
    """Write the results of a short run of Table 5's baseline, and of a small detector."""
    short = Record(
        source="training", recipe=f"{PYRAMID}+resnet20+short", recipe_changes={}, data="cifar-100", split="test",
        model="resnet20", epochs=10, seed=0, metric="top1_err", value=40.0, low=39.0, high=41.0, n=10_000,
    )  # fmt: skip
    small = Record(
        source="training", task="detection", recipe="ssd300-small-none", recipe_changes={}, data="voc-100",
        split="test", model="test_resnet", arch="ssd300", epochs=30, backbone="none", metric="map", value=1.8, n=20,
    )  # fmt: skip
    path.parent.mkdir(parents=True)
    append_records(path, [short, small])
    path.with_suffix(".log.jsonl").write_text('{"kind": "epoch", "epoch": 1}\n')  # which is passed over


def test_the_command_prints_tables_and_footnotes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    write_results(tmp_path / "results/a.jsonl")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "200")
    main(["paper", "5", "table7"])
    said = capsys.readouterr().out
    for sentence in (
        "Table 5: CIFAR-100",
        "Table 7: CIFAR-10",
        "40.00 [",
        "network resnet20, 10 of 300 epochs",
        "[b] Version 1",
    ):
        assert sentence in said
    assert "Table 8" not in said
    main(["paper", "table10", "A2"])
    said = capsys.readouterr().out
    for sentence in (
        "SSD300, mAP: paper       │ 76.7",
        "SSD300, mAP: here        │ not run",
        "ssd300-small-none is not the paper’s protocol: network test_resnet, 30 of 232 epochs, data voc-100, 20 test",
        "a backbone of random weights",
        "Run by: cutmix transfer detection --arch ssd300",
        "The baseline’s ROUGE, 44.7, is out of line",
    ):
        assert sentence in said
    assert "McNemar" not in said  # no classification table, no test of one
    main(["paper"])
    assert capsys.readouterr().out.count("not run") > 100


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        (["paper", "table2"], 'no table "table2"'),
        (["paper", "--runs", "absent"], "absent is not a folder"),
        (["paper", "--results", "absent.jsonl"], "absent.jsonl is not a file"),
    ],
)
def test_a_mistake_is_one_sentence(capsys: pytest.CaptureFixture[str], words: list[str], reason: str) -> None:
    with pytest.raises(SystemExit) as stopped:
        main(words)
    assert stopped.value.code == 2
    assert reason in capsys.readouterr().err


def test_every_table_is_printed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "200")
    main(["paper"])
    said = capsys.readouterr().out
    for table in TABLES:
        assert f"\n{table.heading}" in said.replace(" [", "\n[")


def test_rows_that_other_commands_run_are_named_with_them() -> None:
    assert [table.name for table in find_runnable("5")] == ["table5"]
    assert find_runnable("all") == tuple(table for table in TABLES if not table.command)
    for table in (table for table in TABLES if table.command):
        with pytest.raises(InputError, match="they are run by cutmix") as refused:
            find_runnable(table.name)
        assert table.command in str(refused.value)
