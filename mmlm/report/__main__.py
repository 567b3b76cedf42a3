"""``python -m mmlm.report run=DIR``: writes DIR/report.html again, from what the run left behind."""

import sys
from collections.abc import Sequence
from pathlib import Path

from mmlm.errors import UserError
from mmlm.report.page import write_report

USAGE = "python -m mmlm.report run=runs/<experiment>/<name>/seed=0"


def main(arguments: Sequence[str]) -> int:
    """Prints where the page is and returns 0, or what is wrong with the arguments or the folder and returns 2."""
    if arguments in (["--help"], ["-h"]):
        print(f"{USAGE}\nWrites report.html of a run folder again.")
        return 0
    try:
        print(write_report(_run_folder(arguments)))
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


def _run_folder(arguments: Sequence[str]) -> Path:
    if len(arguments) != 1 or not arguments[0].startswith("run=") or arguments[0] == "run=":
        raise UserError(f"got {' '.join(arguments) or 'no argument'}, need exactly one run=DIR: {USAGE}")
    return Path(arguments[0].removeprefix("run="))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
