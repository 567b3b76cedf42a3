"""Freeze plans: which parameters train, from which step on, at which share of the learning rate, or by adapters.

A frozen part has no weight gradients and no optimizer state. Its norms and dropout are in eval mode while the rest
trains. No backward pass runs through it unless something upstream of it trains. Its bytes are the same after training,
buffers included.
"""

import fnmatch
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from mmlm.core.errors import ArgumentError, UserError
from mmlm.core.wording import did_you_mean
from mmlm.optim.layer_decay import layer_scales
from mmlm.optim.lora import Lora, add_adapters, is_adapter, linear_layers, plain_name

REMEDIES = {
    "bridge": "use for example bridge=attentional_pooler",
    "text_encoder": "use for example text_encoder=transformer",
    "decoder": "use for example decoder=transformer",
    "decoder.lm": "only a Hugging Face decoder has a language model inside: use decoder=gpt2_tiny or "
    "decoder=hugging_face",
}
"""Name of a part that a model may lack -> the advice that ends the error message of a plan that names it."""


@dataclass(frozen=True)
class FreezePlan:
    """Which of a model's parameters train at which optimizer step. The objective's own parameters always train.

    Entries are names of parts or of modules and parameters below them, as in ``model.named_parameters()`` (``encoder``,
    ``decoder.lm``, ``encoder.vit.blocks.0``), or patterns (``*`` matches everything, ``*gated*``).
    """

    frozen: Sequence[str] = ()
    """Names or patterns of what is frozen."""
    trainable: Sequence[str] = ()
    """Exceptions to ``frozen`` and ``lora.parts``. A pattern may match nothing, so one plan fits several models."""
    unfreeze: Mapping[str, int] = field(default_factory=dict)
    """Name -> the first optimizer step (counted from 0) that trains it."""
    layer_decay: Mapping[str, float] = field(default_factory=dict)
    """Factor per layer on the learning rate of a part, such as {encoder: 0.75}: the last norm has the full rate, the
    last layer the factor times that, the embedding below L layers the factor to the power of L + 1 (ELECTRA,
    arXiv:2003.10555; BEiT, arXiv:2106.08254)."""
    lora: Lora | None = None
    """Adapters, which train while the parts that hold them are frozen."""

    def __post_init__(self) -> None:
        """Raises UserError for a value out of range and for a setting without effect."""
        for name, step in self.unfreeze.items():
            if step < 1:
                raise ArgumentError(
                    f"unfreeze.{name}: {step} must be at least 1; to train it from the start, take it out of frozen"
                )
        for name, decay in self.layer_decay.items():
            if not 0 < decay < 1:
                raise ArgumentError(f"layer_decay.{name}: {decay} must lie between 0 and 1, such as 0.75")
        if not self.frozen and self.lora is None:
            for key in ("trainable", "unfreeze"):
                if getattr(self, key):
                    raise ArgumentError(f"{key}: has no effect, for nothing is frozen; name it in frozen")

    def add_adapters(self, model: nn.Module) -> None:
        """Adds the plan's adapters to a model; to be called once. Raises UserError for a name that the model lacks."""
        if self.lora is None:
            return
        _check_names("freeze.lora.parts", self.lora.parts, model)
        names = [
            name
            for name in linear_layers(model)
            if selects(self.lora.parts, name) and not selects(self.trainable, name)
        ]
        if not names:
            raise UserError(f"freeze.lora.parts: no linear layer in {', '.join(self.lora.parts)} to put adapters on")
        add_adapters(model, self.lora, names)

    def freezes(self, name: str, step: int) -> bool:
        """Whether the parameter or module ``name`` of the model is frozen during optimizer step ``step``."""
        adapted = () if self.lora is None else self.lora.parts
        return self._freezes(name, step, (*self.frozen, *adapted))

    def _freezes(self, name: str, step: int, frozen: Sequence[str]) -> bool:
        if is_adapter(name):
            return False
        name = plain_name(name)
        return selects(frozen, name) and not selects((*self.trainable, *self.unfrozen(step)), name)

    def unfrozen(self, step: int) -> frozenset[str]:
        """The entries of ``unfreeze`` that train at optimizer step ``step``."""
        return frozenset(name for name, first in self.unfreeze.items() if step >= first)

    def frozen_parameters(self, model: nn.Module, step: int) -> set[nn.Parameter]:
        """The parameters that are frozen at a step. A tied parameter is frozen if any of its names is."""
        named = model.named_parameters(remove_duplicate=False)
        return {parameter for name, parameter in named if self.freezes(name, step)}

    def modules_in_eval(self, model: nn.Module, step: int) -> list[nn.Module]:
        """The modules that stay in eval mode at a step while the rest of the model trains.

        These are the modules whose parameters are all frozen, and of the modules without parameters (dropout) those
        whose name is in ``frozen``. Dropout of parts that are frozen only because they hold adapters stays in train
        mode, as is usual with LoRA.
        """
        frozen = self.frozen_parameters(model, step)
        chosen = []
        for name, module in model.named_modules():
            parameters = list(module.parameters())
            # `self.frozen` without lora.parts: see the docstring about dropout.
            by_name = not parameters and self._freezes(name, step, self.frozen)
            if by_name or (parameters and frozen.issuperset(parameters)):
                chosen.append(module)
        return chosen

    def learning_rate_scales(self, model: nn.Module) -> dict[str, float]:
        """Parameter name -> share of the learning rate, for every parameter of the parts in ``layer_decay``."""
        scales: dict[str, float] = {}
        for part, decay in self.layer_decay.items():
            _check_names("freeze.layer_decay", [part], model, patterns=False)
            found = layer_scales(model.get_submodule(part), part, decay)
            own = {f"{part}.{name}": scale for name, scale in found.items()}
            if own.keys() & scales.keys():
                raise UserError(f"freeze.layer_decay.{part}: another entry covers it; leave one of them out")
            scales |= own
        return scales


