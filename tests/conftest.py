"""Fixtures that several files use."""

import inspect
import signal
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw
from torch import Tensor

from cutmix.transfer.detection_data import BoxedImage


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark every test whose code or parameters name float16 or bfloat16."""
    for item in items:
        if isinstance(item, pytest.Function) and "float16" in item.name + inspect.getsource(item.function):
            item.add_marker("precision")


@pytest.fixture(autouse=True)
def signals_as_in_a_terminal() -> Iterator[None]:
    """Undo what nohup and a shell's background jobs do: ignored signals stay ignored, in the product too."""
    usual = {signal.SIGINT: signal.default_int_handler, signal.SIGHUP: signal.SIG_DFL, signal.SIGTERM: signal.SIG_DFL}
    ignored = [number for number in usual if signal.getsignal(number) is signal.SIG_IGN]
    for number in ignored:
        signal.signal(number, usual[number])
    yield
    for number in ignored:
        signal.signal(number, signal.SIG_IGN)


@pytest.fixture
def numbered() -> Callable[..., Tensor]:
    """Return a maker of batches in which every pixel of a sample is the sample's index."""

    def make(n: int, *shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
        return torch.arange(n).reshape(-1, *[1] * len(shape)).expand(n, *shape).to(dtype).contiguous()

    return make


@pytest.fixture
def no_recompilation() -> Iterator[None]:
    """Make torch.compile raise where it would compile a second time."""
    torch._dynamo.reset()
    with torch._dynamo.config.patch(error_on_recompile=True):
        yield
    torch._dynamo.reset()


@pytest.fixture(scope="session")
def voc_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder in Pascal VOC's layout: 12 images with a red dog or a blue cat, rectangles of several sizes."""
    folder = tmp_path_factory.mktemp("voc")
    for name in ("JPEGImages", "Annotations"):
        (folder / name).mkdir()
    random = np.random.default_rng(0)
    for number in range(12):
        width, height = (int(side) for side in random.integers(60, 90, 2))
        left, top, side = (int(value) for value in random.integers((2, 2, 25), (25, 25, 33)))
        image = Image.fromarray(random.integers(90, 160, (height, width, 3), dtype=np.uint8))
        color = ((230, 20, 20), (20, 20, 230))[number % 2]
        ImageDraw.Draw(image).rectangle((left, top, left + side - 1, top + side - 1), fill=color)
        image.save(folder / "JPEGImages" / f"{number:02}.png")
        box = "".join(
            f"<{name}>{value}</{name}>"
            for name, value in zip(
                ("xmin", "ymin", "xmax", "ymax"), (left + 1, top + 1, left + side, top + side), strict=True
            )
        )
        (folder / "Annotations" / f"{number:02}.xml").write_text(
            f"<annotation><size><width>{width}</width><height>{height}</height></size>"
            f"<object><name>{('dog', 'cat')[number % 2]}</name><bndbox>{box}</bndbox></object></annotation>"
        )
    return folder


@pytest.fixture
def boxed() -> Callable[..., BoxedImage]:
    """Return a maker of images with boxes, none of them difficult unless it is said."""

    def make(
        path: Path,
        size: tuple[int, int],
        boxes: Sequence[Sequence[float]],
        labels: Sequence[int],
        difficult: Sequence[bool] | None = None,
    ) -> BoxedImage:
        corners = torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4)
        marks = torch.tensor(difficult or [False] * len(boxes), dtype=torch.bool)
        areas = (corners[:, 2:] - corners[:, :2]).prod(1).double()
        return BoxedImage(path, size, corners, torch.tensor(labels, dtype=torch.int64), marks, areas)

    return make


@pytest.fixture(scope="session")
def caption_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder in Flickr8k's layout: 12 images of one color with two captions each."""
    folder = tmp_path_factory.mktemp("captions")
    (folder / "images").mkdir()
    lines = ["image,caption"]
    for number in range(12):
        color, name = (((200, 30, 30), "red"), ((30, 30, 200), "blue"), ((30, 180, 30), "green"))[number % 3]
        Image.new("RGB", (40 + number, 50), tuple(part + number for part in color)).save(
            folder / "images" / f"{number:02}.png"
        )
        lines += [
            f"{number:02}.png,A picture of something {name} .",
            f"{number:02}.png,The {name} wall is {number % 2}",
        ]
    (folder / "captions.txt").write_text("\n".join(lines) + "\n")
    return folder
