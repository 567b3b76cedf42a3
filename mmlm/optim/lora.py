"""Low-rank adapters (LoRA) on the linear layers of a model, by ``peft``."""

import fnmatch
import math
import re
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from torch import nn

from mmlm.core.errors import UserError
from mmlm.optim.linear_kinds import linear_kinds

HEADS = ("head", "lm_head")
"""Output projections by their last name. Losses read their weight instead of calling them: an adapter would not act."""


@dataclass(frozen=True)
class Lora:
    """Low-rank adapters (LoRA, arXiv:2106.09685): ``W x + alpha / rank * B A x`` with W frozen and B = 0 at the start.

    Everything else in ``parts`` (norms, embeddings, biases) is frozen too.
    """

    parts: Sequence[str]
    """Parts of the model, or dotted names below them, that get adapters: [encoder, decoder.lm]."""
    rank: int = 8
    """Inner width of an adapter."""
    alpha: float = 16.0
    """Scale of what adapters add, times the rank."""
    dropout: float = 0.0
    """Probability, on the input of the adapters."""
    target: Sequence[str] = ("*",)
    """Patterns of the linear layers' names, such as [\"*.qkv\", \"*.query\"]; [\"*\"] takes all (arXiv:2305.14314)."""

    def __post_init__(self) -> None:
        """Raises UserError for a value outside of its range."""
        if not self.parts or not self.target:
            raise UserError("freeze.lora: parts and target must both name something; lora=null means no adapters")
        if self.rank < 1:
            raise UserError(f"freeze.lora.rank: {self.rank} must be at least 1, such as 8")
        if not 0 < self.alpha < math.inf:
            raise UserError(f"freeze.lora.alpha: {self.alpha} must be above 0; twice the rank is usual")
        if not 0 <= self.dropout < 1:
            raise UserError(f"freeze.lora.dropout: {self.dropout} must lie in [0, 1); 0 turns it off")


@runtime_checkable
class _LanguageModel(Protocol):
    """What tells a model of transformers' by (importing its base class takes seconds)."""

    def get_output_embeddings(self) -> nn.Module | None:
        """The head."""
        ...


def is_adapter(name: str) -> bool:
    """Whether a parameter's or module's dotted name is one of an adapter."""
    return ".lora_" in name


def plain_name(name: str) -> str:
    """A parameter's name as it was before its layer got an adapter."""
    return name.replace(".base_layer.", ".")


def linear_layers(model: nn.Module) -> dict[str, nn.Module]:
    """The layers that can have an adapter, by name: linear ones that are called for what they compute.

    Left out: output heads, and layers whose owner reads their weight (PyTorch's own attention module does).
    """
    heads = [part.get_output_embeddings() for part in model.modules() if isinstance(part, _LanguageModel)]
    kinds = linear_kinds()
    return {
        name: part
        for name, part in model.named_modules()
        # The exact type: a subclass may have a forward of its own, or an owner that reads its weight.
        if type(part) in kinds and name.split(".")[-1] not in HEADS and all(part is not head for head in heads)
    }


def add_adapters(model: nn.Module, lora: Lora, names: Collection[str]) -> None:
    """Puts adapters on those of the linear layers ``names`` that ``lora.target`` takes; the function stays as it is.

    Which parameters train is left as it is, too (adapters do). Works on the meta device. Raises UserError for a target
    that takes no layer, and where ``peft`` is not installed.
    """
    try:
        from peft import LoraConfig, inject_adapter_in_model
    except ImportError as error:
        raise UserError(f"freeze.lora: needs the package peft ({error}); pip install 'mmlm[lora]'") from None

    chosen = _chosen(lora, names)
    before = {parameter: parameter.requires_grad for parameter in model.parameters()}
    # GPT-2's layers keep their weight transposed, and peft wants to be told.
    for kind in linear_kinds():
        of_kind = [name for name in chosen if isinstance(model.get_submodule(name), kind)]
        if not of_kind:
            continue
        settings = LoraConfig(
            r=lora.rank,
            lora_alpha=lora.alpha,
            lora_dropout=lora.dropout,
            target_modules="|".join(re.escape(name) for name in of_kind),
            fan_in_fan_out=kind is not nn.Linear,
        )
        inject_adapter_in_model(settings, model)
        # peft's note on the model; without it, a second kind of layer is not warned about.
        vars(model).pop("peft_config", None)
    for parameter, trains in before.items():
        parameter.requires_grad_(trains)


def _chosen(lora: Lora, names: Collection[str]) -> list[str]:
    """Those of ``names`` that ``lora.target`` takes. Raises UserError for a pattern that takes none."""
    for pattern in lora.target:
        if not fnmatch.filter(names, pattern):
            last = sorted({name.split(".")[-1] for name in names})
            raise UserError(
                f"freeze.lora.target: '{pattern}' is the name of no linear layer in {', '.join(lora.parts)}; their "
                f"last names are: {', '.join(last)}; write for example '*.{last[0]}'"
            )
    return [name for name in names if any(fnmatch.fnmatchcase(name, pattern) for pattern in lora.target)]


def merge_adapters(model: nn.Module) -> None:
    """Adds each adapter to the weight it adapts and takes it away: the function stays, the names are plain again."""
    for name, part in list(model.named_modules()):
        children = dict(part.named_children())
        if "base_layer" in children and "lora_A" in children:
            part.merge()
            parent, _, last = name.rpartition(".")
            setattr(model.get_submodule(parent), last, part.get_base_layer())
