"""The class or function that a part's ``_target_`` names: what may be named, and how it is imported."""

import importlib
import inspect
import pkgutil
import types
from collections.abc import Callable, Collection, Sequence

from mmlm.core.errors import UserError
from mmlm.core.wording import did_you_mean


def resolve(target: str, slot: str, packages: Collection[str]) -> Callable[..., object]:
    """The class or function that ``package.module.name`` names, if it lies in one of ``packages``. Raises UserError."""
    if not any(target.startswith(f"{package}.") for package in packages):
        allowed = ", ".join(f"{package}.*" for package in packages)
        raise UserError(f"{slot}: _target_ '{target}' is not allowed; it may only name {allowed}")
    path = target.split(".")
    if not all(name.isidentifier() and not name.startswith("_") for name in path):
        raise UserError(f"{slot}: _target_ '{target}' is not the dotted name of a public class or function")
    module = _import(path[:-1], target, slot)
    found = vars(module).get(path[-1])
    # A module also holds the names that it imports, so ``mmlm.x.system`` could be the system of os. What counts is the
    # module in which the class or function was defined.
    if (
        found is not None
        and _is_callable(found)
        and any(f"{found.__module__}.".startswith(f"{package}.") for package in packages)
    ):
        return found
    own = [k for k, v in vars(module).items() if _is_callable(v) and v.__module__ == module.__name__ and k[0] != "_"]
    raise UserError(f"{slot}: _target_ '{target}': {module.__name__} has no '{path[-1]}'{did_you_mean(path[-1], own)}")


def _is_callable(value: object) -> bool:
    """True for a class or a function; other callables (instances, partials) are no targets."""
    return inspect.isclass(value) or inspect.isfunction(value)


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
