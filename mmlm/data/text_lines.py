"""Texts without images, for the objectives that learn from text alone."""

from collections.abc import Iterator, Sequence
from pathlib import Path

import pyarrow as pa

from mmlm.core.batch import Caption
from mmlm.core.errors import ArgumentError, UserError
from mmlm.core.wording import listed
from mmlm.data.json_file import json_of_line, shown, text_at
from mmlm.data.single_texts import SingleTexts
from mmlm.data.text_files import numbered_lines


class TextLines(SingleTexts):
    """The lines of text files: a text a line, or, in files that end in ``.jsonl``, a JSON object with a text.

    Blank lines are passed over. Blanks around a text are dropped, and any blanks inside become single blanks. The
    example's id is the name of the file and the number of the line: ``stories.txt:17``.

    Args:
        files: one file or several.
        key: what the text is called in a JSON object.
        language: the language of the texts.

    Raises:
        ArgumentError: no file, or two of one name.
        UserError: a missing file, one that is not UTF-8, a line of JSON Lines that is no object with a text, no text
            at all.
    """

    def __init__(
        self, files: str | Path | Sequence[str | Path], key: str = "text", language: str | None = None
    ) -> None:
        paths = [Path(files)] if isinstance(files, str | Path) else [Path(file) for file in files]
        if not paths or len({path.name for path in paths}) < len(paths):
            given = [path.name for path in paths]
            raise ArgumentError(f"files: {given} must name one file at least, and none twice: ids have the names")
        found = [(path.name, number, text) for path in paths for number, text in _texts(path, key)]
        if not found:
            raise UserError(f"{paths[0]}: has no text; write one a line")
        names, numbers, texts = zip(*found, strict=True)
        self._language = language
        # A file's name once, not once a line.
        self._names = pa.array(names).dictionary_encode()
        self._numbers = pa.array(numbers, pa.int64())
        self._texts = pa.array(texts, pa.large_string())

    def __len__(self) -> int:
        """Number of texts."""
        return len(self._texts)

    def _id(self, index: int) -> str:
        return f"{self._names[index].as_py()}:{self._numbers[index].as_py()}"

    def _caption(self, index: int) -> Caption:
        return Caption(self._texts[index].as_py(), self._language)


def _texts(path: Path, key: str) -> Iterator[tuple[int, str]]:
    """The texts of a file with the numbers of their lines. Raises UserError."""
    if not path.is_file():
        raise UserError(f"{path}: there is no such file; give one with a text a line")
    is_json = path.suffix.lower() == ".jsonl"
    for number, line in numbered_lines(path):
        text = " ".join((_text_of(line, key, f"{path}:{number}") if is_json and line.strip() else line).split())
        if text:
            yield number, text


def _text_of(line: str, key: str, where: str) -> str:
    """The text of a line of JSON. Raises UserError."""
    item = json_of_line(line, where)
    if not isinstance(item, dict):
        raise UserError(f'{where}: {shown(item)} must be an object with a text, such as {{"{key}": "..."}}; correct it')
    if key not in item:
        raise UserError(f"{where}: has no '{key}' but {listed(sorted(item), 8)}; set key to the name of the text")
    try:
        return text_at(item, key)
    except ValueError as error:
        raise UserError(f"{where}: {error}") from None
