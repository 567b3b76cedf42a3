"""``python -m mmlm.evaluate run=DIR``: scores of a trained run on its splits, added to its report."""

from mmlm.cli.arguments import EvaluateArguments
from mmlm.cli.exits import report_user_errors
from mmlm.cli.imports import quick_imports
from mmlm.cli.key_values import parse_key_values


def main(argv: list[str]) -> int:
    """Scores the run; returns the exit status. Raises UserError."""
    arguments, _ = parse_key_values(argv, EvaluateArguments)
    with quick_imports():
        from mmlm.commands.evaluate import evaluate_run
        from mmlm.commands.watch import watch_run

    return watch_run(arguments) if arguments.watch else evaluate_run(arguments)


if __name__ == "__main__":
    report_user_errors(main)
