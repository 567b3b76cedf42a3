"""Which of an image's captions a batch has, by their kinds, and what each of them is for."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from mmlm.core.batch import Caption
from mmlm.core.errors import ArgumentError, UserError
from mmlm.core.wording import listed


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

    def __post_init__(self) -> None:
        for name, share in self.kinds.items():
            if not 0 <= share <= 1:
                raise ArgumentError(f"kinds.{name}: {share} is no probability; it must lie in [0, 1]")
        for key in ("contrastive", "captioning"):
            if getattr(self, key) == []:
                raise ArgumentError(f"{key}: names no kind; null takes all, and a weight of 0 leaves an objective out")

    def kept(self, captions: Sequence[Caption], uniforms: Tensor) -> list[int]:
        """The numbers of the captions of an image that come, in order, by float64[len(captions)] in [0, 1).

        If none would, it is the one that was nearest to coming; none at all if no probability is above 0.
        """
        shares = torch.tensor([self._share(caption) for caption in captions], dtype=torch.float64)
        coming = (uniforms < shares).nonzero().squeeze(1).tolist()
        if coming or not bool((shares > 0).any()):
            return coming
        return [int((uniforms / shares).masked_fill(shares == 0, math.inf).argmin())]

    def _share(self, caption: Caption) -> float:
        share = 1.0
        for name in {caption.kind, caption.language} - {None}:
            share *= self.kinds.get(name, 1.0) if name is not None else 1.0
        return share

    def compared(self, captions: Sequence[Caption]) -> Tensor | None:
        """bool[C]: the captions for comparisons with images; None: all."""
        return _of_kinds(captions, self.contrastive)

    def predicted(self, captions: Sequence[Caption]) -> Tensor | None:
        """bool[C]: the captions whose tokens are predicted; None: all."""
        return _of_kinds(captions, self.captioning)

    def check(self, captions: Iterable[Caption]) -> None:
        """UserError for a name that is the kind or language of no caption. Stops at the first captions that do."""
        asked = [("kinds", name) for name in self.kinds]
        asked += [(key, name) for key in ("contrastive", "captioning") for name in getattr(self, key) or ()]
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


def _of_kinds(captions: Sequence[Caption], kinds: Sequence[str] | None) -> Tensor | None:
    if kinds is None:
        return None
    names = [{caption.kind, caption.language} - {None} for caption in captions]
    return torch.tensor([not one or not one.isdisjoint(kinds) for one in names], dtype=torch.bool)
