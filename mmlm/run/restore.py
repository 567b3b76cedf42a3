"""Going on from the newest intact checkpoint, on all ranks alike."""

from contextlib import AbstractContextManager
from pathlib import Path

import torch.distributed as dist

from mmlm.checkpoints.checkpoint import Checkpoint, latest_checkpoint, load_checkpoint
from mmlm.checkpoints.weights import Weights, copy_weights
from mmlm.core.distributed import agreed, broadcast_object, rank, world_size
from mmlm.experiment.config import Config, Resume
from mmlm.record.console import Console
from mmlm.record.folder import CHECKPOINTS
from mmlm.training.replicated import unwrapped
from mmlm.training.train_state import TrainState


def on_all_ranks() -> AbstractContextManager[None]:
    """What fails in it on one rank fails on all of them."""
    return agreed(dist.group.WORLD if world_size() > 1 else None)


def resume_run(config: Config, state: TrainState, folder: Path, console: Console, at_most: int | None = None) -> bool:
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
