"""Runs a study on this machine or as a job array, and tells its plan, its status and its table."""

import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import NoReturn

import torch

from mmlm.cli.arguments import OnOtherCode, StudyArguments, StudyLauncher
from mmlm.cli.checked_config import compose_typed
from mmlm.commands.study_costs import count, measure
from mmlm.commands.study_report import write_report
from mmlm.core.errors import STOPPED, UserError
from mmlm.core.wording import did_you_mean
from mmlm.evaluation.evaluate import evaluation_figures, evaluator_of
from mmlm.experiment.build import build_evaluators
from mmlm.launch.slurm import Slurm
from mmlm.record.environment import code_digest
from mmlm.record.lock import RunLock, holder_of
from mmlm.studies.array import jobs_of, submit_array
from mmlm.studies.code import check_code
from mmlm.studies.contrasts import Compared, compare_with
from mmlm.studies.costs import CostBook
from mmlm.studies.grid import Cell, Run, cells_of, compared_runs, tuning_runs
from mmlm.studies.matching import matched_steps
from mmlm.studies.place import Place
from mmlm.studies.plan import plan
from mmlm.studies.power import power_line
from mmlm.studies.processes import Outcome, Runner, failures
from mmlm.studies.progress import Phase, State, state_of, summary, table
from mmlm.studies.record import score_arrays
from mmlm.studies.scores import read_scored, scores_table, study_record
from mmlm.studies.settings import Study
from mmlm.studies.shown import Shown, tell
from mmlm.studies.study_file import find_study, read_study
from mmlm.studies.tuning import tuned_values


def study_command(arguments: StudyArguments, given: str, action: str, argv: Sequence[str]) -> int:
    """Does what a study is asked for; returns the exit status. Raises UserError."""
    file = find_study(given)
    study = read_study(file)
    _check(arguments)
    place = Place.of(arguments.runs, file.stem)
    cells = cells_of(study, compose_typed, arguments.runs)
    _check_metrics(study, cells)
    asks = (_unknown, _unknown) if action in ("status", "report") else (count, measure)
    opened = Opened(given, file.stem, study, cells, place, CostBook(place.costs, *asks, tell), arguments)
    if action == "plan":
        return opened.plan()
    if action == "status":
        return opened.status()
    if action == "report":
        return opened.report()
    return opened.run(shlex.join(["python", "-m", "mmlm.study", *argv]))


def _check(arguments: StudyArguments) -> None:
    if arguments.processes < 1:
        raise UserError(f"processes: {arguments.processes} must be at least 1")
    if arguments.at_once is not None and arguments.at_once < 1:
        raise UserError(f"at_once: {arguments.at_once} must be at least 1; null is no limit")
    if arguments.launcher is StudyLauncher.slurm:
        if arguments.processes > 1:
            raise UserError(f"processes: {arguments.processes} has no effect with launcher=slurm; use at_once")
        if arguments.slurm.processes is not None or arguments.slurm.plugins:
            raise UserError("slurm.plugins: has no effect; write plugins=[...] into the base of the study")
    elif arguments.slurm != Slurm():
        raise UserError("slurm: these settings have no effect without launcher=slurm; add it")
    elif arguments.at_once is not None:
        raise UserError(f"at_once: {arguments.at_once} has no effect without launcher=slurm; use processes")


def _check_metrics(study: Study, cells: Mapping[str, Cell]) -> None:
    """UserError for a metric that no cell's evaluators yield."""
    by_cell = [build_evaluators(cell.config) for cell in cells.values()]
    for metric in study.metrics:
        if not any(evaluator_of(metric, evaluators) for evaluators in by_cell):
            names = dict.fromkeys(name for evaluators in by_cell for name in evaluation_figures(evaluators))
            raise UserError(f"metrics: no cell is scored by '{metric}'{did_you_mean(metric, list(names))}")


def _unknown(cell: Cell) -> NoReturn:
    """Stands for counting and measuring where a study is only looked at."""
    raise UserError(
        f"cell {cell.name}: the study has not begun, and the steps of its cells follow from costs that nobody has "
        "asked for yet; ask for its plan first"
    )


