"""``python -m mmlm.classify run=DIR images=FOLDER labels=FILE``: the label of each image, among those in a file."""

from mmlm.cli.arguments import ClassifyArguments
from mmlm.cli.exits import report_user_errors
from mmlm.cli.imports import quick_imports
from mmlm.cli.key_values import parse_key_values


def main(argv: list[str]) -> int:
    """Classifies every readable image; returns the exit status. Raises UserError."""
    arguments, _ = parse_key_values(argv, ClassifyArguments)
    with quick_imports():
        from mmlm.commands.classify import classify_images

    return classify_images(arguments)


if __name__ == "__main__":
    report_user_errors(main)
