"""``python -m mmlm.worker RUN``: trains a prepared run folder, as one rank if the environment says so.

Launchers start this command. The config has been composed and checked by then, and stands in the folder.
"""

from mmlm.cli.arguments import WorkerArguments
from mmlm.cli.exits import report_user_errors
from mmlm.cli.imports import quick_imports
from mmlm.cli.key_values import parse_key_values
from mmlm.core.errors import UserError


def main(argv: list[str]) -> int:
    """Trains the run folder; returns the exit status. Raises UserError."""
    arguments, folders = parse_key_values(argv, WorkerArguments, positional="RUN")
    if len(folders) != 1:
        raise UserError(f"give one run folder, such as runs/NAME/HASH/seed=0; there are {len(folders)}")
    with quick_imports():
        from mmlm.commands.worker import train_prepared

    return train_prepared(arguments, folders)


if __name__ == "__main__":
    report_user_errors(main, is_rank=True)
