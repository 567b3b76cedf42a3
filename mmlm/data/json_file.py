"""Reading a JSON file that other programs have written, and saying what is wrong in it."""

import json
from pathlib import Path
from typing import Any

from mmlm.core.errors import UserError
from mmlm.core.wording import cut

_DECODER = json.JSONDecoder()


def read_json(file: Path) -> Any:
    """What a JSON file holds. Raises UserError for a file that is none."""
    try:
        return json.loads(file.read_bytes())
    except ValueError as error:
        raise UserError(f"{file}: is not JSON ({error}); it may be cut off: download or unpack it again") from None


def json_of_line(line: str, where: str) -> Any:
    """What a line of JSON Lines holds; ``where`` is ``file:line``. Raises UserError."""
    try:
        if line.startswith("{"):
            # What json.loads does, without its search for blanks: a second less for a million lines.
            value, end = _DECODER.raw_decode(line)
            if not line[end:].strip(" \t\r\n"):
                return value
        return json.loads(line)
    except ValueError as error:
        raise UserError(f"{where}: is not JSON ({error}); write one JSON object a line") from None


def text_at(item: dict[str, Any], key: str) -> str:
    """A text that is not blank and has a form in UTF-8. Raises ValueError."""
    text = item.get(key)
    if not isinstance(text, str) or not text.strip():
        raise ValueError(f"{key} {shown(text)} must be a text that is not blank; correct or remove it")
    try:
        text.encode()
    except UnicodeEncodeError:
        # JSON can hold one half of a pair that makes a character ("\ud83d"). It is no text for Arrow or a tokenizer.
        raise ValueError(f"{key} {shown(text)} has half a character in it; correct or remove it") from None
    return text


def shown(value: Any) -> str:
    """A value as the file has it, but not too long for a line."""
    return cut(json.dumps(value), 80)
