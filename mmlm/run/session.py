"""One process's work on a run, from its parts to its report. Below the commands, above the parts."""

import dataclasses
import os
import shlex
import sys
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import cast

import torch.distributed as dist

from mmlm.checkpoints.sharded import lay_out
from mmlm.checkpoints.weights import copy_weights
from mmlm.checkpoints.writer import CheckpointWriter
from mmlm.core.distributed import on_rank_zero, rank, world_size
from mmlm.core.errors import STOPPED, UserError
from mmlm.core.figure import shown_in
from mmlm.core.precision import Precision
from mmlm.core.stop import StopAsked, StopRequest, ignore_stop_signals, stop_request
from mmlm.data.loader import TrainLoader
from mmlm.data.unreadable import BadLimits, Unreadable
from mmlm.evaluation.evaluate import Evaluation, evaluation_figures
from mmlm.experiment.build import build_loggers
from mmlm.experiment.config import Config, Resume
from mmlm.experiment.config_file import config_values
from mmlm.experiment.experiment import Experiment
from mmlm.experiment.saved_run import exported_weights, save_tokenizer
from mmlm.launch.rank_info import COMMAND, Starter
from mmlm.launch.requeue import in_step, requeue
from mmlm.launch.watchdog import Watchdog
from mmlm.model.costs import TrainingCosts
from mmlm.record.changes import Changes, record_changes
from mmlm.record.console import Console
from mmlm.record.environment import describe_environment, save_environment
from mmlm.record.figures import RunFigures, record_figures
from mmlm.record.folder import CHECKPOINTS, ENVIRONMENT, REPORT, TOKENIZER
from mmlm.record.lock import RunLock
from mmlm.record.logger import Copies, LoggedRun
from mmlm.record.metrics import MetricLog, NoLog
from mmlm.reports.page import write_report
from mmlm.run.before_training import check_best_metric, tell_findings
from mmlm.run.data_overlap import overlap_lines
from mmlm.run.data_record import check_data
from mmlm.run.header import flops_values, header_rows, run_costs
from mmlm.run.logged_samples import logged_samples
from mmlm.run.preflight import Preflight, check_first_batch
from mmlm.run.rehearsal import rehearse
from mmlm.run.restore import RunCheckpoints, resume_run
from mmlm.run.resume import record_config
from mmlm.run.started import started
from mmlm.training.gradients import backward
from mmlm.training.loop import FitParts, Interrupted, Watch, fit
from mmlm.training.messages import NonFiniteLoss, TooManyUnreadable, describe_corrupt
from mmlm.training.reporter import Reporter, training_figures
from mmlm.training.train_step import inner


