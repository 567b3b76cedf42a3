"""The one module that holds everything trainable: model, objectives and their weights."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import cast

import torch
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule

from mmlm.core.batch import Batch
from mmlm.core.loss import Loss
from mmlm.core.model_output import ModelOutput, Pairs
from mmlm.core.views import EMBED, NO_VIEW_INPUTS, StepKey
from mmlm.model.model import ImageTextModel
from mmlm.model.text_places import TextPlaces, text_places
from mmlm.objectives.objective import FusionObjective, required
from mmlm.objectives.weighted_sum import BatchTotals, WeightedSum
from mmlm.optim.freeze import FreezePlan
from mmlm.training.diagnosis import Undiagnosed
from mmlm.training.replicated import unwrapped
from mmlm.training.teacher import Teacher


@dataclass(frozen=True)
class Embeddings:
    """The embeddings of a micro-batch in the first of two passes, without gradient."""

    image: Tensor
    """float32[B, E]."""
    text: Tensor
    """float32[C, E]."""
    teacher: ModelOutput | None = None
    """The teacher's embeddings, if a comparison needs them."""


class TrainStep(nn.Module):
    """Model and objective in one module: what data parallelism wraps and what checkpoints hold.

    Nothing trainable is used outside its forward: temperature and output projection are inside. ``plan`` (its adapters
    have been added to the model) says what of the model trains; from the start on, what trains at step 0. ``teacher``
    is no part of the module: it is neither trained, nor saved, nor moved to another device with it.
    """

    def __init__(
        self,
        model: ImageTextModel,
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
        step_key: StepKey,
        totals: BatchTotals | None = None,
        only_embed: bool = False,
        diagnose: bool = False,
    ) -> Loss | Embeddings | Undiagnosed:
        """The loss of one micro-batch, unscaled.

        Args:
            batch: the micro-batch, on the device.
            step_key: seed and optimizer step, which all random choices depend on.
            totals: what the micro-batch has to know of the whole batch; None: it is all that this rank has.
            only_embed: returns the embeddings instead (under ``no_grad``), made with the same random numbers.
            diagnose: returns the loss with what a diagnosis of it has to know.
        """
        left = self.model.draw(batch, step_key)
        if only_embed:
            output = self.model(batch, {EMBED}, left)
            return Embeddings(output.image_embedding, output.text_embedding, self._teacher_embeddings(batch, step_key))
        if totals is None:
            totals = self.objective.count((batch,), step_key)
        drawn = self.objective.draw(batch, step_key)
        output = self.model(batch, self.objective.views_at(step_key.step), {**left, **drawn}, probe=diagnose)
        fusion = self.objective.fusion(step_key.step)
        if fusion is not None:
            pairs = _choose(fusion, output, batch, step_key) if totals.pairs is None else totals.pairs
            output = replace(output, fused=self.model.fuse(output, pairs), pairs=pairs)
        output = self.objective.project(output, step_key.step)
        taught = self.objective.teacher_views_at(step_key.step, known=totals.cached_gradients)
        if taught:
            teacher = self._needed_teacher()(batch, taught, drawn, step_key.step)
            output = replace(output, teacher=teacher)
        loss = self.objective(output, batch, step_key, totals)
        loss = self._with_every_parameter(loss, step_key.step)
        return Undiagnosed.of(loss, output) if diagnose else loss

    def text_places(self, batches: Sequence[Batch], step: int) -> TextPlaces:
        """How many places the passes of an optimizer step compute for the tokens of micro-batches, on the CPU."""
        views = self.objective.views_at(step)
        counted = (text_places(self.model, batch.lengths, batch.tokens.shape[1], views) for batch in batches)
        return sum(counted, TextPlaces())

    def _teacher_embeddings(self, batch: Batch, step_key: StepKey) -> ModelOutput | None:
        comparisons = self.objective.comparisons(step_key.step).values()
        if not any(part.needs_teacher for part in comparisons):
            return None
        return self._needed_teacher()(batch, frozenset({EMBED}), NO_VIEW_INPUTS, step_key.step)

    def _needed_teacher(self) -> Teacher:
        assert self.teacher is not None, "an objective that needs a teacher is refused without one"
        return self.teacher

    def _with_every_parameter(self, loss: Loss, step: int) -> Loss:
        """Adds ``0 * p`` for each trainable parameter that the loss does not depend on: DDP waits for all gradients."""
        if not loss.total.requires_grad:
            return loss
        key = frozenset(self.objective.active(step))
        if key not in self._unreached:
            self._unreached[key] = self._find_unreached(loss.total)
        unreached = self._unreached[key]
        if unreached is None:
            # Only the probe of the diagnosis requires a gradient here; no parameter does.
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


def _choose(fusion: FusionObjective, output: ModelOutput, batch: Batch, step_key: StepKey) -> Pairs:
    with torch.no_grad():
        image = required(output.image_embedding, "image_embedding").detach()
        text = required(output.text_embedding, "text_embedding").detach()
        return fusion.pairs(image, text, (batch,), step_key)[0]


def inner(train_step: nn.Module) -> TrainStep:
    """The ``TrainStep`` inside its wrappers."""
    return cast(TrainStep, unwrapped(train_step))
