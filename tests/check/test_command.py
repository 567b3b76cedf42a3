"""``python -m mmlm.check``, in this process: a line for each rule, or one line and status 2."""

import re
from collections.abc import Callable
from pathlib import Path

import pytest

from mmlm.check import __main__ as check
from mmlm.check.slots import SLOTS
from mmlm.check.tiny import slots_named, tiny_config
from tests.conftest import PLUGIN


@pytest.mark.slow  # starts ranks
def test_a_part_of_ones_own_keeps_all_rules(command: Callable, own_parts: tuple[str, ...]):
    outcome = command(check, *own_parts, "text_encoder=own_tokens")
    assert (outcome.status, outcome.err) == (0, ""), outcome
    first, *rules = outcome.out.splitlines()
    assert first == "text_encoder"
    assert len(rules) > 12
    assert all(line.startswith("ok  ") for line in rules)
    assert any("2 and 3 ranks" in line for line in rules)


@pytest.mark.slow  # starts what ranks are forked from
def test_a_broken_part_ends_with_one_line(command: Callable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    option = tmp_path / "bridge" / "mine.yaml"
    option.parent.mkdir()
    option.write_text("_target_: broken_parts.WrongMemoryWidth\nwidth: ${model.width}\n", encoding="utf-8")
    monkeypatch.syspath_prepend(str(PLUGIN))
    outcome = command(check, "plugins=[broken_parts]", f"hydra.searchpath=[file://{tmp_path}]", "bridge=mine")
    assert re.match(r"bridge WrongMemoryWidth: broken rule: memory is float.*; set num_memory", outcome.mistake)


@pytest.mark.slow  # starts what ranks are forked from
def test_an_empty_slot_has_nothing_to_check(command: Callable):
    outcome = command(check, "text_encoder=own")
    assert outcome.out.splitlines()[1:] == ["--  the slot is empty: there is nothing to check"]


def test_mistakes_of_the_command_line(command: Callable):
    assert command(check, "--slots").mistake.startswith("--slots: no such option")
    assert command(check, "bridge=unheard_of").mistake.startswith("unknown bridge 'unheard_of'; there are: ")
    assert command(check, "bridge.nothing=1").mistake.startswith("bridge.nothing: no such setting")
    shown = command(check, "--help").out
    assert "python -m mmlm.check" in shown
    assert ", ".join(SLOTS) in shown
    # A part that refuses its settings breaks no rule.
    assert command(check, "bridge=token_learner", "bridge.num_tokens=0").mistake.startswith("bridge.num_tokens: 0 must")


def test_the_slots_that_a_command_line_names():
    every = list(SLOTS)
    assert slots_named(["bridge=mlp", "+decoder.dropout=0.1", "train.steps=3"], every) == ["bridge", "decoder"]
    assert slots_named(["plugins=[mine]"], every) == every


def test_the_last_word_is_the_user_s():
    config = tiny_config(["data.image_size=16", "encoder.width=24", "objective=coca_distillation"])
    assert (config.data.image_size, config.encoder["width"], config.teacher.ema) == (16, 24, True)
