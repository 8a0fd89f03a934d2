"""The one exception for what a user can mend."""


class InputError(ValueError):
    """What was given cannot be used.

    The message is one sentence that says what was given and what is expected. The command prints it without a
    traceback and exits with code 2; in a program it is an ordinary ``ValueError``.
    """
