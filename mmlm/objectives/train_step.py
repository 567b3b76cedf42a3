"""The one module that holds everything trainable, and the gradients of a batch in one or several micro-batches.

The gradient of a step is that of the loss of the whole batch, whatever number of micro-batches and ranks it is split
into. Sums over examples split by themselves, once their counts are known beforehand. Comparisons do not: with several
micro-batches, a first pass without gradients embeds all of them, the comparison is differentiated with respect to the
embeddings, and a second pass carries those gradients on (GradCache, arXiv:2101.06983), with the random numbers of the
first, so that dropout is the same. Unlike there, the temperature's gradient goes through the same forward pass, so that
nothing trainable is used outside of it.
"""

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import cast

import torch
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor

from mmlm.diagnosis import Diagnosis
from mmlm.distributed import Replicated, anywhere, max_over_ranks, sum_over_ranks, unwrapped
from mmlm.errors import UserError
from mmlm.flow import EMBED, NOTHING_DRAWN, Batch, Loss, ModelOutput, Moment, Pairs
from mmlm.freeze import FreezePlan
from mmlm.objectives.objective import FusionObjective, Survey, WeightedSum
from mmlm.objectives.teacher import Teacher


@dataclass(frozen=True)
class Embeddings:
    """What the first pass makes of a micro-batch, without gradient."""

    image: Tensor
    """float32[B, E]."""
    text: Tensor
    """float32[C, E]."""
    teacher: ModelOutput | None = None
    """Those of the teacher, if a comparison needs them."""


class TrainStep(nn.Module):
    """Model and objective in one module: what data parallelism wraps and what checkpoints hold.

    Nothing trainable is used outside its forward: temperature and output projection are inside. ``plan`` (its adapters
    have been added to the model) says what of the model trains; from the start on, what trains at step 0. ``teacher``
    is no part of the module: it is neither trained, nor saved, nor moved to another device with it.
    """

    def __init__(
        self,
        model: nn.Module,
        objective: WeightedSum,
        plan: FreezePlan | None = None,
        teacher: Teacher | None = None,
    ) -> None:
        super().__init__()
        self.teacher = teacher
        self.model, self.objective, self.plan = model, objective, plan or FreezePlan()
        # What a part has made untrainable by itself (fixed positions) stays so.
        # By name: sharding puts other tensors in the place of parameters.
        self._trainable = [name for name, parameter in model.named_parameters() if parameter.requires_grad]
        self._in_eval: list[nn.Module] = []
        self._unfrozen: frozenset[str] | None = None
        self._unreached: dict[frozenset[str], tuple[nn.Parameter, ...] | None] = {}
        self.freeze_for(0)

    def freeze_for(self, step: int) -> bool:
        """Freezes and unfreezes what the plan says for optimizer step ``step``; says whether that changed what trains.

        Afterwards the optimizer has to be built anew over what now trains. What shares the work among ranks follows by
        itself, if all ranks call this.
        """
        unfrozen = self.plan.unfrozen(step)
        if unfrozen == self._unfrozen:
            return False
        self._unfrozen = unfrozen
        self._unreached.clear()
        frozen = self.plan.frozen_parameters(self.model, step)
        changed = False
        named = dict(self.model.named_parameters())
        for parameter in (named[name] for name in self._trainable):
            changed |= parameter.requires_grad is (parameter in frozen)
            parameter.requires_grad_(parameter not in frozen)
        self._in_eval = self.plan.modules_in_eval(self.model, step)
        self.train(self.training)
        return changed

    def learning_rate_scales(self) -> dict[str, float]:
        """Share of the learning rate, by parameter name, of the parameters for which the plan has one."""
        return {f"model.{name}": scale for name, scale in self.plan.learning_rate_scales(self.model).items()}

    def train(self, mode: bool = True) -> "TrainStep":
        """See ``nn.Module.train``; what is frozen stays in eval mode, so that it computes the same function."""
        super().train(mode)
        for module in self._in_eval:
            module.training = False
        return self

    def forward(
        self,
        batch: Batch,
        moment: Moment,
        survey: Survey | None = None,
        only_embed: bool = False,
        diagnose: bool = False,
        scale: Tensor | None = None,
    ) -> Loss | Embeddings:
        """The loss of one micro-batch; ``survey`` None: it is all that this rank has.

        With ``diagnose`` the loss has a diagnosis: it costs a part of a backward pass for each objective, and is made
        at the loss scale float32[] ``scale`` if there is one. The loss itself is never scaled.
        With ``only_embed`` (under ``no_grad``): its embeddings, made with the same random numbers as those of the loss.
        """
        left = self.model.draw(batch, moment)
        if only_embed:
            output = self.model(batch, {EMBED}, left)
            return Embeddings(output.image_embedding, output.text_embedding, self._teacher_embeddings(batch, moment))
        if survey is None:
            survey = self.objective.count((batch,), moment)
        drawn = self.objective.draw(batch, moment)
        output = self.model(batch, self.objective.views_at(moment.step), {**left, **drawn}, probe=diagnose)
        fusion = self.objective.fusion(moment.step)
        if fusion is not None:
            pairs = _choose(fusion, output, batch, moment) if survey.pairs is None else survey.pairs
            output = replace(output, fused=self.model.fuse(output, pairs), pairs=pairs)
        output = self.objective.project(output, moment.step)
        taught = self.objective.teacher_views_at(moment.step, known=survey.surrogates)
        if taught:
            output = replace(output, teacher=self.teacher(batch, taught, drawn, moment.step))
        loss = self.objective(output, batch, moment, survey)
        seen = [tensor for tensor in (output.image_tokens, output.image_pooled) if tensor is not None]
        if diagnose and seen:  # patch views alone leave nothing to look at
            embeddings = output.image_embedding, output.text_embedding
            loss = replace(loss, diagnosis=Diagnosis.of(loss.by_objective(), seen, *embeddings, scale))
        return self._with_every_parameter(loss, moment.step)

    def _teacher_embeddings(self, batch: Batch, moment: Moment) -> ModelOutput | None:
        comparisons = self.objective.comparisons(moment.step).values()
        if not any(part.needs_teacher for part in comparisons):
            return None
        return self.teacher(batch, frozenset({EMBED}), NOTHING_DRAWN, moment.step)

    def _with_every_parameter(self, loss: Loss, step: int) -> Loss:
        """The loss plus 0 times what it does not reach, which data parallelism would wait for."""
        if not loss.total.requires_grad:
            return loss
        key = frozenset(self.objective.active(step))
        if key not in self._unreached:
            self._unreached[key] = self._find_unreached(loss.total)
        unreached = self._unreached[key]
        if unreached is None:
            # What has a gradient is no parameter but what a diagnosis looks at.
            return replace(loss, terms={name: term.detached() for name, term in loss.terms.items()})
        if not unreached:
            return loss
        nothing = torch.stack([parameter.sum() * 0 for parameter in unreached]).sum()
        name, first = next(iter(loss.terms.items()))
        return replace(loss, terms={**loss.terms, name: replace(first, local_sum=first.local_sum + nothing)})

    def _find_unreached(self, total: Tensor) -> tuple[nn.Parameter, ...] | None:
        """The parameters that train and that the graph of ``total`` does not lead to; None: it leads to none at all.

        Under FSDP2 nobody waits for them, so they need not be known: all ranks leave the same ones out.
        """
        reached = _leaves(total)
        if not any(isinstance(leaf, nn.Parameter) for leaf in reached):
            return None
        if isinstance(self, FSDPModule):
            return ()
        known = {id(leaf) for leaf in reached}
        return tuple(p for p in self.parameters() if p.requires_grad and id(p) not in known)

    def unreached(self, step: int) -> tuple[nn.Parameter, ...]:
        """The parameters that train, but not by the objectives of an optimizer step; known after its forward.

        None under FSDP2, where they have no gradient in the first place.
        """
        return self._unreached.get(frozenset(self.objective.active(step))) or ()


