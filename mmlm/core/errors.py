"""The error that a user can cause, shown as a single line without a traceback, and the exit statuses of commands."""


class UserError(Exception):
    """Something that the user gave is wrong. The message names the value, the rule and the fix, in one line.

    Commands print the message and exit with status 2. Every other exception is a bug and keeps its traceback.
    """


class ArgumentError(UserError):
    """Raised by a part about one of its own arguments. The message begins with the argument's name.

    Whoever builds the part from a config puts the key of the part in front: ``num_queries: 0 must be at least 1``
    becomes ``bridge.num_queries: 0 must be at least 1``. A part does not know at which key it stands.
    """


class CorruptImage(UserError):  # noqa: N818 - a thing of the data, named as such everywhere
    """An image that cannot be decoded. ``name`` is its file or example id, ``reason`` says what is wrong with it."""

    def __init__(self, name: str, reason: str) -> None:
        super().__init__(f"{name}: {reason}")
        self.name = name
        self.reason = reason

    def __reduce__(self) -> tuple[type["CorruptImage"], tuple[str, str]]:
        # A loader worker sends the error by pickle, which by default calls the class with the joined message alone.
        return CorruptImage, (self.name, self.reason)


PROGRAM = "mmlm"
"""Heads every line that a command prints about its own failure."""
USER_ERROR = 2
INTERRUPTED = 130
LOST = 69
"""Exit status of a rank that cannot go on because another one is gone or silent (sysexits.h: EX_UNAVAILABLE)."""
STOPPED = 75
"""Exit status of a run that was asked to stop and has saved; the same command resumes it (sysexits.h: EX_TEMPFAIL)."""
