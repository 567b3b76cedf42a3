"""A folder from a colleague runs no code: nothing but the parts of a slot is imported, or called, for its sake."""

import importlib
import inspect
import pkgutil
import re
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
import yaml

import mmlm
from mmlm import caption, evaluate, export, train
from mmlm.core.errors import UserError
from mmlm.experiment import targets
from mmlm.experiment.config import CONFIG_DIR
from mmlm.experiment.config_checks import PART_SLOTS
from mmlm.experiment.kinds import KINDS, kinds_of_slot
from mmlm.experiment.parts import build_part, check_part
from mmlm.experiment.saved_run import load_run
from mmlm.experiment.targets import resolve
from mmlm.record.manifest import accept

SLOTS = (*PART_SLOTS, "data.train", "data.validation.a", "evaluators.a", "logger.a")
DANGEROUS = (
    "asyncio.subprocess",
    "builtins",
    "code",
    "codecs",
    "ctypes",
    "ctypes.util",
    "functools",
    "glob",
    "importlib",
    "importlib.util",
    "marshal",
    "multiprocessing",
    "os",
    "os.path",
    "pathlib",
    "pickle",
    "pkgutil",
    "platform",
    "posix",
    "pty",
    "runpy",
    "shelve",
    "shutil",
    "signal",
    "site",
    "socket",
    "subprocess",
    "sys",
    "tempfile",
    "threading",
    "timeit",
    "types",
    "urllib.request",
    "webbrowser",
    "zipfile",
)
"""Modules of the standard library that do harm, or find what does."""


def shipped() -> dict[str, set[str]]:
    """The targets that the files of ``configs/`` name, by the first word of their slot."""
    found: dict[str, set[str]] = {}
    for file in CONFIG_DIR.glob("*/*.yaml"):
        for target in re.findall(r"_target_: (mmlm[\w.]+)", file.read_text(encoding="utf-8")):
            found.setdefault(file.parent.name, set()).add(target)
    return found


def modules_of_mmlm() -> list[str]:
    """The names of all modules, but for those that start a command when they are imported."""
    names = [info.name for info in pkgutil.walk_packages(mmlm.__path__, "mmlm.")]
    return ["mmlm", *(name for name in names if not name.endswith("__main__"))]


def public_callables(name: str) -> Iterator[str]:
    """Every public callable that a module has by a name, imported ones too."""
    module = sys.modules.get(name) or importlib.import_module(name)
    for key, value in vars(module).items():
        if callable(value) and not key.startswith("_"):
            yield f"{name}.{key}"


def accepted(slot: str, names: list[str]) -> set[str]:
    """Those of ``names`` that may be built in a slot."""
    found = set()
    for target in names:
        try:
            resolve(target, slot, kinds_of_slot(slot), ())
        except UserError:
            continue
        found.add(target)
    return found


SOURCES_WITHOUT_AN_OPTION = {
    "mmlm.data.captioned_images.CaptionedImages",
    "mmlm.data.chosen.Chosen",
    "mmlm.data.image_rows.ImageRows",
    "mmlm.data.contrast_files.ContrastFiles",
    "mmlm.data.text_lines.TextLines",
    "mmlm.data.text_pairs.TextPairs",
    "mmlm.data.without.Without",
    "mmlm.data.wordnet.WordnetTexts",
}


def test_of_all_callables_of_mmlm_a_slot_accepts_its_own_parts():
    """What ships as an option, what is nested in one, and the sources that have no option."""
    names = [target for module in modules_of_mmlm() for target in public_callables(module)]
    assert len(names) > 1000
    options = shipped()
    nested = {target for target in options["objective"] if ".weighted_sum." not in target}
    for slot in SLOTS:
        own = options.get(slot.partition(".")[0], set()) - nested
        own |= SOURCES_WITHOUT_AN_OPTION if slot.startswith("data") else set()
        own |= {"mmlm.optim.freeze.FreezePlan"} if slot == "freeze" else set()
        assert accepted(slot, names) == own, slot
    sums = (KINDS[next(kind for kind in KINDS if kind.__name__ == "Objective")],)
    for target in nested - {"mmlm.objectives.weights.Ramp"}:
        resolve(target, "objective.objectives.a", sums, ())


