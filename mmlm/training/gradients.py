"""The gradients of a whole batch, in one or several micro-batches.

The gradient of a step is that of the loss of the whole batch, whatever number of micro-batches and ranks it is split
into. Sums over examples split by themselves, once their counts are known beforehand. Comparisons do not, and several
micro-batches take two passes (GradCache, arXiv:2101.06983): the first, without gradients, embeds all of them; the
comparison is differentiated with respect to the embeddings; the second pass feeds these gradients back into what made
the embeddings, with the random numbers of the first, so that dropout is the same.

Differs from GradCache: the temperature's gradient goes through the second pass as well, so that nothing trainable is
used outside of the wrapped module's forward.
"""

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor

from mmlm.core.batch import Batch
from mmlm.core.distributed import anywhere, max_over_ranks, sum_over_ranks
from mmlm.core.errors import UserError
from mmlm.core.loss import Loss
from mmlm.core.model_output import ModelOutput
from mmlm.core.views import StepKey
from mmlm.objectives.objective import required
from mmlm.objectives.weighted_sum import BatchTotals
from mmlm.training.diagnosis import Undiagnosed
from mmlm.training.parallel import reduce_next, whole_after_forward
from mmlm.training.replicated import Replicated
from mmlm.training.train_step import inner


@dataclass(frozen=True)
class _RandomState:
    """State of torch's generators."""

    cpu: Tensor
    cuda: Tensor | None

    @classmethod
    def now(cls, device: torch.device) -> "_RandomState":
        return cls(torch.get_rng_state(), torch.cuda.get_rng_state(device) if device.type == "cuda" else None)

    def restore(self) -> None:
        torch.set_rng_state(self.cpu)
        if self.cuda is not None:
            torch.cuda.set_rng_state(self.cuda)


def backward(
    train_step: nn.Module,
    batches: Sequence[Batch],
    step_key: StepKey,
    diagnose: bool = False,
    scale: Tensor | None = None,
) -> Loss:
    """Adds the gradient of the whole batch's loss that goes through this rank's micro-batches to the parameters.

    Summed over ranks these are the gradients of one process on the joined batch. A parameter that the objectives of
    the step do not reach has no gradient. ``train_step`` is a ``TrainStep``, sharded or not, or a wrapper of one. To be
    called in the precision to compute in; the micro-batches have to be on the device.

    With a loss scale float32[] ``scale`` the gradients are that many times larger.

    Returns the loss of this rank's share (unscaled), without gradient, with its diagnosis if that is asked for. Raises
    UserError if nothing that trains has a part in it.
    """
    sharded = isinstance(train_step, FSDPModule)
    if sharded:
        batches = _as_many_on_every_rank(batches)
    totals_of_each, states = _batch_totals(train_step, batches, step_key)
    losses = []
    for number, (batch, totals, state) in enumerate(zip(batches, totals_of_each, states, strict=True), start=1):
        is_last = number == len(batches)
        if state is not None:
            state.restore()
        with _reducing(train_step, is_last):
            made = train_step(batch, step_key, totals, diagnose=diagnose)
            loss = made.loss if isinstance(made, Undiagnosed) else made
            if not loss.total.requires_grad:
                raise UserError("freeze.frozen: nothing that trains has a part in the loss; freeze less")
            if isinstance(made, Undiagnosed):
                with whole_after_forward(train_step, is_last):
                    loss = made.diagnosed(scale)
            (loss.total if scale is None else loss.total * scale).backward()
        losses.append(loss)
    if sharded:
        _sum_unsharded_gradients(train_step.parameters())
    for parameter in inner(train_step).unreached(step_key.step):
        parameter.grad = None  # it is 0, and an optimizer would shrink the weight all the same
    inner(train_step).objective.finish(step_key.step)
    return Loss.joined(losses)


@contextmanager
def _reducing(train_step: nn.Module, is_last: bool) -> Iterator[None]:
    """Gradients stay on their rank until the last micro-batch reduces all of them at once.

    Or those that have been reduced already would be again, and ranks of fewer micro-batches would be waited for.
    """
    if isinstance(train_step, Replicated) and not is_last:
        with train_step.no_sync():
            yield
        return
    if isinstance(train_step, FSDPModule):
        reduce_next(train_step, is_last)
    yield


def _as_many_on_every_rank(batches: Sequence[Batch]) -> list[Batch]:
    """The micro-batches, some of them split further: with sharded weights all ranks make each pass together.

    Ranks may hold unequal shares of a batch. One that has fewer images than another has micro-batches ends in empty
    ones.
    """
    most = int(max_over_ranks(torch.tensor(float(len(batches)), device=batches[0].tokens.device)))
    parts = list(batches)
    while len(parts) < most:
        largest = max(range(len(parts)), key=lambda i: len(parts[i].images))
        parts[largest : largest + 1] = parts[largest].halves()
    return parts


def _sum_unsharded_gradients(parameters: Iterable[nn.Parameter]) -> None:
    """Sums over ranks the gradients of what FSDP2 cannot shard (tensors without dimensions) and leaves to us."""
    gradients = [p.grad for p in parameters if p.grad is not None and not isinstance(p, DTensor)]
    if gradients:
        for gradient, total in zip(gradients, sum_over_ranks(torch.stack(gradients)), strict=True):
            gradient.copy_(total)


def _batch_totals(
    train_step: nn.Module, batches: Sequence[Batch], step_key: StepKey
) -> tuple[list[BatchTotals], list[_RandomState | None]]:
    """The totals that each micro-batch needs of the others, and torch's random state from before it was embedded.

    The state is None where one pass does: then nothing has been drawn yet.
    """
    objective = inner(train_step).objective
    counts = objective.count(batches, step_key)
    if not (objective.needs_two_passes(step_key.step) and anywhere(len(batches) > 1, batches[0].tokens.device)):
        return [counts] * len(batches), [None] * len(batches)
    states: list[_RandomState | None] = []
    embeddings = []
    with torch.no_grad():
        for batch in batches:
            states.append(_RandomState.now(batch.tokens.device))
            embeddings.append(train_step(batch, step_key, only_embed=True))
    image = torch.cat([one.image for one in embeddings])
    text = torch.cat([one.text for one in embeddings])
    totals_of_each = objective.compare(
        image, text, batches, step_key.step, _joined([one.teacher for one in embeddings])
    )
    fusion = objective.fusion(step_key.step)
    pairs = [None] * len(batches) if fusion is None else fusion.pairs(image, text, batches, step_key)
    found = [replace(s, counts=counts.counts, pairs=p) for s, p in zip(totals_of_each, pairs, strict=True)]
    return found, states


def _joined(outputs: Sequence[ModelOutput | None]) -> ModelOutput | None:
    """The teacher's embeddings of all micro-batches of a rank, in order."""
    found = [output for output in outputs if output is not None]
    if not found:
        return None
    image = torch.cat([required(output.image_embedding, "image_embedding") for output in found])
    text = torch.cat([required(output.text_embedding, "text_embedding") for output in found])
    return ModelOutput(image, text)
