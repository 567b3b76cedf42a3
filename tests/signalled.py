"""A signal that comes within a function of the package, in this process."""

import pkgutil
import signal
from collections.abc import Iterator
from contextlib import contextmanager

import pytest


@contextmanager
def signal_in(where: str, number: int, once: str | None = None, late: bool = False) -> Iterator[list[int]]:
    """The function ``where`` (``mmlm.module.function`` or ``mmlm.module.Class.method``) raises a signal, once.

    With ``once`` it does so only after that other function has been called. The signal comes before the function's own
    work, with ``late`` after it. Yields the signals that have come.
    """
    ready, came = [once is None], []

    def signalled(*args, **named):
        if not ready[0] or came:
            return own(*args, **named)
        came.append(number)
        if late:
            own(*args, **named)
        signal.raise_signal(number)
        return None if late else own(*args, **named)

    def passed(*args, **named):
        ready[0] = True
        return before(*args, **named)

    with pytest.MonkeyPatch.context() as patch:
        if once is not None:
            before = pkgutil.resolve_name(once)
            patch.setattr(pkgutil.resolve_name(once.rpartition(".")[0]), once.rpartition(".")[2], passed)
        own = pkgutil.resolve_name(where)
        patch.setattr(pkgutil.resolve_name(where.rpartition(".")[0]), where.rpartition(".")[2], signalled)
        yield came
