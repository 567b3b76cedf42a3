"""What is known of a source's examples besides their captions, such as who drew them: scores are broken down by it."""

from collections.abc import Mapping
from typing import Protocol, runtime_checkable

from mmlm.data.sources import ListsTexts, Source

FOLDER = "folder"
"""The attribute of a source that names none itself: the first folder in an example's id."""
MOST_FOLDERS = 40
"""More folders than this are no division of the data into a few kinds."""

Attributes = Mapping[str, Mapping[str, str]]
"""Name of an attribute -> id of an example -> its value. An example may be without."""


@runtime_checkable
class HasAttributes(Protocol):
    """A source that knows attributes of its examples."""

    def attributes(self) -> Attributes:
        """Every attribute by its name, without decoding an image."""
        ...


def attributes_of(source: Source) -> Attributes:
    """The attributes of a source's examples.

    Of a source that names none, the first folder of the ids counts (``ann/1.jpg``), if the ids have from two to
    ``MOST_FOLDERS`` of them.
    """
    if isinstance(source, HasAttributes):
        return source.attributes()
    if not isinstance(source, ListsTexts):
        return {}
    ids = (example.id for example in source.texts())
    folders = {id: id.split("/", 1)[0] for id in ids if "/" in id}
    return {FOLDER: folders} if 2 <= len(set(folders.values())) <= MOST_FOLDERS else {}
