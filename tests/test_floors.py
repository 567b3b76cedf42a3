"""The drawn house: every package has a floor, imports go down only, and no circle of files hides inside a package."""

import ast
import re
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

import mmlm

ROOT = Path(mmlm.__file__).parent
FLOOR_OF = {
    "core": 1,
    "data": 2,
    "model": 2,
    "objectives": 2,
    "optim": 2,
    "checkpoints": 2,
    "record": 2,
    "launch": 2,
    "statistics": 2,
    "training": 3,
    "evaluation": 3,
    "reports": 3,
    "experiment": 4,
    "run": 5,
    "cli": 5,
    "pretrained": 5,
    "studies": 5,
    "commands": 6,
    "bench": 6,
    "check": 6,
}
"""Every package and its floor."""
DOOR = 7
"""The floor of a file in ``mmlm/`` itself: it reads the arguments of a command, then imports the command's work."""
OPTIONAL = {
    "wandb",
    "tensorboard",
    "trackio",
    "open_clip",
    "resvg_py",
    "peft",
    "sklearn",
    "liger_kernel",
    "cut_cross_entropy",
    "transformers",
    "matplotlib",
    "hydra",
}
"""Heavy packages that a function may import where what needs them is asked for."""


def module_of(file: Path) -> str:
    """``mmlm.core.batch`` for its file."""
    parts = file.relative_to(ROOT.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


FILES = {module_of(file): file for file in sorted(ROOT.rglob("*.py"))}


def imported(tree: ast.AST) -> set[str]:
    """The modules of mmlm that a syntax tree imports, in whichever of Python's three ways."""
    found: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute"
            # A name is a module (from mmlm.core import batch), or stands in one (from mmlm.core.batch import Batch).
            names = [f"{node.module}.{alias.name}" for alias in node.names]
            names = [name if name in FILES else str(node.module) for name in names]
        else:
            continue
        found |= {name for name in names if name.split(".")[0] == "mmlm"}
    return found


def package_of(module: str) -> str | None:
    """The package that a module is in; None for a command and for ``mmlm`` itself."""
    parts = module.split(".")
    return parts[1] if len(parts) > 1 and (ROOT / parts[1]).is_dir() else None


def floor_of(module: str) -> int:
    if module == "mmlm":  # the version and nothing else
        return 0
    package = package_of(module)
    return DOOR if package is None else FLOOR_OF[package]


def work_of(here: str) -> tuple[str, ...]:
    """What the names of modules begin with that a command imports once it has read its arguments."""
    if floor_of(here) == DOOR:
        return ("mmlm.commands.", "mmlm.launch.")
    # ``python -m`` of a package, whose work is beside it
    return (here.removesuffix("__main__"),) if here.endswith(".__main__") else ()


def faults(here: str, tree: ast.AST) -> list[str]:
    """What is wrong with the imports of one file: arrows to the same floor or up, and imports inside functions."""
    found = []
    for there in sorted(imported(tree)):
        same_package = package_of(here) is not None and package_of(here) == package_of(there)
        if not same_package and floor_of(there) >= floor_of(here):
            found.append(f"{here} (floor {floor_of(here)}) imports {there} (floor {floor_of(there)})")
    for function in ast.walk(tree):
        if isinstance(function, ast.FunctionDef | ast.AsyncFunctionDef):
            for node in ast.walk(function):
                if isinstance(node, ast.Import | ast.ImportFrom):
                    names = [node.module] if isinstance(node, ast.ImportFrom) else [alias.name for alias in node.names]
                    if all(str(name).startswith(work_of(here)) for name in names):
                        continue
                    if not {str(name).split(".")[0] for name in names} <= OPTIONAL:
                        found.append(f"{here}, line {node.lineno}: an import inside a function")
    return found


@pytest.mark.parametrize("module", FILES)
def test_imports_go_down(module):
    assert faults(module, ast.parse(FILES[module].read_text(encoding="utf-8"))) == []


def test_no_circle_of_files():
    arrows = {module: imported(ast.parse(file.read_text(encoding="utf-8"))) for module, file in FILES.items()}
    try:
        TopologicalSorter(arrows).prepare()
    except CycleError as error:
        pytest.fail(f"a circle: {' <- '.join(error.args[1])}")


def test_every_package_has_a_floor():
    packages = {folder.name for folder in ROOT.iterdir() if any(folder.rglob("*.py"))}
    assert packages == set(FLOOR_OF)
    assert max(FLOOR_OF.values()) <= 6


def test_tests_mirror_the_packages():
    here = Path(__file__).parent
    folders = {folder.name for folder in here.iterdir() if any(folder.glob("**/test_*.py"))}
    assert set(FLOOR_OF) <= folders
    assert folders - set(FLOOR_OF) == {"exactness", "faults", "slurm"}, "suites of the whole house"
    modules = {file.stem for file in ROOT.glob("*.py")} | {"bad_input", "bring_your_own", "docs", "floors"}
    assert {file.stem.removeprefix("test_") for file in here.glob("test_*.py")} <= modules


@pytest.mark.parametrize(
    ("source", "fault"),
    [
        ("import mmlm.training.loop", "mmlm.core.batch (floor 1) imports mmlm.training.loop (floor 3)"),
        ("from mmlm import train", "mmlm.core.batch (floor 1) imports mmlm.train (floor 7)"),
        ("from mmlm.data import loader", "mmlm.core.batch (floor 1) imports mmlm.data.loader (floor 2)"),
        ("def f():\n    import torch", "mmlm.core.batch, line 2: an import inside a function"),
    ],
)
def test_a_forbidden_import_is_found(source, fault):
    assert faults("mmlm.core.batch", ast.parse(source)) == [fault]


def test_neighbours_on_one_floor_may_not_import_each_other():
    assert faults("mmlm.optim.muon", ast.parse("from mmlm.model.blocks import pack")) != []
    assert faults("mmlm.train", ast.parse("from mmlm import caption")) != []


@pytest.mark.parametrize("library", ["wandb", "tensorboard", "trackio"])
def test_only_a_logger_that_is_on_imports_its_library(library):
    """In functions of its own file; for annotations, below ``if TYPE_CHECKING``."""
    lines = {
        module: re.findall(rf"^( *)(?:import|from) {library}\b", file.read_text(), re.M)
        for module, file in FILES.items()
    }
    assert {module for module, found in lines.items() if found} == {f"mmlm.record.loggers.{library}"}
    assert all(lines[f"mmlm.record.loggers.{library}"]), "one is imported with its file"


def test_timm_is_imported_in_one_place():
    """Anywhere else it would bring wandb with it."""
    importers = [
        module for module, file in FILES.items() if re.search(r"^\s*(import|from) timm\b", file.read_text(), re.M)
    ]
    assert importers == ["mmlm.core.timm_without_wandb"]