@dataclass(frozen=True)
class Session:
    """One process's work on a run: from an experiment that has been built to the report.

    Where the weights of a run come from is decided in this order; each step writes over the one before:

    1. random, keyed by the seed (``build_experiment``);
    2. the pretrained weights of parts that ask for some (``build_experiment``);
    3. another run or a file, for the parts that ``init_from`` names (``build_experiment``);
    4. the newest intact checkpoint in the run's own folder, optimizer and data position included (``run``);
    5. after a loss spike, the checkpoint from before it (``RunCheckpoints.restore``).

    The freeze plan acts at every optimizer step and after each of these.
    """

    config: Config
    folder: Path
    experiment: Experiment
    starter: Starter
    watchdog: Watchdog
    console: Console
    changes: Changes | None = None

    def run(self) -> int:
        """Trains from where the folder is, evaluates and reports; returns the exit status."""
        check_best_metric(self.config, self.experiment, self._figures())
        self._look_at_first_batch()
        self.experiment.findings.accepted()
        if self.config.preflight:
            tell_findings(self.config, self.experiment, self.console)
            self._rehearse()
            return 0
        with ExitStack() as stack:

            def lock() -> None:
                make_folder(self.folder)
                stack.enter_context(RunLock(self.folder, self.console.line))

            on_rank_zero(lock)
            # From here to the report no signal may cut off what is written. It is taken down, and acted on where the
            # run is whole; also after the first one has stopped the run, since another rank's may be late.
            request = stack.enter_context(stop_request(speaks=rank() == 0))
            costs = run_costs(self.config, self.experiment)
            on_rank_zero(lambda: self._record(costs))
            self.console.header(header_rows(self.config, self.experiment, self.folder, costs.full, self.starter))
            tell_findings(self.config, self.experiment, self.console)
            start = stack.enter_context(started(self.folder, self.console))

            # Only a run that could be resumed has its config recorded: a change that does not work leaves no trace.
            state = self.experiment.state
            resume_run(self.config, state, self.folder, self.console, start.at_most)
            changed_is_fine = self.config.resume is Resume.changed
            for line in on_rank_zero(lambda: check_data(self.experiment, self.folder, changed_is_fine)) or ():
                self.console.line(line)
            for line in on_rank_zero(lambda: overlap_lines(self.config, self.experiment, self.folder)) or ():
                self.console.line(f"data: {line}")
            on_rank_zero(lambda: record_config(self.config, self.folder, state.step))
            on_rank_zero(self._record_changes)
            on_rank_zero(lambda: record_figures(self.folder, self._figures()))
            report = self.folder / REPORT
            if state.step >= self.config.train.steps and report.exists():
                self.console.line(f"finished already at step {state.step}; the report is {report}")
                weights = shlex.quote(f"init_from.run={self.folder}")  # to be pasted, whatever the folder's name
                self.console.line(f"to train again add name=second; to train on from these weights add {weights}")
                return 0
            try:
                return self._train_and_finish(Watch(request, self.watchdog.mark, start.doing), costs)
            except (Interrupted, StopAsked):
                start.over()
                return self._stopped(state.step)

    def _look_at_first_batch(self) -> None:
        """Raises UserError if an objective has nothing to train on in it; shows it first if that is asked for."""
        config, experiment = self.config, self.experiment
        objective = inner(experiment.state.train_step).objective
        batch = cast(TrainLoader, experiment.state.loader).peek().to(experiment.device)
        if config.preflight:
            preflight = Preflight(batch, experiment.tokenizer, objective, config.data.max_tokens, config.seed)
            self.console.line(preflight.text())
        check_first_batch(objective, batch, config.seed)

    def _rehearse(self) -> None:
        """Runs on a few examples what validation and the report will run. Raises UserError for a part that fails."""
        experiment, config = self.experiment, self.config
        experiment.model.eval()
        with experiment.whole():
            lines = rehearse(self._evaluation(), experiment.validation, config.samples, config.data.language)
        for line in lines:
            self.console.line(line)

    def _evaluation(self, precision: Precision | None = None, request: StopRequest | None = None) -> Evaluation:
        """The evaluators with the model as it is; ``precision`` None is the one that the run trains in.

        They raise StopAsked between two batches if ``request`` says so.
        """
        experiment = self.experiment

        def tick(doing: str) -> None:
            self.watchdog.mark(doing)
            self.console.doing(doing)
            if request is not None:
                request.check()

        return Evaluation.of(
            experiment,
            experiment.evaluators,
            self.config.data.max_tokens,
            experiment.device,
            precision or experiment.precision,
            tick=tick,
            without=experiment.findings.without,
            tell=self.console.line,
        )

    def _record(self, costs: TrainingCosts) -> None:
        """Writes into the folder what the run is made of, unless it is there. Rank 0 calls it."""
        experiment = self.experiment
        if not (self.folder / TOKENIZER).is_dir():
            save_tokenizer(experiment.tokenizer, self.folder)
        if not (self.folder / ENVIRONMENT).exists():
            environment = describe_environment(experiment.device, experiment.precision, dataclasses.asdict(costs.full))
            save_environment(environment, self.folder)

    def _record_changes(self) -> None:
        if self.changes is not None:
            record_changes(self.folder, self.changes)

    def _figures(self) -> RunFigures:
        """What the names of this run's metrics and scores are."""
        objective = inner(self.experiment.state.train_step).objective
        return RunFigures(training_figures(objective.figures), evaluation_figures(self.experiment.evaluators))

    def _train_and_finish(self, watch: Watch, costs: TrainingCosts) -> int:
        """Trains what is left of the run, if anything is, then writes scores and report; returns the exit status.

        Raises Interrupted or StopAsked once what has been trained is on the disk, if ``watch.request`` says so.
        """
        state, copies = self.experiment.state, self._copies()
        with NoLog() if rank() > 0 else MetricLog(self.folder, copies) as log:
            log.resume_from(state.step if state.step else None)
            if state.step < self.config.train.steps or state.owes_evaluation:
                self._train(log, costs, self._evaluation(request=watch.request), watch)
            # In float32, whatever the run trains in: whoever loads the exported model computes so, and gets these
            # scores.
            self._finish(copies, self._evaluation(Precision.fp32, watch.request), watch.request)
        return 0

    def _copies(self) -> Copies:
        """What copies the run elsewhere, which rank 0 alone does."""
        run = LoggedRun(self.folder, "/".join(self.folder.parts[-3:]), config_values(self.config))
        return Copies(run, {} if rank() > 0 else build_loggers(self.config), self.console.line)

    def _train(self, log: MetricLog | NoLog, costs: TrainingCosts, evaluation: Evaluation, watch: Watch) -> None:
        """Trains to the last step. Raises what ``fit`` raises, once the state is on the disk where that says so."""
        config, experiment, state = self.config, self.experiment, self.experiment.state

        def evaluate(step: int) -> Mapping[str, float]:
            with experiment.whole(), self.console.activity():
                return evaluation.all_scores(experiment.validation)

        patience = timedelta(seconds=config.ranks.timeout_seconds)
        with CheckpointWriter(self.folder / CHECKPOINTS, config.train.keep_last, patience) as writer:
            checkpoints = RunCheckpoints(config, self.folder, writer, self.console)
            loader = cast(TrainLoader, state.loader)
            limits = BadLimits(config.data.max_bad_share, config.data.max_bad_in_a_row, loader.examples_per_epoch)
            places = inner(state.train_step).text_places
            parts = FitParts(experiment.schedule, backward, experiment.device, evaluate, checkpoints, limits, places)
            figures, flops = self._figures().training, partial(flops_values, experiment, costs)
            settings = dataclasses.replace(config.train, precision=experiment.precision)
            try:
                fit(state, settings, parts, Reporter(log, self.console, figures, flops), watch)
            except (Interrupted, NonFiniteLoss, TooManyUnreadable):
                writer.wait()  # all say that the state is saved
                raise

    def _stopped(self, step: int) -> int:
        """Says how the run goes on, and lets SLURM start it again where it runs in a job step."""
        # Whatever ends a job or the first rank that exits must not keep rank 0 from asking for the restart.
        ignore_stop_signals()
        what = f"stopped and saved at step {step}" if step else "stopped before the first step"
        self.console.line(f"{what}; resume with: {command()}")
        if in_step():
            if rank() == 0:
                requeue(self.console.line)
            if world_size() > 1:
                dist.barrier()
        return STOPPED

    def _finish(self, copies: Copies, evaluation: Evaluation, request: StopRequest) -> None:
        """Writes scores and samples of the weights that are exported, and the page that shows them.

        Raises StopAsked on all ranks, between two batches or before the page: the same command makes all of it anew.
        """
        experiment, validation = self.experiment, self.experiment.validation
        step, weights = exported_weights(self.folder, self.config)
        own = experiment.model.state_dict()
        laid_out = {name: lay_out(name, tensor, own) for name, tensor in weights.items()}
        copy_weights(own, laid_out, f"report: {self.folder}")
        experiment.model.eval()
        with experiment.whole(), self.console.activity():
            settings, language = self.config.samples, self.config.data.language
            scores = evaluation.write(self.folder, step, validation, settings, language)
        for split, values in scores.items():
            unreadable = Unreadable(dict.fromkeys(validation[split].corrupt))
            if unreadable:
                self.console.line(describe_corrupt(split, unreadable))
            shown = shown_in("console", self._figures().evaluation, values)
            if shown:
                self.console.listing(split, [f"{key} {values[key]:.3f}" for key in shown])

        def report() -> None:
            request.check()
            with self.console.activity() as activity:
                activity.update("writing the report")
                page = write_report(self.folder)
            if copies.loggers:
                # Beside the last row, also where the weights that are shown are those of an earlier step.
                last = experiment.state.step
                for split, found in logged_samples(self.folder).items():
                    copies.samples(last, split, found)
                copies.report(last, page)
            self.console.line(f"report: {page}")

        on_rank_zero(report)


def make_folder(folder: Path) -> None:
    """Makes the run folder. Raises UserError if it cannot be made."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"runs: {folder} cannot be made ({error.strerror}); give runs= another folder") from error


def command() -> str:
    """The command that starts this run again and so resumes it."""
    return os.environ.get(COMMAND) or shlex.join(["python", "-m", "mmlm.train", *sys.argv[1:]])
