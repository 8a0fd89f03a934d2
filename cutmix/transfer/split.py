"""Which pictures are for training and which for testing: by two lists of names, or by the hash of each name."""

from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Literal

from cutmix.errors import InputError
from cutmix.runtime.seeding import derive_seed

Split = Literal["train", "test"]


def listed_names(file: Path, other: Path | None) -> list[str]:
    """Return the names in one split's list, the first word of each line that is not empty.

    Args:
        file: The split's list.
        other: The other split's, if there is one.

    Raises:
        InputError: A list is no text, a name is in it twice, or a name is in both.
    """
    names, others = ([line.split()[0] for line in read_text(x).splitlines() if line.strip()] if x else []
                     for x in (file, other))  # fmt: skip
    for name, count in Counter(names).items():
        if count > 1:
            raise InputError(f"{file} names the picture '{name}' {count} times: expected each once")
    if shared := set(names) & set(others):
        raise InputError(f"{file} and {other} both name the picture '{min(shared)}': expected each in one split")
    return names


def names_by_hash(names: Iterable[str], split: Split, test_fraction: float, seed: int) -> list[str]:
    """Return a split's part of names without lists: testing gets those whose hash with the seed is smallest.

    A new name then moves hardly any other. Both parts have one name or more where there are two.

    Args:
        names: All of them, each once.
        split: "train" or "test".
        test_fraction: In (0, 1): the test share.
        seed: Decides the split, and nothing else.

    Returns:
        The names, sorted.
    """
    ranked = sorted(names, key=lambda name: derive_seed(seed, "split", name))
    count = min(max(round(test_fraction * len(ranked)), 1), len(ranked) - 1)
    return sorted(ranked[:count] if split == "test" else ranked[count:])


def read_text(path: Path) -> str:
    """Return a file's text, with or without a byte-order mark.

    Raises:
        InputError: It cannot be read, or is no UTF-8.
    """
    try:
        return path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path} cannot be read as text: {error}") from None
