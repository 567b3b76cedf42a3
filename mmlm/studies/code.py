"""Which code has made the runs of a study: numbers of different code do not compare unless somebody says so."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from mmlm.core.errors import UserError
from mmlm.core.wording import listed
from mmlm.record.folder import ENVIRONMENT
from mmlm.reports.json_file import read_json
from mmlm.studies.grid import Run
from mmlm.studies.place import Place

_SHORT = 7
"""Letters of a commit that are shown."""


@dataclass(frozen=True)
class MadeBy:
    """The code that a run was made by."""

    commit: str
    """``1a2b3c4``, with a plus sign if tracked files differed from it; ``unknown``."""
    codes: tuple[str, ...]
    """The digests of the code of all of its starts; empty of a run that is older than digests."""

    @property
    def words(self) -> str:
        """For people."""
        return f"{'+'.join(self.codes) or 'unknown'} ({self.commit})"


def made_by(run: Run, place: Place) -> MadeBy | None:
    """The code that has made a run so far; None of one that has not begun. Raises DamagedFileError."""
    environment = read_json(run.folder / ENVIRONMENT)
    if environment is None:
        return None
    commit = environment.get("git_commit")
    told = "unknown" if commit is None else str(commit)[:_SHORT] + "+" * bool(environment.get("git_dirty"))
    began, task = environment.get("code"), place.task(run.label)
    # The environment is that of the first start; each start of the study is on record beside it.
    codes = [*([str(began)] if began is not None else []), *(() if task is None else task.codes)]
    return MadeBy(told, tuple(dict.fromkeys(codes)))


def check_code(runs: Sequence[Run], place: Place, current: str) -> None:
    """Raises UserError if a run that has begun was made by other code than ``current``, the digest of this one."""
    made = {run.words: found for run in runs if (found := made_by(run, place)) is not None}
    others = {words: found for words, found in made.items() if found.codes and set(found.codes) != {current}}
    if others:
        theirs = listed(sorted({found.words for found in others.values()}), 3)
        raise UserError(
            f"{len(others)} of {len(made)} runs that have begun were made by other code ({theirs}; this is "
            f"{current}), such as {next(iter(others))}; begin anew with another runs=FOLDER, or go on by code=changed, "
            "which the table marks"
        )


def differing(made: Mapping[str, MadeBy]) -> list[str]:
    """The labels of runs that were not made by one code, and by the same as most; empty if all were."""
    counts: dict[tuple[str, ...], int] = {}
    for found in made.values():
        counts[found.codes] = counts.get(found.codes, 0) + 1
    most = max(counts, key=lambda codes: (len(codes) == 1, counts[codes]), default=())
    return [label for label, found in made.items() if found.codes != most or len(found.codes) > 1]
