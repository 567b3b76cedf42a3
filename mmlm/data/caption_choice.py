"""Which of an image's captions a batch has, by their kinds, and what each of them is for."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from mmlm.core.errors import ArgumentError, UserError
from mmlm.core.wording import listed

if TYPE_CHECKING:  # settings are read before torch is imported
    from mmlm.core.batch import Caption


@dataclass
class CaptionSettings:
    """What is done with captions by their kind (``title``, ``alt``, ``synthetic``) or their language (``en``).

    A source names the kinds: by the columns or keys of the captions. Captions of no kind and of no language always come
    and are for every objective.
    """

    kinds: dict[str, float] = field(default_factory=dict)
    """The probability that a caption comes in an epoch, by kind or language; 1 for those that are not named. Of a
    caption whose kind and language are both named, their product. An image of which none would come keeps one."""
    contrastive: list[str] | None = None
    """The kinds or languages that images are compared with (contrastive losses and their relatives); null is all."""
    captioning: list[str] | None = None
    """The kinds or languages whose tokens are predicted (captioning and its relatives); null is all."""
    negatives: list[str] | None = None
    """The kinds of texts that are false of their image (hard negatives): further candidates for images in the
    contrastive loss, and no captions of anything. All of an image's come, unless ``kinds`` names them; null is none."""

    def __post_init__(self) -> None:
        for name, share in self.kinds.items():
            if not 0 <= share <= 1:
                raise ArgumentError(f"kinds.{name}: {share} is no probability; it must lie in [0, 1]")
        for key in ("contrastive", "captioning"):
            if getattr(self, key) == []:
                raise ArgumentError(f"{key}: names no kind; null takes all, and a weight of 0 leaves an objective out")
            for name in {*(getattr(self, key) or ())} & {*(self.negatives or ())}:
                raise ArgumentError(f"negatives: '{name}' is in {key} too; a text is a caption or false, not both")
        if self.negatives == []:
            raise ArgumentError("negatives: names no kind; null is for data without hard negatives")

    def kept(self, captions: Sequence["Caption"], uniforms: Sequence[float]) -> list[int]:
        """The numbers of the captions of an image that come, in order, by a number in [0, 1) for each.

        If no true one would, the one that was nearest comes too; none at all if no probability is above 0.
        """
        shares = [self._share(caption) for caption in captions]
        drawn = list(zip(uniforms, shares, strict=True))
        coming = [number for number, (uniform, share) in enumerate(drawn) if uniform < share]
        far = [uniform / share if share > 0 else math.inf for uniform, share in drawn]
        true = [number for number, caption in enumerate(captions) if not self.is_negative(caption)]
        nearest = min(true, key=far.__getitem__, default=None)
        if nearest is None or nearest in coming or far[nearest] == math.inf:
            return coming
        return sorted([*coming, nearest])

    def is_negative(self, caption: "Caption") -> bool:
        """Whether a text is false of its image."""
        return self.negatives is not None and caption.kind in self.negatives

    def _share(self, caption: "Caption") -> float:
        share = 1.0
        for name in {caption.kind, caption.language} - {None}:
            share *= self.kinds.get(name, 1.0) if name is not None else 1.0
        return share

    def compared(self, captions: Sequence["Caption"]) -> list[bool] | None:
        """For each caption whether it is for comparisons with images; None: all."""
        return self._true(captions, _of_kinds(captions, self.contrastive))

    def predicted(self, captions: Sequence["Caption"]) -> list[bool] | None:
        """For each caption whether its tokens are predicted; None: all."""
        return self._true(captions, _of_kinds(captions, self.captioning))

    def negative(self, captions: Sequence["Caption"]) -> list[bool] | None:
        """For each caption whether it is false of its image; None: there are no such texts in this run."""
        return None if self.negatives is None else [self.is_negative(caption) for caption in captions]

    def _true(self, captions: Sequence["Caption"], chosen: list[bool] | None) -> list[bool] | None:
        """``chosen`` without texts that are false of their image."""
        if self.negatives is None:
            return chosen
        chosen = [True] * len(captions) if chosen is None else chosen
        return [one and not self.is_negative(caption) for one, caption in zip(chosen, captions, strict=True)]

    def check(self, captions: Iterable["Caption"]) -> None:
        """UserError for a name that is the kind or language of no caption. Stops at the first captions that do."""
        asked = [("kinds", name) for name in self.kinds]
        keys = ("contrastive", "captioning", "negatives")
        asked += [(key, name) for key in keys for name in getattr(self, key) or ()]
        missing, found = {name for _, name in asked}, set[str]()
        if not missing:
            return
        for caption in captions:
            found |= {name for name in (caption.kind, caption.language) if name is not None}
            if missing <= found:
                return
        for key, name in asked:
            if name not in found:
                there = f"there are {listed(sorted(found), 10)}" if found else "they have neither"
                raise UserError(f"data.captions.{key}: '{name}' is the kind or language of no caption; {there}")


def by_kind(given: object) -> tuple[list[str] | None, list[str | None]]:
    """The texts of a JSON value, and the kind of each: a list of texts, or an object of texts or lists of them by kind.

    None in place of the texts for any other value.
    """
    if isinstance(given, list):
        return (given if all(isinstance(text, str) for text in given) else None), [None] * len(given)
    texts: list[str] = []
    kinds: list[str | None] = []
    for kind, value in given.items() if isinstance(given, dict) else [("", None)]:
        some = [value] if isinstance(value, str) else value
        if not isinstance(some, list) or not all(isinstance(text, str) for text in some):
            return None, []
        texts += some
        kinds += [kind] * len(some)
    return texts, kinds


def _of_kinds(captions: Sequence["Caption"], kinds: Sequence[str] | None) -> list[bool] | None:
    if kinds is None:
        return None
    names = [{caption.kind, caption.language} - {None} for caption in captions]
    return [not one or not one.isdisjoint(kinds) for one in names]
