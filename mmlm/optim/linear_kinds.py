"""The classes of linear layers: PyTorch's, and transformers' for GPT-2."""

import sys

from torch import nn


def linear_kinds() -> tuple[type[nn.Module], ...]:
    """``nn.Linear``, then transformers' ``Conv1D`` (a linear layer with a weight ``[in, out]``) where it is loaded.

    The class is looked up among the loaded modules, because importing transformers takes a second, and a model can only
    hold a ``Conv1D`` if transformers has been imported by the part that made it.
    """
    loaded = sys.modules.get("transformers.pytorch_utils")
    return (nn.Linear,) if loaded is None else (nn.Linear, loaded.Conv1D)
