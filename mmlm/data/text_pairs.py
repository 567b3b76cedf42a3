"""Texts that answer texts: pairs of a source and a target in a table or JSON Lines, and chats of several turns."""

from collections.abc import Iterable, Iterator, Sequence
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa

from mmlm.core.batch import Caption, Turn
from mmlm.core.errors import ArgumentError, UserError
from mmlm.core.wording import listed
from mmlm.data.csv_rows import Format, check_encoding, delimiter_of, header_of, rows_of_cells
from mmlm.data.json_file import json_of_line, shown, text_at
from mmlm.data.single_texts import SingleTexts
from mmlm.data.text_files import numbered_lines

MESSAGES = "messages"
"""What a chat is called in a line of JSON."""
READ, WRITTEN, RULES = "user", "assistant", "system"
"""The roles of a chat's messages: what is read, what is written, and what may be read before all."""
LONGEST = 1_000_000
"""Characters of one text: more is a file without line breaks, and no text that a model reads."""
_AT_ONCE = 2**10


class Dialogue(NamedTuple):
    """What is read and written in turn, at least one of each, beginning with what is read."""

    line: int
    """Where it begins in its file, from 1."""
    texts: Sequence[str]
    """Of even length; the last is the answer."""


class TextPairs(SingleTexts):
    """Sources and the targets that a model is trained to write after reading them, without images.

    A file that ends in ``.csv`` or ``.tsv`` names its columns in the first row. In one that ends in ``.jsonl`` each
    line is an object with the source and the target, or with the ``messages`` of a chat as most collections have them:
    ``{"messages": [{"role": "user", "content": "..."}, {"role": "assistant", "content": "..."}]}``. The roles ``user``
    and ``assistant`` take turns, and each answer is learned; a ``system`` message may stand first, and is read together
    with the first question. Blanks around a text are dropped, and any blanks inside become single blanks. The example's
    id is the name of the file and the number of the line: ``questions.csv:17``.

    Args:
        files: one file or several.
        source: the column, or the name in a JSON object, of what is read.
        target: that of what is written.
        language: the language of the texts.
        encoding: that of tables; JSON Lines are UTF-8.

    Raises:
        ArgumentError: no file, or two of one name; a column that is not there; an unknown encoding.
        UserError: a missing file, one of another ending, one that is not in its encoding, a blank source or target, a
            chat without an answer or in which the roles do not take turns, no pair at all.
    """

    def __init__(
        self,
        files: str | Path | Sequence[str | Path],
        source: str = "source",
        target: str = "target",
        language: str | None = None,
        encoding: str = "utf-8",
    ) -> None:
        paths = [Path(files)] if isinstance(files, str | Path) else [Path(file) for file in files]
        if not paths or len({path.name for path in paths}) < len(paths):
            given = [path.name for path in paths]
            raise ArgumentError(f"files: {given} must name one file at least, and none twice: ids have the names")
        if source == target:
            raise ArgumentError(f"target: '{target}' must be another column than that of the source")
        check_encoding(encoding)
        found = [_stored(_dialogues(path, source, target, encoding)) for path in paths]
        if not any(map(len, found)):
            raise UserError(f"{paths[0]}: has no pair of texts; write a source and a target in each line")
        self._language = language
        # Arrow's texts, and a file's name once: a list of Python's would be copied into each worker.
        names = chain.from_iterable([path.name] * len(part) for path, part in zip(paths, found, strict=True))
        self._names = pa.array(names, pa.string()).dictionary_encode()
        self._dialogues = pa.concat_tables(found).combine_chunks()

    def __len__(self) -> int:
        """Number of pairs and chats."""
        return len(self._dialogues)

    def _id(self, index: int) -> str:
        return f"{self._names[index].as_py()}:{self._dialogues['line'][index].as_py()}"

    def _caption(self, index: int) -> Caption:
        texts = self._dialogues["texts"][index].as_py()
        turns = tuple(Turn(read, written) for read, written in zip(texts[:-2:2], texts[1:-2:2], strict=True))
        return Caption(texts[-1], self._language, source=texts[-2], turns=turns)


_SCHEMA = pa.schema({"line": pa.int64(), "texts": pa.large_list(pa.large_string())})


def _stored(dialogues: Iterable[Dialogue]) -> pa.Table:
    """The dialogues of a file, of which few are Python's texts at a time."""
    batches, some = [], list[Dialogue]()
    for dialogue in dialogues:
        some.append(dialogue)
        if len(some) == _AT_ONCE:
            batches.append(_as_batch(some))
            some = []
    return pa.Table.from_batches([*batches, _as_batch(some)], _SCHEMA)


