"""``python -m mmlm.study NAME``: trains every cell of a study with every seed; tells its plan, status and report."""

from mmlm.cli.arguments import StudyArguments
from mmlm.cli.exits import report_user_errors
from mmlm.cli.imports import quick_imports
from mmlm.cli.key_values import parse_key_values
from mmlm.core.errors import ArgumentError, UserError
from mmlm.core.wording import did_you_mean

ACTIONS = ("plan", "status", "report")
"""What a second word may be."""
VERIFY = "verify"
"""What the first word may be in place of a study."""


def main(argv: list[str]) -> int:
    """Runs a study, or tells of it; returns the exit status. Raises UserError."""
    try:
        arguments, words = parse_key_values(argv, StudyArguments, "NAME")
    except ArgumentError as error:  # of the only settings here that check themselves
        raise UserError(f"slurm.{error}") from None
    if not words:
        raise UserError("study: none is named; write python -m mmlm.study NAME")
    name, *rest = words
    if name == VERIFY:
        if not rest:
            raise UserError("verify: no page is named; write python -m mmlm.study verify experiments/NAME/README.md")
        with quick_imports():
            from mmlm.commands.study_report import verify_pages

        return verify_pages(rest)
    action = rest[0] if rest else "run"
    if len(rest) > 1 or (rest and action not in ACTIONS):
        raise UserError(
            f"{rest[-1]}: a study can be asked for its plan, status or report{did_you_mean(rest[-1], ACTIONS)}"
        )
    with quick_imports():
        from mmlm.commands.study import study_command

    return study_command(arguments, name, action, argv)


if __name__ == "__main__":
    report_user_errors(main)
