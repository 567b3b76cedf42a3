"""What the scores of a split are made of, item by item: ranks, captions, and what was taken for what.

The report breaks scores down by it, counts what is confused with what, and chooses the best and the worst examples.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from mmlm.core.computing import exact_float32
from mmlm.core.wording import cut
from mmlm.evaluation.caption_metrics import cider_d
from mmlm.evaluation.caption_scores import is_exact
from mmlm.evaluation.caption_words import caption_words
from mmlm.evaluation.evaluators import GREEDY, generate_captions
from mmlm.evaluation.generation.settings import GenerationSettings
from mmlm.evaluation.retrieval import score_retrieval
from mmlm.evaluation.split import EncodedSplit

MOST_ITEMS = 5000
"""Images and texts of a split that are written down, evenly spaced: about 0.6 MB."""
LONGEST = 120
"""Characters of a text that are written down."""
_AT_ONCE = 1024
"""Images that are compared with all texts at a time."""


@dataclass(frozen=True)
class SplitRanks:
    """The rank of each query's best true answer, 1 being the best, as retrieval counts under ``distinct``."""

    images: Mapping[int, int]
    """Row of an image -> among the texts. An image without a text is not there."""
    texts: Mapping[int, int]
    """Row of a text (in ``split.gallery``) -> among the images."""


def split_ranks(split: EncodedSplit) -> SplitRanks:
    """The ranks of all images and texts; none where no image has a text, or an embedding is not finite."""
    gallery = split.gallery
    paired = gallery.paired()
    finite = all(bool(torch.isfinite(e).all()) for e in (paired.image_embedding, paired.text_embedding))
    if not len(paired.pairs) or not finite:
        return SplitRanks({}, {})
    found = score_retrieval(paired.image_embedding, paired.text_embedding, paired.pairs)
    images, texts = (gallery.pairs[:, side].unique().tolist() for side in (0, 1))
    return SplitRanks(
        dict(zip(images, found.image_to_text.best.tolist(), strict=True)),
        dict(zip(texts, found.text_to_image.best.tolist(), strict=True)),
    )


def spaced(count: int, total: int) -> list[int]:
    """``count`` rows evenly spaced over ``total`` rows; all of them if there are fewer."""
    count = min(count, total)
    return [(2 * i + 1) * total // (2 * count) for i in range(count)]


def collect_items(
    split: EncodedSplit,
    language: str | None,
    ranks: SplitRanks,
    attributes: Mapping[str, Mapping[str, str]],
    most: int = MOST_ITEMS,
    decoding: GenerationSettings = GREEDY,
) -> dict[str, Any]:
    """The split's entry of ``items.json``: ``images`` and ``texts``, each with a list for each column, and ``of``.

    Columns of images are ``id``, ``shown`` (what it shows: the first caption in ``language``), ``words`` (of its
    shortest true caption), ``rank``, ``wrong`` (what the nearest text shows, if it is not the image's own), ``said``
    (the caption that was written), ``exact``, ``cider`` and those of ``attributes`` under ``attributes``; columns of
    texts are ``language``, ``words`` and ``rank``. A value that there is not is None. ``of`` tells how many images and
    texts there are; ``most`` of each at most are in the columns. All ranks call it, and get the same.
    """
    gallery = split.gallery
    rows, texts = spaced(most, len(split.image_ids)), spaced(most, len(gallery.texts))
    truths = [[c.text for c in captions if language in (None, c.language)] for captions in split.references]
    shown = [_label(own, captions) for own, captions in zip(truths, split.references, strict=True)]
    said = None if split.model.decoder is None else generate_captions(split, language, decoding)
    scored = [row for row, own in enumerate(truths) if own] if said is not None else []
    cider = _cider(said or (), truths, scored)
    ids = split.image_ids
    images: dict[str, Any] = {
        "id": [cut(ids[row], LONGEST) for row in rows],
        "shown": [shown[row] for row in rows],
        "words": [min((len(caption_words(text)) for text in truths[row]), default=None) for row in rows],
        "rank": [ranks.images.get(row) for row in rows],
        "wrong": _mistaken(split, rows, shown) if ranks.images else [None] * len(rows),
        "said": [None if said is None else cut(said[row], LONGEST) for row in rows],
        "exact": [is_exact(said[row], truths[row]) if said is not None and truths[row] else None for row in rows],
        "cider": [None if row not in cider else round(cider[row], 4) for row in rows],
        "attributes": {name: [of.get(ids[row]) for row in rows] for name, of in attributes.items()},
    }
    languages = gallery.languages or (None,) * len(gallery.texts)
    return {
        "of": {"images": len(ids), "texts": len(gallery.texts)},
        "images": images,
        "texts": {
            "language": [languages[text] for text in texts],
            "words": [len(caption_words(gallery.texts[text])) for text in texts],
            "rank": [ranks.texts.get(text) for text in texts],
        },
    }


def _label(truths: Sequence[str], captions: Sequence[Any]) -> str | None:
    """What an image shows, in few words: its first true caption in the language, or else its first one."""
    first = truths[0] if truths else captions[0].text if captions else None
    return None if first is None else cut(first, LONGEST)


def _cider(said: Sequence[str], truths: Sequence[Sequence[str]], rows: Sequence[int]) -> dict[int, float]:
    """CIDEr-D of the captions of ``rows``, by row. It takes all of them: it weighs words by how rare they are."""
    if not rows:
        return {}
    references = [[caption_words(text) for text in truths[row]] for row in rows]
    found = cider_d([caption_words(said[row]) for row in rows], references)
    return dict(zip(rows, found.per_example, strict=True))


def _mistaken(split: EncodedSplit, rows: Sequence[int], shown: Sequence[str | None]) -> list[str | None]:
    """What the nearest text of each image shows, if it is none of the image's own; else None.

    A text shows what the first of its images shows. Texts without an image are passed over, as in retrieval.
    """
    pairs = split.gallery.pairs
    own = set(map(tuple, pairs.tolist()))
    images, texts = pairs.unbind(dim=1)
    number = len(split.gallery.texts)
    image_of_text = torch.full((number,), len(shown)).scatter_reduce_(0, texts, images, "amin")
    found: list[str | None] = []
    for row, text in zip(rows, _nearest_texts(split, rows, image_of_text < len(shown)), strict=True):
        of_text = shown[int(image_of_text[text])] or split.gallery.texts[text]
        found.append(None if (row, text) in own else cut(of_text, LONGEST))
    return found


def _nearest_texts(split: EncodedSplit, rows: Sequence[int], candidates: Tensor) -> list[int]:
    """The row of the text nearest to each image, among those where bool[K] ``candidates`` is true."""
    texts = candidates.nonzero().squeeze(1)
    images = split.gallery.image_embedding[torch.tensor(rows, dtype=torch.int64, device=split.device)].float()
    of_text = split.gallery.text_embedding[texts.to(split.device)].float()
    best = []
    with exact_float32(split.device):
        for some in images.split(_AT_ONCE):
            best.append((some @ of_text.T).argmax(dim=1).cpu())
    return texts[torch.cat(best)].tolist() if best else []
