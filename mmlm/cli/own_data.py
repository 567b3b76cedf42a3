"""``data=PATH`` of a training command: the path or URL of one's own images in place of an option."""

import re
from collections.abc import Sequence
from pathlib import Path

from mmlm.core.errors import UserError
from mmlm.core.local_files import URL_SEPARATOR
from mmlm.data.own_splits import own_splits
from mmlm.experiment.config import CONFIG_DIR

_KEY = "data="
OPTION = "own"
"""The option of ``configs/data`` that reads a path."""
_TENTH = "a tenth of {} validates, by a hash of their ids (data.train.held_out=0.1)"


def with_own_data(tokens: Sequence[str], notices: list[str]) -> list[str]:
    """The arguments with ``data=PATH`` written as the option ``own`` and its settings; any others as they are.

    A word without a slash is a path only if no option is called so and something lies there. What validates is added
    to ``notices``. Raises UserError for a path that is not there.
    """
    expanded: list[str] = []
    for token in tokens:
        expanded += _expanded(token, tokens, notices) if token.startswith(_KEY) else [token]
    return expanded


def _expanded(token: str, tokens: Sequence[str], notices: list[str]) -> list[str]:
    value = token.removeprefix(_KEY).strip("'\"")
    if (CONFIG_DIR / "data" / f"{value}.yaml").is_file():
        return [token]
    if URL_SEPARATOR in value:  # what lies there is seen when it is read: asking a store takes long
        if not _names_parts(tokens):
            notices.append(f"data: {_TENTH.format(f'the images of {value}')}")
        return [f"{_KEY}{OPTION}", f"data.path={quoted(value)}"]
    path = Path(value)
    if not path.exists():
        if "/" in value and "," not in value and "{" not in value:
            options = ", ".join(sorted(file.stem for file in (CONFIG_DIR / "data").glob("*.yaml")))
            raise UserError(
                f"data: there is no file or folder {value}; give the path of your images, or one of {options}"
            )
        return [token]
    splits = own_splits(path)
    chosen = [f"{_KEY}{OPTION}", f"data.path={quoted(value)}"]
    if splits is not None:
        notices.append(f"data: {splits.train} is trained on, and {splits.validation} validates")
        for key, of_split in (("data.train", splits.train), ("data.validation.validation", splits.validation)):
            chosen += [f"{key}.path={quoted(str(of_split))}", f"{key}.part=all"]
    elif not _names_parts(tokens):
        notices.append(f"data: {value} has no validation split; {_TENTH.format('its images')}")
    return chosen


def _names_parts(tokens: Sequence[str]) -> bool:
    """Whether the command says itself what is trained on and what validates."""
    return any(token.startswith(("data.train.", "data.validation")) for token in tokens)


def quoted(path: str) -> str:
    """A path as a value in Hydra's grammar, whatever characters it has."""
    # Backslashes count before a quote and at the end only; there each is doubled.
    escaped = re.sub(r'(\\*)"', r'\1\1\\"', path)
    escaped = re.sub(r"(\\+)$", r"\1\1", escaped)
    return f'"{escaped}"'
