"""Text files that users bring: UTF-8, with the line named where it is not."""

import codecs
from collections.abc import Iterator
from pathlib import Path

from mmlm.core.errors import UserError


def numbered_lines(path: Path) -> Iterator[tuple[int, str]]:
    """The lines of a file in UTF-8 with their numbers, from 1, without a byte order mark.

    A mark is one in the first line, and no character of a text in any other. Raises UserError for a line that is not
    UTF-8, and for a file that cannot be read.
    """
    try:
        with path.open("rb") as lines:
            for number, line in enumerate(lines, start=1):
                try:
                    # Several times as fast as the codec that passes over a mark: a million lines take a second less.
                    yield number, line.decode("utf-8-sig" if line.startswith(codecs.BOM_UTF8) else "utf-8")
                except UnicodeDecodeError as error:
                    bad = error.object[error.start]
                    raise UserError(
                        f"{path}:{number}: is not UTF-8 (the byte 0x{bad:02x}); save the file in UTF-8"
                    ) from None
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror})") from error


def read_text(path: Path) -> str:
    """A whole file; see ``numbered_lines``."""
    return "".join(line for _, line in numbered_lines(path))
