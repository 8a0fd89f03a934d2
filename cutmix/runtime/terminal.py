"""Standard output and standard error: odd characters, closed pipes, full disks, logged notes, equal messages."""

import contextlib
import errno
import html
import io
import logging
import os
import sys
import warnings
from collections.abc import Iterable, Iterator
from typing import Any, TextIO

import rich.console
from rich.segment import Segment
from rich.table import Table
from rich.text import Text

from cutmix.errors import InputError, printable

_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO)


# Refusals of the file system that depend on a name or on permissions, whichever function meets them first.
_REFUSED = (
    errno.ENAMETOOLONG, errno.EACCES, errno.EPERM, errno.ELOOP, errno.EROFS, errno.ENOTDIR, errno.EISDIR, errno.ENXIO,
    errno.EINVAL,
)  # fmt: skip


class Console(rich.console.Console):
    """rich's console, except that a closed pipe raises BrokenPipeError, and that control characters are escaped."""

    def render(self, *arguments: Any, **named: Any) -> Iterator[Segment]:
        """Yield the segments of what is printed, with the control characters of names escaped."""
        for text, style, control in super().render(*arguments, **named):
            yield Segment(text if control else printable(text, keep="\n"), style, control)

    def on_broken_pipe(self) -> None:
        """Raise the exception that is being handled."""
        raise


class Tabular:
    """Results that print as sentences and tables, and show as such in a notebook."""

    def tables(self) -> "Iterable[Table | str]":
        """Yield what is shown, in its order."""
        raise NotImplementedError

    def __str__(self) -> str:
        file = io.StringIO()
        console = Console(file=file, width=None if sys.stdout is not None and sys.stdout.isatty() else 120)
        for each in self.tables():
            if isinstance(each, str):
                console.print(Text(each), soft_wrap=True)
            else:
                console.print(each)
        return file.getvalue().rstrip("\n")

    def __repr__(self) -> str:
        return str(self)

    def _repr_html_(self) -> str:
        return "\n".join(f"<p>{html.escape(x)}</p>" if isinstance(x, str) else _html(x) for x in self.tables())


def _html(table: Table) -> str:
    """Return a table as HTML."""

    def row(cells: Iterable[Any], tag: str) -> str:
        return "<tr>" + "".join(f"<{tag}>{html.escape(str(cell))}</{tag}>" for cell in cells) + "</tr>"

    caption = f"<caption>{html.escape(str(table.title))}</caption>" if table.title else ""
    head = row((column.header for column in table.columns), "th")
    body = "".join(row(cells, "td") for cells in zip(*(column.cells for column in table.columns), strict=True))
    return f"<table>{caption}<thead>{head}</thead><tbody>{body}</tbody></table>"


@contextlib.contextmanager
def guarded_output() -> Iterator[None]:
    """Print what a command logs, escape what the terminal cannot show, and exit cleanly if it cannot be written to.

    Raises:
        SystemExit: 141, as of SIGPIPE, if the reader of standard output has gone.
        InputError: The disk behind standard output is full, or the file system refused to open a file.
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
        if error.filename is not None and error.errno in _REFUSED:
            name = os.fsdecode(error.filename) if isinstance(error.filename, bytes) else str(error.filename)
            raise InputError(f"{_shortened(name)} could not be opened: {error.strerror}") from None
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


def say(text: str, *, file: TextIO | None = None) -> None:
    """Print lines, with the control characters of names escaped."""
    print(printable(text, keep="\n"), file=file, flush=True)


def print_once(message: str) -> None:
    """Print a message to standard error, once for all processes that ``torchrun`` started on a run."""
    if message and _is_first(message):
        with contextlib.suppress(OSError, ValueError):  # standard error is closed
            print(message, file=sys.stderr, flush=True)


def _shortened(name: str) -> str:
    return name if len(name) <= 300 else f"{name[:140]}…{name[-140:]}"


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