def _as_batch(some: Sequence[Dialogue]) -> pa.RecordBatch:
    return pa.RecordBatch.from_arrays(
        [
            pa.array([one.line for one in some], _SCHEMA.field("line").type),
            pa.array([one.texts for one in some], _SCHEMA.field("texts").type),
        ],
        schema=_SCHEMA,
    )


def _dialogues(path: Path, source: str, target: str, encoding: str) -> Iterator[Dialogue]:
    """Those of a file. Raises ArgumentError and UserError."""
    if not path.is_file():
        raise UserError(f"{path}: there is no such file; give one of pairs of texts, as .csv, .tsv or .jsonl")
    ending = path.suffix.lower()
    if ending in (".csv", ".tsv"):
        return _of_table(path, source, target, encoding)
    if ending == ".jsonl":
        return _of_lines(path, source, target)
    raise UserError(f"{path}: its ending must be .csv, .tsv or .jsonl, which tells how it is read; rename it")


def _of_table(path: Path, source: str, target: str, encoding: str) -> Iterator[Dialogue]:
    """The rows of a table. Raises ArgumentError and UserError."""
    form = Format(encoding, delimiter_of(path, encoding, True, {source, target}), True)
    header_of(path, encoding)  # an empty file has none
    rows = rows_of_cells(path, form)
    _, _, header = next(rows)
    for argument, name in (("source", source), ("target", target)):
        if header.count(name) != 1:
            wrong = "is no column" if name not in header else f"is the name of {header.count(name)} columns"
            there = listed([repr(column) for column in header], 20)
            raise ArgumentError(f"{argument}: '{name}' {wrong} of {path}, which has {there}; name one of them")
    for first, _, cells in rows:
        if len(cells) != len(header):
            wrong = f"the number of cells, {len(cells)}, must be the first row's, {len(header)}"
            cure = f"put quotes around a cell with {form.delimiter!r} or a line break in it"
            raise UserError(f"{path}:{first}: {wrong}; {cure}")
        named = {name: cells[header.index(name)] for name in (source, target)}
        yield _dialogue(f"{path}:{first}", first, [_text(named, name, f"{path}:{first}") for name in (source, target)])


def _of_lines(path: Path, source: str, target: str) -> Iterator[Dialogue]:
    """The objects of JSON Lines. Raises ArgumentError and UserError."""
    for number, line in numbered_lines(path):
        if not line.strip():
            continue
        where = f"{path}:{number}"
        item = json_of_line(line, where)
        if not isinstance(item, dict):
            raise UserError(f"{where}: {shown(item)} must be an object with '{source}' and '{target}', or a chat")
        if MESSAGES in item:
            yield _dialogue(where, number, _of_chat(item[MESSAGES], where))
            continue
        for argument, name in (("source", source), ("target", target)):
            if name not in item:
                there = listed(sorted(item), 8)
                raise UserError(f"{where}: has no '{name}' but {there}; set {argument} to the name of that text")
        yield _dialogue(where, number, [_text(item, name, where) for name in (source, target)])


def _of_chat(messages: Any, where: str) -> list[str]:
    """What is read and written in turn. Raises UserError."""
    if not isinstance(messages, list) or not all(isinstance(message, dict) for message in messages):
        raise UserError(f"{where}: {MESSAGES} {shown(messages)} must be a list of objects with a role and a content")
    rules: list[str] = []
    texts: list[str] = []
    for number, message in enumerate(messages, start=1):
        at, role = f"{where}: message {number}", message.get("role")
        if role == RULES and number == 1:
            rules = [_text(message, "content", at)]
            continue
        wanted = READ if len(texts) % 2 == 0 else WRITTEN
        if role != wanted:
            also = f" or '{RULES}'" if number == 1 else ""
            raise UserError(f"{at}: its role {shown(role)} must be '{wanted}'{also}, since they take turns")
        texts.append(_text(message, "content", at))
    if not texts or len(texts) % 2:
        last = "has no message of a user" if not texts else "ends with a question"
        raise UserError(f"{where}: the chat {last}; it must end with an answer, a message of the role '{WRITTEN}'")
    return [" ".join([*rules, texts[0]]), *texts[1:]]


def _text(item: dict[str, Any], name: str, where: str) -> str:
    """A text in one line. Raises UserError."""
    try:
        return " ".join(text_at(item, name).split())
    except ValueError as error:
        raise UserError(f"{where}: {error}") from None


def _dialogue(where: str, line: int, texts: Sequence[str]) -> Dialogue:
    """Raises UserError for a text that is too long."""
    longest = max(map(len, texts))
    if longest > LONGEST:
        raise UserError(
            f"{where}: a text has {longest:,} characters, and {LONGEST:,} are the most; split it, or mend a missing "
            "line break or quote"
        )
    return Dialogue(line, texts)
