"""Hand-made splits and a small random model that encodes them, for tests in this process and in several."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from mmlm.core.batch import Caption, Example
from mmlm.data.evaluation_batches import EvaluationBatches
from mmlm.data.sources import Source
from mmlm.data.tokenizer import Tokenizer
from mmlm.data.tokenizers.byte_pair import BytePair
from mmlm.data.transforms import Transform
from mmlm.model.attention import rows_of_images
from mmlm.model.bridges.attentional_pooler import AttentionalPooler
from mmlm.model.decoders.transformer import TransformerDecoder
from mmlm.model.encoders.timm_vit import TimmVit
from mmlm.model.model import ImageTextModel

IMAGE_SIZE = 16
MOST_TOKENS = 96
"""Longest caption."""


class ExampleList(list[Example]):
    """Examples as a ``Source``."""

    def captions(self) -> Iterator[Caption]:
        """Every caption."""
        for example in self:
            yield from example.captions


def fitted_tokenizer(examples: Sequence[Example], vocab_size: int = 300, languages: Sequence[str] = ()) -> BytePair:
    """A tokenizer of the examples' captions."""
    tokenizer = BytePair(vocab_size, languages)
    tokenizer.fit([caption for example in examples for caption in example.captions])
    return tokenizer


def small_model(tokenizer: Tokenizer, fusion: str = "cross_attention") -> ImageTextModel:
    """The same random weights every time, in eval mode."""
    torch.manual_seed(0)
    encoder = TimmVit(IMAGE_SIZE, width=32, depth=1, num_heads=2, patch_size=4)
    bridge = AttentionalPooler(encoder.width, encoder.grid, 32, num_heads=2, num_queries=3)
    decoder = TransformerDecoder(tokenizer.vocab_size, 32, width=32, num_heads=2, max_tokens=MOST_TOKENS, fusion=fusion)
    return ImageTextModel(encoder, bridge, decoder, embedding_width=16).eval()


def evaluation_batches(source: Source, tokenizer: Tokenizer, batch_size: int) -> EvaluationBatches:
    """The batches of a split."""
    return EvaluationBatches(source, tokenizer, Transform(IMAGE_SIZE, None), batch_size, MOST_TOKENS)


class RandomTable:
    """Logits by the two tokens before, ``features[b]`` float[V, V, V], and by the position, so that none are equal."""

    def start_decoding(self, features: Tensor, room: int | None = None) -> "ReadSoFar":
        return ReadSoFar(features, torch.zeros(len(features), 1, dtype=torch.int64), room)

    def decode(self, tokens: Tensor, cache: "ReadSoFar") -> Tensor:
        copies = len(tokens) // len(cache.features)
        if len(cache.read) != len(tokens):
            cache.read = cache.read.repeat_interleave(copies, dim=0)
        read = cache.read = torch.cat([cache.read, tokens], dim=1)
        if cache.room is not None:
            assert read.shape[1] - 1 <= cache.room
        rows = torch.arange(len(read))[:, None] // copies
        places = torch.arange(1, read.shape[1])[None, :, None]
        return (cache.features[rows, read[:, :-1], read[:, 1:]] * (1 + places / 10))[:, -tokens.shape[1] :]


@dataclass
class ReadSoFar:
    """The cache of a ``RandomTable``."""

    features: Tensor
    read: Tensor
    """int64[B * n, t + 1]: a 0 and the tokens so far."""
    room: int | None

    def copy_rows(self, source: Tensor, target: Tensor) -> None:
        assert not set(source.tolist()) & set(target.tolist())
        self.read[target] = self.read[source]

    def keep_images(self, images: Tensor) -> None:
        rows = rows_of_images(images, len(self.read) // len(self.features))
        self.features, self.read = self.features[images], self.read[rows]
