"""The exception for user errors, and the exceptions that a damaged file raises."""

import re
import zlib
from collections.abc import Iterable, Sequence
from difflib import get_close_matches
from zipfile import BadZipFile

# NumPy's exceptions for a file of arrays that is missing or damaged.
UNREADABLE = (OSError, ValueError, EOFError, RuntimeError, zlib.error, BadZipFile)

# Control characters, line separators, changes of direction, and the surrogates of names that are not UTF-8.
_UNPRINTABLE = re.compile("[\x00-\x1f\x7f-\x9f\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")


class InputError(ValueError):
    """The input cannot be used.

    The message is one sentence, on one line, that says what was given and what is expected. The command prints it
    without a traceback and exits with code 2; in a program it is an ordinary ``ValueError``.

    Args:
        message: The sentence; see ``printable`` for what is escaped in it.
    """

    def __init__(self, message: str) -> None:
        super().__init__(printable(message))


def printable(text: str, *, keep: str = "") -> str:
    """Escape control characters, which a file name may hold, for a terminal, except those in ``keep``."""

    def escaped(found: re.Match[str]) -> str:
        return found[0] if found[0] in keep else found[0].encode("unicode_escape").decode()

    return _UNPRINTABLE.sub(escaped, text)


def reason(error: BaseException) -> str:
    """Return the first line of another program's error, as a clause; the name of its type if it has no text."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(".")


def shorten(name: str, length: int) -> str:
    """Return a name of at most ``length`` characters, its end cut off."""
    return name if len(name) <= length else name[: length - 1] + "…"


def did_you_mean(name: str, known: Iterable[str], otherwise: str = "", *, cutoff: float = 0.6) -> str:
    """Return a hint at the known names that ``difflib`` finds close to a name, or ``otherwise`` if none is."""
    close = [f"'{each}'" for each in get_close_matches(name, list(known), n=3, cutoff=cutoff)]
    return f"did you mean {' or '.join(close)}?" if close else otherwise


def missing_extra(what: str, extra: str) -> InputError:
    """Return the error for a feature whose optional packages are not installed.

    Its command names the packages and not the extra, so that it works for a checkout, a wheel and an index alike.
    """
    from importlib.metadata import PackageNotFoundError, requires  # slow to import

    try:
        found = [line.partition(";") for line in requires("cutmix") or ()]
    except PackageNotFoundError:  # a source tree on the path
        found = []
    packages = [package.strip() for package, _, marker in found if re.search(rf"extra == ['\"]{extra}['\"]", marker)]
    if not packages:  # or a source tree that is newer than its installation
        return InputError(f'{what} needs more packages: pip install -e ".[{extra}]" in the source tree')
    names = " and ".join(re.split(r"[^\w.-]", package)[0] for package in packages)
    command = " ".join(f'"{package}"' for package in packages)
    return InputError(f"{what} needs {names}; install it with pip install {command}")


def missing_module(what: str, error: ModuleNotFoundError) -> InputError:
    """Return the error for a required package that is not installed; raises the error if a module of cutmix is missing.

    The transforms and losses need torch and NumPy alone, so the package may be installed without its dependencies.
    """
    module = (error.name or "cutmix").partition(".")[0]
    if module == "cutmix":
        raise error
    return InputError(
        f"{what} needs the module {module}, which is not installed; pip install -e . in the source tree installs what "
        "every command needs"
    )


def a_few(names: Iterable[str], most: int = 4) -> str:
    """Return the first names, and the number of the others."""
    names = [shorten(name, 60) for name in names]
    return ", ".join(names[:most]) + (f" and {len(names) - most:,} more" if len(names) > most else "")


def counted(number: int, one: str, more: str = "") -> str:
    """Return a number with its noun, whose plural ends in s unless it is given."""
    return f"{number:,} {one if number == 1 else more or one + 's'}"


def listed(words: Sequence[str]) -> str:
    """Return words as a sentence lists them: a, b and c."""
    return " and ".join([", ".join(words[:-1]), words[-1]] if len(words) > 1 else words)
