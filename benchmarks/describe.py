"""``cutmix data`` on 10,000 photographs: the CPU time of the process beside Pillow's, and the time on the clock.

The files are JPEGs of 500×375 in ten class folders, made of scikit-learn's two photographs or of those in --images. The
command decodes every file to find copies and unreadable files, and draws a few images of each class. Pillow decodes 500
of the files one by one; its time is scaled to all.
"""

import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from PIL import Image

from cutmix.config.options import DataOptions
from cutmix.data.command import run_data
from input import write_files
from measuring import Row, arguments, report, versions

CLASSES = 10


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--images", type=Path, help="folder of photographs to make the files of")
    args = parser.parse_args()
    about: dict[str, object] = {"sources": args.images.name if args.images else "scikit-learn's two photographs"}
    about |= versions("pillow", "simplejpeg")
    with tempfile.TemporaryDirectory() as scratch:
        rows_made = rows(Path(scratch), args.images, 2 * CLASSES if args.quick else 10_000)
        report("describing a folder", rows_made, args, about)


def rows(scratch: Path, images: Path | None, count: int) -> Iterator[Row]:
    """Yield the CPU time and the time on the clock of describing ``count`` files."""
    paths = [Path(str(p)) for p in write_files(scratch / "all", images, (500, 375), 95, count).paths]
    kilobytes = sum(path.stat().st_size for path in paths) / len(paths) / 1000
    for number, path in enumerate(paths):
        folder = scratch / "photos" / f"class-{number % CLASSES}"
        folder.mkdir(parents=True, exist_ok=True)
        paths[number] = path.rename(folder / path.name)
    clock, own = time.perf_counter(), time.process_time()
    found = run_data(DataOptions(str(scratch / "photos"), out=scratch / "classes.png"))
    seconds, own = time.perf_counter() - clock, time.process_time() - own
    assert sum(map(sum, found.splits.values())) == count
    few = paths[:: max(count // 500, 1)]
    pillow = time.process_time()
    for path in few:
        Image.open(path).convert("RGB")
    pillow = (time.process_time() - pillow) * count / len(few)
    at = f"{count:,} JPEG files of 500×375, {kilobytes:,.0f} KB"
    yield Row("cutmix data, CPU time", "s", own, "Pillow decodes each", pillow, at=at)
    yield Row("cutmix data, on the clock", "s", seconds, "a minute", 60.0, target=1.0, at=at)


if __name__ == "__main__":
    main()
