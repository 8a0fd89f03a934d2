"""Fixtures that several files use."""

from collections.abc import Callable, Iterator

import pytest
import torch
from torch import Tensor


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
