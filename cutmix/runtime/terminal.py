"""The terminal: failing output, repeated notes, progress, and the signals that stop a run.

Odd characters, a closed pipe and a full disk behind standard output end in one sentence or none.
"""

import contextlib
import errno
import html
import io
import logging
import os
import signal
import sys
import time
import warnings
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from types import FrameType
from typing import Any, TextIO

import rich.console
from rich.progress import BarColumn, TextColumn, TimeRemainingColumn
from rich.progress import Progress as Bar
from rich.segment import Segment
from rich.table import Table
from rich.text import Text

from cutmix.errors import InputError, printable, shorten

_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO)


# Refusals of the file system that depend on a name or on permissions, whichever function meets them first.
_REFUSED = (
    errno.ENAMETOOLONG, errno.EACCES, errno.EPERM, errno.ELOOP, errno.EROFS, errno.ENOTDIR, errno.EISDIR, errno.ENXIO,
    errno.EINVAL,
)  # fmt: skip


class Console(rich.console.Console):
    """rich's console, except that a closed pipe raises BrokenPipeError, and that control characters are escaped.

    In a notebook it prints text too: rich would show HTML, even for a file.
    """

    def __init__(self, **named: Any) -> None:
        super().__init__(**{"force_jupyter": False} | named)

    def render(self, *arguments: Any, **named: Any) -> Iterator[Segment]:
        """Yield the segments of the output, with the control characters of names escaped."""
        for text, style, control in super().render(*arguments, **named):
            yield Segment(text if control else printable(text, keep="\n"), style, control)

    @property
    def encoding(self) -> str:
        """The encoding of the file, or of standard output for text in memory; it decides how frames are drawn."""
        return (getattr(self.file, "encoding", None) or getattr(sys.stdout, "encoding", None) or "utf-8").lower()

    def on_broken_pipe(self) -> None:
        """Raise the current exception."""
        raise


class Tabular:
    """Results that print as sentences and tables, in a notebook as HTML."""

    def tables(self) -> "Iterable[Table | str]":
        """Yield sentences and tables, in their order."""
        raise NotImplementedError

    def __str__(self) -> str:
        file = io.StringIO()
        width = None if sys.stdout is not None and sys.stdout.isatty() else 120
        console = Console(file=file, width=width, force_terminal=False, color_system=None)
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


def print_tables(results: Tabular, console: Console | None = None) -> None:
    """Print results as tables and sentences, as wide as the terminal."""
    console = console or Console()
    for each in results.tables():
        console.print(Text(each) if isinstance(each, str) else each)


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
    """Print the log of a command, escape characters that the terminal cannot show, and exit cleanly if writing fails.

    SystemExit is raised with 141, as of SIGPIPE, if the reader of standard output has gone.
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
            raise InputError(f"{shorten(name, 300)} could not be opened: {error.strerror}") from None
        if error.errno not in _FULL or error.filename is not None:
            raise
        _discard_output()
        raise InputError(f"standard output could not be written: {error.strerror}") from None
    finally:
        logger.removeHandler(notes)


class _Notes(logging.Handler):
    """Prints the package's log, in the first process."""

    def emit(self, record: logging.LogRecord) -> None:
        # standard output may be the table of predictions
        say(printable(record.getMessage()), file=sys.stderr if record.levelno >= logging.WARNING else None)


def say(text: str, *, file: TextIO | None = None) -> None:
    """Print lines, with the control characters of names escaped."""
    said = _SAID.get()
    if said is None or file is not None or text not in said:
        print(printable(text, keep="\n"), file=file, flush=True)
    if said is not None:
        said.add(text)


_SAID: ContextVar[set[str] | None] = ContextVar("said", default=None)


@contextmanager
def saying_once() -> Iterator[None]:
    """Within it, print no lines to standard output a second time, such as the description of data that runs share."""
    token = _SAID.set(set())
    try:
        yield
    finally:
        _SAID.reset(token)


def print_once(message: str) -> None:
    """Print a message to standard error, once for all processes that ``torchrun`` started on a run."""
    if message and _is_first(message):
        with contextlib.suppress(OSError, ValueError):  # standard error is closed
            print(message, file=sys.stderr, flush=True)


def _is_first(message: str) -> bool:
    """Return whether no other process has printed this message; the agent of ``torchrun`` counts."""
    if os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True":
        return True
    from cutmix.runtime.device import count_in_store, restarts

    return count_in_store(f"cutmix/said/{restarts()}/{message}") in (None, 1)


