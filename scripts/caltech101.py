"""Divide the images of Caltech-101 into train and test: ``python scripts/caltech101.py 101_ObjectCategories``.

Writes ``caltech-101.csv`` into that folder, as ``cutmix --data`` reads it. Each of the 101 classes, without
``BACKGROUND_Google``, has 30 images to train on and its others to test on, at most 50, drawn with a fixed seed.
"""

import csv
import random
import sys
from pathlib import Path

TRAIN, TEST = 30, 50


def main(root: Path) -> None:
    """Write the file of labels."""
    with open(root / "caltech-101.csv", "w", newline="", encoding="utf-8") as stream:
        rows = csv.writer(stream, lineterminator="\n")
        rows.writerow(["path", "label", "split"])
        for folder in sorted(path for path in root.iterdir() if path.is_dir() and path.name != "BACKGROUND_Google"):
            names = sorted(path.name for path in folder.glob("*.jpg"))
            random.Random(f"caltech-101 {folder.name}").shuffle(names)
            for number, name in enumerate(names[: TRAIN + TEST]):
                rows.writerow([f"{folder.name}/{name}", folder.name, "train" if number < TRAIN else "test"])


if __name__ == "__main__":
    main(Path(sys.argv[1]))
