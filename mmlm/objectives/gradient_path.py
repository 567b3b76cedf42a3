"""Refuses an objective whose loss does not depend on what it has read: its own mistake, and not a frozen model."""

from collections.abc import Iterable, Iterator, Mapping

import torch
from torch import Tensor

from mmlm.core.errors import UserError
from mmlm.core.loss import Loss, Term
from mmlm.core.model_output import ModelOutput
from mmlm.core.views import EmbedView, ImageView, PatchView, TextView
from mmlm.objectives.objective import Comparison, FusionObjective, Objective


def check_comparison(name: str, comparison: Comparison, output: ModelOutput, loss: Loss) -> None:
    """UserError for a term without a gradient path to the embeddings in ``output``, if an embedding has a gradient.

    The other ranks wait for the backward pass of each term. Without gradients (evaluation) there is nothing to check.
    """
    trains = any(tensor.requires_grad for tensor in _read(comparison, output))
    if torch.is_grad_enabled() and trains and not all(term.local_sum.requires_grad for term in loss.terms.values()):
        raise UserError(
            f"objective.objectives.{name}: the loss of {type(comparison).__name__} has no gradient path to the "
            "embeddings, which Comparison in mmlm/objectives/objective.py asks for on every rank, an empty one too; "
            "compute it from image and text, also where it is 0"
        )


def check_some_gradient(objectives: Mapping[str, Objective], output: ModelOutput, terms: Iterable[Term]) -> None:
    """UserError if no term has a gradient path, and an objective has asked for tensors that all have a gradient.

    Then it is not because of what is frozen.
    """
    if not torch.is_grad_enabled() or any(term.local_sum.requires_grad for term in terms):
        return
    for name, objective in objectives.items():
        read = list(_read(objective, output))
        if read and all(tensor.requires_grad for tensor in read):
            raise UserError(
                f"objective.objectives.{name}: the loss of {type(objective).__name__} has no gradient path to what it "
                "asks of the model; compute it from the model's output, without detach or no_grad"
            )


def _read(objective: Objective, output: ModelOutput) -> Iterator[Tensor]:
    """The tensors of ``output`` that are made for the views of an objective."""
    found: list[Tensor | None] = []
    for view in objective.views:
        if isinstance(view, EmbedView):
            found += [output.image_embedding, output.text_embedding]
        elif isinstance(view, TextView):
            found.append(output.hidden.get(view))
        elif isinstance(view, ImageView):
            found.append(output.view_embedding.get(view))
        elif isinstance(view, PatchView) and view in output.patches:
            found.append(output.patches[view].tokens)
    if isinstance(objective, FusionObjective):
        found = [output.fused]  # its embeddings serve the choice of pairs, through which no gradient goes
    return (tensor for tensor in found if tensor is not None)
