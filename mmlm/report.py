"""``python -m mmlm.report run=DIR``: writes DIR/report.html again, from the files of the run folder."""

from mmlm.cli.arguments import ReportArguments
from mmlm.cli.exits import report_user_errors
from mmlm.cli.imports import quick_imports
from mmlm.cli.key_values import parse_key_values


def main(argv: list[str]) -> int:
    """Writes the report again; returns the exit status. Raises UserError."""
    arguments, _ = parse_key_values(argv, ReportArguments)
    with quick_imports():
        from mmlm.commands.report import rewrite_report

    return rewrite_report(arguments)


if __name__ == "__main__":
    report_user_errors(main)
