"""The class or function that a part's ``_target_`` names: what may be named, and how it is imported.

A config may come from somebody else's folder, so naming something must not run it. Of mmlm only the parts of the slot's
own kind may be named (``kinds.py``), and of other packages only those that the user has allowed by name.
"""

import importlib
import inspect
import pkgutil
import re
import types
from collections.abc import Callable, Collection, Sequence
from pathlib import Path

from mmlm.core.errors import UserError
from mmlm.core.wording import did_you_mean
from mmlm.experiment.kinds import Kind
from mmlm.experiment.opened_config import HOME


def resolve(target: str, slot: str, kinds: Collection[Kind], plugins: Collection[str]) -> Callable[..., object]:
    """The class or function that ``package.module.name`` names. Raises UserError, and imports nothing before it may.

    ``kinds`` are what the slot accepts of mmlm; without any, which no slot of a config is, all classes and functions
    of mmlm are accepted. ``plugins`` are packages, besides mmlm, that the user has allowed: of these a slot accepts
    every class and function.
    """
    path = target.split(".")
    allowed = [plugin for plugin in plugins if plugin.split(".")[0] != HOME]
    if not _may_be_named(target, kinds, allowed):
        homes = [home for kind in kinds for home in kind.homes] if kinds else [HOME]
        places = ", ".join(f"{place}.*" for place in dict.fromkeys([*homes, *allowed]))
        rule = f"it may only name {places}" if places else "no part may stand here"
        raise UserError(f"{slot}: _target_ '{target}' is not allowed; {rule}")
    if not all(name.isidentifier() and not name.startswith("_") for name in path):
        raise UserError(f"{slot}: _target_ '{target}' is not the dotted name of a public class or function")
    if path[0] == HOME and kinds:
        _check_defined(path, target, slot)
    module = _import(path[:-1], target, slot)
    found = vars(module).get(path[-1])
    if found is not None and _is_callable(found) and _is_accepted(found, kinds, allowed):
        return found
    own = [
        name
        for name, value in vars(module).items()
        if _is_callable(value) and value.__module__ == module.__name__ and name[0] != "_"
    ]
    if kinds and path[0] == HOME:
        own = [name for name in own if _is_accepted(vars(module)[name], kinds, ())]
        asked = " or ".join(kind.name for kind in kinds) if len(kinds) <= 2 else "part"
        raise UserError(f"{slot}: _target_ '{target}' is no {asked}{did_you_mean(path[-1], own)}")
    raise UserError(f"{slot}: _target_ '{target}': {module.__name__} has no '{path[-1]}'{did_you_mean(path[-1], own)}")


def _may_be_named(target: str, kinds: Collection[Kind], plugins: Collection[str]) -> bool:
    """Whether a target lies where a part of these kinds, or of an allowed package, may lie. Looks at the name only."""
    if any(target.startswith(f"{plugin}.") for plugin in plugins):
        return True
    module = target.rpartition(".")[0]
    return any(kind.is_home(module) for kind in kinds) if kinds else target.startswith(f"{HOME}.")


def _check_defined(path: Sequence[str], target: str, slot: str) -> None:
    """UserError for a module of mmlm that does not define the class, found in its text: it is not imported for that.

    A module that is not there is left to the import, whose message says which part of the name is wrong.
    """
    place = Path(__file__).parents[2].joinpath(*path[:-1])
    file = next((f for f in (place.with_suffix(".py"), place / "__init__.py") if f.is_file()), None)
    if file is None:
        return
    names = re.findall(r"^class ([A-Za-z]\w*)", file.read_text(encoding="utf-8"), flags=re.MULTILINE)
    if path[-1] not in names:
        module = ".".join(path[:-1])
        raise UserError(f"{slot}: _target_ '{target}': {module} has no '{path[-1]}'{did_you_mean(path[-1], names)}")


def _is_callable(value: object) -> bool:
    """True for a class or a function; other callables (instances, partials) are no targets."""
    return inspect.isclass(value) or inspect.isfunction(value)


def _is_accepted(found: Callable[..., object], kinds: Collection[Kind], plugins: Collection[str]) -> bool:
    """Whether a class or function may be built.

    A module also holds the names that it imports, so ``my_parts.x.system`` could be the system of os. What counts is
    the module in which the class or function was defined.
    """
    module = f"{found.__module__}."
    if any(module.startswith(f"{plugin}.") for plugin in plugins):
        return True
    return any(kind.accepts(found) for kind in kinds) if kinds else module.startswith(f"{HOME}.")


def _import(path: Sequence[str], target: str, slot: str) -> types.ModuleType:
    """The module of the dotted ``path``, imported package by package: an error names the first that is missing."""
    module: types.ModuleType | None = None
    for depth in range(1, len(path) + 1):
        name = ".".join(path[:depth])
        try:
            module = importlib.import_module(name)
        except ModuleNotFoundError as error:
            if error.name == name:
                places = () if module is None else vars(module).get("__path__", ())
                hint = did_you_mean(path[depth - 1], [info.name for info in pkgutil.iter_modules(places)])
                raise UserError(f"{slot}: _target_ '{target}': there is no module '{name}'{hint}") from None
            # A module of ours that imports another module of ours that is not there is a bug: it keeps its traceback.
            if error.name is None or error.name.split(".")[0] == path[0]:
                raise
            raise UserError(f"{slot}: {name} needs the package '{error.name}'; install it") from None
    assert module is not None, "a target has a module"
    return module
