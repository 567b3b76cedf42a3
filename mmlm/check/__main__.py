"""``python -m mmlm.check bridge=perceiver``: tries whether a part keeps the rules of its slot, in seconds."""

from mmlm.cli.exits import report_user_errors
from mmlm.cli.hydra_command import hydra_override
from mmlm.cli.imports import quick_imports
from mmlm.core.errors import UserError

USAGE = """python -m mmlm.check [slot=option] [key=value ...]

Builds a part at tiny sizes and goes through the rules of its slot: shapes and types, gradients, ranks, micro-batches,
order, padding, state there and back. One line for each rule that it keeps; the first that it breaks ends the command
with status 2, in one line that says what was found and what to do.

Settings are those of mmlm.train, and the slots that they name are checked; without any, all slots of caption_base are:
  encoder, bridge, text_encoder, decoder, objective, data, tokenizer, transform, evaluators, optim, schedule

  python -m mmlm.check bridge=perceiver
  python -m mmlm.check decoder=transformer decoder.fusion=prefix
  python -m mmlm.check objective=coca_matching
  python -m mmlm.check plugins=[my_package] 'hydra.searchpath=[file://my_configs]' bridge=mine"""


def main(argv: list[str]) -> int:
    """Checks the parts that the command line names; returns the exit status."""
    if argv[:1] in (["--help"], ["-h"]):
        print(USAGE)
        return 0
    for token in argv:
        if token.startswith("-"):
            raise UserError(f"{token}: no such option; settings are written key=value, see --help")
    with quick_imports():
        from mmlm.check.command import check_parts

    return check_parts([hydra_override(token) for token in argv])


if __name__ == "__main__":
    report_user_errors(main)
