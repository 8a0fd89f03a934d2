"""What the layouts of data sets share: where images are found, which are not used, and the lists of the splits."""

from collections import defaultdict
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path, PurePosixPath

from cutmix.data.decode import Pixels, digest_pixels, in_threads
from cutmix.data.division import MOST_BYTES
from cutmix.data.folder import EXTENSIONS, held_share, hold_out
from cutmix.errors import InputError

_SUFFIXES = (*EXTENSIONS, ".xml")
_FLAGS = ("-1", "0", "1")  # VOC's lists of one class: absent, difficult, present


def enumerated(names: Collection[str], limit: int = 10) -> str:
    """Return names for a sentence, the first few of many."""
    shown = sorted(names)[:limit]
    more = len(names) - len(shown)
    return ", ".join(shown) + (f" and {more:,} more" if more else "")


def left_out(what: str, files: Collection[Path]) -> list[str]:
    """Return a note on files that are not used, with their number and the first names; none without files."""
    return [f"{what}: {len(files):,} ({enumerated([file.name for file in files], 3)})"] if files else []


def is_unicode(text: str) -> bool:
    """Return whether a text is free of lone surrogates, as Python has them for bytes that are not UTF-8."""
    return not any("\ud800" <= letter <= "\udfff" for letter in text)


def find_groups(paths: Collection[Path]) -> list[list[Path]]:
    """Return the groups of files that hold the same image, two or more each; none of a set that is too large."""
    if sum(path.stat().st_size for path in paths) > MOST_BYTES:
        return []
    groups: dict[bytes, list[Path]] = defaultdict(list)
    for path, pixels in zip(paths, in_threads(digest_pixels, paths), strict=True):
        if isinstance(pixels, Pixels):
            groups[pixels.digest].append(path)
    return [group for group in groups.values() if len(group) > 1]


def split_by_hash(
    images: Mapping[str, Path], test_fraction: float, seed: int
) -> tuple[tuple[list[str], list[str]], list[str]]:
    """Divide images that no list divides; files of the same image are in one split.

    Args:
        images: The files by their names.
        test_fraction: In (0, 1): the test share.
        seed: Seed of the division.

    Returns:
        The names for training and those for testing, sorted; and notes.
    """
    names = {path: name for name, path in images.items()}
    groups = [sorted(names[path] for path in group) for group in find_groups(list(names))]
    alone = sorted(set(images) - {name for group in groups for name in group})
    count = held_share(len(images), test_fraction)
    test = {name for group in hold_out([*groups, *([name] for name in alone)], count, seed) for name in group}
    copies = [images[name] for group in groups for name in group[1:]]
    return (sorted(images.keys() - test), sorted(test)), left_out("copies of other images, in the same split", copies)


def note_leaks(train: Collection[Path], test: Collection[Path]) -> list[str]:
    """Return a note on the test images that are copies of training images, if there are any."""
    groups = [{*group} for group in find_groups([*train, *test])]
    leaks = [path for group in groups if group & {*train} for path in group & {*test}]
    return left_out("test images that are copies of training images", leaks)


def image_folders(root: Path, part: str, source: Path) -> list[Path]:
    """Return the existing folders in which the images of a part, such as train2017, are looked for; its own first.

    Raises:
        InputError: If there are none beside the root itself.
    """
    found = [folder for folder in (root / part, root / "images" / part, root / "images") if folder.is_dir()]
    if not found:
        raise InputError(f"{root} has no images for {source.name}; expected them in {part}, images/{part} or images")
    return [*found, root]


def find_image(name: str, folders: Collection[Path]) -> Path | None:
    """Return the file that a ``file_name`` means, or None.

    A name may begin with folders that are not part of the data set, as programs write the paths of their own disk:
    then its end counts, the longest that exists below one of the folders.
    """
    parts = [part for part in PurePosixPath(name.replace("\\", "/")).parts if part not in ("/", "..", ".")]
    ends = [Path(*parts[start:]) for start in range(len(parts))]
    try:
        return next((folder / end for end in ends for folder in folders if (folder / end).is_file()), None)
    except OSError:  # a name that is too long
        return None


def read_list(file: Path, names: Collection[str], where: Path) -> list[str]:
    """Return the images that a list names, in its order.

    The name of a line may contain spaces, and have folders before it, the suffix of a file, and a flag or a second path
    behind it.

    Args:
        file: The list.
        names: The names of all images, with or without suffixes.
        where: Where the images are, for errors.

    Raises:
        InputError: If the list cannot be read, names no image, one that does not exist, or one twice.
    """
    try:
        text = file.read_bytes().decode("utf-8-sig", "surrogateescape")  # as names of files are decoded
    except OSError as error:
        raise InputError(f"{file} cannot be read: {error.strerror}") from None
    found: dict[str, int] = {}
    for number, line in enumerate(text.split("\n"), 1):
        line = line.strip(" \t\r")
        if not line:
            continue
        name = next((name for text in _readings(line) for name in _ends(text) if name in names), None)
        if name is None:
            raise InputError(f"line {number} of {file} is '{line}'; expected the name of an image in {where}")
        if name in found:
            raise InputError(f"lines {found[name]} and {number} of {file} both name '{name}'; expected each once")
        found[name] = number
    if not found:
        raise InputError(f"{file} names no image; expected one on each line")
    return list(found)


def check_apart(names: Collection[str], file: Path, others: Collection[str], other: Path) -> None:
    """Refuse two lists that share a name.

    Raises:
        InputError: If they do.
    """
    if shared := {*names} & {*others}:
        raise InputError(f"{file} and {other} both name '{min(shared)}'; expected each image in one split")


def _readings(line: str) -> Iterator[str]:
    """Yield what a line may mean: a name with spaces, one with a flag behind it, or the first of several words."""
    yield line
    words = line.split()
    if words[-1] in _FLAGS and len(words) > 1:
        yield line[: line.rindex(words[-1])].strip()
    yield words[0]


def _ends(text: str) -> Iterator[str]:
    """Yield a path and its ends, each as it is and without its suffix, the longest first."""
    parts = PurePosixPath(text.replace("\\", "/")).parts
    for start in range(len(parts)):
        end = "/".join(parts[start:])
        yield end
        if end.lower().endswith(_SUFFIXES):
            yield end[: end.rindex(".")]
