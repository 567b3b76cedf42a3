"""Writes checkpoints in a background thread: training waits for a copy in memory, not for the disk."""

from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from datetime import timedelta
from pathlib import Path
from types import TracebackType
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.tensor import DTensor

from mmlm.checkpoints.checkpoint import best_checkpoint, mark_best, prune, save_checkpoint
from mmlm.checkpoints.files import explained
from mmlm.checkpoints.nested import check_storable, map_leaves
from mmlm.checkpoints.sharded import separate
from mmlm.checkpoints.weights import Weights, view_of
from mmlm.core.distributed import agreed, rank, world_size


class CheckpointWriter:
    """Saves the checkpoints of one run, one at a time, in a thread of its own.

    With several ranks, **every rank** makes a writer and calls the same methods at the same steps. Each rank writes its
    shards of sharded tensors (``DTensor``), rank 0 writes all else, and a write that fails on one rank is raised on
    all. The writers communicate through a process group of their own (gloo), so that training may use the default group
    at the same time.

    As a context manager, it waits for the last checkpoint on leaving, also after an exception, which is raised then.
    """

    def __init__(self, root: Path, keep_last: int, patience: timedelta | None = None) -> None:
        """Writes into ``root``; keeps the ``keep_last`` newest checkpoints and the best one.

        ``patience`` is how long a rank waits for the others after it has written its own share; None is torch's default
        of half an hour.
        """
        self._root, self._keep_last = root, keep_last
        self._group: dist.ProcessGroup | None = None
        if world_size() > 1:
            group = dist.new_group(backend="gloo", timeout=patience)
            assert isinstance(group, dist.ProcessGroup), "a group of all ranks has this one"
            self._group = group
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="checkpoint-writer")
        self._writing: Future[None] | None = None
        best = best_checkpoint(root)
        self._best_step = None if best is None else best.step

    def save(
        self,
        step: int,
        weights: Mapping[str, Weights],
        state: Mapping[str, object],
        best: tuple[str, float] | None = None,
        keep: int | None = None,
    ) -> None:
        """Starts writing ``step=<step>``; returns when everything has been copied, after which the tensors may change.

        First waits for the previous checkpoint, and raises its error if it failed (see ``wait``), so that there is
        never more than one copy in memory. When this one is written, checkpoints that need not be kept are deleted.

        Args:
            step: optimizer steps done.
            weights: groups of tensors, as for ``save_checkpoint``.
            state: everything else, as for ``save_checkpoint``; raises TypeError for what cannot be stored.
            best: metric and score, if this is the best checkpoint so far.
            keep: step of a checkpoint that is not to be deleted, besides the newest ones.
        """
        self.wait()
        check_storable(dict(state), "state")
        if best is None and step == self._best_step:
            # The best checkpoint is of this step already, and must stay: a run that has gone back (after a loss spike)
            # passes the step again with other weights, which nobody has evaluated.
            return
        self._best_step = step if best is not None else self._best_step
        if rank() > 0 and not separate(weights, state).is_sharded:
            weights, state = {}, {}  # rank 0 writes everything; this rank only takes part in `agreed`
        weights, state = _snapshot(weights, state)
        self._writing = self._thread.submit(self._write, step, weights, state, best, keep)

    def wait(self) -> None:
        """Waits until everything is on the disk. Raises the writer's error, once: a UserError if the disk failed."""
        writing, self._writing = self._writing, None
        if writing is not None:
            writing.result()

    def _write(
        self,
        step: int,
        weights: Mapping[str, Weights],
        state: Mapping[str, object],
        best: tuple[str, float] | None,
        keep: int | None,
    ) -> None:
        # Runs in the thread. Nothing here may use the default process group, which training uses meanwhile.
        with agreed(self._group):
            if rank() == 0 or separate(weights, state).is_sharded:
                folder = save_checkpoint(self._root, step, weights, state, self._group)
            if rank() == 0:
                with explained(self._root, step):
                    if best is not None:
                        mark_best(self._root, folder, *best)
                    kept = [] if keep is None else [self._root / f"step={keep:06d}"]
                    prune(self._root, self._keep_last, kept)

    def __enter__(self) -> "CheckpointWriter":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        try:
            self.wait()
        except Exception as unsaved:
            if error is None:
                raise
            # The exception that ended training is the cause that the user has to see.
            error.add_note(f"besides, the last checkpoint was not saved: {unsaved}")
        finally:
            self._thread.shutdown()


def _snapshot(
    weights: Mapping[str, Weights], state: Mapping[str, object]
) -> tuple[dict[str, dict[str, Tensor]], dict[str, object]]:
    """Copies all tensors to the CPU. A tied weight is copied once, so that it is stored once."""
    copies: dict[tuple[object, ...], Tensor] = {}

    def copy(path: str, leaf: Any) -> Any:
        if not isinstance(leaf, Tensor):
            return leaf
        local = leaf.to_local() if isinstance(leaf, DTensor) else leaf
        if not local.numel():  # every tensor without elements has the address 0, and would count as tied
            return _copied(leaf)
        # With the type: a DTensor and an ordinary tensor over its shard are not the same.
        key = (*view_of(local), type(leaf))
        if key not in copies:
            copies[key] = _copied(leaf)
        return copies[key]

    with torch.no_grad():
        snapshot = (
            map_leaves({group: dict(tensors) for group, tensors in weights.items()}, copy),
            map_leaves(dict(state), copy),
        )
    # The copies were started without waiting for each; training may change the tensors once all have arrived.
    if torch.cuda.is_initialized():
        torch.cuda.current_stream().synchronize()
    return snapshot


def _copied(tensor: Tensor) -> Tensor:
    if tensor.device.type == "cpu":
        return tensor.detach().clone()
    # non_blocking also makes torch copy into pinned memory, which is faster and reused.
    return tensor.detach().to("cpu", non_blocking=True)