def test_nothing_of_the_standard_library_is_imported_or_called(monkeypatch):
    names = [target for module in DANGEROUS for target in public_callables(module)]
    assert len(names) > 1000
    monkeypatch.setattr(targets.importlib, "import_module", lambda name: pytest.fail(f"{name} is imported"))
    before = set(sys.modules)
    for slot in SLOTS:
        for target in names:
            with pytest.raises(UserError, match="is not allowed"):
                check_part({"_target_": target}, slot)
    for target in names[::50]:
        with pytest.raises(UserError, match="is not allowed"):
            build_part({"_target_": target}, "encoder")
    assert set(sys.modules) == before


@pytest.mark.parametrize("target", ["os.system", "mmlm.checkpoints.files.remove", "some_weights.Part"])
def test_neither_is_anything_nested_in_a_part(target, package):
    inner = {"_target_": target}
    nodes = {
        "objective": {"_target_": "mmlm.objectives.weighted_sum.WeightedSum", "objectives": {"a": inner}},
        "data.train": {"_target_": "mmlm.data.mixture.Mixture", "sources": {"a": inner}},
        "encoder": {"_target_": "mmlm.model.encoders.timm_vit.TimmVit", "name": inner},
        "transform": {"_target_": "mmlm.data.transforms.Transform", "augment": inner},
        "tokenizer": {"_target_": "mmlm.data.tokenizers.byte_pair.BytePair", "languages": [inner]},
    }
    for slot, node in nodes.items():
        with pytest.raises(UserError, match="is not allowed"):
            check_part(node, slot, PART_SLOTS.get(slot, ()))
    assert "some_weights" not in sys.modules


# Commands

PLUGIN = """
from mmlm.evaluation.evaluators import Retrieval

class Own(Retrieval):
    pass
"""


@pytest.fixture
def foreign(trained, tmp_path, monkeypatch) -> Iterator[Path]:
    """A run that names the package ``foreign_parts``, and says itself that this is allowed."""
    folder = trained("evaluators=retrieval")
    (tmp_path / "foreign_parts.py").write_text(PLUGIN)
    monkeypatch.syspath_prepend(tmp_path)
    values = yaml.safe_load((folder / "config.yaml").read_text())
    values["plugins"] = ["foreign_parts", "os"]
    values["evaluators"] = {"own": {"_target_": "foreign_parts.Own"}}
    (folder / "config.yaml").write_text(yaml.safe_dump(values))
    accept(folder, "config.yaml")
    yield folder
    sys.modules.pop("foreign_parts", None)


def test_every_command_asks_before_it_takes_a_plug_in(foreign, command, train_tiny, shapes, tmp_path):
    picture = str(next(shapes.glob("*.png")))
    commands = {
        caption: (f"run={foreign}", picture),
        evaluate: (f"run={foreign}",),
        export: (f"run={foreign}", f"to={tmp_path / 'out'}"),
    }
    asks = "asks for the plug-in 'foreign_parts' (foreign_parts.Own); if you trust that package to run code, allow it: "
    for module, arguments in commands.items():
        mistake = command(module, *arguments).mistake
        assert f"evaluators.own {asks}plugins=[foreign_parts]" in mistake
    distilled = ("objective=coca_distillation", f"teacher.run={foreign}", "name=student")
    for arguments in ((f"init_from.run={foreign}", "name=next"), distilled):
        assert asks in train_tiny(*arguments).mistake
    assert "foreign_parts" not in sys.modules

    for module, arguments in commands.items():
        outcome = command(module, *arguments, "plugins=[foreign_parts]")
        assert (outcome.status, outcome.err) == (0, ""), outcome
    assert load_run(str(foreign), torch.device("cpu"), ["foreign_parts"]).config.plugins == ["foreign_parts"]


def test_resuming_compares_the_folder_s_config_and_builds_none_of_it(foreign, train_tiny):
    mistake = train_tiny("evaluators=retrieval").mistake
    assert "evaluators.own._target_: foreign_parts.Own -> None" in mistake
    assert "foreign_parts" not in sys.modules


def test_a_part_that_is_only_a_function_is_none_of_mmlm_s():
    for kind in KINDS.values():
        assert not kind.accepts(len)
        assert not kind.accepts(train.main)
        assert not inspect.isfunction(kind.protocol)
