"""How far a run is: a bar on a terminal, a line an epoch elsewhere."""

import time
from typing import Any

from rich.progress import BarColumn, TextColumn, TimeRemainingColumn
from rich.progress import Progress as Bar

from cutmix.errors import printable
from cutmix.runtime.terminal import Console

# What an epoch's line says of its figures: name, digits, unit.
_SHOWN = {
    "val_loss": ("val loss", 3, ""), "test_loss": ("test loss", 3, ""),
    "top1_err": ("top-1 error", 2, " %"), "top5_err": ("top-5", 2, " %"),
    "map": ("mAP", 2, " %"), "bleu_4": ("BLEU-4", 2, ""), "cider_d": ("CIDEr-D", 2, ""),
    "model_top1_err": ("without averaging", 2, " %"), "model_map": ("without averaging", 2, " %"),
    "model_bleu_4": ("without averaging", 2, ""),
}  # fmt: skip


class Progress:
    """The progress of a run; a context manager, silent in all but the first process.

    Args:
        epochs: Passes over the training set.
        steps_per_epoch: Optimizer steps of one.
        shown: Whether to show anything.
    """

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
        """Begin to count images and time; measuring and saving are not in the speed."""
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
        """Print an epoch's figures as a line."""
        parts = [f"epoch {record['epoch']:>3}/{self.epochs}", f"train loss {record['train_loss']:.3f}"]
        parts += [
            f"{name} {record[key]:.{digits}f}{unit}" for key, (name, digits, unit) in _SHOWN.items() if key in record
        ]
        self._bar.update(self._task, completed=record["step"])
        self.say("  ".join([*parts, f"{record['images_per_second']:,.0f} images/s"]))


def duration(seconds: float) -> str:
    """Return a time as people say it."""
    for limit, unit, length in ((120, "s", 1), (7200, "min", 60), (172_800, "h", 3600)):
        if seconds < limit:
            return f"{seconds / length:.0f} {unit}"
    return f"{seconds / 86_400:.1f} days"
