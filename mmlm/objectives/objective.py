"""What an objective is, and the one module that holds everything trainable."""

import math
from collections.abc import Mapping
from typing import Protocol

from torch import nn

from mmlm.errors import UserError
from mmlm.flow import Batch, Loss, ModelOutput, View
from mmlm.freeze import FreezePlan


class Objective(Protocol):
    """A loss and the views of the model it needs. Objectives with parameters (a temperature) are modules."""

    views: frozenset[View]

    def __call__(self, output: ModelOutput, batch: Batch) -> Loss:
        """Local sums over global counts; see ``Loss``."""
        ...


class WeightedSum(nn.Module):
    """Several objectives with constant weights: ``total = sum_i weights[i] * loss_i``.

    An objective of weight 0 is neither built into the sum nor computed. Terms carry their objective's name.

    Raises:
        UserError: a weight without objective or the other way round, a negative or infinite weight, or none positive.
    """

    def __init__(self, objectives: Mapping[str, nn.Module], weights: Mapping[str, float]) -> None:
        super().__init__()
        if objectives.keys() != weights.keys():
            odd = ", ".join(sorted(objectives.keys() ^ weights.keys()))
            raise UserError(f"objective.weights: {odd} must be named in both objectives and weights")
        for name, weight in weights.items():
            if not 0 <= weight < math.inf:
                raise UserError(f"objective.weights.{name}: {weight} is no weight; use 0 to leave the objective out")
        self.weights = {name: float(weight) for name, weight in weights.items() if weight > 0}
        if not self.weights:
            raise UserError("objective.weights: every weight is 0, so there is nothing to train; make one positive")
        self.objectives = nn.ModuleDict({name: objectives[name] for name in self.weights})
        self.views = frozenset().union(*(part.views for part in self.objectives.values()))

    def forward(self, output: ModelOutput, batch: Batch) -> Loss:
        """Every objective's terms, weighted, and its figures."""
        terms, figures = {}, {}
        for name, objective in self.objectives.items():
            loss = objective(output, batch)
            for key, term in loss.terms.items():
                label = name if len(loss.terms) == 1 else f"{name}/{key}"
                terms[label] = type(term)(term.local_sum, term.global_count, term.weight * self.weights[name])
            figures |= {f"{name}/{key}": value for key, value in loss.figures.items()}
        return Loss(terms, figures)


class TrainStep(nn.Module):
    """Model and objective in one module: what data parallelism wraps and what checkpoints hold.

    Nothing trainable is used outside its forward: temperature and output projection are inside. ``plan`` (its adapters
    have been added to the model) says what of the model trains; from the start on, what trains at step 0.
    """

    def __init__(self, model: nn.Module, objective: nn.Module, plan: FreezePlan | None = None) -> None:
        super().__init__()
        self.model, self.objective, self.plan = model, objective, plan or FreezePlan()
        # What a part has made untrainable by itself (fixed positions) stays so.
        self._trainable = [parameter for parameter in model.parameters() if parameter.requires_grad]
        self._in_eval: list[nn.Module] = []
        self._unfrozen: frozenset[str] | None = None
        self.freeze_for(0)

    def freeze_for(self, step: int) -> bool:
        """Freezes and unfreezes what the plan says for optimizer step ``step``; says whether that changed what trains.

        Afterwards the optimizer has to be built anew over what now trains, and so has a wrapper that looks at it once:
        ``DistributedDataParallel`` reduces the gradients of those parameters that train when it is constructed, so it
        has to be constructed after this call, over the same module.
        """
        unfrozen = self.plan.unfrozen(step)
        if unfrozen == self._unfrozen:
            return False
        self._unfrozen = unfrozen
        frozen = self.plan.frozen_parameters(self.model, step)
        changed = False
        for parameter in self._trainable:
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

    def forward(self, batch: Batch) -> Loss:
        """The loss of one batch."""
        return self.objective(self.model(batch, self.objective.views), batch)
