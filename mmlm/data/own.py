"""Images of one's own, in whatever format they lie, of which some are held out for validation."""

import math
from typing import Literal

import numpy as np

from mmlm.core.errors import ArgumentError, UserError
from mmlm.core.keyed_random import stable_hash
from mmlm.data.chosen import Chosen
from mmlm.data.recognise import recognise
from mmlm.data.sources import texts_of
from mmlm.data.stored import place_of

_LEAST = 2
"""Images that are held out at least: two can be told apart."""


class OwnImages(Chosen):
    """What lies at a path, recognised by its files (``mmlm/data/recognise.py``), or one part of it.

    The parts ``train`` and ``validation`` are disjoint and make up the whole. Which one an image belongs to is a hash
    of its id (its path inside of the folder or the table): images that are added or taken away change the place of no
    other, and every process and machine divides alike. Of few images, the two of the smallest hashes are held out.

    Args:
        path: a folder, a table, a URL or whatever else ``recognise`` knows.
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
        found = recognise(place_of(path), language)
        self.what = found.what
        """What it was taken for, in words."""
        count = len(found.source)
        kept = np.arange(count)
        if part != "all":
            ids = (stable_hash(f"held out: {texts.id}") for texts in texts_of(found.source))
            kept = _part(np.fromiter(ids, np.int64, count), part == "validation", held_out, path)
        super().__init__(found.source, kept)


def _part(hashes: np.ndarray, validation: bool, share: float, path: str) -> np.ndarray:
    """The rows int64[K] of a part, in order, by int64[rows] hashes. Raises UserError for fewer than one to train on."""
    if len(hashes) <= _LEAST:
        raise UserError(
            f"{path}: holds {len(hashes)} examples, too few to hold {_LEAST} out; give validation images of their own: "
            "data.train.part=all data.validation.validation.part=all data.validation.validation.path=PATH"
        )
    # 63 bits: a hash is below the share of their range for that share of all ids.
    held_out = hashes < math.ceil(share * 2**63)
    in_order = np.argsort(hashes, kind="stable")
    if held_out.sum() < _LEAST:
        held_out[in_order[:_LEAST]] = True
    if held_out.all():
        held_out[in_order[-1]] = False
    return np.flatnonzero(held_out if validation else ~held_out)