@dataclass
class Opened:
    """A study that has been read and checked."""

    given: str
    """How it was named on the command line."""
    name: str
    study: Study
    cells: Mapping[str, Cell]
    place: Place
    costs: CostBook
    arguments: StudyArguments
    _steps: Mapping[str, int] | None = field(default=None, init=False)

    def _words(self, *action: str) -> str:
        """The command that trains this study, or that asks it for something."""
        runs = [] if self.arguments.runs == StudyArguments.runs else [f"runs={self.arguments.runs}"]
        return shlex.join(["python", "-m", "mmlm.study", self.given, *action, *runs])

    def _tuning(self) -> list[Run]:
        return tuning_runs(self.study, self.cells, self.arguments.runs, compose_typed)

    def _compared(self, tuned: Mapping[str, float]) -> list[Run]:
        """The runs that are compared, as far as they are settled. Raises UserError."""
        if self._steps is None:
            self._steps = matched_steps(self.study, self.cells, self.costs)
        return compared_runs(self.study, self.cells, self.arguments.runs, self._steps, tuned, compose_typed)

    def _states(self, runs: Sequence[Run]) -> dict[str, State]:
        jobs = jobs_of(self.place)
        return {run.label: state_of(run, self.place, jobs) for run in runs}

    def _all(self) -> tuple[list[Run], dict[str, State]]:
        """All runs that are settled, with how far they are."""
        tuning = self._tuning()
        states = self._states(tuning)
        compared = self._compared(tuned_values(self.study, tuning, states, self.place) if tuning else {})
        return [*tuning, *compared], states | self._states(compared)

    # What a study can be asked for

    def plan(self) -> int:
        """Prints what the study costs."""
        runs, states = self._all()
        done = [(run, states[run.label]) for run in runs]
        steps = self._steps or {}
        at_once = self.arguments.at_once or self.arguments.processes
        # Counting and measuring tell what they do before the first line is shown.
        for line in list(
            plan(self.name, self.study, self.cells, steps, self.costs, done, self.arguments.measure, at_once)
        ):
            tell(line)
        tell(power_line(self.study, len(self.cells), self._first_score(runs, states)))
        return 0

    def _first_score(self, runs: Sequence[Run], states: Mapping[str, State]) -> Compared | None:
        """The contrasts of what is done by now, by the study's first score; None without a run that is done."""
        done = [run for run in runs if run.tuned is None and states[run.label].phase is Phase.done]
        if not done:
            return None
        scored = read_scored(done, self.place)
        record = study_record(self.name, self.study, self.cells, scored, self._words())
        first = score_arrays(record, scores_table(scored), record.splits[0], record.metrics[0])
        return compare_with(first, record.baseline)

    def status(self) -> int:
        """Prints how far the study is."""
        runs, states = self._all()
        for line in table(runs, states):
            tell(line)
        unsettled = len(self.cells) * len(self.study.seeds) - sum(run.tuned is None for run in runs)
        if unsettled:
            tell(f"{unsettled} more wait for the value of {self.study.tuning.setting} that is best for their cell")
        tell(summary(runs, states, max(1, sum(state.phase is Phase.running for state in states.values()))))
        return 0

    def report(self) -> int:
        """Writes and prints the tables of what is done."""
        runs, states = self._all()
        done = [run for run in runs if run.tuned is None and states[run.label].phase is Phase.done]
        if not done:
            raise UserError(f"{self.name}: no run is done yet; see {self._words('status')}")
        scored = read_scored(done, self.place)
        record = study_record(self.name, self.study, self.cells, scored, self._words())
        write_report(record, scored, self.place, self.arguments.into, self.arguments.unlike)
        return 0

    def run(self, command: str) -> int:
        """Trains what is not done, or submits it; returns the exit status."""
        holder = holder_of(self.place.folder)
        if holder is not None:
            raise UserError(f"{self.name}: is being run by {holder}; see {self._words('status')}, or wait for its end")
        self.place.folder.mkdir(parents=True, exist_ok=True)
        with RunLock(self.place.folder, tell):
            if self.arguments.code is OnOtherCode.refused:
                check_code(self._all()[0], self.place, code_digest())
            if self.arguments.launcher is StudyLauncher.slurm:
                return self._submit(command)
            status = 0
            for settled in (self._tuning, self._settled):  # what is compared follows from what tunes
                runs = settled()
                if not runs:
                    continue
                outcome = self._train(runs)
                if outcome.asked is not None:
                    tell(f"stopped by {outcome.asked}, and saved; go on with: {command}")
                    return STOPPED
                if outcome.changed:
                    raise UserError(
                        f"{self.name}: the code has changed since this command began, so nothing else was started; "
                        "undo the change and give the command again, or go on by code=changed, which the table marks"
                    )
                status = status or failures(outcome)
            runs, states = self._all()
        for line in table(runs, states):
            tell(line)
        tell(summary(runs, states, self.arguments.processes))
        if status:
            tell(f"the same command tries what has failed again: {command}")
        else:
            tell(f"table: {self._words('report')}")
        return status

    def _settled(self) -> list[Run]:
        """The runs that are compared, as far as the values of those that tune are known."""
        tuning = self._tuning()
        return self._compared(tuned_values(self.study, tuning, self._states(tuning), self.place) if tuning else {})

    def _train(self, runs: Sequence[Run]) -> Outcome:
        shown = Shown(runs, self.place, self.arguments.processes)
        done = sum(state.phase is Phase.done for state in self._states(runs).values())
        tell(f"{self.name}: {len(runs)} runs, of which {done} are done; {self.arguments.processes} at a time")
        runner = Runner(
            self.place,
            self.arguments.processes,
            code_digest,
            shown.tell,
            shown.show,
            torch.cuda.device_count(),
            self.arguments.code is OnOtherCode.changed,
        )
        outcome = runner.run_all(runs)
        shown.clear()
        return outcome

    def _submit(self, command: str) -> int:
        """Submits what is neither done, nor running, nor in the queue; returns 0 at once."""
        tuning, jobs = self._tuning(), jobs_of(self.place)
        tuned = tuned_values(self.study, tuning, self._states(tuning), self.place) if tuning else {}
        runs = [*tuning, *self._compared(tuned)]
        states = {run.label: state_of(run, self.place, jobs) for run in runs}
        due = [
            run
            for run in runs
            if states[run.label].phase in (Phase.waiting, Phase.failed) and not self._queued(run, jobs)
        ]
        tell(summary(runs, states, 1))
        if due:
            arguments = self.arguments
            job = submit_array(self.place, due, arguments.slurm, arguments.at_once, code_digest(), command)
            most = "" if arguments.at_once is None else f", {arguments.at_once} at a time"
            tell(f"submitted job {job}: {len(due)} task{'s' * (len(due) > 1)}{most}")
            tell(f"  watch:  {self._words('status')}    squeue --jobs={job}")
            tell(f"  stop:   scancel {job}")
            tell(f"  again:  {command}    (goes on with what is not done)")
        if len(tuned) < len(self.cells) and tuning:
            tell(
                f"the other runs wait for the best {self.study.tuning.setting} of their cell; give this command again "
                "then"
            )
        return 0

    def _queued(self, run: Run, jobs: Mapping[str, str]) -> bool:
        task = self.place.task(run.label)
        return task is not None and task.job is not None and task.job in jobs
