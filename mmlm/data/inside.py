"""Images that lie outside of the folder of the file that names them."""

import os

from mmlm.core.errors import UserError


def lies_outside(name: str) -> bool:
    """Whether a path, seen from a folder, leads out of it. It is told by the name: a link may lead anywhere."""
    if os.pardir not in name and not name.startswith(os.sep):
        return False  # at once, for the most of a million names
    return os.path.isabs(name) or os.path.normpath(name).split(os.sep)[0] == os.pardir


def check_inside(name: str | None, where: str, outside: bool) -> None:
    """UserError for an image outside of the folder of its captions, unless ``outside`` allows it."""
    if name is not None and not outside and lies_outside(name):
        raise UserError(
            f"{where}: the image {name!r} lies outside of the folder; move it there, or allow it: data....outside=true"
        )
