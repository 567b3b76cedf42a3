"""One run trained to its report, by one rank or as one of several. Below the commands, above the parts."""

import dataclasses
import functools
import os
import shlex
import sys
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager
from datetime import timedelta
from pathlib import Path

import torch
import torch.distributed as dist

from mmlm.build import Experiment, build_experiment, build_freeze, choose_device
from mmlm.checkpoint import Checkpoint, latest_checkpoint, load_checkpoint, remove_after
from mmlm.checkpoint_sharded import lay_out
from mmlm.checkpoint_writer import CheckpointWriter
from mmlm.cli import LOST, STOPPED, USER_ERROR
from mmlm.config import Config, Resume, config_values
from mmlm.distributed import agreed, broadcast_object, rank, unwrapped, world_size
from mmlm.environment import ENVIRONMENT, describe_environment, device_name, save_environment
from mmlm.errors import UserError
from mmlm.evaluation.evaluate import Evaluation
from mmlm.lock import RunLock
from mmlm.loop import Interrupted, fit
from mmlm.metrics import Console, MetricLog, NoLog
from mmlm.model.costs import SLOTS, ModelCosts, model_costs
from mmlm.model.model import ImageTextModel
from mmlm.objectives.train_step import backward
from mmlm.precision import computing
from mmlm.preflight import Preflight, check_first_batch
from mmlm.ranks import COMMAND, Meeting, Starter, is_lost_connection, joined
from mmlm.report.page import write_report
from mmlm.resume import record_config
from mmlm.runs import CHECKPOINTS, TOKENIZER, exported_weights
from mmlm.slurm import forbid_requeue, in_step, requeue
from mmlm.stop import StopRequest, ignore_stop_signals, stop_request
from mmlm.train_state import TrainState
from mmlm.troubles import NonFiniteLoss, describe_corrupt
from mmlm.watchdog import Watchdog
from mmlm.weights import Weights, copy_weights

SHOWN = ("image_to_text/R@1", "image_to_text/R@5", "captioning/exact", "captioning/CIDEr-D", "image_use_gap/mean")
"""The values of each split that the console shows at the end."""


_MISTAKE = "mistake"
"""What ranks ask each other about, so that one of them tells of it."""


def train_run(config: Config, folder: Path, meeting: Meeting) -> int:
    """Trains a run to its report, as the rank that ``meeting`` makes this process; returns the exit status.

    A rank that cannot go on because another one cannot says so in one line, and its process ends with ``LOST``.
    """
    place = meeting.place
    console = Console(quiet=place.rank > 0)
    try:
        with ExitStack() as stack:
            with _told_once(meeting):
                device = choose_device(config.device, place.local_rank)
                stack.enter_context(joined(meeting, config.ranks, device))
            seconds, stacks = config.ranks.watchdog_seconds, folder / "stacks"
            watchdog = Watchdog(seconds, stacks, place.rank, place.world_size, meeting.store, _to_stderr)
            stack.enter_context(watchdog)
            with _told_once(meeting):
                return _train_run(config, folder, device, meeting, watchdog, console)
    except Exception as error:
        if place.alone or not is_lost_connection(error):
            raise
        status = USER_ERROR if meeting.asked(_MISTAKE) else LOST
        if status == LOST:
            lines = str(error).strip().splitlines() or [type(error).__name__]
            _to_stderr(f"mmlm: rank {place.rank} has lost the others and ends ({lines[0]})")
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
        if meeting.first(_MISTAKE):
            if in_step() and not meeting.place.alone:
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
    costs = _costs(config, experiment)
    with on_all_ranks():
        if rank() == 0:
            _record(config, experiment, folder, costs)
    console.header(_header(config, experiment, folder, costs, meeting.place.starter))
    _resume(config, experiment.state, folder, console)
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


def _costs(config: Config, experiment: Experiment) -> ModelCosts:
    """Parameters and FLOPs of what this run trains."""
    data, objective = config.data, unwrapped(experiment.state.train_step).objective
    with experiment.whole(), computing(experiment.device, experiment.precision):
        return model_costs(
            experiment.model, data.image_size, data.max_tokens, objective.views, objective.pairs_per_image
        )


