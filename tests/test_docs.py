"""README.md and configs/README.md: every option is there, commands are accepted, numbers of parameters are right."""

import re
import shlex
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from mmlm.experiment.build import build_freeze, build_model
from mmlm.experiment.compatibility import check_compatible
from mmlm.experiment.config import CONFIG_DIR, Config, check_config
from mmlm.model.model import parameter_counts

ROOT = CONFIG_DIR.parent
README, PARTS = ROOT / "README.md", CONFIG_DIR / "README.md"
TRAIN = "python -m mmlm.train "
VOCABULARY = 2000
"""Tokens of caption_base's tokenizer."""
NOT_HERE = {
    "MODEL": "stands for a name of the reader's own",
    "text_encoder=clip": "is downloaded",
    "teacher.run=DIR": "has to be trained first",
    "plugins=[mean_bridge]": "is tried by a test of its own",
    "-m": "is several commands",
}
"""Words of commands that are not tried, and why: the value of an override, or a whole argument."""


def commands() -> list[str]:
    """What follows ``python -m mmlm.train`` in the code of both files, without quotes and the spaces in them."""
    texts = [file.read_text(encoding="utf-8").replace("\\\n", " ") for file in (README, PARTS)]
    lines = [line for text in texts for line in re.findall(TRAIN + "([^`\n]*)", text)]
    found = [" ".join(token.replace(" ", "") for token in shlex.split(line, comments=True)) for line in lines]
    return list(dict.fromkeys(line for line in found if not line.startswith("--")))


def words_of(command: str) -> set[str]:
    """Its arguments, and their values."""
    return {word for token in command.split() for word in (token, token.partition("=")[2])}


def is_tried(command: str) -> bool:
    """Whether nothing in a command is listed in NOT_HERE."""
    return words_of(command).isdisjoint(NOT_HERE)


def rows() -> list[tuple[str, str, str, str]]:
    """(slot, option, command, parameters) of the tables of one slot each."""
    found, slot = [], ""
    for line in PARTS.read_text(encoding="utf-8").splitlines():
        slot = line.removeprefix("## ") if line.startswith("## ") else slot
        cells = [cell.strip().strip("`") for cell in line.strip("|").split("|")]
        if line.startswith("| `"):
            found.append((slot, cells[0], cells[3], cells[4]))
    return found


COMMANDS = commands()
COUNTED = [row for row in rows() if row[2].startswith(TRAIN) and re.fullmatch(r"[\d,]+", row[3])]


@pytest.fixture
def config_of(compose: Callable[..., object]) -> Callable[[str], Config]:
    """``config_of(command)``: the checked config of what follows ``python -m mmlm.train``."""
    return lambda command: check_config(compose(*command.split()))


def test_every_option_is_documented():
    listed = re.findall(r"^\| (\w+) \| `(\w+)` \|", PARTS.read_text(encoding="utf-8"), flags=re.MULTILINE)
    named = {(slot, option) for slot, option, *_ in rows()} | set(listed)
    files = {(file.parent.name, file.stem) for file in CONFIG_DIR.glob("*/*.yaml")}
    assert named == {(slot, option) for slot, option in files if slot != "experiment"}


def test_a_row_has_the_command_of_its_option():
    for slot, option, command, _ in rows():
        assert command == "see there" or f"{slot}={option}" in command.split(), option


def test_there_are_commands_to_try():
    assert "experiment=caption_base bridge=perceiver decoder=gpt2_tiny freeze=lm_frozen" in COMMANDS
    assert len(COUNTED) > 30
    assert set(NOT_HERE) <= set().union(*map(words_of, COMMANDS)), "what is left out is there"


@pytest.mark.parametrize("command", [command for command in COMMANDS if is_tried(command)])
def test_a_command_is_accepted(config_of, command):
    check_compatible(config_of(command))


@pytest.mark.parametrize(("slot", "option", "command", "parameters"), COUNTED)
def test_the_number_of_parameters_is_right(config_of, slot, option, command, parameters):
    config = config_of(command.removeprefix(TRAIN))
    plan = build_freeze(config)
    with torch.device("meta"):
        model = build_model(config, VOCABULARY, load_weights=False)
        plan.add_adapters(model)
    counted = parameter_counts(model).get(slot, 0)
    if slot == "freeze":
        frozen = plan.frozen_parameters(model, 0)
        counted = sum(p.numel() for p in model.parameters() if p.requires_grad and p not in frozen)
    assert parameters == f"{counted:,}"


def test_the_part_of_ones_own_works_as_it_is_written(config_of, monkeypatch, tmp_path):
    text = PARTS.read_text(encoding="utf-8").partition("## A part of your own")[2]
    blocks = {name: text.partition(f"```{name}\n")[2].partition("```")[0] for name in ("python", "yaml", "bash")}
    (tmp_path / "mean_bridge.py").write_text(blocks["python"], encoding="utf-8")
    option = tmp_path / "my_configs" / "bridge" / "mean.yaml"
    option.parent.mkdir(parents=True)
    option.write_text(blocks["yaml"], encoding="utf-8")
    monkeypatch.syspath_prepend(str(tmp_path))
    config = config_of(" ".join(shlex.split(blocks["bash"].removeprefix(TRAIN).replace("$PWD", str(tmp_path)))))
    check_compatible(config)
    model = build_model(config, VOCABULARY)
    images = torch.zeros(2, 3, config.data.image_size, config.data.image_size, dtype=torch.uint8)
    tokens = model.encoder(images).tokens
    assert model.bridge(tokens).memory.shape == (2, 1, config.model.width)
    assert torch.allclose(model.bridge.patch_attention(tokens).sum(dim=-1), torch.ones(2, 1))


def test_every_file_is_in_the_file_map():
    text = README.read_text(encoding="utf-8").partition("## File map")[2]
    named = set(re.findall(r"`([\w/*.]+)`", text))
    folders = [Path(name) for name in named if name.endswith("/")]
    missing = []
    for file in sorted((ROOT / "mmlm").rglob("*.py")):
        inside = file.relative_to(ROOT)
        if any(inside.is_relative_to(folder) for folder in folders) or file.name == "__init__.py":
            continue
        if file.name not in {Path(name).name for name in named} and not file.name.startswith("emoji_"):
            missing.append(str(inside))
    assert missing == []
    assert [name for name in named if name.startswith("mmlm/") and not (ROOT / name).exists()] == []
