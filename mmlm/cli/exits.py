"""How every command ends: a user's mistake is one line on stderr and exit status 2, without a traceback.

Exit status: 0 done, 2 a user's mistake, 75 stopped and saved, 69 other ranks lost, 128 + n ended by signal n with
nothing to save (Ctrl-C: 130), 1 a bug (with its traceback), or whatever ``main`` returns. Small commands end by
``report_user_errors``, training by ``run_hydra`` of ``hydra_command``; both by ``told_in_one_line``.
"""

import errno
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from typing import NoReturn

from mmlm.core.errors import INTERRUPTED, PROGRAM, USER_ERROR, UserError
from mmlm.core.output import discard_output, is_unread, to_stderr
from mmlm.core.stop import KILLED, EndedBySignal, ended_by_signals

_OF_THE_DISK = (errno.ENOSPC, errno.EDQUOT, errno.EROFS)


def report_user_errors(main: Callable[[list[str]], int | None], is_rank: bool = False) -> NoReturn:
    """Runs ``main(sys.argv[1:])`` and exits with its status, or as ``told_in_one_line`` says."""
    with told_in_one_line(is_rank):
        status = main(sys.argv[1:])
        sys.stdout.flush()
    sys.exit(status)


@contextmanager
def told_in_one_line(is_rank: bool = False) -> Iterator[None]:
    """Context that ends the process, with one line on stderr, where the body raises what is no bug.

    - A user's mistake, such as a command on Windows: status 2. So does a disk that cannot be written to, if nothing
      closer has said so.
    - One of ``mmlm.core.stop.SIGNALS``: at once, status 128 + its number, unless the body handles it. One of several
      ranks (``is_rank``) leaves that to the operating system, since whoever started the ranks tells of it.
    - Nobody reads the output any more (``... | head -1``): no line, and the status of a program that SIGPIPE ends.
    """
    try:
        _check_system()
        with nullcontext() if is_rank else ended_by_signals():
            yield
    except SystemExit:  # as after --help
        if is_unread():
            discard_output()
        raise
    except UserError as error:
        fail(str(error), USER_ERROR)
    except EndedBySignal as end:
        fail(f"interrupted by {end.signal_name}", end.status)
    except KeyboardInterrupt:
        fail("interrupted", INTERRUPTED)
    except OSError as error:
        if error.errno == errno.EPIPE and is_unread():
            discard_output()
            sys.exit(KILLED + signal.SIGPIPE)
        if error.errno not in _OF_THE_DISK:
            raise
        file = error.filename or "a file"
        fail(f"{file} could not be written ({error.strerror}); free space there, or give another folder", USER_ERROR)


def _check_system() -> None:
    """Raises UserError on Windows: locks on run folders, and stopping by signals, are those of Linux and macOS.

    Not by another library's locks. Those of filelock, for one, do hold on Windows, but everything that starts, stops
    and survives processes here would still be missing there, and could not be tested.
    """
    if sys.platform == "win32":
        raise UserError(
            "mmlm runs on Linux and macOS, and on Windows in WSL only: wsl --install, then install it there"
        )


def say(message: str) -> None:
    """Prints a message to stderr on one line, headed by the program's name; nowhere if stderr is gone."""
    to_stderr(f"{PROGRAM}: {' '.join(message.split())}")


def fail(message: str, status: int) -> NoReturn:
    """Prints a message to stderr as ``say`` does, and ends the process with exit status ``status``."""
    say(message)
    sys.exit(status)
