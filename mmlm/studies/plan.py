"""What a study will cost, before anything is spent: cells, seeds, steps, FLOPs, parameters, memory and hours here."""

from collections.abc import Iterator, Mapping, Sequence

from mmlm.record.folder import METRICS
from mmlm.record.metrics import read_metrics
from mmlm.studies.costs import CostBook, Measured
from mmlm.studies.grid import Cell, Run
from mmlm.studies.place import duration
from mmlm.studies.progress import Phase, State
from mmlm.studies.settings import Equal, Study


def plan(
    name: str,
    study: Study,
    cells: Mapping[str, Cell],
    steps: Mapping[str, int],
    costs: CostBook,
    done: Sequence[tuple[Run, State]],
    measure: bool,
    at_once: int,
) -> Iterator[str]:
    """The lines of a plan, of what is spent; what can be found with it follows them. Raises UserError for a cell that
    cannot be built.

    ``steps`` are those of the matching rule, ``done`` the runs that are done, from which times are taken first. With
    ``measure``, cells of which nothing is known are trained for a few steps. Nothing is trained otherwise.
    """
    seeds, tuning = len(study.seeds), study.tuning
    yield f"{name}: {study.question}"
    yield (
        f"{len(cells)} cells x {seeds} seeds = {len(cells) * seeds} runs"
        + (f", after {len(cells) * len(tuning.values)} that tune {tuning.setting}" if tuning.values else "")
        + f"; baseline {study.baseline}; "
        + (
            "each cell has its own steps"
            if study.matching.equal is Equal.nothing
            else f"equal {study.matching.equal.value}"
        )
    )
    yield ""
    rows = [["cell", "steps", "examples", "parameters", "TFLOPs a run", "memory, GB", "a run takes", "by"]]
    total, flops, unknown = 0.0, 0.0, False
    for cell in cells.values():
        counted = costs.counted(cell)
        own = steps.get(cell.name, cell.config.train.steps)
        took = _of_done(cell, done) or (costs.measured(cell) if measure else costs.known_measured(cell))
        of_run = counted.flops(own)
        of_cell = [own] * seeds + [tuning.steps or 0] * len(tuning.values)
        flops += sum(map(counted.flops, of_cell))
        unknown |= took is None
        total += 0.0 if took is None else sum(took.beside + count * took.seconds for count in of_cell)
        told = ["?", "?", "not measured"]
        if took is not None:
            told = [f"{took.memory / 1e9:.2f}", duration(took.beside + own * took.seconds), took.source]
        examples = f"{own * cell.config.train.batch_size:,}"
        rows.append([cell.name, f"{own:,}", examples, f"{counted.parameters:,}", f"{of_run / 1e12:,.2f}", *told])
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    for row in rows:
        yield "  ".join(
            word.ljust(width) if column in (0, 7) else word.rjust(width)
            for column, (word, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
    yield ""
    yield f"all: {flops / 1e12:,.2f} TFLOPs" + (
        "; hours: not measured (measure=true trains each cell for a few steps)"
        if unknown
        else f"; {duration(total / max(1, at_once))} here, {at_once} at a time, as if they did not slow each other down"
    )


def _of_done(cell: Cell, done: Sequence[tuple[Run, State]]) -> Measured | None:
    """What the runs of a cell that are done have taken; None without any."""
    own = [
        (run, state) for run, state in done if run.cell == cell.name and state.phase is Phase.done and run.tuned is None
    ]
    if not own:
        return None
    seconds, memory, beside = [], [], []
    for run, state in own:
        seconds.append(state.seconds / state.step)
        rows = read_metrics(run.folder / METRICS)
        memory.append(max((row.get("train/peak_memory", 0.0) for row in rows), default=0.0))
        beside.append(
            max(
                0.0,
                (run.folder / "report.html").stat().st_mtime
                - (run.folder / "environment.json").stat().st_mtime
                - state.seconds,
            )
        )
    return Measured(
        sum(seconds) / len(seconds),
        min(beside),  # of a run that was interrupted it is too long
        max(memory) * 1e9,
        f"{len(own)} run{'s' * (len(own) > 1)} done",
    )
