"""Signals that ask a run to stop: remembered, so that the loop can save a checkpoint before it ends."""

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

# SIGHUP is sent when a terminal or an SSH connection is closed; Windows has none.
_STOPPING = [getattr(signal, name) for name in ("SIGTERM", "SIGINT", "SIGHUP") if hasattr(signal, name)]


class Stop:
    """The last stop signal that the process received.

    Attributes:
        number: Number of the signal; None before the first.
    """

    def __init__(self) -> None:
        self.number: int | None = None

    def __call__(self, number: int, frame: FrameType | None) -> None:
        """Remember the signal; a second Ctrl-C raises KeyboardInterrupt at once."""
        if self.number == signal.SIGINT == number:
            raise KeyboardInterrupt
        self.number = number


@contextmanager
def remembered_signals() -> Iterator[Stop]:
    """Catch SIGTERM, SIGHUP and Ctrl-C inside the context.

    A signal that the process ignores stays ignored, such as SIGHUP under ``nohup``. Outside the main thread, where
    Python cannot catch signals, nothing is caught.
    """
    stop, before = Stop(), {}
    try:
        for number in _STOPPING:
            if signal.getsignal(number) is not signal.SIG_IGN:
                before[number] = signal.signal(number, stop)
    except ValueError:  # not the main thread
        before = {}
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
