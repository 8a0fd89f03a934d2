"""Draw error curves by epoch: ``python scripts/curves.py cifar100-resnet20``.

Reads results/NAME.log.jsonl, the epoch lines of several runs with the name of their recipe, and writes
docs/images/NAME.png.
"""

import sys
from pathlib import Path

from matplotlib.figure import Figure

from cutmix.runtime.files import read_lines

ROOT = Path(__file__).parent.parent


def main(name: str) -> None:
    """Draw test error and training loss by epoch, one line per recipe."""
    records = read_lines(ROOT / "results" / f"{name}.log.jsonl")
    figure = Figure(figsize=(8, 3), dpi=110, layout="constrained")
    panels = {"top1_err": "top-1 test error (%)", "train_loss": "training loss (of mixed labels under CutMix)"}
    for axis, (field, label) in zip(figure.subplots(1, 2), panels.items(), strict=True):
        for recipe, style in zip(dict.fromkeys(r["recipe"] for r in records), ("o-", "s--", "^:", "d-."), strict=False):
            points = [(r["epoch"], r[field]) for r in records if r["recipe"] == recipe]
            axis.plot(*zip(*points, strict=True), style, label=recipe, markersize=3, linewidth=1.2)
        axis.set(xlabel="epoch", title=label)
        axis.title.set_fontsize(9)
        axis.grid(alpha=0.3)
    axis.legend(fontsize=8)
    figure.savefig(ROOT / "docs" / "images" / f"{name}.png")


if __name__ == "__main__":
    main(sys.argv[1])
