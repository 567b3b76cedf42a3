"""What similarities are multiplied by before a softmax: what a run has learned, or what is taken where none has."""

import math
from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor

from mmlm.core.errors import UserError
from mmlm.experiment.config import Config

CLIP_SCALE = 100.0
"""The scale of a model that brings none: the largest that CLIP allows, which its published models have reached."""


@dataclass(frozen=True)
class Scale:
    """What similarities are multiplied by before a softmax: 1 / temperature."""

    value: float
    source: str
    """Where it comes from, in words."""


def learned_scale(config: Config, weights: Mapping[str, Tensor]) -> Scale | None:
    """The scale that a run of this config has trained its similarities with.

    ``weights`` are all weights of its checkpoint, the objective's too. None if no objective with a weight has a
    temperature.
    """
    given = config.objective.get("weights") if isinstance(config.objective, Mapping) else None
    for name, weight in (given or {}).items():
        key = f"objective.objectives.{name}.logit_scale"
        if weight != 0 and key in weights:
            return Scale(weights[key].double().exp().item(), f"of the run's objective {name}")
    return None


def chosen_scale(given: float | None, learned: Scale | None, whose: str) -> Scale:
    """``given``, else ``learned``, else CLIP's. ``whose`` has none, in words. Raises UserError."""
    if given is not None:
        if not 0 < given < math.inf:
            raise UserError(f"scale: {given} must be above 0 and finite; CLIP's is {CLIP_SCALE:.0f}")
        return Scale(given, "that was given")
    return learned or Scale(CLIP_SCALE, f"of CLIP, since {whose} has none of its own; set another by scale=")
