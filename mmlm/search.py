"""``python -m mmlm.search run=DIR images=FOLDER query=TEXT``: the images of a folder nearest to a text or an image."""

from mmlm.cli.arguments import SearchArguments
from mmlm.cli.exits import report_user_errors
from mmlm.cli.imports import quick_imports
from mmlm.cli.key_values import parse_key_values


def main(argv: list[str]) -> int:
    """Searches; returns the exit status. Raises UserError."""
    arguments, _ = parse_key_values(argv, SearchArguments)
    with quick_imports():
        from mmlm.commands.search import search_images

    return search_images(arguments)


if __name__ == "__main__":
    report_user_errors(main)
