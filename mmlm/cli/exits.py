"""How every command ends: a user's mistake is one line on stderr and exit status 2, without a traceback.

Exit status: 0 done, 2 a user's mistake, 75 stopped and saved, 130 interrupted, 69 other ranks lost, 1 a bug (with its
traceback), or whatever ``main`` returns. Small commands end by ``report_user_errors``, training by ``run_hydra`` of
``hydra_command``.
"""

import sys
from collections.abc import Callable
from typing import NoReturn

from mmlm.core.errors import INTERRUPTED, PROGRAM, USER_ERROR, UserError


def report_user_errors(main: Callable[[list[str]], int | None]) -> NoReturn:
    """Runs ``main(sys.argv[1:])`` and exits with its status, or with 2 and one line if the user made a mistake."""
    try:
        status = main(sys.argv[1:])
    except UserError as error:
        fail(str(error), USER_ERROR)
    except KeyboardInterrupt:
        fail("interrupted", INTERRUPTED)
    sys.exit(status)


def say(message: str) -> None:
    """Prints a message to stderr on one line, headed by the program's name."""
    print(f"{PROGRAM}: {' '.join(message.split())}", file=sys.stderr)


def fail(message: str, status: int) -> NoReturn:
    """Prints a message to stderr as ``say`` does, and ends the process with exit status ``status``."""
    say(message)
    sys.exit(status)
