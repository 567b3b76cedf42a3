"""Texts without images, one an example: what the sources of texts have in common."""

from abc import ABC, abstractmethod
from collections.abc import Iterator

from mmlm.core.batch import Caption, Example, ExampleTexts


class SingleTexts(ABC):
    """A source whose every example is one text and no image. A subclass knows how many, their ids and the texts."""

    @abstractmethod
    def __len__(self) -> int:
        """Number of texts."""

    @abstractmethod
    def _id(self, index: int) -> str:
        """The id of an example."""

    @abstractmethod
    def _caption(self, index: int) -> Caption:
        """The text of an example."""

    def __getitem__(self, index: int) -> Example:
        """See ``Source``."""
        return Example(self._id(index), None, (self._caption(index),))

    def captions(self) -> Iterator[Caption]:
        """See ``Source``."""
        return map(self._caption, range(len(self)))

    def texts(self) -> Iterator[ExampleTexts]:
        """See ``ListsTexts``."""
        for index in range(len(self)):
            yield ExampleTexts(self._id(index), (self._caption(index),), None, False)