def selects(entries: Iterable[str], name: str) -> bool:
    """Whether one of ``entries`` (names or patterns) matches ``name`` or a module that contains it."""
    return any(fnmatch.fnmatchcase(name, entry) or fnmatch.fnmatchcase(name, f"{entry}.*") for entry in entries)


# Whether a plan fits a model


def check_plan(plan: FreezePlan, model: nn.Module, num_steps: int) -> None:
    """Checks a plan against a model (on any device, adapters added) that is trained for ``num_steps``.

    Raises UserError for a name that the model lacks, an entry without effect, a model in which nothing trains at the
    first step, and a batch norm that would train.
    """
    _check_names("freeze.frozen", plan.frozen, model)
    _check_names("freeze.trainable", [entry for entry in plan.trainable if not _is_pattern(entry)], model)
    _check_names("freeze.unfreeze", plan.unfreeze, model)
    _check_unfreeze(plan, model, num_steps)
    plan.learning_rate_scales(model)  # for the errors that it raises
    # Parts only thaw: what is frozen at the last step has never trained.
    frozen_at_last = plan.frozen_parameters(model, num_steps - 1)
    for name in plan.layer_decay:
        if frozen_at_last.issuperset(model.get_submodule(name).parameters()):
            raise UserError(f"freeze.layer_decay.{name}: has no effect, for '{name}' never trains; leave it out")
    frozen = plan.frozen_parameters(model, 0)
    if all(parameter in frozen or not parameter.requires_grad for parameter in model.parameters()):
        raise UserError("freeze.frozen: nothing of the model is left to train; freeze less, or add freeze.lora")
    _check_batch_norms(plan, model, num_steps)


def _check_unfreeze(plan: FreezePlan, model: nn.Module, num_steps: int) -> None:
    for name, step in plan.unfreeze.items():
        if step >= num_steps:
            raise UserError(f"freeze.unfreeze.{name}: step {step} is never made; train.steps is {num_steps}")
        thawed = plan.frozen_parameters(model, step - 1) - plan.frozen_parameters(model, step)
        # An entry has no effect where an earlier one has thawed the same parameters, or where they were never frozen.
        named = model.named_parameters(remove_duplicate=False)
        if not any(selects([name], plain_name(key)) for key, parameter in named if parameter in thawed):
            raise UserError(f"freeze.unfreeze.{name}: changes nothing at step {step}, for '{name}' is not frozen then")


def _check_batch_norms(plan: FreezePlan, model: nn.Module, num_steps: int) -> None:
    """Refuses a batch norm in train mode: its result depends on how the batch is split over ranks."""
    batch_norms = {name: module for name, module in model.named_modules() if isinstance(module, _BatchNorm)}
    in_eval = set(plan.modules_in_eval(model, num_steps - 1)) if batch_norms else set()
    for name, module in batch_norms.items():
        if module not in in_eval:
            part = name.split(".")[0]
            freeze = "freeze=lit" if part == "encoder" else f"freeze.frozen=[{part}]"
            raise UserError(
                f"{part}: it has a trainable batch norm ({name}), whose result depends on how a batch is split over "
                f"ranks; use {freeze}, or one with layer norm"
            )


def _is_pattern(entry: str) -> bool:
    return any(sign in entry for sign in "*?[")


def _check_names(key: str, entries: Collection[str], model: nn.Module, patterns: bool = True) -> None:
    """Raises UserError for an entry that matches nothing with parameters in the model."""
    names = [plain_name(name) for name, _ in model.named_parameters(remove_duplicate=False)]
    for entry in entries:
        if _is_pattern(entry) and not patterns:
            raise UserError(f"{key}: '{entry}' must be the name of a part, not a pattern")
        if not any(selects([entry], name) for name in names):
            raise UserError(f"{key}: {_unknown(entry, names)}")


def _unknown(entry: str, names: Sequence[str]) -> str:
    """The error message for an entry that matches nothing: its first unknown component, and the names there instead."""
    if _is_pattern(entry):
        parts = dict.fromkeys(name.split(".")[0] for name in names)
        return f"'{entry}' matches nothing with weights; the parts are: {', '.join(parts)}"
    path = entry.split(".")
    # The longest prefix of the path that the model has; the component after it is the unknown one.
    depth = max(d for d in range(len(path)) if not d or any(selects([".".join(path[:d])], name) for name in names))
    above = "".join(f"{name}." for name in path[:depth])
    children = {name.removeprefix(above).split(".")[0] for name in names if name.startswith(above)}
    missing = f"{above[:-1] or 'the model'} has no '{path[depth]}' with weights"
    if entry in REMEDIES:
        return f"{missing}; there are: {', '.join(sorted(children))}; {REMEDIES[entry]}"
    return missing + did_you_mean(path[depth], children)
