"""``python -m mmlm.compare runs=[A,B] out=FOLDER``: shows curves and scores of several runs side by side."""

from mmlm.cli.arguments import CompareArguments
from mmlm.cli.exits import report_user_errors
from mmlm.cli.imports import quick_imports
from mmlm.cli.key_values import parse_key_values


def main(argv: list[str]) -> int:
    """Compares the runs; returns the exit status. Raises UserError."""
    arguments, _ = parse_key_values(argv, CompareArguments)
    with quick_imports():
        from mmlm.commands.compare import compare_runs

    return compare_runs(arguments)


if __name__ == "__main__":
    report_user_errors(main)
