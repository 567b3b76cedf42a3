"""The teacher: a model that is not trained by the run it teaches."""

import copy
from collections.abc import Collection

import torch
from torch import nn

from mmlm.core.batch import Batch
from mmlm.core.model_output import ModelOutput
from mmlm.core.views import View, ViewInputs
from mmlm.objectives.weighted_sum import WeightedSum
from mmlm.optim.average import ExponentialMovingAverage


class Teacher:
    """A model in eval mode, without gradients: a finished run's, or the moving average of the one that is trained.

    It is no ``nn.Module``, so that what holds it neither registers nor trains, saves or moves its model.

    Args:
        model: an ``ImageTextModel``; put into eval mode, and its parameters require no gradient from then on.
        objective: the average of the objectives of the run, whose heads go with the average of its model; None for
            the model of another run.
    """

    def __init__(self, model: nn.Module, objective: WeightedSum | None = None) -> None:
        self.model = model.eval().requires_grad_(False)
        self.objective = None if objective is None else objective.eval().requires_grad_(False)

    @classmethod
    def averaging(cls, model: nn.Module, objective: WeightedSum, average: ExponentialMovingAverage) -> "Teacher":
        """The moving average of a ``TrainStep`` of this model and objective (mean teacher, arXiv:1703.01780).

        It shares the tensors of ``average``, and so follows it without copies.
        """
        own_model, own_objective = copy.deepcopy(model), copy.deepcopy(objective)
        teacher = cls(own_model, own_objective)
        for prefix, part in (("model", own_model), ("objective", own_objective)):
            for name, tensor in part.state_dict(keep_vars=True).items():
                tensor.data = average.tensors[f"{prefix}.{name}"]
        return teacher

    @torch.no_grad()
    def __call__(self, batch: Batch, views: Collection[View], drawn: ViewInputs, step: int) -> ModelOutput:
        """What it makes of a batch at an optimizer step of the student; ``drawn`` is what the student was shown."""
        own = {view: value for view, value in drawn.items() if view in views}
        output = self.model(batch, views, own)
        return output if self.objective is None else self.objective.project(output, step)
