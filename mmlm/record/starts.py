"""Where the starts of a run have died, so that what ends it at the same place again and again does not go on for ever.

``starts.json`` is there while a run is being trained, or has died: an orderly end (done, stopped and saved, a mistake)
removes it. Each rank writes into ``doing/`` which step it is in; that costs one small write a step, which survives the
process. Deaths without a new checkpoint between them, within a few steps of each other, are those of one cause: an
example that crashes a rank, a damaged state, a broken node. Counted are deaths, not restarts: a run that is preempted a
hundred times and saves each time is as welcome as ever.
"""

import json
import os
import shutil
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from mmlm.core.errors import UserError
from mmlm.core.wording import listed, printable
from mmlm.record.folder import DOING, STARTS, write_whole

NEAR = 5
"""Steps between deaths that count as the same place."""
GOES_BACK = 2
"""Deaths at one place after which a start takes the checkpoint before the newest."""
GIVES_UP = 4
"""Deaths at one place after which there is no other start."""
_MOST_IDS = 8


@dataclass(frozen=True)
class Start:
    """One process's start of a run, or several ranks' together."""

    newest: int
    """The step of the newest checkpoint, -1 without any: when it began and, once it has died, what it has left."""
    nodes: tuple[str, ...]
    """The machines that it runs on."""
    step: int | None = None
    """The optimizer step, from 1, that it was in when it died; None: it died before any, or has not died."""
    ids: tuple[str, ...] = ()
    """The examples of that step's batch, as far as they are known."""

    def is_like(self, other: "Start") -> bool:
        """Whether both died at one place, with nothing saved in between."""
        return self.newest == other.newest and abs(self._reached - other._reached) <= NEAR

    @property
    def _reached(self) -> int:
        return max(self.newest, 0) if self.step is None else self.step


@dataclass(frozen=True)
class Begun:
    """What a start that begins now should do, as those before it have ended."""

    deaths: tuple[Start, ...]
    """Those before it that died at one place, the newest last."""

    @property
    def goes_back(self) -> bool:
        """Whether it takes the checkpoint before the newest: the newest may be what ends it."""
        return len(self.deaths) >= GOES_BACK

    @property
    def place(self) -> str:
        """Where they died, in words."""
        last = self.deaths[-1]
        nodes = listed(sorted({node for death in self.deaths for node in death.nodes}), _MOST_IDS)
        where = f"before the step after {max(last.newest, 0)}" if last.step is None else f"at step {last.step}"
        known = next((death.ids for death in reversed(self.deaths) if death.ids), ())
        batch = ", waiting for its batch" if last.step is not None else ""
        if known:
            batch = f", on the batch {printable(listed(known, _MOST_IDS))}"
        return f"{where}{batch}, on {printable(nodes)}"


def begin(folder: Path, newest: int, nodes: Sequence[str]) -> Begun:
    """Notes that a run starts, and returns what is to be done about those that died before it. Rank 0 calls it.

    ``newest`` is the step of the newest checkpoint, -1 without any. Raises UserError after ``GIVES_UP`` deaths at one
    place; whoever then gives the command again gets as many new starts.
    """
    before = _read(folder)
    deaths: list[Start] = []
    if before is not None:
        earlier, last = before
        death = _died(replace(last, newest=newest), folder / DOING)
        deaths = [*(one for one in earlier if one.is_like(death)), death]
    begun = Begun(tuple(deaths))
    if len(deaths) >= GIVES_UP:
        end(folder)
        saved = f"what was saved is intact (step {newest})" if newest >= 0 else "nothing had been saved"
        raise UserError(
            f"the last {len(deaths)} starts of {folder} died {begun.place}, with no new checkpoint between them; "
            f"{saved}; see what they said, or leave these examples out; the same command tries again"
        )
    shutil.rmtree(folder / DOING, ignore_errors=True)
    (folder / DOING).mkdir()
    now = Start(newest, tuple(dict.fromkeys(nodes)))
    write_whole(folder / STARTS, json.dumps({"deaths": [asdict(one) for one in deaths], "now": asdict(now)}))
    return begun


def end(folder: Path) -> None:
    """Notes that a start has come to an end by itself, so that nothing is to be looked into."""
    with suppress(OSError):
        (folder / STARTS).unlink()
    shutil.rmtree(folder / DOING, ignore_errors=True)


class Doing:
    """Writes which step this rank is in, for those who come after it."""

    def __init__(self, folder: Path, rank: int) -> None:
        """``folder`` is the run's, where ``begin`` has been called."""
        self._file: int | None = None
        with suppress(OSError):
            self._file = os.open(folder / DOING / str(rank), os.O_WRONLY | os.O_CREAT, 0o644)

    def at(self, step: int, ids: Sequence[str]) -> None:
        """Is in ``step``, from 1, with the examples ``ids``; none while it waits for them."""
        if self._file is not None:
            line = json.dumps({"step": step, "ids": list(ids[:_MOST_IDS])})
            # One write in place, without waiting for the disk: it outlives the process, though not the machine. What
            # a longer line has left behind the line's end is not read.
            with suppress(OSError):
                os.pwrite(self._file, f"{line}\n".encode(), 0)

    def close(self) -> None:
        """Writes no more."""
        if self._file is not None:
            os.close(self._file)
            self._file = None


def _died(start: Start, doing: Path) -> Start:
    """A start that died, with what its ranks did last: the furthest step that any of them was in."""
    found = [step_and_ids for file in sorted(doing.glob("[0-9]*")) if (step_and_ids := _last(file)) is not None]
    if not found:
        return start
    step = max(step for step, _ in found)
    return replace(start, step=step, ids=tuple(one for at, ids in found if at == step for one in ids))


def _last(file: Path) -> tuple[int, list[str]] | None:
    """Step and ids in a rank's file; None if it holds none."""
    try:
        value = json.loads(file.read_bytes().partition(b"\n")[0])
        return int(value["step"]), [str(one) for one in value["ids"]]
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return None


def _read(folder: Path) -> tuple[list[Start], Start] | None:
    """The deaths that are on record and the start after them; None if there is none, or the file is damaged."""
    try:
        content = json.loads((folder / STARTS).read_bytes())
        return [_start(one) for one in content["deaths"]], _start(content["now"])
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return None


def _start(value: Mapping[str, Any]) -> Start:
    step = value["step"]
    return Start(
        int(value["newest"]),
        tuple(str(node) for node in value["nodes"]),
        None if step is None else int(step),
        tuple(str(one) for one in value["ids"]),
    )
