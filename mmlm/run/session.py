"""One run trained to its report, by one rank or as one of several. Below the commands, above the parts."""

import dataclasses
import functools
import os
import shlex
import sys
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from datetime import timedelta
from pathlib import Path

import torch
import torch.distributed as dist

from mmlm.checkpoints.checkpoint import remove_after
from mmlm.checkpoints.sharded import lay_out
from mmlm.checkpoints.weights import copy_weights
from mmlm.checkpoints.writer import CheckpointWriter
from mmlm.core.distributed import rank, world_size
from mmlm.core.errors import LOST, STOPPED, USER_ERROR, UserError
from mmlm.core.precision import computing
from mmlm.core.stop import StopRequest, ignore_stop_signals, stop_request
from mmlm.evaluation.evaluate import Evaluation
from mmlm.experiment.config import Config, config_values
from mmlm.experiment.device import choose_device
from mmlm.experiment.experiment import Experiment, build_experiment
from mmlm.experiment.saved_run import exported_weights
from mmlm.launch.meeting import COMMAND, Meeting, is_lost_connection, joined
from mmlm.launch.requeue import forbid_requeue, in_step, requeue
from mmlm.launch.watchdog import Watchdog
from mmlm.model.costs import ModelCosts
from mmlm.record.console import Console
from mmlm.record.environment import ENVIRONMENT, describe_environment, save_environment
from mmlm.record.folder import CHECKPOINTS, TOKENIZER
from mmlm.record.lock import RunLock
from mmlm.record.metrics import MetricLog, NoLog
from mmlm.reports.page import write_report
from mmlm.run.header import header_rows, run_costs
from mmlm.run.preflight import Preflight, check_first_batch
from mmlm.run.restore import on_all_ranks, resume_run
from mmlm.run.resume import record_config
from mmlm.training.gradients import backward
from mmlm.training.loop import Interrupted, fit
from mmlm.training.messages import NonFiniteLoss, describe_corrupt
from mmlm.training.replicated import unwrapped
from mmlm.training.train_state import TrainState

SHOWN = ("image_to_text/R@1", "image_to_text/R@5", "captioning/exact", "captioning/CIDEr-D", "image_use_gap/mean")
"""The values of each split that the console shows at the end."""


_MISTAKE = "mistake"
"""What ranks ask each other about, so that one of them tells of it."""


def train_run(config: Config, folder: Path, meeting: Meeting) -> int:
    """Trains a run to its report, as the rank that ``meeting`` makes this process; returns the exit status.

    A rank that cannot go on because another one cannot says so in one line, and its process ends with ``LOST``.
    """
    rank_info = meeting.rank_info
    console = Console(quiet=rank_info.rank > 0)
    try:
        with ExitStack() as stack:
            with _told_once(meeting):
                device = choose_device(config.device, rank_info.local_rank)
                stack.enter_context(joined(meeting, config.ranks, device))
            seconds, stacks = config.ranks.watchdog_seconds, folder / "stacks"
            watchdog = Watchdog(seconds, stacks, rank_info.rank, rank_info.world_size, meeting.store, _to_stderr)
            stack.enter_context(watchdog)
            with _told_once(meeting):
                return _train_run(config, folder, device, meeting, watchdog, console)
    except Exception as error:
        if rank_info.alone or not is_lost_connection(error):
            raise
        status = USER_ERROR if meeting.is_claimed(_MISTAKE) else LOST
        if status == LOST:
            lines = str(error).strip().splitlines() or [type(error).__name__]
            _to_stderr(f"mmlm: rank {rank_info.rank} has lost the others and ends ({lines[0]})")
        # Not through the interpreter's exit: threads of the broken process group may wait for ever.
        sys.stderr.flush()
        os._exit(status)


@contextmanager
def _told_once(meeting: Meeting) -> Iterator[None]:
    """A user's mistake in it is raised on the first rank that finds it; the others end with the same status.

    Before a rank leaves the process group: the others see it go, and ask whether it has told why.
    """
    try:
        yield
    except UserError:
        if meeting.claim(_MISTAKE):
            if in_step() and not meeting.rank_info.alone:
                forbid_requeue()
            raise
        sys.exit(USER_ERROR)


