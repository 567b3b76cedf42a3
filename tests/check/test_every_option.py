"""Options of the slots beside a model's keep all rules of their slot; so do settings that change the way through."""

from collections.abc import Mapping, Sequence

import pytest

from mmlm.check.ranks import Ranks
from mmlm.check.slots import SLOTS, check_slot
from mmlm.check.tiny import tiny_config
from tests.check.options import CHECKED, LEFT_OUT, MODEL_SLOTS, NOT_SLOTS, check_option, options

MINE = [(slot, option) for slot, option in CHECKED if slot not in MODEL_SLOTS]
TWO_TOWERS = (
    "bridge=none",
    "decoder=none",
    "text_encoder=transformer",
    "encoder.pool=mean",
    "objective.weights.captioning=0",
    "evaluators=retrieval",
)
SETTINGS: Mapping[str, tuple[str, Sequence[str]]] = {
    "dropout": ("decoder", ("decoder.dropout=0.1",)),
    "patch dropout": ("encoder", ("encoder.patch_dropout=0.5",)),
    "kept class token": ("encoder", ("encoder.class_token=true", "encoder.keep_prefix_tokens=true")),
    "an encoder without a layer": (
        "encoder",
        ("encoder=vit", "encoder.depth=0", "encoder.class_token=false", "encoder.final_norm=false", "decoder=genlip"),
    ),
    "affinity distillation": (
        "objective",
        ("objective=coca_distillation", "objective.weights.affinity_distillation=1"),
    ),
    "the encoder of two towers": ("encoder", TWO_TOWERS),
    "the objective of two towers": ("objective", TWO_TOWERS),
}
"""Settings that take other ways through the kit than the options as they are: the slot, and what is set."""


def test_every_option_is_checked_or_left_out_for_a_reason():
    slots = {slot for slot, _ in options()}
    assert slots == set(SLOTS) | set(NOT_SLOTS)
    assert set(LEFT_OUT) <= set(options())
    assert len(CHECKED) > 50


@pytest.mark.thorough
@pytest.mark.slow  # starts ranks
@pytest.mark.parametrize(("slot", "option"), MINE, ids=map("=".join, MINE))
def test_an_option_keeps_the_rules(slot, option, ranks, request):
    check_option(slot, option, ranks, request)


@pytest.mark.slow  # starts ranks
@pytest.mark.parametrize("name", SETTINGS)
def test_settings_keep_the_rules(name: str, ranks: Ranks):
    slot, overrides = SETTINGS[name]
    lines = list(check_slot(slot, tiny_config(overrides), ranks))
    assert len(lines) > 8
    assert all(line.startswith("ok  ") for line in lines), lines
