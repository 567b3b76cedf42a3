"""Writes the report of a run folder again."""

import sys

from mmlm.cli.arguments import ReportArguments
from mmlm.cli.runs import chosen_run
from mmlm.core.errors import PROGRAM, UserError
from mmlm.reports.page import write_report
from mmlm.reports.protocols import refuse_unlike
from mmlm.reports.run_folder import read_run_folder
from mmlm.reports.run_section import unlike


def rewrite_report(arguments: ReportArguments) -> int:
    """Writes the page, prints its path, and returns the exit status. Raises UserError.

    With another run to stand beside it, one line on stderr tells what besides the experiments differs.
    """
    folder = chosen_run(arguments.run)
    if arguments.against is None:
        print(write_report(folder))
        return 0
    other = read_run_folder(chosen_run(arguments.against))
    if other.path.resolve() == folder.resolve():
        raise UserError(f"against: {other.display_path} is the run itself; give another run")
    if other.scores is None:
        raise UserError(f"against: {other.display_path} has no scores.json yet; let it end, or evaluate it")
    own = read_run_folder(folder)
    if own.scores is not None and not arguments.unlike:
        refuse_unlike("against", {"this run": own.scores.protocols, "the other": other.scores.protocols})
    print(write_report(folder, other))
    differing = unlike(own, other)
    if differing is not None:
        print(f"{PROGRAM}: {differing}", file=sys.stderr)
    return 0
