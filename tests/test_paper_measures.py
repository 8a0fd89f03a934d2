"""The paper's numbers of localization, robustness and the unknown: sums, and the means that it prints itself."""

import numpy as np
import pytest

from cutmix.data.outliers import SEVEN
from cutmix.paper_measures import FGSM, LOCALIZATION, METHODS, UNKNOWN


def test_table_12_is_the_mean_of_table_a3() -> None:
    mean, *sets = (np.array(row.numbers) for row in UNKNOWN.rows)
    assert np.abs(np.mean(sets, 0) - mean).max() <= 0.1 + 1e-9
    assert [row.label for row in UNKNOWN.rows] == ["mean of seven sets", *SEVEN]


def test_every_cell_is_there() -> None:
    for table in (LOCALIZATION, FGSM, UNKNOWN):
        for row in table.rows:
            assert len(row.numbers) == len(METHODS)
            assert {len(cell) for cell in row.numbers} == {len(table.measures)}


@pytest.mark.parametrize(("table", "total"), [(LOCALIZATION, 740.44), (FGSM, 75.1), (UNKNOWN, 5830.1)])
def test_sums(table, total) -> None:  # of the printed values, added up apart from this file
    assert sum(x for row in table.rows for cell in row.numbers for x in cell) == pytest.approx(total)


def test_known_values() -> None:
    assert LOCALIZATION.rows[0].numbers[3] == (54.81,)
    assert LOCALIZATION.rows[1].numbers == ((46.30,), (45.84,), (46.69,), (47.25,))
    assert FGSM.rows[0].numbers == ((8.2,), (24.4,), (11.5,), (31.0,))
    assert UNKNOWN.rows[0].numbers[3] == (69.0, 94.4, 89.1)


def test_what_is_not_known_is_said() -> None:
    assert any("space of the pixels" in note for note in FGSM.notes)
    assert any("0.3 points below" in note for note in LOCALIZATION.notes)
    benchmark = (
        [60.0, 63.4, 63.7, 63.7, 56.7, 63.0, 58.3, 63.2, 58.5],
        [59.4, 63.9, 63.3, 62.3, 57.5, 62.8, 58.1, 62.5, 57.7],
    )
    assert [round(float(np.mean(row)), 1) for row in benchmark] == [61.2, 60.8]  # the later benchmark's table
