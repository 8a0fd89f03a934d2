"""The paper's numbers beside its main tables: sums, and the means that it prints itself."""

import numpy as np
import pytest

from cutmix.config.recipes import RECIPES
from cutmix.config.transfer import recipe_of_arch
from cutmix.data.outliers import SEVEN
from cutmix.paper.tables import CAPTIONING, FGSM, LOCALIZATION, METHODS, MORE_TABLES, TRANSFER, UNKNOWN
from cutmix.report.metrics import MEASURES


def test_table_12_is_the_mean_of_table_a3() -> None:
    mean, *sets = (np.array(row.numbers) for row in UNKNOWN.rows)
    assert np.abs(np.mean(sets, 0) - mean).max() <= 0.1 + 1e-9
    assert [row.label for row in UNKNOWN.rows] == ["mean of seven sets", *SEVEN]


def test_every_cell_is_there() -> None:
    for table in MORE_TABLES:
        for row in table.rows:
            assert len(row.numbers) == len(METHODS)
            assert {len(cell) for cell in row.numbers} == {len(row.measures)}


def test_every_row_says_what_measures_it() -> None:
    for table in MORE_TABLES:
        for row in table.rows:
            assert set(row.measures) <= set(MEASURES)
            assert len(row.recipes) == (0 if row.label == "VGG-GAP, ImageNet" else 4)
            for name, method in zip(row.recipes, METHODS, strict=False):
                mix = "none" if method == "Baseline" else method.lower()
                assert RECIPES[name].mix == mix
            if row.arch:
                assert recipe_of_arch(row.arch).epochs * row.training_pictures // recipe_of_arch(
                    row.arch
                ).batch_size == pytest.approx(
                    120_000 if table is TRANSFER and "mAP" in row.label else 413_915, rel=1e-3
                )


@pytest.mark.parametrize(
    ("table", "total"),
    [(LOCALIZATION, 740.44), (FGSM, 75.1), (UNKNOWN, 5830.1), (TRANSFER, 954.1), (CAPTIONING, 1230.2)],
)
def test_sums(table, total) -> None:  # of the printed values, added up apart from this file
    assert sum(x for row in table.rows for cell in row.numbers for x in cell) == pytest.approx(total)


def test_known_values() -> None:
    assert LOCALIZATION.rows[0].numbers[3] == (54.81,)
    assert LOCALIZATION.rows[1].numbers == ((46.30,), (45.84,), (46.69,), (47.25,))
    assert FGSM.rows[0].numbers == ((8.2,), (24.4,), (11.5,), (31.0,))
    assert UNKNOWN.rows[0].numbers[3] == (69.0, 94.4, 89.1)
    assert TRANSFER.rows[0].numbers == ((76.7,), (76.6,), (76.8,), (77.6,))
    assert TRANSFER.rows[1].numbers == ((75.6,), (73.9,), (75.0,), (76.7,))
    cutmix = {row.label: row.numbers[3][0] for row in CAPTIONING.rows}
    assert cutmix == {"BLEU-1": 64.2, "BLEU-2": 46.3, "BLEU-3": 33.6, "BLEU-4": 24.9, "METEOR": 23.1, "ROUGE-L": 49.0,
                      "CIDEr": 77.6}  # fmt: skip
    assert [row.numbers for row in TRANSFER.rows[2:]] == [CAPTIONING.rows[0].numbers, CAPTIONING.rows[3].numbers]


def test_what_is_not_known_is_said() -> None:
    assert any("space of the pixels" in note for note in FGSM.notes)
    assert any("0.3 points below" in note for note in LOCALIZATION.notes)
    benchmark = (
        [60.0, 63.4, 63.7, 63.7, 56.7, 63.0, 58.3, 63.2, 58.5],
        [59.4, 63.9, 63.3, 62.3, 57.5, 62.8, 58.1, 62.5, 57.7],
    )
    assert [round(float(np.mean(row)), 1) for row in benchmark] == [61.2, 60.8]  # the later benchmark's table
