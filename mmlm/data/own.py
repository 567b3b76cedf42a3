"""Images of one's own, in whatever format they lie, of which some are held out for validation."""

from collections.abc import Iterator
from pathlib import Path
from typing import Literal

from mmlm.core.batch import Caption, Example, ExampleTexts
from mmlm.core.errors import ArgumentError, UserError
from mmlm.core.keyed_random import stable_hash
from mmlm.data.recognise import recognise
from mmlm.data.remarks import remarks_of
from mmlm.data.sources import texts_of

_LEAST = 2
"""Images that are held out at least: two can be told apart."""


class OwnImages:
    """What lies at a path, recognised by its files (``mmlm/data/recognise.py``), or one part of it.

    The parts ``train`` and ``validation`` are disjoint and make up the whole. Which one an image belongs to is a hash
    of its id (its path inside of the folder or the table): images that are added or taken away change the place of no
    other, and every process and machine divides alike. Of few images, the two of the smallest hashes are held out.

    Args:
        path: a folder, a table or whatever else ``recognise`` knows.
        part: ``train``, ``validation``, or ``all``, which holds nothing out.
        held_out: share of the images that are for validation, in (0, 1). Both parts have to be given the same.
        language: that of captions that name none; None leaves them without.

    Raises:
        UserError: nothing there is recognised, or there are not enough images to divide.
    """

    def __init__(
        self,
        path: str,
        part: Literal["train", "validation", "all"] = "all",
        held_out: float = 0.1,
        language: str | None = None,
    ) -> None:
        if not 0 < held_out < 1:
            raise ArgumentError(f"held_out: {held_out} must lie between 0 and 1, such as 0.1; part=all holds none out")
        found = recognise(Path(path), language)
        self.what = found.what
        """What it was taken for, in words."""
        self._source = found.source
        self._chosen = list(range(len(found.source)))
        if part != "all":
            hashes = [stable_hash(f"held out: {texts.id}") for texts in texts_of(found.source)]
            self._chosen = _part(hashes, part == "validation", held_out, path)

    def __len__(self) -> int:
        """Number of images of the part."""
        return len(self._chosen)

    def __getitem__(self, index: int) -> Example:
        """See ``Source``."""
        return self._source[self._chosen[index]]

    def captions(self) -> Iterator[Caption]:
        """See ``Source``."""
        return (caption for texts in self.texts() for caption in texts.captions)

    def remarks(self) -> Iterator[str]:
        """See ``HasRemarks``."""
        return iter(remarks_of(self._source))

    def texts(self) -> Iterator[ExampleTexts]:
        """See ``ListsTexts``."""
        wanted = set(self._chosen)
        return (texts for index, texts in enumerate(texts_of(self._source)) if index in wanted)


def _part(hashes: list[int], validation: bool, share: float, path: str) -> list[int]:
    """The rows of a part, in order. Raises UserError for fewer than one image to train on."""
    if len(hashes) <= _LEAST:
        raise UserError(
            f"{path}: holds {len(hashes)} examples, too few to hold {_LEAST} out; give validation images of their own: "
            "data.train.part=all data.validation.validation.part=all data.validation.validation.path=PATH"
        )
    in_order = sorted(range(len(hashes)), key=lambda row: (hashes[row], row))
    # 63 bits: a hash is below the share of their range for that share of all ids.
    below = [row for row in in_order if hashes[row] < share * 2**63]
    held_out = {*(below if len(below) >= _LEAST else in_order[:_LEAST])}
    if len(held_out) == len(hashes):
        held_out.remove(in_order[-1])
    return [row for row in range(len(hashes)) if (row in held_out) is validation]
