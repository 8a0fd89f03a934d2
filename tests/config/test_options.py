"""The flags that are no part of a recipe."""

from typing import Any

import pytest

from cutmix.config.options import TrainOptions
from cutmix.errors import InputError


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"workers": -1}, "--workers is -1; expected at least 0"),
        ({"log_every": 0}, "--log-every is 0; expected at least 1"),
        ({"checkpoint_every": -1}, "--checkpoint-every is -1; expected at least 0"),
        ({"resume": True, "overwrite": True}, "--resume and --overwrite are both given"),
    ],
)
def test_what_cannot_be_is_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        TrainOptions(**changes)
