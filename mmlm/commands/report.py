"""Writes the report of a run folder again."""

from mmlm.cli.arguments import ReportArguments
from mmlm.cli.runs import chosen_run
from mmlm.reports.page import write_report


def rewrite_report(arguments: ReportArguments) -> int:
    """Writes the page, prints its path, and returns the exit status. Raises UserError."""
    print(write_report(chosen_run(arguments.run)))
    return 0
