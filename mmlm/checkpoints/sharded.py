"""Checkpoints of tensors that are sharded over ranks (``DTensor``, as FSDP2 makes them).

Every rank writes its own shards with ``torch.distributed.checkpoint``, in its safetensors format, which runs no code
when it is read. Shards can be read by any number of ranks, or by one process: in full or in another sharding.
"""

import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch import Tensor
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.metadata import TensorStorageMetadata
from torch.distributed.tensor import DTensor
from torch.distributed.tensor import empty as empty_dtensor

from mmlm.checkpoints.nested import map_leaves
from mmlm.checkpoints.weights import Weights, view_of
from mmlm.core.distributed import agreed, sharded_like

NO_LAYOUT: Weights = {}
"""The layout of a reader that wants every tensor in full."""


@dataclass(frozen=True)
class Separated:
    """The content of a checkpoint, with sharded tensors apart from everything else."""

    weights: Mapping[str, Weights]
    """Group -> its tensors that are not sharded."""
    state: Mapping[str, object]
    """The state with None in the place of each sharded tensor."""
    sharded_weights: Mapping[str, Mapping[str, DTensor]]
    """Group -> its sharded tensors; groups without any are left out."""
    sharded_state: Mapping[str, DTensor]
    """Path (such as ``optimizer/state/head.weight/exp_avg``) -> sharded tensor of the state."""

    @property
    def is_sharded(self) -> bool:
        """Whether there is any sharded tensor."""
        return bool(self.sharded_weights or self.sharded_state)


def separate(weights: Mapping[str, Weights], state: Mapping[str, object]) -> Separated:
    """Separates the sharded tensors of ``weights`` and ``state`` from everything else."""
    sharded = {
        group: chosen
        for group, tensors in weights.items()
        if (chosen := {name: tensor for name, tensor in tensors.items() if isinstance(tensor, DTensor)})
    }
    plain = {
        group: {name: tensor for name, tensor in tensors.items() if not isinstance(tensor, DTensor)}
        for group, tensors in weights.items()
    }
    found: dict[str, DTensor] = {}

    def take(path: str, leaf: Any) -> Any:
        if not isinstance(leaf, DTensor):
            return leaf
        found[path] = leaf
        return None

    return Separated(plain, map_leaves(dict(state), take), sharded, found)


def write_sharded(folder: Path, tensors: Mapping[str, DTensor], group: dist.ProcessGroup) -> dict[str, str]:
    """Writes the shards of every rank of ``group`` into the existing ``folder``; every rank calls it together.

    Tied tensors (two names of one memory) are written once; returns second name -> first name. Fails on all ranks or on
    none: raises OSError if a rank could not write, and ValueError unless all ranks give the same names.
    """
    with agreed(group):
        # Rank 0 decides which names are tied: on a rank whose shard is empty, no memory shows it.
        plan: list[Any] = [sorted(tensors), _ties(tensors)]
        dist.broadcast_object_list(plan, dist.get_global_rank(group, 0), group)
        names, aliases = plan
        if names != sorted(tensors):
            differing = min(set(names) ^ set(tensors))
            raise ValueError(f"ranks save different tensors: '{differing}' is not on all of them")
    once = {name: tensors[name] for name in names if name not in aliases}
    writer = dcp.HuggingFaceStorageWriter(path=str(folder), save_distributed=True)
    try:
        dcp.save(once, storage_writer=writer, process_group=group)
    except CheckpointException as error:
        # Raised on every rank, and a BaseException, which `agreed` would not catch: replaced by its cause.
        number, (reason, _) = min(error.failures.items(), key=lambda failure: failure[0])
        if isinstance(reason, OSError):
            raise reason from error
        raise RuntimeError(f"rank {number}: {type(reason).__name__}: {reason}") from error
    return aliases


def read_sharded(folder: Path, aliases: Mapping[str, str], layout: Weights = NO_LAYOUT) -> dict[str, Tensor]:
    """Reads the tensors in ``folder``, by name: sharded like their template in ``layout``, or in full without one.

    Needs no process group, and ranks read independently of each other. Names of a tied tensor share one tensor again.
    """
    # Tensors are allocated as they are wanted, and torch reads into them the parts of the files that this rank needs.
    reader = dcp.HuggingFaceStorageReader(str(folder))
    tensors: dict[str, Tensor] = {}
    for name, saved in reader.read_metadata().state_dict_metadata.items():
        assert isinstance(saved, TensorStorageMetadata), "write_sharded writes tensors only"
        model, dtype = template_for(name, saved.size, layout), saved.properties.dtype
        if model is None:
            tensors[name] = torch.empty(saved.size, dtype=dtype)
        else:
            mesh, placements = model.device_mesh, model.placements
            tensors[name] = empty_dtensor(saved.size, dtype=dtype, device_mesh=mesh, placements=placements)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="torch.distributed is disabled")  # as no_dist asks
        dcp.load(tensors, storage_reader=reader, no_dist=True)
    return tensors | {alias: tensors[name] for alias, name in aliases.items()}


def template_for(path: str, shape: torch.Size, layout: Weights) -> DTensor | None:
    """The sharded tensor of ``layout`` whose name is a component of ``path`` and whose global shape is ``shape``.

    ``optimizer/state/head.weight/exp_avg`` so finds ``head.weight``; its ``step``, a scalar, has another shape.
    Returns None if there is no such tensor.
    """
    for step in path.split("/"):
        found = layout.get(step)
        if isinstance(found, DTensor) and found.shape == shape:
            return found
    return None


def lay_out(path: str, value: Any, layout: Weights) -> Any:
    """A full tensor, sharded like its template in ``layout``; anything without a template is returned as is."""
    model = (
        template_for(path, value.shape, layout)
        if isinstance(value, Tensor) and not isinstance(value, DTensor)
        else None
    )
    if model is None:
        return value
    return sharded_like(model, value)


def _ties(tensors: Mapping[str, DTensor]) -> dict[str, str]:
    """Second name -> first name, for tensors whose local shards are the same memory. Empty shards tell nothing."""
    first: dict[tuple[object, ...], str] = {}
    ties: dict[str, str] = {}
    for name in sorted(tensors):
        local = tensors[name].to_local()
        view = view_of(local)
        if local.numel() and view in first:
            ties[name] = first[view]
        else:
            first[view] = name
    return ties
