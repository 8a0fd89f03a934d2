"""A pipe where a file is meant is refused by every reader; nothing waits for a program that may write into it."""

import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from cutmix.data.boxes import read_annotation
from cutmix.data.decode import read_image
from cutmix.data.folder import read_text
from cutmix.data.formats import _read_idx_file, _unpickle
from cutmix.data.tables import read_label_file
from cutmix.errors import InputError
from cutmix.runs.read import read_arrays, read_config
from cutmix.runs.record import read_records
from cutmix.runtime.checkpoint import load_checkpoint, read_header
from cutmix.runtime.files import read_lenient_text, read_lines, regular
from cutmix.runtime.weights import read_weights
from cutmix.training.settings import read_config_file
from cutmix.training.setup import _read_file
from cutmix.transfer.layouts import Box, read_coco, read_list


@pytest.fixture
def pipe(tmp_path: Path) -> Iterator[Path]:
    def hangs(*_: object) -> None:
        raise TimeoutError

    before = signal.signal(signal.SIGALRM, hangs)
    signal.alarm(20)
    os.mkfifo(tmp_path / "pipe.jpg")
    yield tmp_path / "pipe.jpg"
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)


@pytest.mark.parametrize(
    "read",
    [
        read_config_file, read_annotation, read_image, read_text, read_label_file, read_arrays, read_config,
        read_records, load_checkpoint, read_lines, read_header, read_weights, _unpickle, _read_file, read_lenient_text,
        lambda path: _read_idx_file(path, 1), lambda path: read_coco(path, Box), lambda path: read_list(path, (), ""),
    ],
)  # fmt: skip
def test_a_pipe_is_refused(read: Callable[[Path], object], pipe: Path) -> None:
    with pytest.raises(InputError, match=r"pipe\.jpg.*(it is a pipe or a device|it is not a regular file)"):
        read(pipe)


def test_a_folder_and_a_path_to_nothing_are_left_to_the_reader(tmp_path: Path) -> None:
    assert regular(tmp_path) == tmp_path
    assert regular(tmp_path / "absent") == tmp_path / "absent"
    with pytest.raises(OSError, match="pipe or a device"):
        regular(Path("/dev/null"))
