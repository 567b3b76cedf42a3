"""``python -m mmlm.check bridge=perceiver``: tries whether a part keeps the rules of its slot, in seconds."""

import torch

from mmlm.check.ranks import Ranks
from mmlm.check.slots import SLOTS, check_slot
from mmlm.check.tiny import slots_named, tiny_config
from mmlm.cli.exits import report_user_errors
from mmlm.cli.hydra_command import hydra_override
from mmlm.core.errors import UserError

USAGE = f"""python -m mmlm.check [slot=option] [key=value ...]

Builds a part at tiny sizes and goes through the rules of its slot: shapes and types, gradients, ranks, micro-batches,
order, padding, state there and back. One line for each rule that it keeps; the first that it breaks ends the command
with status 2, in one line that says what was found and what to do.

Settings are those of mmlm.train, and the slots that they name are checked; without any, all slots of caption_base are:
  {", ".join(SLOTS)}

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
    given = [hydra_override(token) for token in argv]
    torch.set_num_threads(1)  # tiny sizes: several threads would only wait for one another
    config = tiny_config(given)
    with Ranks() as ranks:
        for slot in slots_named(given, list(SLOTS)):
            print(f"{slot}", flush=True)
            for line in check_slot(slot, config, ranks):
                print(line, flush=True)
    return 0


if __name__ == "__main__":
    report_user_errors(main)