def _discard_output() -> None:
    """Redirect standard output to the null device, so that Python does not report the error again at its exit."""
    with contextlib.suppress(OSError, ValueError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


_READ: ContextVar[str] = ContextVar("read", default="")


@contextmanager
def warnings_of(file: str) -> Iterator[None]:
    """Add the name of a file to the warnings of libraries while they read it."""
    before = _READ.set(file)
    try:
        yield
    finally:
        _READ.reset(before)


def _show_warning(
    message: Warning | str, category: type[Warning], filename: str, lineno: int, file: TextIO | None = None,
    line: Any = None,
) -> None:  # fmt: skip
    """Print a warning as one line, without the source line that Python adds."""
    with contextlib.suppress(OSError, ValueError):
        where = f"{_READ.get()}: " if _READ.get() else ""
        print(f"warning: {printable(where + str(message))}", file=file or sys.stderr)


# The metrics in the line of an epoch: name, digits, unit.
_SHOWN = {
    "val_loss": ("val loss", 3, ""), "test_loss": ("test loss", 3, ""),
    "top1_err": ("top-1 error", 2, " %"), "top5_err": ("top-5", 2, " %"),
    "map": ("mAP", 2, " %"), "label_map": ("mAP", 2, " %"), "bleu_4": ("BLEU-4", 2, ""), "cider_d": ("CIDEr-D", 2, ""),
    "model_top1_err": ("without averaging", 2, " %"), "model_map": ("without averaging", 2, " %"),
    "model_label_map": ("without averaging", 2, " %"),
    "model_bleu_4": ("without averaging", 2, ""),
}  # fmt: skip


class Progress:
    """The progress of a run; a context manager, silent in all but the first process."""

    def __init__(self, epochs: int, steps_per_epoch: int, *, shown: bool) -> None:
        self.console = Console(quiet=not shown)
        self.epochs, self.steps_per_epoch = epochs, steps_per_epoch
        self._images, self._since = 0, time.perf_counter()
        self._bar = Bar(
            BarColumn(16), TextColumn("{task.fields[figures]}"), TimeRemainingColumn(), TextColumn("left"),
            console=self.console, disable=not (shown and self.console.is_terminal),
        )  # fmt: skip
        self._task = self._bar.add_task("", total=epochs * steps_per_epoch, figures="")

    def __enter__(self) -> "Progress":
        self._bar.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._bar.stop()

    def say(self, text: str) -> None:
        """Print a line."""
        self.console.print(printable(text), markup=False, highlight=False, soft_wrap=True)

    def start_epoch(self) -> None:
        """Start to count images and time; the speed excludes evaluating and saving."""
        self._images, self._since = 0, time.perf_counter()

    def step(self, images: int) -> None:
        """Count the images of a step, over all processes."""
        self._images += images

    def images_per_second(self) -> float:
        """Return the speed since the start of the epoch."""
        return round(self._images / max(time.perf_counter() - self._since, 1e-9), 1)

    def show(self, epoch: int, step: int, loss: float, lr: float) -> None:
        """Move the bar."""
        figures = f"epoch {epoch}/{self.epochs}  loss {loss:.3f}  lr {lr:.2g}  {self.images_per_second():,.0f} images/s"
        self._bar.update(self._task, completed=step, figures=figures)

    def show_epoch(self, record: dict[str, Any]) -> None:
        """Print an epoch's metrics as a line."""
        parts = [f"epoch {record['epoch']:>3}/{self.epochs}", f"train loss {record['train_loss']:.3f}"]
        parts += [
            f"{name} {record[key]:.{digits}f}{unit}" for key, (name, digits, unit) in _SHOWN.items() if key in record
        ]
        self._bar.update(self._task, completed=record["step"])
        parts += [f"{record['images_per_second']:,.0f} images/s"] if "images_per_second" in record else []
        self.say("  ".join(parts))


def duration(seconds: float) -> str:
    """Return a duration in words."""
    for limit, unit, length in ((120, "s", 1), (7200, "min", 60), (172_800, "h", 3600)):
        if seconds < limit:
            return f"{seconds / length:.0f} {unit}"
    return f"{seconds / 86_400:.1f} days"


# SIGHUP is sent when a terminal or an SSH connection is closed; Windows has none.
_STOPPING = [getattr(signal, name) for name in ("SIGTERM", "SIGINT", "SIGHUP") if hasattr(signal, name)]


class Stop:
    """The last stop signal that the process received."""

    def __init__(self) -> None:
        self.number: int | None = None  # before the first

    def __call__(self, number: int, frame: FrameType | None) -> None:
        """Store the signal; a second Ctrl-C raises KeyboardInterrupt at once."""
        if self.number == signal.SIGINT == number:
            raise KeyboardInterrupt
        self.number = number


@contextmanager
def remembered_signals(stop: Stop | None = None) -> Iterator[Stop]:
    """Catch SIGTERM, SIGHUP and Ctrl-C inside the context; ``stop`` stores the last of several contexts.

    A signal that the process ignores stays ignored, such as SIGHUP under ``nohup``. Outside the main thread, where
    Python cannot catch signals, nothing is caught.
    """
    stop, before = stop or Stop(), {}
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
