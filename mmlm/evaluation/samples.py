"""What a report shows of a split: images with their captions, neighbours, and what the decoder wrote and looked at."""

import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from mmlm.data.collate import caption_encoder
from mmlm.data.tokenizer import Tokenizer
from mmlm.evaluation.evaluators import generate_captions
from mmlm.evaluation.split import EncodedSplit
from mmlm.flow import Batch, Caption
from mmlm.model.model import ImageTextModel

NEIGHBOURS = 5


@dataclass
class SampleSettings:
    """What of each split the report shows."""

    examples: int = 24
    """Images with their captions, evenly spaced over the split."""
    queries: int = 8
    """Captions with the images retrieved for them, evenly spaced over the split's texts."""
    attention: int = 8
    """Of the examples, how many also show where the decoder looked (of a decoder that can say so)."""


def spaced(count: int, total: int) -> list[int]:
    """``count`` rows (or fewer) evenly spaced over ``total``."""
    count = min(count, total)
    return [(2 * i + 1) * total // (2 * count) for i in range(count)]


def data_uri(image: Tensor) -> str:
    """uint8[3, H, W] -> a lossless WebP image as a ``data:`` address."""
    buffer = io.BytesIO()
    Image.fromarray(image.permute(1, 2, 0).numpy()).save(buffer, format="WEBP", lossless=True)
    return "data:image/webp;base64," + base64.b64encode(buffer.getvalue()).decode()


def collect_samples(split: EncodedSplit, settings: SampleSettings, language: str | None) -> dict[str, Any]:
    """The split's entry of ``samples.json``: ``examples`` and ``queries``.

    Without a decoder nothing is ``generated`` (null) and so nothing is ``exact``; ``attention`` is null as well where
    the decoder cannot record it.
    """
    gallery = split.gallery
    similarity = gallery.image_embedding @ gallery.text_embedding.T
    matches = set(map(tuple, gallery.pairs.tolist()))
    generated = None if split.model.decoder is None else generate_captions(split, language)
    ids = list(split.image_ids())
    examples = []
    for place, row in enumerate(spaced(settings.examples, len(ids))):
        truths = [c.text for c in split.references[row] if language in (None, c.language)]
        said = None if generated is None else generated[row]
        attention = None
        if said is not None and split.model.decoder.records_attention and place < settings.attention:
            attention = _attention(split, row, said, language)
        examples.append(
            {
                "id": ids[row],
                "image": data_uri(split.image(row)),
                "captions": truths,
                "generated": said,
                "exact": said in truths,
                "nearest_captions": _nearest(split, row, similarity, matches),
                "attention": attention,
            }
        )
    queries = [_query(split, text, similarity, matches) for text in spaced(settings.queries, len(gallery.texts))]
    return {"examples": examples, "queries": queries}


def _nearest(split: EncodedSplit, row: int, similarity: Tensor, matches: set[tuple[int, int]]) -> list[dict[str, Any]]:
    best = similarity[row].topk(min(NEIGHBOURS, similarity.shape[1]))
    return [
        {"text": split.gallery.texts[text], "similarity": value, "match": (row, text) in matches}
        for value, text in zip(best.values.tolist(), best.indices.tolist(), strict=True)
    ]


def _query(split: EncodedSplit, text: int, similarity: Tensor, matches: set[tuple[int, int]]) -> dict[str, Any]:
    best = similarity[:, text].topk(min(NEIGHBOURS, len(similarity)))
    images = [
        {"image": data_uri(split.image(row)), "similarity": value, "match": (row, text) in matches}
        for value, row in zip(best.values.tolist(), best.indices.tolist(), strict=True)
    ]
    return {"caption": split.gallery.texts[text], "images": images}


def _attention(split: EncodedSplit, row: int, caption: str, language: str | None) -> dict[str, Any] | None:
    """Where the decoder looked for each word of its own caption."""
    image = split.image(row)[None].to(split.image_index.device)
    words, maps = attention_of_words(split.model, split.tokenizer, image, Caption(caption, language), split.max_tokens)
    if not words:
        return None
    return {"words": words, "grid": list(maps.shape[1:]), "maps": maps.flatten(1).tolist()}


@torch.no_grad()
def attention_of_words(
    model: ImageTextModel, tokenizer: Tokenizer, image: Tensor, caption: Caption, max_tokens: int
) -> tuple[list[str], Tensor]:
    """The words of a caption and, for each, float32[words, rows, columns] of attention over the image.

    ``image`` uint8[1, 3, S, S]. A word's map is the mean over its tokens, scaled to sum to 1.
    """
    ids = caption_encoder(tokenizer, max_tokens)(caption).ids
    device = image.device
    zero = torch.zeros(1, dtype=torch.int64, device=device)
    batch = Batch(
        images=image,
        tokens=torch.tensor([ids], device=device),
        lengths=torch.tensor([len(ids)], device=device),
        image_index=zero,
        image_concept=zero,
        caption_concept=zero,
        caption_key=zero,
        ids=("",),
        captions=(caption,),
    )
    maps = model.attention_maps(batch)[0].cpu()
    groups = _word_groups(tokenizer, ids[1:-1])
    if not groups:
        return [], maps[:0]
    means = torch.stack([maps[rows].mean(dim=0) for _, rows in groups])
    return [word for word, _ in groups], means / means.sum(dim=(1, 2), keepdim=True).clamp(min=1e-12)


def _word_groups(tokenizer: Tokenizer, ids: Sequence[int]) -> list[tuple[str, list[int]]]:
    """(word, places of its tokens in ``ids``): a token belongs to the word that the text up to it ends in.

    A token that shows nothing yet (a space, the first bytes of a character) belongs to what the next ones complete.
    """
    groups: list[tuple[str, list[int]]] = []
    before: list[str] = []
    waiting: list[int] = []
    for place in range(len(ids)):
        words = tokenizer.decode(ids[: place + 1]).split()
        waiting.append(place)
        if words == before:
            continue
        if len(words) > len(before):
            groups.append((" ".join(words[len(before) :]), waiting))
        elif groups:
            groups[-1] = (words[-1], [*groups[-1][1], *waiting])
        before, waiting = words, []
    if groups:
        groups[-1][1].extend(waiting)
    return groups
