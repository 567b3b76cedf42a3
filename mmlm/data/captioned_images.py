"""Image files with captions, held as Arrow arrays: what several formats come down to once their files are read."""

from collections.abc import Iterator, Sequence
from pathlib import Path

import pyarrow as pa

from mmlm.core.batch import Caption, Example, ExampleTexts
from mmlm.data.images import read_encoded, read_image


class CaptionedImages:
    """The images of a folder, each with its captions. A name is the image's path from the folder on, and its id.

    Python's own lists of texts would take several times the memory, in each worker. An image that is missing when it is
    read is a ``CorruptImage``.

    Args:
        folder: where the names begin.
        names: of the images.
        captions: of each image.
        language: of all captions.
    """

    def __init__(
        self, folder: Path, names: Sequence[str], captions: Sequence[Sequence[str]], language: str | None
    ) -> None:
        self._folder, self._language = folder, language
        self._names = pa.array(names, pa.large_string())
        self._captions = pa.array(captions, pa.list_(pa.large_string()))

    def __len__(self) -> int:
        """Number of images."""
        return len(self._names)

    def __getitem__(self, index: int) -> Example:
        """See ``Source``."""
        name = self._names[index].as_py()
        return Example(name, read_image(self._folder / name), self._tagged(self._captions[index].as_py()))

    def encoded(self, index: int) -> bytes:
        """See ``GivesBytes`` in ``mmlm/data/sources.py``."""
        return read_encoded(self._folder / self._names[index].as_py())

    def captions(self) -> Iterator[Caption]:
        """See ``Source``."""
        return (Caption(text.as_py(), self._language) for text in self._captions.flatten())

    def texts(self) -> Iterator[ExampleTexts]:
        """See ``ListsTexts``."""
        for name, captions in zip(self._names, self._captions, strict=True):
            yield ExampleTexts(name.as_py(), self._tagged(captions.as_py()), None, True)

    def _tagged(self, texts: Sequence[str]) -> tuple[Caption, ...]:
        return tuple(Caption(text, self._language) for text in texts)
