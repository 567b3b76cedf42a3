"""``mmlm COMMAND ...``, or ``python -m mmlm COMMAND ...``: every command by its word.

``mmlm train ...`` is ``python -m mmlm.train ...``, and so on.
"""

import runpy
import sys

from mmlm import __version__
from mmlm.cli.exits import told_in_one_line
from mmlm.core.errors import UserError
from mmlm.core.wording import did_you_mean

COMMANDS = {
    "train": "train one experiment, or several; evaluate it and write its report",
    "evaluate": "score a trained run on its splits, or on other images",
    "caption": "caption images with a trained run",
    "search": "find the images of a folder that are nearest to a text or an image",
    "classify": "give each image of a folder to one of your labels",
    "lint": "read a data set once, and tell what is wrong with it",
    "study": "train all cells of a comparison over seeds, and make its table",
    "compare": "show curves and scores of several runs side by side",
    "report": "write the report of a run again",
    "export": "write the model of a run as a folder that loads without mmlm's configs",
    "convert": "turn open_clip's weights into a run, and back",
    "pack": "write images and captions of any format as tar shards or Parquet files",
    "verify": "compare the files of a run with what was written",
    "check": "try whether a part keeps the rules of its slot",
    "bench": "measure what parts cost and whether they learn",
}
"""Each command, which is a module of ``mmlm``, and what it does."""


def module_of(argv: list[str]) -> str | None:
    """The module of the command that the first word names; None once help or the version is printed.

    Raises UserError.
    """
    name = argv[0] if argv else "--help"
    if name in ("--help", "-h"):
        width = max(map(len, COMMANDS))
        print("mmlm COMMAND ...: joint training of images and text\n")
        print(*(f"  {command:<{width}}  {does}" for command, does in COMMANDS.items()), sep="\n")
        print("\nmmlm COMMAND --help says more of one; the first to try is: mmlm train experiment=caption_base")
        return None
    if name == "--version":
        print(f"mmlm {__version__}")
        return None
    if name not in COMMANDS:
        raise UserError(f"{name}: no such command{did_you_mean(name, COMMANDS)}")
    return f"mmlm.{name}"


def start() -> None:
    """Runs the command line of this process as ``python -m`` of the command's module does. Ends the process."""
    with told_in_one_line():
        module = module_of(sys.argv[1:])
        sys.stdout.flush()
    if module is not None:
        sys.argv[:] = [module, *sys.argv[2:]]
        runpy.run_module(module, run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    start()