def _to_stderr(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def _train_run(
    config: Config, folder: Path, device: torch.device, meeting: Meeting, watchdog: Watchdog, console: Console
) -> int:
    experiment = build_experiment(config, folder, device)
    _look_at_first_batch(config, experiment, console)
    if config.preflight:
        return 0
    with ExitStack() as stack:
        with on_all_ranks():
            if rank() == 0:
                make_folder(folder)
                stack.enter_context(RunLock(folder, console.line))
        return _fill(config, experiment, folder, meeting, watchdog, console)


def _fill(
    config: Config, experiment: Experiment, folder: Path, meeting: Meeting, watchdog: Watchdog, console: Console
) -> int:
    """Trains from where the folder is, evaluates and reports; returns the exit status."""
    costs = run_costs(config, experiment)
    with on_all_ranks():
        if rank() == 0:
            _record(config, experiment, folder, costs)
    console.header(header_rows(config, experiment, folder, costs, meeting.rank_info.starter))
    resume_run(config, experiment.state, folder, console)
    with on_all_ranks():
        if rank() == 0:
            record_config(config, folder, experiment.state.step)
    evaluation = _evaluation(config, experiment, watchdog)
    if experiment.state.step < config.train.steps:
        # To the very end of a run that stops: the signal of another rank may have come first, and this one's is late.
        with stop_request() as request:
            try:
                _train(config, experiment, evaluation, folder, request, watchdog, console)
            except Interrupted as stop:
                return _stopped(stop.step, console)
    elif (folder / "report.html").exists():
        console.line(f"finished already at step {experiment.state.step}; the report is {folder / 'report.html'}")
        console.line(f"to train again add name=second; to train on from these weights add init_from.run={folder}")
        return 0
    _finish(config, experiment, evaluation, folder, console)
    return 0


def _stopped(step: int, console: Console) -> int:
    """Says how the run goes on, and lets SLURM start it again where it runs in a job step."""
    # Whatever ends a job or the first rank that exits must not keep rank 0 from asking for the restart.
    ignore_stop_signals()
    console.line(f"stopped and saved at step {step}; resume with: {command()}")
    if in_step():
        if rank() == 0:
            requeue(console.line)
        if world_size() > 1:
            dist.barrier()
    return STOPPED


def _look_at_first_batch(config: Config, experiment: Experiment, console: Console) -> None:
    """Raises UserError if an objective has nothing to train on in it; shows it first if that is asked for."""
    objective = unwrapped(experiment.state.train_step).objective
    batch = experiment.state.loader.peek().to(experiment.device)
    if config.preflight:
        preflight = Preflight(batch, experiment.tokenizer, objective, config.data.max_tokens, config.seed)
        console.line(preflight.text())
    check_first_batch(objective, batch, config.seed)


def make_folder(folder: Path) -> None:
    """The run folder. Raises UserError if it cannot be made."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"runs: {folder} cannot be made ({error.strerror}); give runs= another folder") from error


def _record(config: Config, experiment: Experiment, folder: Path, costs: ModelCosts) -> None:
    """What the run is made of, into its folder, unless it is there: only of experiments that could be built."""
    if not (folder / TOKENIZER).is_dir():
        experiment.tokenizer.save(folder / TOKENIZER)
    if not (folder / ENVIRONMENT).exists():
        environment = describe_environment(experiment.device, experiment.precision, dataclasses.asdict(costs))
        save_environment(environment, folder)


def _evaluation(config: Config, experiment: Experiment, watchdog: Watchdog) -> Evaluation:
    return Evaluation(
        model=experiment.model,
        tokenizer=experiment.tokenizer,
        evaluators=experiment.evaluators,
        max_tokens=config.data.max_tokens,
        device=experiment.device,
        computing=functools.partial(computing, experiment.device, experiment.precision),
        tick=watchdog.mark,
    )


def _train(
    config: Config,
    experiment: Experiment,
    evaluation: Evaluation,
    folder: Path,
    request: StopRequest,
    watchdog: Watchdog,
    console: Console,
) -> None:
    state = experiment.state

    def save(state: TrainState, is_best: bool) -> None:
        weights = {"model": unwrapped(state.train_step).state_dict()}
        if state.ema is not None:
            weights["ema"] = state.ema.tensors
        best = (config.train.best_metric, state.best) if is_best else None
        back = config.train.spike.goes_back_to(state.step, config.train.save_every)
        writer.save(state.step, weights, state.state_dict(), best, back)

    def restore(state: TrainState, step: int) -> None:
        writer.wait()
        with on_all_ranks():
            if rank() == 0:
                remove_after(folder / CHECKPOINTS, step)
        if not resume_run(config, state, folder, console, at_most=step):
            raise UserError(
                f"train.spike: the checkpoint of step {step} to go back to is gone from {folder / CHECKPOINTS}; start "
                "anew by resume=never"
            )

    def evaluate(step: int) -> Mapping[str, float]:
        with experiment.whole():
            return evaluation.all_scores(experiment.validation)

    settings = dataclasses.replace(config.train, precision=experiment.precision)
    patience = timedelta(seconds=config.ranks.timeout_seconds)
    with (
        _metric_log(config, folder, console) as log,
        CheckpointWriter(folder / CHECKPOINTS, config.train.keep_last, patience) as writer,
    ):
        log.resume_from(state.step if state.step else None)
        try:
            parts = (experiment.schedule, backward, experiment.device, log, console, evaluate, save, restore)
            fit(state, settings, *parts, request, watchdog.mark)
        except (Interrupted, NonFiniteLoss):
            writer.wait()  # both say that the state is saved
            raise


def _metric_log(config: Config, folder: Path, console: Console) -> MetricLog | NoLog:
    """The run's record, which rank 0 alone keeps."""
    if rank() > 0:
        return NoLog()
    return MetricLog(folder, config.metrics, config_values(config), "/".join(folder.parts[-3:]), tell=console.line)


def _finish(config: Config, experiment: Experiment, evaluation: Evaluation, folder: Path, console: Console) -> None:
    """Scores and samples of the weights that are exported, and the page that shows them."""
    step, weights = exported_weights(folder, config)
    own = experiment.model.state_dict()
    copy_weights(own, {name: lay_out(name, tensor, own) for name, tensor in weights.items()}, f"report: {folder}")
    experiment.model.eval()
    with experiment.whole():
        scores = evaluation.write(folder, step, experiment.validation, config.samples, config.data.language)
    for split, values in scores.items():
        if experiment.validation[split].corrupt:
            console.line(describe_corrupt(split, experiment.validation[split].corrupt))
        console.line(f"{split}: " + ", ".join(f"{key} {values[key]:.3f}" for key in SHOWN if key in values))
    with on_all_ranks():
        if rank() == 0:
            console.line(f"report: {write_report(folder)}")


def command() -> str:
    """What starts this run again and so resumes it."""
    return os.environ.get(COMMAND) or shlex.join(["python", "-m", "mmlm.train", *sys.argv[1:]])
