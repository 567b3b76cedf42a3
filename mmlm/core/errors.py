"""The one error that a user can cause: shown as a single line, without a traceback."""


class UserError(Exception):
    """Something the user gave is wrong. The message names the value, the rule and the fix, in one line.

    Entry points print it and exit with status 2; every other exception is a bug and keeps its traceback.
    """


class CorruptImage(UserError):  # noqa: N818 - a thing of the data, named as such everywhere
    """An image that cannot be decoded. ``name`` is the file or example id, ``reason`` what is wrong with it."""

    def __init__(self, name: str, reason: str) -> None:
        super().__init__(f"{name}: {reason}")
        self.name = name
        self.reason = reason

    def __reduce__(self) -> tuple[type["CorruptImage"], tuple[str, str]]:
        # The default rebuilds from the joined message and fails when a loader worker hands the error over.
        return CorruptImage, (self.name, self.reason)


PROGRAM = "mmlm"
USER_ERROR = 2
INTERRUPTED = 130
LOST = 69
"""A rank cannot go on because another one is gone or silent. What sysexits.h calls unavailable."""
STOPPED = 75
"""Asked to stop, and saved: the same command goes on. What sysexits.h calls a temporary failure."""
