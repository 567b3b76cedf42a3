"""The work of ``python -m mmlm.check``: the rules of each slot that is named, one line each."""

from collections.abc import Sequence

import torch

from mmlm.check.ranks import Ranks
from mmlm.check.slots import SLOTS, check_slot
from mmlm.check.tiny import slots_named, tiny_config


def check_parts(given: Sequence[str]) -> int:
    """Checks the parts that the overrides ``given`` name; returns the exit status. Raises UserError."""
    torch.set_num_threads(1)  # tiny sizes: several threads would only wait for one another
    config = tiny_config(given)
    with Ranks() as ranks:
        for slot in slots_named(given, list(SLOTS)):
            print(f"{slot}", flush=True)
            for line in check_slot(slot, config, ranks):
                print(line, flush=True)
    return 0
