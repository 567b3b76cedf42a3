"""Text files that users bring: UTF-8, with the line named where it is not."""

from collections.abc import Iterator
from pathlib import Path

from mmlm.core.errors import UserError


def numbered_lines(path: Path) -> Iterator[tuple[int, str]]:
    """The lines of a file in UTF-8 with their numbers, from 1, without a byte order mark.

    Raises UserError for a line that is not UTF-8, and for a file that cannot be read.
    """
    try:
        with path.open("rb") as lines:
            for number, line in enumerate(lines, start=1):
                yield number, _decoded(line, f"{path}:{number}")
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror})") from error


def read_text(path: Path) -> str:
    """A whole file; see ``numbered_lines``."""
    return "".join(line for _, line in numbered_lines(path))


def _decoded(line: bytes, where: str) -> str:
    """The text of a line. A byte order mark is one in the first line, and no character of a text in any other."""
    try:
        return line.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        bad = line[error.start]
        raise UserError(f"{where}: is not UTF-8 (the byte 0x{bad:02x}); save the file in UTF-8") from None
