"""Low-rank adapters (LoRA) on the linear layers of a model, by ``peft``."""

import fnmatch
import math
import re
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Protocol, cast, runtime_checkable

from torch import nn

from mmlm.core.errors import ArgumentError, UserError
from mmlm.core.keyed_start import keyed_start
from mmlm.optim.linear_kinds import linear_kinds

HEADS = ("head", "lm_head")
"""Last names of output projections. Losses read the weight instead of calling the layer, which bypasses an adapter."""


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
    """An adapter's output is multiplied by alpha / rank."""
    dropout: float = 0.0
    """Dropout probability at the input of adapters."""
    target: Sequence[str] = ("*",)
    """Patterns of the linear layers' names, such as [\"*.qkv\", \"*.query\"]; [\"*\"] takes all (arXiv:2305.14314)."""

    def __post_init__(self) -> None:
        """Raises UserError for a value out of range."""
        if not self.parts or not self.target:
            raise ArgumentError("parts: parts and target must both name something; lora=null means no adapters")
        if self.rank < 1:
            raise ArgumentError(f"rank: {self.rank} must be at least 1, such as 8")
        if not 0 < self.alpha < math.inf:
            raise ArgumentError(f"alpha: {self.alpha} must be above 0; twice the rank is usual")
        if not 0 <= self.dropout < 1:
            raise ArgumentError(f"dropout: {self.dropout} must lie in [0, 1); 0 turns it off")


@runtime_checkable
class _LanguageModel(Protocol):
    """A language model of transformers, recognised by this method: importing its base class takes seconds."""

    def get_output_embeddings(self) -> nn.Module | None:
        """The output projection to the vocabulary; None if the model has none."""
        ...


def is_adapter(name: str) -> bool:
    """Whether a dotted name of a parameter or module is that of an adapter (peft calls them ``lora_A``, ``lora_B``)."""
    return ".lora_" in name


def plain_name(name: str) -> str:
    """The name of a parameter before its layer got an adapter (peft moves the layer into ``base_layer``)."""
    return name.replace(".base_layer.", ".")


def linear_layers(model: nn.Module) -> dict[str, nn.Module]:
    """Name -> layer, for the linear layers that can have an adapter: those whose output is used by calling them.

    Left out are output heads, and layers whose owner reads their weight (PyTorch's own attention module does).
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
    """Adds adapters to those of the linear layers ``names`` that match ``lora.target``. Outputs stay as they are.

    ``requires_grad`` of the model's own parameters stays too; adapters train. Works on the meta device. Raises
    UserError for a pattern that matches no layer, and if ``peft`` is not installed.
    """
    try:
        from peft import LoraConfig, inject_adapter_in_model
    except ImportError as error:
        raise UserError(f"freeze.lora: needs the package peft ({error}); pip install 'mmlm[lora]'") from None

    chosen = _chosen(lora, names)
    # peft freezes the whole model; which parameters train is for the freeze plan to say.
    before = {parameter: parameter.requires_grad for parameter in model.parameters()}
    # One call for each class, since GPT-2's Conv1D keeps its weight transposed and peft takes one setting for all.
    for kind in linear_kinds():
        of_kind = [name for name in chosen if isinstance(model.get_submodule(name), kind)]
        if not of_kind:
            continue
        settings = LoraConfig(
            r=lora.rank,
            lora_alpha=cast(int, lora.alpha),  # annotated as int, and used as a number only
            lora_dropout=lora.dropout,
            target_modules="|".join(re.escape(name) for name in of_kind),
            fan_in_fan_out=kind is not nn.Linear,
        )
        with keyed_start("adapters"):
            inject_adapter_in_model(settings, model)
        # peft leaves its config on the model, and warns of it at the next call.
        vars(model).pop("peft_config", None)
    # peft has drawn them in the order of the layers: drawn again as it draws, but each by the name of its layer.
    for name in chosen:
        with keyed_start(f"adapters.{name}"):
            nn.init.kaiming_uniform_(model.get_parameter(f"{name}.lora_A.default.weight"), a=math.sqrt(5))
    for parameter, trains in before.items():
        parameter.requires_grad_(trains)


def _chosen(lora: Lora, names: Collection[str]) -> list[str]:
    """The ``names`` that match ``lora.target``. Raises UserError for a pattern that matches none."""
    for pattern in lora.target:
        if not fnmatch.filter(names, pattern):
            last = sorted({name.split(".")[-1] for name in names})
            raise UserError(
                f"freeze.lora.target: '{pattern}' is the name of no linear layer in {', '.join(lora.parts)}; their "
                f"last names are: {', '.join(last)}; write for example '*.{last[0]}'"
            )
    return [name for name in names if any(fnmatch.fnmatchcase(name, pattern) for pattern in lora.target)]


def merge_adapters(model: nn.Module) -> None:
    """Adds each adapter to the weight of its layer and removes it. Outputs stay; names are as if it had never been."""
    for name, part in list(model.named_modules()):
        children = dict(part.named_children())
        if "base_layer" in children and "lora_A" in children:
            part.merge()
            parent, _, last = name.rpartition(".")
            setattr(model.get_submodule(parent), last, part.get_base_layer())
