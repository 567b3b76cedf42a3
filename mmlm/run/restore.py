"""The checkpoints of a run: written in the background, and gone back to on all ranks alike."""

from pathlib import Path

from mmlm.checkpoints.checkpoint import Checkpoint, latest_checkpoint, load_checkpoint, remove_after
from mmlm.checkpoints.weights import Weights, copy_weights
from mmlm.checkpoints.writer import CheckpointWriter
from mmlm.core.distributed import broadcast_object, on_rank_zero
from mmlm.core.errors import UserError
from mmlm.experiment.config import Config, Resume
from mmlm.record.console import Console
from mmlm.record.folder import CHECKPOINTS
from mmlm.training.replicated import unwrapped
from mmlm.training.train_state import TrainState


class RunCheckpoints:
    """The ``Checkpoints`` of ``fit()``: those in the run folder."""

    def __init__(self, config: Config, folder: Path, writer: CheckpointWriter, console: Console) -> None:
        self._config = config
        self._folder = folder
        self._writer = writer
        self._console = console

    def save(self, state: TrainState, is_best: bool) -> None:
        """Starts to write the state; training goes on meanwhile. All ranks call it."""
        weights = {"model": unwrapped(state.train_step).state_dict()}
        if state.ema is not None:
            weights["ema"] = state.ema.tensors
        train = self._config.train
        best = None
        if is_best:
            assert train.best_metric is not None, "a best state is that of a metric"
            assert state.best is not None, "a best state has a value"
            best = (train.best_metric, state.best)
        # The checkpoint that a loss spike would go back to must not be cleaned up.
        back = train.spike.goes_back_to(state.step, train.save_every)
        self._writer.save(state.step, weights, state.state_dict(), best, back)

    def restore(self, state: TrainState, step: int) -> None:
        """Loads the newest intact checkpoint up to ``step`` and removes those after it. All ranks call it."""
        self._writer.wait()
        on_rank_zero(lambda: remove_after(self._folder / CHECKPOINTS, step))
        if not resume_run(self._config, state, self._folder, self._console, at_most=step):
            raise UserError(
                f"train.spike: the checkpoint of step {step} to go back to is gone from {self._folder / CHECKPOINTS}; "
                "start anew by resume=never"
            )


def resume_run(config: Config, state: TrainState, folder: Path, console: Console, at_most: int | None = None) -> bool:
    """Loads the newest intact checkpoint (up to step ``at_most``) into ``state``; returns whether there is one.

    Raises UserError if the checkpoint is that of another model.
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
    """The newest intact checkpoint, its tensors sharded like those of ``layout``; None if there is none.

    Rank 0 alone looks for it and compares checksums, so that all ranks take the same one.
    """

    def find() -> Path | None:
        newest, damaged = latest_checkpoint(folder / CHECKPOINTS, at_most)
        for message in damaged:
            console.line(message)
        return newest

    newest = broadcast_object(on_rank_zero(find), 0)
    return None if newest is None else load_checkpoint(newest, layout, verified=True)
