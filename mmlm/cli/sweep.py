"""The jobs of ``--multirun``: which one begins, and which have failed in the end."""

from collections.abc import Sequence
from dataclasses import dataclass, field

from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.override_parser.overrides_parser import OverridesParser

FLAGS = ("-m", "--multirun")
MORE = "for runs to compare, over seeds, side by side or on SLURM, there are studies: python -m mmlm.study --help"
"""Said before the first of several jobs."""


@dataclass
class Sweep:
    """The jobs of a command line, in the order in which they run; a command without ``--multirun`` is one."""

    names: Sequence[str] = ()
    """What tells each job from the others, such as ``bridge=perceiver seed=1``; empty if it is one, or unknown."""
    statuses: list[int] = field(default_factory=list)
    """The exit status of each job that has ended."""

    @classmethod
    def of(cls, argv: Sequence[str]) -> "Sweep":
        """The jobs of a command line, as Hydra's own sweeper makes them. Raises what Hydra's grammar does."""
        if not any(flag in argv for flag in FLAGS) or any("hydra/sweeper" in token for token in argv):
            return cls()
        parsed = OverridesParser.create().parse_overrides([token for token in argv if not token.startswith("-")])
        jobs = [job for batch in BasicSweeper.split_arguments(parsed, None) for job in batch]
        shared = set(jobs[0]).intersection(*jobs)
        return cls([" ".join(token for token in job if token not in shared) for job in jobs])

    def begin(self) -> None:
        """Says which job begins, if there are several."""
        number = len(self.statuses)
        if number == 0 and len(self.names) > 1:
            print(MORE)
        if len(self.names) > 1 and number < len(self.names):
            print(f"job {number + 1} of {len(self.names)}: {self.names[number]}", flush=True)

    def failures(self) -> str | None:
        """One line about the jobs that have failed; None if none has, or if there is one job only."""
        failed = [f"{name} (status {code})" for name, code in zip(self.names, self.statuses, strict=False) if code]
        if not failed or len(self.names) < 2:
            return None
        return f"{len(failed)} of {len(self.names)} jobs failed: {', '.join(failed)}"
