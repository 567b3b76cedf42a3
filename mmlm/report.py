"""``python -m mmlm.report run=DIR``: writes DIR/report.html again, from the files of the run folder."""

from dataclasses import dataclass

from mmlm.cli.exits import report_user_errors
from mmlm.cli.key_values import parse_key_values
from mmlm.record.folder import find_run
from mmlm.reports.page import write_report


@dataclass
class ReportSettings:
    """Write the report.html of a run folder again."""

    run: str = "???"
    """Run folder, or a folder with a single run below it."""


def main(argv: list[str]) -> int:
    """Writes the page, prints its path, and returns the exit status. Raises UserError."""
    settings, _ = parse_key_values(argv, ReportSettings)
    print(write_report(find_run(settings.run)))
    return 0


if __name__ == "__main__":
    report_user_errors(main)
