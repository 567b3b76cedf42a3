"""Image files with captions: what several formats come down to once their files are read."""

from collections.abc import Iterator
from pathlib import Path

from mmlm.core.batch import Caption, Example, ExampleTexts
from mmlm.data.caption_table import CaptionTable
from mmlm.data.images import read_encoded, read_image


class CaptionedImages:
    """The images of a folder, each with its captions. A name is the image's path from the folder on, and its id.

    An image that is missing when it is read is a ``CorruptImage``.

    Args:
        folder: where the names begin.
        table: names and captions.
    """

    def __init__(self, folder: Path, table: CaptionTable) -> None:
        self._folder, self._table = folder, table

    def __len__(self) -> int:
        """Number of images (and of texts without one)."""
        return len(self._table)

    def __getitem__(self, index: int) -> Example:
        """See ``Source``."""
        return self.reduced(index, None)

    def reduced(self, index: int, at_least: int | None) -> Example:
        """See ``ReadsReduced`` in ``mmlm/data/sources.py``."""
        table, name = self._table, self._table.image(index)
        image = None if name is None else read_image(self._folder / name, at_least)
        return Example(table.name(index), image, table.captions_of(index), table.concept(index))

    def encoded(self, index: int) -> bytes | None:
        """See ``GivesBytes`` in ``mmlm/data/sources.py``."""
        name = self._table.image(index)
        return None if name is None else read_encoded(self._folder / name)

    def captions(self) -> Iterator[Caption]:
        """See ``Source``."""
        return self._table.captions()

    def texts(self) -> Iterator[ExampleTexts]:
        """See ``ListsTexts``."""
        return self._table.texts()
