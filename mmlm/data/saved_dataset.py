"""Folders that ``save_to_disk`` of the datasets library writes, and ``load_from_disk`` reads."""

from collections.abc import Sequence
from pathlib import Path

from mmlm.core.errors import ArgumentError, UserError
from mmlm.core.wording import did_you_mean, listed
from mmlm.data.arrow_parts import ArrowParts
from mmlm.data.image_rows import ImageRows
from mmlm.data.json_file import read_json
from mmlm.data.stored import SEPARATOR
from mmlm.data.table_parts import Columns, caption_columns

STATE = "state.json"
"""What a folder of one data set has beside its Arrow files."""
INFO = "dataset_info.json"
"""A description that lies beside it, which is not read."""
SPLITS = "dataset_dict.json"
"""What a folder of several splits has beside their folders."""


class SavedDataset(ImageRows):
    """A data set saved by the datasets library: Arrow files, and a file that lists them.

    The library itself is not needed, and nothing of the folder is run. The columns are those of ``ParquetTable``: an
    image is struct<bytes, path> or binary; captions are strings or lists of strings. The files are mapped into memory,
    so that a row costs what it holds, in any order, and no process holds the table. Rows of one id are one example.

    Args:
        folder: the folder that was saved. Null, which ``${data.path}`` is until it is given, is refused.
        split: the split, of a folder that has several; null for a folder that has none.
        image_column: the column of images.
        caption_column: that of captions, or several, each a kind of caption by its name.
        concept_column: that of concepts; null for none. A class label is its number.
        id_column: that of ids; null takes the name of the file and the row in it: ``data-00000-of-00002.arrow/17``.
        language: the language of captions that name none.
        outside: allows images by paths that lead out of the folder.
        language_column: the column of languages; null for none.

    Raises:
        ArgumentError: no ``folder``, a split that is not there, no caption column, or one that is named twice.
        UserError: a folder of something else or of several splits, a file that is missing or cannot be read, and
            whatever ``ParquetTable`` refuses.

    The format was read from folders that version 5.2.0 of the library had written.
    """

    def __init__(
        self,
        folder: str | Path | None,
        split: str | None = None,
        image_column: str = "image",
        caption_column: str | Sequence[str] = "caption",
        concept_column: str | None = None,
        id_column: str | None = None,
        language: str | None = None,
        outside: bool = False,
        language_column: str | None = None,
    ) -> None:
        files = arrow_files(folder, split)
        columns = Columns(image_column, caption_columns(caption_column), concept_column, id_column, language_column)
        super().__init__(ArrowParts(files, columns.all), columns, language, outside)


def arrow_files(folder: str | Path | None, split: str | None) -> list[Path]:
    """The files of a saved data set. Raises ArgumentError and UserError."""
    if folder is None:
        raise ArgumentError("folder: null must be the folder of the data set; give data.path=FOLDER")
    if SEPARATOR in str(folder):
        raise ArgumentError(f"folder: {folder} is a URL, and these files are mapped into memory; copy them to a disk")
    folder = Path(folder)
    if split is not None:
        splits = saved_splits(folder)
        if split not in splits:
            there = did_you_mean(split, splits) if splits else "; it has no splits: set split=null"
            raise ArgumentError(f"split: {folder} has no '{split}'{there}")
        folder = folder / split
    state = folder / STATE
    if not state.is_file():
        splits = saved_splits(folder)
        has = f"it has the splits {listed(splits, 8)}: name one" if splits else f"there is no {STATE} in it"
        raise UserError(f"{folder}: is no saved data set; {has}")
    content = read_json(state)
    named = content.get("_data_files") if isinstance(content, dict) else None
    names = [entry.get("filename") if isinstance(entry, dict) else None for entry in named or []]
    bad = [name for name in names if not isinstance(name, str) or Path(name).name != name]
    if not names or bad:
        what = f"names the file {bad[0]!r}" if bad else "names no file"
        raise UserError(f"{state}: {what}; save the data set again")
    return [folder / str(name) for name in names]


def saved_splits(folder: Path) -> list[str]:
    """The splits of a folder that several were saved in; none of any other. Raises UserError."""
    path = folder / SPLITS
    content = read_json(path) if path.is_file() else None
    splits = content.get("splits") if isinstance(content, dict) else None
    return [name for name in splits if isinstance(name, str)] if isinstance(splits, list) else []
