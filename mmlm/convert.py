"""``python -m mmlm.convert``: weights of open_clip or transformers to a run folder, and a run of CoCa back."""

from mmlm.cli.arguments import ConvertArguments
from mmlm.cli.exits import report_user_errors
from mmlm.cli.imports import quick_imports
from mmlm.cli.key_values import parse_key_values


def main(argv: list[str]) -> int:
    """Converts one way or the other; returns the exit status. Raises UserError."""
    arguments, _ = parse_key_values(argv, ConvertArguments)
    with quick_imports():
        from mmlm.commands.convert import convert

    return convert(arguments)


if __name__ == "__main__":
    report_user_errors(main)
