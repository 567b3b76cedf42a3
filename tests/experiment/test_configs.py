"""Every file of ``configs/``: each experiment and option composes and is accepted, and lists all that can be set."""

import ast
import dataclasses
import importlib
import inspect
import re
import textwrap
import types
import typing
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import pytest
from omegaconf import OmegaConf

from mmlm.experiment.config import CONFIG_DIR, Config
from mmlm.experiment.config_checks import EVALUATOR_ARGUMENTS, PART_SLOTS, check_config

EXPERIMENTS = sorted(file.stem for file in (CONFIG_DIR / "experiment").glob("*.yaml"))
OPTIONS = sorted(
    file.relative_to(CONFIG_DIR).with_suffix("").as_posix().rpartition("/")[::2]
    for file in CONFIG_DIR.rglob("*.yaml")
    if file.parent not in (CONFIG_DIR, CONFIG_DIR / "experiment", CONFIG_DIR / "study")
)
"""(group, option) of every part file."""
NEEDS = {
    ("encoder", "hugging_face"): ("encoder.name_or_path=a",),
    ("data", "class_folder"): ("data.train.folder=a", "data.validation.validation.folder=b"),
    ("data", "folder"): ("data.train.folder=a", "data.validation.validation.folder=b"),
    ("data", "own"): ("data.path=a",),
    ("data", "paired_files"): ("data.train.folder=a", "data.validation.validation.folder=b"),
    ("data", "mixture"): ("data.train.sources.own.folder=a", "data.validation.own.folder=b"),
    ("tokenizer", "hugging_face"): ("tokenizer.name_or_path=gpt2",),
    ("text_encoder", "hugging_face"): ("text_encoder.name_or_path=bert-base-uncased",),
    ("decoder", "hugging_face"): ("decoder.name_or_path=gpt2",),
    ("decoder", "hugging_face_gated"): ("decoder.name_or_path=gpt2",),
}
"""What the user of an option has to give."""
EMPTY = {("bridge", "none"), ("decoder", "none"), ("text_encoder", "own"), ("launcher", "none"), ("logger", "none")}
"""Options that leave their slot empty."""
GOES_WITH = {("bridge", "mlp"): ("decoder=prefix",)}


TARGETS = sorted(
    {
        target
        for file in CONFIG_DIR.rglob("*.yaml")
        for target in re.findall(r"_target_: ([\w.]+)", file.read_text("utf-8"))
    }
)
"""Every class and function that an option names."""


def parts_of(node: object, slot: str) -> Iterator[tuple[str, dict[str, object]]]:
    """Every mapping with a ``_target_`` inside a composed config, and the key it stands at."""
    if isinstance(node, Mapping):
        if "_target_" in node:
            yield slot, dict(node)
        for key, value in node.items():
            yield from parts_of(value, f"{slot}.{key}" if slot else str(key))


def constructor(target: str) -> Callable[..., object]:
    module, _, name = target.rpartition(".")
    return getattr(importlib.import_module(module), name)


def supplied(slot: str) -> tuple[str, ...]:
    """Arguments that the build gives to a slot's part."""
    top = slot.split(".")[0]
    return EVALUATOR_ARGUMENTS if top == "evaluators" else PART_SLOTS.get(top, ())


def dataclass_in(hint: object) -> type | None:
    """The dataclass that an annotation such as ``AugmentSettings | None`` holds."""
    members = typing.get_args(hint) if isinstance(hint, types.UnionType) else (hint,)
    return next((m for m in members if isinstance(m, type) and dataclasses.is_dataclass(m)), None)


def test_there_is_something_to_test():
    assert "caption_base" in EXPERIMENTS
    assert {group for group, _ in OPTIONS} >= {*PART_SLOTS, "data", "evaluators", "logger"}


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_every_experiment_composes(compose, name):
    config = check_config(compose(f"experiment={name}"))
    assert isinstance(config, Config)
    assert config.experiment == name
    first, second = (CONFIG_DIR / "experiment" / f"{name}.yaml").read_text(encoding="utf-8").split("\n", 2)[:2]
    assert (first, second[:2]) == ("# @package _global_", "# ")
    assert f"python -m mmlm.train experiment={name}" in (CONFIG_DIR / "experiment" / f"{name}.yaml").read_text()


@pytest.mark.parametrize(("group", "option"), OPTIONS)
def test_every_option_of_every_group_composes(compose, group, option):
    needs = (*NEEDS.get((group, option), ()), *GOES_WITH.get((group, option), ()))
    config = compose("experiment=caption_base", f"{group}={option}", *needs)
    assert isinstance(check_config(config), Config)


@pytest.mark.parametrize(("group", "option"), OPTIONS)
def test_a_part_file_lists_every_argument_and_no_other(compose, group, option):
    """So that `key=value` reaches every argument without '+', and the file shows what there is."""
    config = compose("experiment=caption_base", f"{group}={option}", *NEEDS.get((group, option), ()))
    if (group, option) in EMPTY:
        assert not config[group]
        return
    found = list(parts_of(OmegaConf.to_container(config, resolve=True)[group], group))
    assert found
    for slot, node in found:
        part = constructor(str(node.pop("_target_")))
        settable = [name for name in inspect.signature(part).parameters if name not in supplied(slot)]
        assert sorted(node) == sorted(settable), f"{slot} of {group}/{option}.yaml"
        hints = typing.get_type_hints(part.__init__ if isinstance(part, type) else part)
        for key, value in node.items():
            settings = dataclass_in(hints.get(key))
            if settings is not None and isinstance(value, Mapping):
                fields = {field.name for field in dataclasses.fields(settings)}
                assert set(value) == fields.difference(supplied(slot)), f"{slot}.{key}"


def unread(function: Callable[..., object]) -> list[str]:
    """The arguments of a function that its body never reads."""
    (tree,) = ast.parse(textwrap.dedent(inspect.getsource(function))).body
    names = (node for node in ast.walk(tree) if isinstance(node, ast.Name))
    read = {node.id for node in names if isinstance(node.ctx, ast.Load)}
    return [name for name in inspect.signature(function).parameters if name not in {*read, "self"}]


@pytest.mark.parametrize("target", TARGETS)
def test_no_part_takes_an_argument_that_it_does_not_use(target):
    part = constructor(target)
    init = part.__init__ if isinstance(part, type) else part
    # The constructor of a dataclass is made by Python, and that of an empty class is ``object``'s.
    if not dataclasses.is_dataclass(part) and inspect.isfunction(init) and init.__module__ != "typing":
        assert unread(init) == []


def test_an_unused_argument_is_found():
    class Bridge:
        def __init__(self, patch_width: int, grid: tuple[int, int], width: int) -> None:
            self.widths = patch_width, width

    assert unread(Bridge.__init__) == ["grid"]


def test_files_start_with_what_they_are_for():
    """A comment heads every file of more than a target and plain numbers (optim and schedule speak for themselves)."""
    bare = [
        file.relative_to(CONFIG_DIR).as_posix()
        for file in sorted(CONFIG_DIR.rglob("*.yaml"))
        if not file.read_text(encoding="utf-8").startswith("#")
    ]
    assert [name for name in bare if not name.startswith(("optim/", "schedule/", "evaluators/"))] == []


def test_the_configs_are_found_from_any_folder(compose, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    assert CONFIG_DIR.is_absolute()
    assert Path(CONFIG_DIR / "config.yaml").is_file()
    assert compose("experiment=caption_base").experiment == "caption_base"
