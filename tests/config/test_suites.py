"""The table of suites and its agreement with the commands, the report and the paper's tables."""

from dataclasses import fields

import pytest

from cutmix.config.options import EvaluateOptions
from cutmix.config.tasks import EVALUATE, SUITES, TASKS, parse_suites
from cutmix.errors import InputError
from cutmix.paper.tables import TABLES


def test_all_and_lists_keep_the_order_of_the_table() -> None:
    assert parse_suites("all") == EVALUATE == ("classification", "calibration", "robustness", "ood", "localization")
    assert parse_suites("ood, calibration") == ("calibration", "ood")
    assert parse_suites("ood,all") == EVALUATE


@pytest.mark.parametrize("text", ["", "rubbish", "ood,", "detection"])
def test_an_unknown_suite_is_refused(text: str) -> None:
    with pytest.raises(
        InputError, match=r'--suite is ".*"; expected classification, .*, several separated by commas, or all'
    ):
        parse_suites(text)


def test_the_table_names_what_there_is() -> None:
    flags = {field.name for field in fields(EvaluateOptions)}
    tables = {table.name for table in TABLES}
    for name, suite in SUITES.items():
        assert suite.name == name
        assert set(suite.flags) <= flags
        assert not suite.paper or suite.paper in tables
    assert {name for name, suite in SUITES.items() if suite.command == "transfer"} == set(TASKS)


def test_every_suite_has_its_runner() -> None:
    from cutmix.evaluation.command import RUNNERS

    assert tuple(RUNNERS) == EVALUATE
