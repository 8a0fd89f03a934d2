"""Reading and ordering tar shards beside a folder of files: microseconds and bytes of memory for each sample.

The samples are random bytes of 1 KB, so that opening and reading counts and decoding does not. Both sides read in the
same random order, take turns in one process, and are compared by its CPU time. The memory is that of the tables that
find a sample: paths, or shards with offsets and sizes; labels are not counted.
"""

import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from cutmix.data.shards import Members, find_shards, read_shards
from cutmix.data.sources import Paths, Sources, plan_shards, write_shard
from cutmix.data.transforms import TrainOrder
from input import in_turns
from measuring import Row, arguments, report


def main() -> None:
    args = arguments(__doc__).parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        report("shards and files", rows(Path(scratch), 500 if args.quick else 20_000, args.quick), args, {})


def rows(scratch: Path, count: int, quick: bool) -> Iterator[Row]:
    """Yield time and memory of both sides, and the time to order a large data set."""
    files, shards = write(scratch, count)
    order = np.random.default_rng(0).permutation(count).tolist()

    def read(sources: Sources) -> None:
        for index in order:
            sources[index].read_bytes()

    rates = in_turns(
        {"files": lambda _: read(files), "shards": lambda _: read(shards)}, 1 if quick else 5, time.process_time, count
    )
    at = f"{count:,} samples of 1 KB, {len(shards.shards)} shards"
    spent = {name: 1e6 / rate for name, rate in rates.items()}
    yield Row("open and read, CPU time a sample", "µs", spent["shards"], "files", spent["files"], 1.0, at)
    used = {"shards": shards.rows.nbytes / count, "files": held(files) / count}
    yield Row("memory a sample", "bytes", used["shards"], "paths", used["files"], 1.0, at)
    size = 100_000 if quick else 14_000_000
    number = np.arange(size) // (10_000 if size > 100_000 else 1_000)
    orders = [TrainOrder(size, 256, 0, 0, 1, shards=each) for each in (number, None)]
    seconds = in_turns(
        {"windows": lambda epoch: drop(orders[0], epoch), "shuffle": lambda epoch: drop(orders[1], epoch)},
        1 if quick else 3, time.process_time, 1,
    )  # fmt: skip
    taken = {name: 1 / rate for name, rate in seconds.items()}
    yield Row("order of an epoch, CPU time", "s", taken["windows"], "a plain shuffle", taken["shuffle"],
              at=f"{size:,} samples")  # fmt: skip


def write(scratch: Path, count: int) -> tuple[Paths, Members]:
    """Write the same samples as files and as shards."""
    folder, content = scratch / "files", np.random.default_rng(0).bytes(1024)
    for number in range(count):
        path = folder / f"class{number % 100}" / f"{number:06d}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    files = Paths(sorted(folder.rglob("*.jpg")))
    classes = [f"class{number}" for number in range(100)]
    labels = [int(path.parent.name.removeprefix("class")) for path in files]
    (scratch / "shards").mkdir()
    for number, indices in enumerate(plan_shards([1024] * count, range(count), 4_000_000)):
        path = scratch / "shards" / f"train-{number:06d}.tar"
        write_shard(path, indices, files, files.names(), labels, classes)
    root = scratch / "shards"
    members = read_shards(root, find_shards(root)).parts["train"][1]
    assert isinstance(members, Members)
    return files, members


def held(paths: Paths) -> int:
    """Return the bytes of the table of paths."""
    return sum(sys.getsizeof(part) for part in vars(paths).values())


def drop(order: TrainOrder, epoch: int) -> None:
    order.indices(epoch)


if __name__ == "__main__":
    main()
