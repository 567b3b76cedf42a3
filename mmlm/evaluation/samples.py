"""Collects the sample images of a report: their captions, nearest neighbours, generated captions and attention."""

import base64
import io
from collections.abc import Mapping, Sequence
from typing import Any

from PIL import Image
from torch import Tensor

from mmlm.core.batch import Caption
from mmlm.evaluation.attention import attention_of_words
from mmlm.evaluation.caption_scores import is_exact
from mmlm.evaluation.evaluators import GREEDY, generate_captions
from mmlm.evaluation.generation.settings import GenerationSettings
from mmlm.evaluation.items import SplitRanks, spaced
from mmlm.evaluation.sample_settings import SampleSettings
from mmlm.evaluation.split import EncodedSplit

NEIGHBOURS = 5
"""Nearest captions of an image, and nearest images of a caption, that are shown."""
EXTREMES = 6
"""The worst, typical and best images that are shown, of each kind."""


def data_uri(image: Tensor) -> str:
    """uint8[3, H, W] -> a lossless WebP image as a ``data:`` address."""
    buffer = io.BytesIO()
    Image.fromarray(image.permute(1, 2, 0).numpy()).save(buffer, format="WEBP", lossless=True)
    return "data:image/webp;base64," + base64.b64encode(buffer.getvalue()).decode()


def collect_samples(
    split: EncodedSplit,
    settings: SampleSettings,
    language: str | None,
    ranks: SplitRanks,
    decoding: GenerationSettings = GREEDY,
) -> dict[str, Any]:
    """The split's entry of ``samples.json``: ``examples``, ``queries`` and ``extremes``.

    For a model without a decoder ``generated`` is null and ``exact`` false; ``attention`` is null as well if the
    decoder cannot record it. ``rank`` is that of the true answer (``split_ranks``). ``extremes`` are the ``worst``,
    ``typical`` and ``best`` images by their rank, in the form of ``examples``. All ranks have to call this function,
    and get the same result.
    """
    gallery = split.gallery
    similarity = gallery.image_embedding @ gallery.text_embedding.T
    matches = set(map(tuple, gallery.pairs.tolist()))
    generated = None if split.model.decoder is None else generate_captions(split, language, decoding)
    # All images that are shown anywhere are encoded in one go: their pixels are on different ranks.
    truths = [[c.text for c in captions if language in (None, c.language)] for captions in split.references]
    exact = [generated is not None and is_exact(generated[row], own) for row, own in enumerate(truths)]
    rows = spaced(settings.examples, len(split.image_ids))
    extremes = extreme_rows(ranks.images, exact, min(EXTREMES, settings.examples))
    found = {text: _found(text, similarity) for text in spaced(settings.queries, len(gallery.texts))}
    shown = [*rows, *(row for images in found.values() for row, _ in images)]
    shown += [row for of_kind in extremes.values() for row in of_kind]
    uris = split.over_images(shown, lambda row, image: data_uri(image))
    attention = _attention(split, rows[: settings.attention], generated, language)

    def example(row: int) -> dict[str, Any]:
        return {
            "id": split.image_ids[row],
            "image": uris[row],
            "captions": truths[row],
            "generated": None if generated is None else generated[row],
            "exact": exact[row],
            "rank": ranks.images.get(row),
            "nearest_captions": _nearest(split, row, similarity, matches),
            "attention": attention.get(row),
        }

    queries = [
        {
            "caption": gallery.texts[text],
            "rank": ranks.texts.get(text),
            "images": [
                {"image": uris[row], "similarity": value, "match": (row, text) in matches} for row, value in images
            ],
        }
        for text, images in found.items()
    ]
    return {
        "examples": [example(row) for row in rows],
        "queries": queries,
        "extremes": {
            kind: [{**example(row), "attention": None} for row in of_kind] for kind, of_kind in extremes.items()
        },
    }


def extreme_rows(ranks: Mapping[int, int], exact: Sequence[bool], count: int) -> dict[str, list[int]]:
    """The rows of the ``worst``, ``typical`` and ``best`` images, ``count`` of each at most; no row is in two of them.

    The best have the lowest ``ranks``, those with an ``exact`` caption before others; of more that are equally good,
    some that are evenly spaced are taken. The typical ones are in the middle.
    """
    order = sorted(ranks, key=lambda row: (ranks[row], not exact[row], row))
    count = min(count, len(order) // 3)
    if not count:
        return {}
    worst = order[: -count - 1 : -1]
    middle = (len(order) - count) // 2
    typical = order[middle : middle + count]
    first = order[0]
    alike = [row for row in order if (ranks[row], exact[row]) == (ranks[first], exact[first]) and row not in worst]
    alike = [row for row in alike if row not in typical]
    best = [alike[place] for place in spaced(count, len(alike))] if len(alike) > count else order[:count]
    return {"worst": worst, "typical": typical, "best": best}


def _nearest(split: EncodedSplit, row: int, similarity: Tensor, matches: set[tuple[int, int]]) -> list[dict[str, Any]]:
    best = similarity[row].topk(min(NEIGHBOURS, similarity.shape[1]))
    return [
        {"text": split.gallery.texts[text], "similarity": value, "match": (row, text) in matches}
        for value, text in zip(best.values.tolist(), best.indices.tolist(), strict=True)
    ]


def _found(text: int, similarity: Tensor) -> list[tuple[int, float]]:
    """The (image row, similarity) of the images nearest to a text, the nearest first."""
    best = similarity[:, text].topk(min(NEIGHBOURS, len(similarity)))
    return list(zip(best.indices.tolist(), best.values.tolist(), strict=True))


def _attention(
    split: EncodedSplit, rows: Sequence[int], generated: Sequence[str] | None, language: str | None
) -> dict[int, dict[str, Any] | None]:
    """The decoder's attention for each word that it wrote, by image row; empty if it does not record attention."""
    decoder = split.model.decoder
    if generated is None or decoder is None or not decoder.records_attention:
        return {}

    def of_image(row: int, image: Tensor) -> dict[str, Any] | None:
        caption = Caption(generated[row], language)
        image = image[None].to(split.device)
        words, maps = attention_of_words(split.model, split.tokenizer, image, caption, split.max_tokens)
        if not words:
            return None
        return {"words": words, "grid": list(maps.shape[1:]), "maps": maps.flatten(1).tolist()}

    return split.over_images(rows, of_image)
