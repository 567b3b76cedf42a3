"""A start of a run: noted while it lasts, and told what the starts before it died of."""

import platform
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from mmlm.checkpoints.files import folders, step_of
from mmlm.core.distributed import broadcast_object, gather_objects, on_rank_zero, rank
from mmlm.core.errors import UserError
from mmlm.record.console import Console
from mmlm.record.folder import CHECKPOINTS
from mmlm.record.starts import Doing, begin, end


@dataclass(frozen=True)
class Started:
    """The start that is under way."""

    at_most: int | None
    """The step of the newest checkpoint that it may go on from; None is any."""
    doing: Callable[[int, Sequence[str]], None]
    """To be called with the optimizer step, from 1, that begins, and the ids of this rank's examples once known."""
    over: Callable[[], None]
    """To be called on every rank once the start has come to its end, before somebody may end this process."""


@contextmanager
def started(folder: Path, console: Console) -> Iterator[Started]:
    """Notes a start of the run in ``folder`` while the context lasts. All ranks enter it; see ``record/starts.py``.

    Left by a bug, a lost rank or a signal, it stays on record as one that died. Raises UserError if too many have.
    """
    steps = sorted({step_of(found) for found in folders(folder / CHECKPOINTS)}, reverse=True)
    nodes = gather_objects(platform.node())
    begun = broadcast_object(on_rank_zero(lambda: begin(folder, steps[0] if steps else -1, nodes)), 0)
    assert begun is not None, "rank 0 has begun"
    at_most = steps[1] if begun.goes_back and len(steps) > 1 else None
    if begun.deaths:
        count = "the last start" if len(begun.deaths) == 1 else f"the last {len(begun.deaths)} starts"
        back = "" if at_most is None else f"; goes back one checkpoint, to step {at_most}"
        console.line(f"{count} died {begun.place}{back}")
    doing = Doing(folder, rank())

    def over() -> None:
        # Not together with the other ranks: a mistake may have been found on this one alone.
        if rank() == 0:
            end(folder)

    try:
        yield Started(at_most, doing.at, over)
    except UserError:  # told to the user, and another start would meet it again
        over()
        raise
    else:
        over()
    finally:
        doing.close()
