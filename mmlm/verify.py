"""``python -m mmlm.verify run=DIR``: whether the files of a run, or of an exported model, are as they were written."""

from mmlm.cli.arguments import VerifyArguments
from mmlm.cli.exits import report_user_errors
from mmlm.cli.imports import quick_imports
from mmlm.cli.key_values import parse_key_values


def main(argv: list[str]) -> int:
    """Compares the files with what is on record; returns the exit status. Raises UserError."""
    arguments, _ = parse_key_values(argv, VerifyArguments)
    with quick_imports():
        from mmlm.commands.verify import verify_run

    return verify_run(arguments)


if __name__ == "__main__":
    report_user_errors(main)
