"""``python -m mmlm.lint data=PATH``: reads every image and caption of a data set once, and tells what is wrong.

``run=DIR`` tells which captions a run was trained on are doubtful.
"""

from mmlm.cli.arguments import LintArguments
from mmlm.cli.exits import report_user_errors
from mmlm.cli.imports import quick_imports
from mmlm.cli.key_values import parse_key_values


def main(argv: list[str]) -> int:
    """Reads the data; returns the exit status. Raises UserError."""
    arguments, _ = parse_key_values(argv, LintArguments)
    with quick_imports():
        from mmlm.commands.doubts import lint_run
        from mmlm.commands.lint import lint

    return lint(arguments) if arguments.run is None else lint_run(arguments)


if __name__ == "__main__":
    report_user_errors(main)
