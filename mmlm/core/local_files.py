"""Finds the files that a config names: by a path, a hub id, or ``package:NAME/inside`` for a file of a Python package.

Pretrained weights that are distributed as packages (an optional extra) are found wherever they are installed, so that
a config that names them is the same on every machine.
"""

from importlib.util import find_spec
from pathlib import Path

from mmlm.core.errors import ArgumentError

PACKAGE = "package:"
URL_SEPARATOR = "://"
"""What tells a URL from a path."""


def locate(name: str, argument: str) -> str:
    """The path of the file or folder that ``package:NAME/inside`` stands for; any other ``name`` is returned as is.

    ``argument`` is the caller's argument that holds ``name``; error messages begin with it. No code of the
    package is executed. Raises ArgumentError if the package is not installed or holds no such file.
    """
    if not name.startswith(PACKAGE):
        return name
    package, _, inside = name.removeprefix(PACKAGE).partition("/")
    if not package.isidentifier() or ".." in Path(inside).parts:
        raise ArgumentError(f"{argument}: '{name}' names no file of a package; write {PACKAGE}NAME/file")
    # find_spec does not import a top-level package. A module that is a single file has no folders to look in.
    spec = find_spec(package)
    folders = [] if spec is None else list(spec.submodule_search_locations or ())
    if not folders:
        shown = package.replace("_", "-")
        raise ArgumentError(
            f"{argument}: '{name}' needs the package {shown}; pip install {shown}, or pip install -e .[pretrained]"
        )
    found = next((path for folder in folders if (path := Path(folder) / inside).exists()), None)
    if found is None:
        raise ArgumentError(f"{argument}: the package {package} holds no '{inside}'")
    return str(found)
