"""Texts that ship with the repo: the definitions and examples of WordNet 3.1, for objectives on text alone.

The Parquet file in ``wordnet/`` beside this file is written by ``prepare_wordnet``; the data card is
``wordnet/README.md``.
"""

from collections.abc import Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from mmlm.core.batch import Caption
from mmlm.core.errors import ArgumentError, UserError
from mmlm.data.single_texts import SingleTexts

FOLDER = Path(__file__).parent / "wordnet"
FILE = "wordnet.parquet"
SPLITS = ("train", "validation", "test")
KINDS = ("definition", "example")
LANGUAGE = "en"


def read_split(split: str) -> pa.Table:
    """The rows of one of ``SPLITS``; ``wordnet/README.md`` has the columns.

    Raises ArgumentError for another split, UserError if the file cannot be read.
    """
    if split not in SPLITS:
        raise ArgumentError(f"split: {split!r} is no split of WordNet; choose one of {', '.join(SPLITS)}")
    try:
        table = pq.read_table(FOLDER / FILE)
    except (OSError, pa.ArrowInvalid) as error:
        raise UserError(f"{FOLDER / FILE}: cannot be read ({error}); install mmlm again") from None
    return table.filter(pc.equal(table["split"], split))


class WordnetTexts(SingleTexts):
    """Each definition and each example sentence of a split is a text of its own.

    The id of a text is that of its meaning and a number, 0 for the definition: ``n02086723:0``.

    Args:
        split: ``train``, ``validation`` or ``test``.
        kinds: which of ``definition`` and ``example``.
    """

    def __init__(self, split: str, kinds: Sequence[str] = KINDS) -> None:
        """Raises ArgumentError for an unknown split or kind, UserError if the file cannot be read."""
        if not kinds or not set(kinds) <= set(KINDS):
            raise ArgumentError(f"kinds: {list(kinds)} must be some of {', '.join(KINDS)}")
        table = read_split(split)
        texts, numbers, rows = [], [], []
        columns = zip(table["definition"].to_pylist(), table["examples"].to_pylist(), strict=True)
        for row, (definition, examples) in enumerate(columns):
            for number, text in enumerate((definition, *examples)):
                if KINDS[number > 0] in kinds:
                    texts.append(text)
                    numbers.append(number)
                    rows.append(row)
        # Arrow's columns, which take no object of Python's a text.
        self._texts = pa.array(texts)
        self._ids = table["id"].take(pa.array(rows)).combine_chunks()
        self._numbers = pa.array(numbers, pa.int16())

    def __len__(self) -> int:
        """Number of texts."""
        return len(self._texts)

    def _id(self, index: int) -> str:
        return f"{self._ids[index].as_py()}:{self._numbers[index].as_py()}"

    def _caption(self, index: int) -> Caption:
        kind = KINDS[self._numbers[index].as_py() > 0]
        return Caption(self._texts[index].as_py(), LANGUAGE, kind)
