"""The paper's numbers: a literal sample of each table, its counts, and that every row has the recipe it names."""

import pytest

from cutmix.config.recipes import RECIPES
from cutmix.errors import InputError
from cutmix.paper.tables import DATA, FOOTNOTES, TABLES, find_rows, find_runnable, find_tables

PRINTED = {
    ("table1", "Baseline"): (76.3,),
    ("table1", "CutMix"): (78.6,),
    ("table3", "ResNet-152"): (21.69, 5.94),
    ("table3", "ResNet-50 (Baseline)"): (23.68, 7.05),
    ("table3", "ResNet-50 + StochDepth"): (22.46, 6.27),
    ("table3", "ResNet-50 + DropBlock"): (21.87, 5.98),
    ("table3", "ResNet-50 + Feature CutMix"): (21.80, 6.06),
    ("table3", "ResNet-50 + CutMix"): (21.40, 5.92),
    ("table4", "ResNet-101 + CutMix"): (20.17, 5.24),
    ("table4", "ResNeXt-101 + CutMix"): (19.47, 5.03),
    ("table5", "Baseline"): (16.45, 3.69),
    ("table5", "Label smoothing (ε = 0.1)"): (16.73, 3.37),
    ("table5", "DropBlock + Label smoothing (ε = 0.1)"): (15.16, 3.86),
    ("table5", "Mixup (α = 0.5)"): (15.78, 4.04),
    ("table5", "Cutout + Manifold Mixup (α = 1.0)"): (15.09, 3.35),
    ("table5", "ShakeDrop"): (15.08, 2.72),
    ("table5", "CutMix"): (14.47, 2.97),
    ("table5", "CutMix + ShakeDrop"): (13.81, 2.29),
    ("table6", "PyramidNet-110 (Baseline)"): (19.85, 4.66),
    ("table6", "PyramidNet-110 + CutMix"): (17.97, 3.83),
    ("table6", "ResNet-110 (Baseline)"): (23.14, 5.95),
    ("table6", "ResNet-110 + CutMix"): (20.11, 4.43),
    ("table7", "Baseline"): (3.85,),
    ("table7", "CutMix"): (2.88,),
    ("table8", "Center Gaussian CutMix"): (15.95, 3.40),
    ("table8", "Fixed-size CutMix"): (14.97, 3.15),
    ("table8", "One-hot CutMix"): (15.89, 3.32),
    ("table8", "Scheduled CutMix"): (14.72, 3.17),
    ("table8", "Complete-label CutMix"): (15.17, 3.10),
}
BY_ROW = find_runnable("all")
ROWS = {"table1": 4, "table3": 14, "table4": 6, "table5": 15, "table6": 4, "table7": 5, "table8": 7,
        "figure2": 4, "figure3-alpha": 7, "figure3-layer": 6, "talk": 3, "smmix": 18}  # fmt: skip


def test_numbers_are_those_of_the_paper() -> None:
    ours = {(table.name, row.label): row.numbers for table in BY_ROW if table.name != "smmix" for row in table.rows}
    assert {key: ours[key] for key in PRINTED} == PRINTED
    assert sum(number for numbers in ours.values() for number in numbers) == pytest.approx(1392.36)  # of all 55 rows


def test_every_row_is_there() -> None:
    assert {table.name: len(table.rows) for table in BY_ROW} == ROWS
    for table in BY_ROW:
        assert len({row.label for row in table.rows}) == len(table.rows)
        for row in table.rows:
            printed = table.name[:3] not in ("fig", "tal") and "CaiT" not in row.label
            assert len(row.numbers) == (len(row.metrics) if printed else 0)


def test_every_row_has_its_recipe_or_is_quoted() -> None:
    for table in BY_ROW:
        for row in table.rows:
            assert row.recipe in RECIPES or (row.recipe is None and row.quoted), row
            if row.recipe:
                assert RECIPES[row.recipe].data in DATA
                assert RECIPES[row.recipe].epochs == 300
                large = 1024 if table.name == "smmix" else 256
                assert (RECIPES[row.recipe].batch_size == large) == (RECIPES[row.recipe].data == "imagenet")


def test_the_sweeps_sweep_what_their_axes_say() -> None:
    (alpha,), (layer,) = find_tables("figure3-alpha"), find_tables("figure3-layer")
    assert [row.x for row in alpha.rows if row.recipe and RECIPES[row.recipe].alpha == row.x] == [
        0.1,
        0.25,
        0.5,
        1,
        2,
        4,
    ]
    assert [row.x for row in layer.rows[1:]] == [0, 1, 2, 3, 4]


def test_footnotes_are_there_and_used() -> None:
    used = {letter for table in TABLES for letter in table.notes + "".join(row.notes for row in table.rows)}
    assert used == set(FOOTNOTES)
    said = " ".join(FOOTNOTES.values())
    for discrepancy in ("14.23", "14.47", "15.07", "14.96", "21.60", "λ was not corrected", "probability", "21.78"):
        assert discrepancy in said


def test_each_table_compares_with_a_baseline() -> None:
    for table in BY_ROW:
        networks = {"table4": 2, "table6": 2, "figure2": 2, "smmix": 9}
        assert sum(row.is_baseline for row in table.rows) == networks.get(table.name, 1)


@pytest.mark.parametrize("word", ["table5", "5", "Table 5", "TABLE5"])
def test_a_table_has_several_names(word: str) -> None:
    assert [table.name for table in find_tables(word)] == ["table5"]


def test_a_figure_is_both_of_its_parts() -> None:
    assert [table.name for table in find_tables("figure3")] == ["figure3-alpha", "figure3-layer"]
    assert find_tables("all") == TABLES
    assert [table.heading.partition(":")[0] for table in BY_ROW][-5:] == [
        "Figure 2", "Figure 3", "Figure 3", "Talk", "SMMix",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("word", "name"), [("table 10", "table10"), ("10", "table10"), ("A2", "tablea2"), ("Table A3", "table12")]
)
def test_the_other_tables_are_found_the_same_way(word: str, name: str) -> None:
    assert [table.name for table in find_tables(word)] == [name]


@pytest.mark.parametrize(
    ("word", "reason"), [("tabel5", "did you mean 'table5'"), ("2", "there are table1|did you mean"), ("", "no table")]
)
def test_an_unknown_table_is_refused(word: str, reason: str) -> None:
    with pytest.raises(InputError, match=reason):
        find_tables(word)


def test_rows_are_found_by_label_or_recipe() -> None:
    (table,) = find_tables("table3")
    assert [row.label for row in find_rows((table,), ("imagenet-resnet50-cutmix", "resnet-50 + cutout"))] == [
        "ResNet-50 + Cutout", "ResNet-50 + CutMix"
    ]  # fmt: skip
    assert len(find_rows((table,), ())) == 9  # without those that no recipe runs
    with pytest.raises(InputError, match=r'no row "CutMx"; did you mean .*ResNet-50 \+ CutMix'):
        find_rows((table,), ("CutMx",))
    with pytest.raises(InputError, match='"ResNet-152" of table3 is quoted'):
        find_rows((table,), ("ResNet-152",))
