"""SIGTERM and Ctrl-C: remembered, so that the loop can save before it ends."""

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType


class Stop:
    """What a signal asked for.

    Attributes:
        number: The signal's number; None while there was none.
    """

    def __init__(self) -> None:
        self.number: int | None = None

    def __call__(self, number: int, frame: FrameType | None) -> None:
        """Remember the signal; a second Ctrl-C does not wait for the step to end."""
        if self.number == signal.SIGINT == number:
            raise KeyboardInterrupt
        self.number = number


@contextmanager
def remembered_signals() -> Iterator[Stop]:
    """Catch SIGTERM and Ctrl-C within; outside the main thread, where Python cannot, catch nothing."""
    stop = Stop()
    try:
        before = {number: signal.signal(number, stop) for number in (signal.SIGTERM, signal.SIGINT)}
    except ValueError:
        before = {}
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
