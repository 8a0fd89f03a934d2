"""The paper's numbers in the tables with a column for each method: sums, and the means that it prints itself."""

import numpy as np
import pytest

from cutmix.config.recipes import RECIPES
from cutmix.config.tasks import recipe_of_arch
from cutmix.data.outliers import SEVEN
from cutmix.paper.tables import METHODS, TABLES, find_tables
from cutmix.report.metrics import METRICS

BY_METHOD = [table for table in TABLES if table.command]
LOCALIZATION, TRANSFER, FGSM, OOD, CAPTIONING = (
    find_tables(name)[0] for name in ("table9", "table10", "table11", "table12", "tablea2")
)


def numbers(table, label: str) -> list[tuple[float, ...]]:
    return [row.numbers for row in table.lines[label]]


def test_table_12_is_the_mean_of_table_a3() -> None:
    mean, *sets = (np.array(numbers(OOD, label)) for label in OOD.lines)
    assert np.abs(np.mean(sets, 0) - mean).max() <= 0.1 + 1e-9
    assert [*OOD.lines] == ["mean of seven sets", *SEVEN]


def test_every_cell_is_there() -> None:
    for table in BY_METHOD:
        for rows in table.lines.values():
            assert tuple(row.method for row in rows) == METHODS
            assert all(len(row.numbers) == len(row.metrics) for row in rows)


def test_every_row_has_its_metrics_and_its_recipe() -> None:
    for row in (row for table in BY_METHOD for row in table.rows):
        assert set(row.metrics) <= set(METRICS)
        assert (row.recipe is None) == (row.label == "VGG-GAP, ImageNet")
        if row.recipe:
            assert RECIPES[row.recipe].mix == ("none" if row.method == "Baseline" else row.method.lower())
        if row.arch:
            own = recipe_of_arch(row.arch)
            steps = own.epochs * row.training_images // own.batch_size
            assert steps == pytest.approx(120_000 if "mAP" in row.label else 413_915, rel=1e-3)


@pytest.mark.parametrize(
    ("table", "total"),
    [(LOCALIZATION, 740.44), (FGSM, 75.1), (OOD, 5830.1), (TRANSFER, 954.1), (CAPTIONING, 1230.2)],
)
def test_sums(table, total) -> None:  # of the printed values, added up apart from this file
    assert sum(x for row in table.rows for x in row.numbers) == pytest.approx(total)


def test_known_values() -> None:
    assert numbers(LOCALIZATION, "ResNet-50, CUB-200-2011")[3] == (54.81,)
    assert numbers(LOCALIZATION, "ResNet-50, ImageNet") == [(46.30,), (45.84,), (46.69,), (47.25,)]
    assert [row.numbers for row in FGSM.rows] == [(8.2,), (24.4,), (11.5,), (31.0,)]
    assert FGSM.rows[0].at == 8 / 255
    assert OOD.rows[3].numbers == (69.0, 94.4, 89.1)
    assert numbers(TRANSFER, "SSD300, mAP") == [(76.7,), (76.6,), (76.8,), (77.6,)]
    assert numbers(TRANSFER, "Faster R-CNN, mAP") == [(75.6,), (73.9,), (75.0,), (76.7,)]
    assert {label: rows[3].numbers[0] for label, rows in CAPTIONING.lines.items()} == {
        "BLEU-1": 64.2, "BLEU-2": 46.3, "BLEU-3": 33.6, "BLEU-4": 24.9, "METEOR": 23.1, "ROUGE-L": 49.0, "CIDEr": 77.6,
    }  # fmt: skip
    for name in ("BLEU-1", "BLEU-4"):
        assert numbers(TRANSFER, f"Captions, {name}") == numbers(CAPTIONING, name)


def test_what_is_not_known_is_said() -> None:
    assert any("space of the pixels" in note for note in FGSM.remarks)
    assert any("0.3 points below" in note for note in LOCALIZATION.remarks)
    benchmark = (
        [60.0, 63.4, 63.7, 63.7, 56.7, 63.0, 58.3, 63.2, 58.5],
        [59.4, 63.9, 63.3, 62.3, 57.5, 62.8, 58.1, 62.5, 57.7],
    )
    assert [round(float(np.mean(row)), 1) for row in benchmark] == [61.2, 60.8]  # the later benchmark's table
