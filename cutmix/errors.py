"""The one exception for what a user can mend, and what reading a damaged file raises."""

import zlib
from zipfile import BadZipFile

# What NumPy raises of a file of arrays that is not there or is damaged, whichever byte of it.
UNREADABLE = (OSError, ValueError, EOFError, RuntimeError, zlib.error, BadZipFile)


class InputError(ValueError):
    """What was given cannot be used.

    The message is one sentence that says what was given and what is expected. The command prints it without a
    traceback and exits with code 2; in a program it is an ordinary ``ValueError``.
    """
