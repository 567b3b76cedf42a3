"""Where a decoder looks while it says a caption: a map over the image for each token, or for each word."""

from collections.abc import Sequence

import torch
from torch import Tensor

from mmlm.core.batch import Batch, Caption
from mmlm.data.collate import caption_encoder
from mmlm.data.tokenizer import Tokenizer
from mmlm.model.model import ImageTextModel


@torch.no_grad()
def attention_of_tokens(
    model: ImageTextModel, tokenizer: Tokenizer, image: Tensor, caption: Caption, max_tokens: int
) -> tuple[list[int], Tensor]:
    """The ids of a caption without start and end, and the decoder's attention over the image as it predicts each.

    ``image`` uint8[1, 3, S, S]. The maps are float32[T, rows, columns] on the CPU, as ``ImageTextModel.attention_maps``
    makes them; each sums to at most 1. The model has a decoder with ``records_attention``.
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
    return list(ids[1:-1]), model.attention_maps(batch)[0, : len(ids) - 2].float().cpu()


def attention_of_words(
    model: ImageTextModel, tokenizer: Tokenizer, image: Tensor, caption: Caption, max_tokens: int
) -> tuple[list[str], Tensor]:
    """The words of a caption, and the decoder's attention over the image for each: float32[words, rows, columns].

    ``image`` uint8[1, 3, S, S]. The map of a word is the mean over its tokens, scaled to sum to 1.
    """
    return words_of_tokens(tokenizer, *attention_of_tokens(model, tokenizer, image, caption, max_tokens))


def words_of_tokens(tokenizer: Tokenizer, ids: Sequence[int], maps: Tensor) -> tuple[list[str], Tensor]:
    """The words that ``ids`` spell, and the mean of the maps float32[T, rows, columns] of each one's tokens.

    The means float32[words, rows, columns] are scaled to sum to 1.
    """
    groups = _word_groups(tokenizer, ids)
    if not groups:
        return [], maps[:0]
    means = torch.stack([maps[rows].mean(dim=0) for _, rows in groups])
    return [word for word, _ in groups], means / means.sum(dim=(1, 2), keepdim=True).clamp(min=1e-12)


def _word_groups(tokenizer: Tokenizer, ids: Sequence[int]) -> list[tuple[str, list[int]]]:
    """Each word with the places of its tokens in ``ids``.

    A token belongs to the last word of the text that ends with it. A token that adds nothing visible (a space, the
    first bytes of a character) belongs to the word that later tokens complete.
    """
    groups: list[tuple[str, list[int]]] = []
    before: list[str] = []
    waiting: list[int] = []
    for place in range(len(ids)):
        # Decoding a longer and longer prefix tells the words apart for every tokenizer, whatever its tokens look like.
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
