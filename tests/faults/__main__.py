"""``python -m tests.faults total=100 out=DIR``: random faults in real trainings, which have to end the same.

Each round starts a tiny training, injects one fault in a random moment, gives the same command again until it has
ended well, and compares all that is left with a run that had no fault. Linux only. Adds to ``out``:

    rounds.jsonl    one line a round
    table.md        what came of each kind
    rounds/         what failing rounds left; references/, shapes/: runs without a fault, and their data
"""

import dataclasses
import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from mmlm.cli.exits import report_user_errors
from mmlm.cli.key_values import parse_key_values
from mmlm.core.errors import UserError
from tests.faults.all_kinds import KINDS
from tests.faults.kinds import Kind
from tests.faults.rounds import Round, kind_of, play
from tests.faults.table import table

_ROUNDS = "rounds.jsonl"


@dataclass
class FaultSettings:
    """Inject random faults into tiny trainings, and compare them with runs that had none."""

    out: str
    """Folder of the record; it is added to."""
    rounds: int = 100
    """Rounds to play now."""
    total: int | None = None
    """Rounds to be recorded in the end: the same command, given again after it was stopped, plays what is left. null
    plays ``rounds`` in any case."""
    seed: int = 0
    """Of kinds and moments."""
    first: int | None = None
    """Number of the first round; null goes on after the last one recorded. The same seed, kinds and number draw the
    same fault again, up to the clock; rounds of different numbers may be played side by side."""
    kinds: list[str] = field(default_factory=list)
    """Kinds to draw from, such as [SIGTERM,full disk while saving]; none takes all."""


def main(argv: list[str]) -> int:
    """Plays the rounds; 1 if any was not equal."""
    settings, _ = parse_key_values(argv, FaultSettings)
    return run(settings, chosen(settings.kinds))


def chosen(names: Sequence[str]) -> list[Kind]:
    """The kinds of these names, or all. Raises UserError."""
    known = {kind.name: kind for kind in KINDS}
    for name in names:
        if name not in known:
            raise UserError(f"kinds: there is no '{name}'; there are: {', '.join(known)}")
    return [known[name] for name in names] if names else list(KINDS)


def run(settings: FaultSettings, kinds: Sequence[Kind]) -> int:
    """Plays rounds and records each at once; 1 if any was not equal."""
    out = Path(settings.out).resolve()
    out.mkdir(parents=True, exist_ok=True)
    first = _next(out) if settings.first is None else settings.first
    last = first + settings.rounds if settings.total is None else settings.total
    failed = 0
    for number in range(first, last):
        one = play(number, kind_of(number, settings.seed, kinds), settings.seed, out)
        with (out / _ROUNDS).open("a", encoding="utf-8") as file:
            file.write(json.dumps(dataclasses.asdict(one)) + "\n")
        (out / "table.md").write_text(table(read_rounds(out)), encoding="utf-8")
        print(f"{number + 1 - first} of {last - first}, {_line(one)}", flush=True)
        if not one.equal:
            failed += 1
            again = f"python -m tests.faults out={settings.out} seed={settings.seed} first={number} rounds=1"
            again += f" 'kinds=[{','.join(settings.kinds)}]'" if settings.kinds else ""
            print(f"  again: {again}", *one.complaints, sep="\n  ", flush=True)
    return 1 if failed else 0


def read_rounds(out: Path) -> list[Round]:
    """The rounds that are recorded in a folder."""
    file = out / _ROUNDS
    lines = file.read_text(encoding="utf-8").splitlines() if file.exists() else []
    return [Round(**json.loads(line)) for line in lines]


def _next(out: Path) -> int:
    return 1 + max((one.round for one in read_rounds(out)), default=-1)


def _line(one: Round) -> str:
    verdict = "equal" if one.equal else "NOT EQUAL"
    return f"round {one.round}: {one.kind} ({one.moment}), status {list(one.statuses)}, {one.seconds:g} s: {verdict}"


if __name__ == "__main__":
    report_user_errors(main)
