"""``python -m mmlm.export run=DIR to=FOLDER``: writes the model of a run as a folder in Hugging Face layout."""

from mmlm.cli.arguments import ExportArguments
from mmlm.cli.exits import report_user_errors
from mmlm.cli.imports import quick_imports
from mmlm.cli.key_values import parse_key_values


def main(argv: list[str]) -> int:
    """Exports the run; returns the exit status. Raises UserError."""
    arguments, _ = parse_key_values(argv, ExportArguments)
    with quick_imports():
        from mmlm.commands.export import export_run

    return export_run(arguments)


if __name__ == "__main__":
    report_user_errors(main)
