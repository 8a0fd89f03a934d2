"""Standard output and standard error: odd characters, closed pipes, full disks, logged notes, equal messages."""

import contextlib
import errno
import logging
import os
import sys
import warnings
from collections.abc import Iterator
from typing import Any, TextIO

import rich.console

from cutmix.errors import InputError, printable

_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO)


class Console(rich.console.Console):
    """rich's console, except that a closed pipe raises BrokenPipeError instead of ending the process with code 1."""

    def on_broken_pipe(self) -> None:
        """Raise the exception that is being handled."""
        raise


@contextlib.contextmanager
def guarded_output() -> Iterator[None]:
    """Print what a command logs, escape what the terminal cannot show, and exit cleanly if it cannot be written to.

    Raises:
        SystemExit: 141, as of SIGPIPE, if the reader of standard output has gone.
        InputError: The disk behind standard output is full.
    """
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")
    logger, notes = logging.getLogger("cutmix"), _Notes(logging.INFO)
    logger.addHandler(notes)
    logger.setLevel(logging.INFO if os.environ.get("RANK", "0") == "0" else logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.showwarning = _show_warning
            yield
        if sys.stdout is not None:
            sys.stdout.flush()
    except BrokenPipeError:
        _discard_output()
        raise SystemExit(141) from None
    except OSError as error:
        if error.errno not in _FULL or error.filename is not None:
            raise
        _discard_output()
        raise InputError(f"standard output could not be written: {error.strerror}") from None
    finally:
        logger.removeHandler(notes)


class _Notes(logging.Handler):
    """Prints what the package logs, in the first process."""

    def emit(self, record: logging.LogRecord) -> None:
        print(printable(record.getMessage()), flush=True)


def print_once(message: str) -> None:
    """Print a message to standard error, once for all processes that ``torchrun`` started on a run."""
    if message and _is_first(message):
        with contextlib.suppress(OSError, ValueError):  # standard error is closed
            print(message, file=sys.stderr, flush=True)


def _is_first(message: str) -> bool:
    """Return whether no other process has printed this message; the agent of ``torchrun`` counts."""
    if os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True":
        return True
    from cutmix.runtime.distributed import count_in_store

    return count_in_store(f"cutmix/said/{message}") in (None, 1)


def _discard_output() -> None:
    """Point standard output to nowhere, or Python would complain once more when it ends."""
    with contextlib.suppress(OSError, ValueError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _show_warning(
    message: Warning | str, category: type[Warning], filename: str, lineno: int, file: TextIO | None = None,
    line: Any = None,
) -> None:  # fmt: skip
    """Print a warning as one line, without the source line that Python adds."""
    with contextlib.suppress(OSError, ValueError):
        print(f"warning: {printable(str(message))}", file=file or sys.stderr)
