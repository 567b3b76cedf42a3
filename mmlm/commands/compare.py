"""Shows curves and scores of several runs side by side."""

import sys
from pathlib import Path

from mmlm.cli.arguments import CompareArguments
from mmlm.cli.runs import chosen_run
from mmlm.core.errors import PROGRAM, UserError
from mmlm.record.folder import FIGURES
from mmlm.reports.comparison import draw_curves, score_table
from mmlm.reports.differences import differences
from mmlm.reports.paired_table import difference_table
from mmlm.reports.protocols import refuse_unlike
from mmlm.reports.run_folder import RunFolder, read_run_folder


def compare_runs(arguments: CompareArguments) -> int:
    """Writes curves.png, scores.md and differences.md, prints the tables, and returns the exit status.

    Raises UserError.

    One line on stderr tells what besides the experiments differs: precision, commit, device or data.
    """
    runs = _read(arguments.runs)
    if not arguments.unlike:
        refuse_unlike("runs", {name: run.scores.protocols for name, run in runs.items() if run.scores is not None})
    table, figure, paired = score_table(runs), draw_curves(runs), difference_table(runs)
    out = Path(arguments.out)
    try:
        out.mkdir(parents=True, exist_ok=True)
        (out / "scores.md").write_text(table + "\n", encoding="utf-8")
        if paired is not None:
            (out / "differences.md").write_text(paired + "\n", encoding="utf-8")
        figure.savefig(out / "curves.png", dpi=110)
    except OSError as error:
        raise UserError(f"out: {out} cannot be written ({error.strerror}); give another folder") from error
    print(table if paired is None else f"{table}\n\n{paired}")
    print(f"\ncurves: {out / 'curves.png'}")
    differing = differences(runs)
    if differing is not None:
        print(f"{PROGRAM}: {differing}", file=sys.stderr)
    return 0


def _read(given: list[str]) -> dict[str, RunFolder]:
    """The run folders ``given``, by the name before the colon or else by the experiment's. Raises UserError."""
    if len(given) < 2:
        raise UserError(f"runs: {len(given)} given, and a comparison needs at least two: runs=[FOLDER,FOLDER]")
    runs: dict[str, RunFolder] = {}
    for entry in given:
        name, colon, folder = entry.partition(":")
        run = read_run_folder(chosen_run(folder if colon else entry))
        if run.figures.damaged:
            print(f"{PROGRAM}: {run.path / FIGURES} is damaged: what it explains is under plain names", file=sys.stderr)
        name = name if colon else run.experiment
        if name in runs:
            raise UserError(f"runs: two are called '{name}'; name them apart, as in runs=[first:FOLDER,second:FOLDER]")
        runs[name] = run
    return runs