def _leaves(total: Tensor) -> list[Tensor]:
    """The tensors that the graph of ``total`` leads to and that require a gradient."""
    seen, ahead = set(), [total.grad_fn]
    reached = []
    while ahead:
        node = ahead.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        if hasattr(node, "variable"):  # only the nodes of leaves have it
            reached.append(node.variable)
        ahead += [parent for parent, _ in node.next_functions]
    return reached


def _choose(fusion: FusionObjective, output: ModelOutput, batch: Batch, moment: Moment) -> Pairs:
    with torch.no_grad():
        return fusion.pairs(output.image_embedding.detach(), output.text_embedding.detach(), (batch,), moment)[0]


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
    moment: Moment,
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
    surveys, states = _survey(train_step, batches, moment)
    losses = []
    for number, (batch, survey, state) in enumerate(zip(batches, surveys, states, strict=True), start=1):
        if state is not None:
            state.restore()
        with _reducing(train_step, number == len(batches)):
            loss = train_step(batch, moment, survey, diagnose=diagnose, scale=scale)
            if not loss.total.requires_grad:
                raise UserError("freeze.frozen: nothing that trains has a part in the loss; freeze less")
            (loss.total if scale is None else loss.total * scale).backward()
        losses.append(loss)
    if sharded:
        _sum_unsharded_gradients(train_step.parameters())
    for parameter in inner(train_step).unreached(moment.step):
        parameter.grad = None  # it is 0, and an optimizer would shrink the weight all the same
    inner(train_step).objective.finish(moment.step)
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
        train_step.set_requires_gradient_sync(is_last)
        train_step.set_is_last_backward(is_last)
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


def _survey(
    train_step: nn.Module, batches: Sequence[Batch], moment: Moment
) -> tuple[list[Survey], list[_RandomState | None]]:
    """What each micro-batch has to know of the others, and torch's random state from before it was embedded."""
    objective = inner(train_step).objective
    counts = objective.count(batches, moment)
    if not (objective.needs_two_passes(moment.step) and anywhere(len(batches) > 1, batches[0].tokens.device)):
        return [counts] * len(batches), [None] * len(batches)
    states, embeddings = [], []
    with torch.no_grad():
        for batch in batches:
            states.append(_RandomState.now(batch.tokens.device))
            embeddings.append(train_step(batch, moment, only_embed=True))
    image = torch.cat([one.image for one in embeddings])
    text = torch.cat([one.text for one in embeddings])
    surveys = objective.compare(image, text, batches, moment.step, _joined([one.teacher for one in embeddings]))
    fusion = objective.fusion(moment.step)
    pairs = [None] * len(batches) if fusion is None else fusion.pairs(image, text, batches, moment)
    found = [replace(s, counts=counts.counts, pairs=p) for s, p in zip(surveys, pairs, strict=True)]
    return found, states


def _joined(outputs: Sequence[ModelOutput | None]) -> ModelOutput | None:
    """The teacher's embeddings of all micro-batches of a rank, in order."""
    found = [output for output in outputs if output is not None]
    if not found:
        return None
    image = torch.cat([output.image_embedding for output in found])
    return ModelOutput(image, torch.cat([output.text_embedding for output in found]))


def inner(train_step: nn.Module) -> TrainStep:
    """The ``TrainStep`` inside its wrappers."""
    return cast(TrainStep, unwrapped(train_step))
