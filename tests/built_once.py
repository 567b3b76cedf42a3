"""Models that are only checked share their parts, on the meta device."""

import json
from collections.abc import Callable, Collection, Mapping
from typing import Any

import pytest
import torch
from torch import nn

from mmlm.core.errors import UserError
from mmlm.experiment.parts import build_part
from mmlm.experiment.trial import tried
from mmlm.optim.freeze import FreezePlan, check_plan
from mmlm.optim.lora import Lora, add_adapters

MODEL_SLOTS = ("encoder", "bridge", "text_encoder", "decoder")


def build_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Parts on the meta device are built and tried once for each node and widths, and their layers adapted once.

    Models share them: a model's adapters are taken off when its plan has been checked, and kept for the next one.
    """
    built: dict[str, object] = {}
    adapted: dict[nn.Module, nn.Module] = {}
    """Layer -> the adapter around it."""
    replaced: dict[str, nn.Module] = {}
    """Name in the model of the model at hand -> the layer that an adapter stands for there."""

    def built_once(node: object, slot: str, runtime: Mapping[str, object], plugins: object) -> object:
        if slot not in MODEL_SLOTS:
            return build_part(node, slot, runtime, plugins)
        key = json.dumps([slot, node, runtime])
        if key not in built:
            try:
                built[key] = build_part(node, slot, runtime, plugins)
            except UserError as error:
                built[key] = error
        if isinstance(built[key], UserError):
            raise UserError(str(built[key]))
        return built[key]

    tested: set[object] = set()

    def try_once(part: object, name: str, run: Callable[[torch.device], Callable[[nn.Module], Any]]) -> Any:
        if part in tested:
            return None
        tested.add(part)
        return tried(part, name, run)

    def adapt_once(model: nn.Module, lora: Lora, names: Collection[str]) -> None:
        layers = {name: model.get_submodule(name) for name in names}
        new = [name for name, layer in layers.items() if layer not in adapted]
        if new:
            add_adapters(model, lora, new)
        for name, layer in layers.items():
            if layer in adapted:
                model.set_submodule(name, adapted[layer])
            else:
                adapted[layer] = model.get_submodule(name)
        replaced.update(layers)

    def check_and_take_off(plan: FreezePlan, model: nn.Module, num_steps: int) -> None:
        try:
            check_plan(plan, model, num_steps)
        finally:
            for name, layer in replaced.items():
                model.set_submodule(name, layer)
            replaced.clear()

    monkeypatch.setattr("mmlm.experiment.build.build_part", built_once)
    monkeypatch.setattr("mmlm.experiment.contract.tried", try_once)
    monkeypatch.setattr("mmlm.optim.freeze.add_adapters", adapt_once)
    monkeypatch.setattr("mmlm.experiment.compatibility.check_plan", check_and_take_off)
