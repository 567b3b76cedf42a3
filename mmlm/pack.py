"""``python -m mmlm.pack data=... out=FOLDER``: any images and captions as tar shards or Parquet files."""

from mmlm.cli.arguments import PackArguments
from mmlm.cli.exits import report_user_errors
from mmlm.cli.imports import quick_imports
from mmlm.cli.key_values import parse_key_values


def main(argv: list[str]) -> int:
    """Packs; returns the exit status. Raises UserError."""
    arguments, _ = parse_key_values(argv, PackArguments)
    with quick_imports():
        from mmlm.commands.pack import pack_source

    return pack_source(arguments)


if __name__ == "__main__":
    report_user_errors(main)
