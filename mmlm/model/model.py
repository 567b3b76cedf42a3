"""The model composed of its parts: encoder, bridge, decoder, and the two projections into the embedding space."""

from collections.abc import Collection
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mmlm.flow import Batch, ModelOutput, View
from mmlm.model.blocks import AttentionRecord, rows_of
from mmlm.model.bridge import Bridge
from mmlm.model.decoder import DecoderCache, TransformerDecoder
from mmlm.model.encoder import Encoder


@dataclass(frozen=True)
class ImageFeatures:
    """What the model keeps of images: enough to embed, caption and compare them."""

    embedding: Tensor
    """float32[B, E], unit length."""
    memory: Tensor
    """float[B, M, Dm]: what the decoder reads."""

    def __getitem__(self, rows: Tensor | slice) -> "ImageFeatures":
        return ImageFeatures(self.embedding[rows], self.memory[rows])


class ImageTextModel(nn.Module):
    """Image encoder, bridge and text decoder trained together (CoCa, arXiv:2205.01917).

    ``embedding_width`` is E, the width both modalities are projected to for contrastive learning.
    """

    def __init__(
        self, encoder: Encoder, bridge: Bridge, decoder: TransformerDecoder, embedding_width: int = 256
    ) -> None:
        super().__init__()
        self.encoder, self.bridge, self.decoder = encoder, bridge, decoder
        self.image_projection = nn.Linear(bridge.pooled_width, embedding_width, bias=False)
        self.text_norm = nn.LayerNorm(decoder.width)
        self.text_projection = nn.Linear(decoder.width, embedding_width, bias=False)
        for projection in (self.image_projection, self.text_projection):
            nn.init.normal_(projection.weight, std=projection.in_features**-0.5)

    def forward(self, batch: Batch, views: Collection[View]) -> ModelOutput:
        """Runs each of ``views`` once, sharing what they have in common."""
        bridged = self.bridge(self.encoder(batch.images))
        states = self.decoder.unimodal(batch.tokens, batch.lengths)
        image_embedding = text_embedding = hidden = None
        if View.EMBED in views:
            image_embedding = self._embed_image(bridged.pooled)
            text_embedding = self._embed_text(states, batch.lengths)
        if View.CAPTION in views:
            # The end token's own state predicts nothing, so its position is left out.
            hidden = self.decoder.multimodal(states[:, :-1], batch.lengths - 1, bridged.memory, batch.image_index)
        return ModelOutput(image_embedding, text_embedding, hidden, self.decoder.head_weight)

    def _embed_image(self, pooled: Tensor) -> Tensor:
        return F.normalize(self.image_projection(pooled).float(), dim=-1)

    def _embed_text(self, states: Tensor, lengths: Tensor) -> Tensor:
        last = states[torch.arange(len(states), device=states.device), lengths - 1]
        return F.normalize(self.text_projection(self.text_norm(last)).float(), dim=-1)

    def encode_image(self, images: Tensor) -> ImageFeatures:
        """uint8[B, 3, S, S] -> embedding and memory."""
        bridged = self.bridge(self.encoder(images))
        return ImageFeatures(self._embed_image(bridged.pooled), bridged.memory)

    def encode_text(self, tokens: Tensor, lengths: Tensor) -> Tensor:
        """int64[C, T], int64[C] -> float32[C, E], unit length."""
        return self._embed_text(self.decoder.unimodal(tokens, lengths), lengths)

    def caption_hidden(self, features: ImageFeatures, batch: Batch) -> Tensor:
        """float[P, D] at ``batch.target_mask``, reading ``features`` in place of the batch's images."""
        states = self.decoder.unimodal(batch.tokens, batch.lengths)
        return self.decoder.multimodal(states[:, :-1], batch.lengths - 1, features.memory, batch.image_index)

    def start_decoding(self, features: ImageFeatures) -> DecoderCache:
        """A cache for ``decode``; caption i reads image i."""
        return self.decoder.start_decoding(features.memory)

    def decode(self, tokens: Tensor, cache: DecoderCache) -> Tensor:
        """The next int64[B, t] tokens -> logits float32[B, t, V]; advances the cache."""
        return self.decoder.decode(tokens, cache).float()

    def attention_maps(self, batch: Batch) -> Tensor:
        """float32[C, T - 1, rows, columns]: where the decoder looked while predicting each target.

        The last multimodal layer's attention over the memory, averaged over heads and, for queries that pooled
        patches, followed through the bridge to the patches. Each map sums to at most 1 (in prefix mode the text takes
        its share). Text-only captions get zeros.
        """
        patches = self.encoder(batch.images)
        states = self.decoder.unimodal(batch.tokens, batch.lengths)[:, :-1]
        record = AttentionRecord()
        memory = self.bridge(patches).memory
        self.decoder.multimodal(states, batch.lengths - 1, memory, batch.image_index, record)
        over_memory = record.weights[-1].mean(dim=1)
        over_patches = over_memory @ rows_of(self.bridge.patch_attention(patches), batch.image_index).float()
        over_patches = over_patches * (batch.image_index >= 0)[:, None, None]
        return over_patches.unflatten(-1, self.encoder.grid)


def parameter_counts(model: nn.Module) -> dict[str, int]:
    """Parameters of each direct part, by name; a shared tensor counts once, in the first part that has it."""
    seen: set[int] = set()
    counts = {}
    for name, part in model.named_children():
        fresh = {id(p): p.numel() for p in part.parameters() if id(p) not in seen}
        seen |= fresh.keys()
        counts[name] = sum(fresh.values())
    return counts