def make_folder(folder: Path) -> None:
    """The run folder. Raises UserError if it cannot be made."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"runs: {folder} cannot be made ({error.strerror}); give runs= another folder") from error


def on_all_ranks() -> AbstractContextManager[None]:
    """What fails in it on one rank fails on all of them."""
    return agreed(dist.group.WORLD if world_size() > 1 else None)


def _record(config: Config, experiment: Experiment, folder: Path, costs: ModelCosts) -> None:
    """What the run is made of, into its folder, unless it is there: only of experiments that could be built."""
    if not (folder / TOKENIZER).is_dir():
        experiment.tokenizer.save(folder / TOKENIZER)
    if not (folder / ENVIRONMENT).exists():
        environment = describe_environment(experiment.device, experiment.precision, dataclasses.asdict(costs))
        save_environment(environment, folder)


def _header(
    config: Config, experiment: Experiment, folder: Path, costs: ModelCosts, starter: Starter
) -> list[tuple[str, str]]:
    device, tokenizer = device_name(experiment.device), experiment.tokenizer
    epochs = config.train.steps * config.train.batch_size / len(experiment.train_source)
    splits = ", ".join(f"{name} {batches.num_examples:,}" for name, batches in experiment.validation.items())
    return [
        ("experiment", f"{config.experiment} (seed {config.seed}) on {device}, {experiment.precision.name}"),
        ("data", f"{len(experiment.train_source):,} images to train on, {splits} to validate on"),
        ("tokenizer", f"{tokenizer.vocab_size:,} tokens"),
        *_model_rows(experiment.model, costs, config.data.max_tokens),
        ("trainable", _trainable(config, experiment, sum(costs.parameters.values()))),
        ("training", f"{config.train.steps:,} steps of {config.train.batch_size} examples, {epochs:.1f} epochs"),
        ("ranks", _shares(config, starter)),
        ("results", str(folder)),
    ]


def _shares(config: Config, starter: Starter) -> str:
    """``2 by torchrun (gloo), each 64 examples a step, as 2 micro-batches of 32``."""
    each = config.train.batch_size // world_size()
    micro = min(each, config.train.micro_batch_size or each)
    parts = "in one piece" if micro == each else f"as {-(-each // micro)} micro-batches of {micro}"
    if world_size() == 1:
        return f"1, {parts}"
    return f"{world_size()} by {starter} ({dist.get_backend()}), each {each} examples a step, {parts}"


def _trainable(config: Config, experiment: Experiment, total: int) -> str:
    """``2.10M of 2.20M parameters; encoder from step 500 on``."""
    trainable = sum(p.numel() for p in experiment.model.parameters() if p.requires_grad)
    later = [f"; {name} from step {step:,} on" for name, step in build_freeze(config).unfreeze.items()]
    return f"{trainable / 1e6:.2f}M of {total / 1e6:.2f}M parameters{''.join(later)}"


def _model_rows(model: ImageTextModel, costs: ModelCosts, max_tokens: int) -> list[tuple[str, str]]:
    """The model, then each of its parts: class, parameters, FLOPs."""

    def size(parameters: int, flops: int) -> str:
        return f"{parameters / 1e6:.2f}M parameters, {flops / 1e6:,.1f} MFLOPs"

    total = size(sum(costs.parameters.values()), sum(costs.flops.values()))
    parts = {name: part for name, part in model.named_children() if name in SLOTS}
    rows = [("model", f"{total} forward for one image and {max_tokens} tokens (a multiply-add is 2)")]
    for name, part in parts.items():
        rows.append((f"  {name}", f"{type(part).__name__} {size(costs.parameters[name], costs.flops[name])}"))
    return rows


def _resume(config: Config, state: TrainState, folder: Path, console: Console, at_most: int | None = None) -> bool:
    """Continues from the newest intact checkpoint (up to step ``at_most``), if there is one: whether there was.

    Raises UserError if the model is another one.
    """
    own = unwrapped(state.train_step).state_dict()
    checkpoint = _newest(folder, own, console, at_most)
    if checkpoint is None:
        return False
    weights = checkpoint.weights["model"]
    copy_weights(own, weights, f"resume: the run in {folder}")
    if state.ema is not None:
        state.ema.load(checkpoint.weights.get("ema", weights))  # an average that resume=changed adds begins here
    state.load_state_dict(checkpoint.state, settings=config.resume is not Resume.changed)
    console.line(f"resumed at step {state.step} from {folder / CHECKPOINTS}")
    return True


def _newest(folder: Path, layout: Weights, console: Console, at_most: int | None) -> Checkpoint | None:
    """The newest intact checkpoint, the same on every rank: rank 0 looks and compares checksums.

    Its tensors are sharded like those of ``layout``.
    """
    found: list[Path | None] = [None]
    with on_all_ranks():
        if rank() == 0:
            found[0], damaged = latest_checkpoint(folder / CHECKPOINTS, at_most)
            for message in damaged:
                console.line(message)
    newest = broadcast_object(found[0], 0)
    return None if newest is None else load_checkpoint(newest, layout, verified=True)


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
        if not _resume(config, state, folder, console, at_most=step):
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
