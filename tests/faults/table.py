"""The table of what came of each kind of fault."""

from collections import Counter
from collections.abc import Iterable, Sequence

from tests.faults.all_kinds import KINDS
from tests.faults.rounds import Round


def table(rounds: Sequence[Round]) -> str:
    """Markdown: a row for each kind that was played."""
    lines = [
        "| fault | what the run does | rounds | exit statuses | after going on | equal |",
        "|---|---|---|---|---|---|",
    ]
    for kind in KINDS:
        own = [one for one in rounds if one.kind == kind.name]
        if own:
            first, last = _counted(one.statuses[:-1] for one in own), _counted(one.statuses[-1:] for one in own)
            equal = sum(one.equal for one in own)
            lines.append(f"| {kind.name} | {kind.does} | {len(own)} | {first} | {last} | {equal}/{len(own)} |")
    return "\n".join([*lines, f"| all | | {len(rounds)} | | | {sum(one.equal for one in rounds)}/{len(rounds)} |", ""])


def _counted(found: Iterable[Sequence[int | None]]) -> str:
    """``75 (3), 0 and 2 (1)``."""
    counts = Counter(" and ".join(str(status) for status in statuses) for statuses in found)
    return ", ".join(f"{text} ({count})" for text, count in counts.most_common())
