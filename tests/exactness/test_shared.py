"""However ranks share a step, whatever its parts and objectives are, it is that of one process: cells that cover pairs.

Two real gloo processes, of which one has no images in some cells, with micro-batches that have no captions or nothing
at all; no part is called with nothing. Loss, figures, diagnosis and every gradient are compared, in float64.
"""

import pickle
import warnings
from collections.abc import Mapping, Sequence
from datetime import timedelta
from itertools import combinations
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch import Tensor

from mmlm.check.batch import share_of
from mmlm.check.exactness import make_step, step_key
from mmlm.core.batch import Batch
from mmlm.core.distributed import full_tensor, sum_over_ranks
from mmlm.experiment.build import build_parallel
from mmlm.experiment.config import Config
from mmlm.training.gradients import backward
from mmlm.training.parallel import prepare
from tests.covering import Row
from tests.exactness.shared_cells import SHARES, batch, config_of, covered, factors, needs, wanted
from tests.model.test_never_empty import refuse_nothing
from tests.ranks import run_ranks

CPU = torch.device("cpu")
CELLS = "cells.pickle"
EXACT = {"rtol": 1e-9, "atol": 1e-9}
CLOSE = {"rtol": 1e-4, "atol": 1e-5}
"""Of what the library transformers computes in float32 in between."""


def results(row: Row, config: Config, share: Batch, on_ranks: bool) -> dict[str, Tensor]:
    """Loss, figures, diagnosis and gradients of a step over all ranks, by name."""
    step = make_step(config)
    refuse_nothing(step.model)
    prepared, batches = step, [share]
    if on_ranks:
        prepared = prepare(step, build_parallel(config), CPU, row["activation_checkpointing"] == "true")
        batches = share.split(int(row["micro_batch"]))
    loss = backward(prepared, batches, step_key(config), diagnose=row["diagnosed"] == "true")
    found = {f"term {name}": sum_over_ranks(term.value) for name, term in loss.terms.items()}
    found |= {f"figure {name}": sum_over_ranks(figure.value) for name, figure in loss.figures.items()}
    if loss.diagnosis is not None:
        values = loss.diagnosis.over_ranks().values()
        found |= {f"diagnosis {name}": torch.tensor(value, dtype=torch.float64) for name, value in values.items()}
    named = step.named_parameters()
    return found | {f"gradient {name}": full_tensor(p.grad) for name, p in named if p.grad is not None}


def be_a_rank(folder: Path, number: int, size: int) -> None:
    """Joins the group, computes every cell, and leaves what it found in ``folder``."""
    warnings.filterwarnings("ignore", "Grad strides do not match bucket view strides")  # a little slower, that is all
    dist.init_process_group("gloo", f"file://{folder}/store", timedelta(seconds=120), size, number)
    with (folder / CELLS).open("rb") as file:
        cells: Sequence[tuple[Row, Config]] = pickle.load(file)
    found = {}
    for index, (row, config) in enumerate(cells):
        share = share_of(batch(config.data.image_size), number, SHARES[row["shares"]])
        found[index] = results(row, config, share, on_ranks=True)
    torch.save(found, folder / f"{number}.pt")
    dist.destroy_process_group()


def same(found: Mapping[str, Tensor], expected: Mapping[str, Tensor], what: str) -> None:
    """One comparison for all tensors: one for each would take longer than making them."""
    assert found.keys() == expected.keys(), what
    tolerance = CLOSE if "_tiny" in what else EXACT
    flat = [torch.cat([values[name].double().flatten() for name in expected]) for values in (found, expected)]
    if not torch.allclose(*flat, **tolerance):
        for name, value in expected.items():
            torch.testing.assert_close(found[name], value, **tolerance, msg=lambda m, n=name: f"{what}, {n}: {m}")


def test_the_cells_cover_what_has_to_stand_together():
    """Counted again, without what chose them; what no cell holds is what is refused."""
    held = {frozenset(some) for row in covered().rows for size in (2, 3) for some in combinations(row.items(), size)}
    left = set(wanted()) - held
    assert left == set(covered().impossible)
    for one in map(dict, left):
        needed = needs(one["objective"])
        is_averaged = needed.average and one.get("parallel", "").startswith("fsdp")
        assert is_averaged or (needed.decoder and one.get("bridge") == "none"), one
    assert {"ddp", "fsdp", "fsdp, reshard_after_forward False"} <= {*factors()["parallel"]}


@pytest.mark.thorough
@pytest.mark.slow
def test_ranks_change_nothing(tmp_path):
    rows = covered().rows
    cells = [(row, config_of(row)) for row in rows]
    (tmp_path / CELLS).write_bytes(pickle.dumps(cells))
    ranks = run_ranks(tmp_path, 2, "tests.exactness.test_shared")
    for index, (row, config) in enumerate(cells):
        expected = results(row, config, batch(config.data.image_size), on_ranks=False)
        for found in ranks:
            same(found[index], expected, ", ".join(row.values()))
