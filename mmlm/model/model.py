"""The model composed of its parts, and the two projections into the embedding space."""

from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from mmlm.core.errors import UserError
from mmlm.core.flow import (
    CAPTION,
    EMBED,
    KEPT_BY_DROPOUT,
    NO_VIEW_INPUTS,
    Batch,
    ImageView,
    ModelOutput,
    ModelSizes,
    Pairs,
    PatchView,
    StepKey,
    Stream,
    TextView,
    View,
    ViewInputs,
    VisiblePatches,
)
from mmlm.core.keyed_start import keyed_start
from mmlm.core.precision import at_least_float32
from mmlm.model.blocks import AttentionRecord, rows_of
from mmlm.model.protocols import Bridge, Decoder, Encoder, EncoderOutput, TextEncoder, TextStates


@dataclass(frozen=True)
class ImageFeatures:
    """What the model keeps of images: enough to embed, caption and compare them."""

    embedding: Tensor
    """float32[B, E], unit length."""
    memory: Tensor | None
    """float[B, M, Dm]: what the decoder reads; None without a decoder."""

    def __getitem__(self, rows: Tensor | slice) -> "ImageFeatures":
        return ImageFeatures(self.embedding[rows], None if self.memory is None else self.memory[rows])


class ImageTextModel(nn.Module):
    """Image encoder, bridge and text decoder trained together (CoCa, arXiv:2205.01917), or fewer of them.

    Images are embedded by what the encoder pools or, if it does not, by what the bridge pools. Texts are embedded by
    ``text_encoder`` or, without one, by the decoder's image-free layers. Without a decoder and a bridge the model is a
    pair of towers (CLIP, arXiv:2103.00020).

    Args:
        encoder, bridge, text_encoder, decoder: the parts.
        embedding_width: E, the width both modalities are projected to for contrastive learning.

    Raises:
        UserError: parts that do not fit together.
    """

    def __init__(
        self,
        encoder: Encoder,
        bridge: Bridge | None,
        decoder: Decoder | None,
        embedding_width: int = 256,
        text_encoder: TextEncoder | None = None,
    ) -> None:
        super().__init__()
        _check_parts(encoder, bridge, decoder, text_encoder)
        self.encoder, self.bridge, self.text_encoder, self.decoder = encoder, bridge, text_encoder, decoder
        with keyed_start("image_projection"):
            self.image_projection = _projection(_image_width(encoder, bridge), embedding_width)
        # A tower of its own ends in its own norm.
        self.text_norm = nn.LayerNorm(decoder.text_width) if text_encoder is None else nn.Identity()
        text_width = decoder.text_width if text_encoder is None else text_encoder.width
        with keyed_start("text_projection"):
            self.text_projection = _projection(text_width, embedding_width)

    def forward(
        self, batch: Batch, views: Collection[View], drawn: ViewInputs = NO_VIEW_INPUTS, probe: bool = False
    ) -> ModelOutput:
        """Runs each of ``views`` once, sharing what they have in common: the pass over the images above all.

        Embeddings come first: a pass with that view alone draws the same random numbers for them. With ``probe`` the
        image tokens and the pooled vector of the output have gradients of their own, even if the encoder is frozen.
        """
        image_vector = image_tokens = image_pooled = memory = None
        if any(_sees_whole_images(view, drawn) for view in views):
            encoded = self._encoded(batch.images, drawn)
            image_tokens, image_pooled = encoded.tokens, encoded.pooled
            if probe:
                image_tokens = _probe(image_tokens)
                image_pooled = None if image_pooled is None else _probe(image_pooled)
            image_vector, memory = self._bridged(EncoderOutput(image_tokens, image_pooled))
        image_embedding = text_embedding = text = None
        if EMBED in views:
            image_embedding = self._embed_image(image_vector)
            text, text_vector = self._read(batch.tokens, batch.lengths)
            text_embedding = self._embed_text(text_vector)
        hidden = {}
        for view in sorted((view for view in views if isinstance(view, TextView)), key=lambda view: view.name):
            reading = (batch.tokens, batch.lengths, memory, batch.image_index)
            if view == CAPTION:
                hidden[view] = self.decoder.hidden(*reading, text)
            else:
                hidden[view] = self.decoder.hidden_by(*reading, drawn[view])
        view_embedding = {}
        for view in sorted((view for view in views if isinstance(view, ImageView)), key=lambda view: view.name):
            vector = self._see(drawn[view])[0] if view in drawn else image_vector
            view_embedding[view] = self._embed_image(vector)
        return ModelOutput(
            image_embedding,
            text_embedding,
            hidden,
            head_weight=None if self.decoder is None else self.decoder.head_weight,
            patches={view: self._see_some(batch.images, drawn[view]) for view in views if isinstance(view, PatchView)},
            image_tokens=image_tokens,
            image_pooled=image_pooled,
            memory=memory,
            view_embedding=view_embedding,
        )

    def fuse(self, output: ModelOutput, pairs: Pairs) -> Tensor:
        """float[Q, D]: the decoder's state at the end of each pair's text, reading the pair's image."""
        # One more column: the states are those before each target, and the end token has none.
        tokens, lengths = F.pad(pairs.tokens, (0, 1)), pairs.lengths + 1
        hidden = self.decoder.hidden(tokens, lengths, output.memory, pairs.image_index)
        return hidden[pairs.lengths.cumsum(0) - 1]

    @property
    def sizes(self) -> ModelSizes:
        """What the parts of an objective are made for."""
        return ModelSizes(
            embedding_width=self.image_projection.out_features,
            patch_width=self.encoder.width,
            grid=self.encoder.grid,
            decoder_width=None if self.decoder is None else self.decoder.width,
            vocab_size=None if self.decoder is None else self.decoder.vocab_size,
            patch_size=self.encoder.patch_size if self.encoder.sees_some else None,
        )

    def draw(self, batch: Batch, step_key: StepKey) -> ViewInputs:
        """The patches that patch dropout leaves of each image in training; nothing for an encoder without it."""
        encoder = self.encoder
        if not (encoder.drops_patches and encoder.training):
            return NO_VIEW_INPUTS
        num_patches = encoder.grid[0] * encoder.grid[1]
        return {KEPT_BY_DROPOUT: step_key.chosen(batch.image_key, num_patches, encoder.num_kept, Stream.PATCH_DROPOUT)}

    def _encoded(self, images: Tensor, drawn: ViewInputs) -> EncoderOutput:
        if KEPT_BY_DROPOUT in drawn and self.encoder.training:  # a teacher, in eval mode, sees all
            return self.encoder(images, drawn[KEPT_BY_DROPOUT])
        return self.encoder(images)

    def _see_some(self, images: Tensor, kept: Tensor) -> VisiblePatches:
        return VisiblePatches(self.encoder.some_tokens(images, kept), kept)

    def _see(self, images: Tensor) -> tuple[Tensor, Tensor | None]:
        """uint8[B, 3, S, S] -> the vector float[B, Dp] that is embedded, and the memory."""
        return self._bridged(self.encoder(images))

    def _bridged(self, encoded: EncoderOutput) -> tuple[Tensor, Tensor | None]:
        if self.bridge is None:
            return encoded.pooled, None
        bridged = self.bridge(encoded.tokens)
        return encoded.pooled if bridged.pooled is None else bridged.pooled, bridged.memory

    def _read(self, tokens: Tensor, lengths: Tensor) -> tuple[TextStates | None, Tensor]:
        """The decoder's text states, where they are what is embedded, and the vector float[C, Dt] that is."""
        if self.text_encoder is not None:
            return None, self.text_encoder(tokens, lengths)
        text = self.decoder.text(tokens, lengths)
        return text, text.pooled

    def _embed_image(self, pooled: Tensor) -> Tensor:
        return _unit(self.image_projection(pooled))

    def _embed_text(self, pooled: Tensor) -> Tensor:
        return _unit(self.text_projection(self.text_norm(pooled)))

    def encode_image(self, images: Tensor) -> ImageFeatures:
        """uint8[B, 3, S, S] -> embedding and memory."""
        pooled, memory = self._see(images)
        return ImageFeatures(self._embed_image(pooled), memory)

    def encode_text(self, tokens: Tensor, lengths: Tensor) -> Tensor:
        """int64[C, T], int64[C] -> float32[C, E], unit length."""
        return self._embed_text(self._read(tokens, lengths)[1])

    def caption_hidden(self, features: ImageFeatures, batch: Batch) -> Tensor:
        """float[P, D] at ``batch.target_mask``, reading ``features`` in place of the batch's images."""
        return self.decoder.hidden(batch.tokens, batch.lengths, features.memory, batch.image_index)

    def start_decoding(self, features: ImageFeatures) -> Any:
        """A cache for ``decode``; caption i reads image i."""
        return self.decoder.start_decoding(features.memory)

    def decode(self, tokens: Tensor, cache: Any) -> Tensor:
        """The next int64[B, t] tokens -> logits float32[B, t, V]; advances the cache."""
        return self.decoder.decode(tokens, cache).float()

    def attention_maps(self, batch: Batch) -> Tensor:
        """float32[C, T - 1, rows, columns]: where the decoder looked while predicting each target.

        The last layer that sees the memory, averaged over heads and, for queries that pooled patches, followed through
        the bridge to the patches. Each map sums to at most 1 (in prefix mode the text takes its share, and so do
        prefix tokens that the encoder keeps). Text-only captions get zeros. Only for a decoder that
        ``records_attention``.
        """
        patches = self.encoder(batch.images).tokens
        record = AttentionRecord()
        memory = self.bridge(patches).memory
        self.decoder.hidden(batch.tokens, batch.lengths, memory, batch.image_index, record=record)
        over_memory = record.weights[-1].mean(dim=1)
        over_patches = over_memory @ rows_of(self.bridge.patch_attention(patches), batch.image_index).float()
        over_patches = over_patches * (batch.image_index >= 0)[:, None, None]
        return over_patches[..., self.encoder.num_prefix_tokens :].unflatten(-1, self.encoder.grid)


def _sees_whole_images(view: View, drawn: ViewInputs) -> bool:
    """Whether a view needs the pass over the batch's images: patch views and other pixels have one of their own."""
    return not isinstance(view, PatchView) and not (isinstance(view, ImageView) and view in drawn)


def _probe(tensor: Tensor) -> Tensor:
    """The same values as a place of their own in the graph, whose gradient is what comes from its readers only.

    A pooled vector is made of the tokens: by this its gradient does not count among those of the tokens too.
    """
    return tensor.view_as(tensor) if tensor.requires_grad else tensor.detach().requires_grad_()


def _projection(width: int, embedding_width: int) -> nn.Linear:
    projection = nn.Linear(width, embedding_width, bias=False)
    nn.init.normal_(projection.weight, std=width**-0.5)
    return projection


def _unit(embedding: Tensor) -> Tensor:
    """Each row brought to unit length, in at least float32."""
    return F.normalize(at_least_float32(embedding), dim=-1)


def _image_width(encoder: Encoder, bridge: Bridge | None) -> int:
    pooled = None if bridge is None else bridge.pooled_width
    return encoder.pooled_width if pooled is None else pooled


def _check_parts(
    encoder: Encoder, bridge: Bridge | None, decoder: Decoder | None, text_encoder: TextEncoder | None
) -> None:
    """UserError for parts that are no model together."""
    if decoder is None and bridge is not None:
        raise UserError("bridge: there is no decoder to read its memory; use bridge=none and encoder.pool=mean")
    if decoder is None and text_encoder is None:
        raise UserError("text_encoder: without a decoder there is nothing to embed texts; use text_encoder=transformer")
    if bridge is None and encoder.pooled_width is None:
        raise UserError("encoder.pool: without a bridge the encoder has to pool; use encoder.pool=mean or cls")


def parameter_counts(model: nn.Module) -> dict[str, int]:
    """Parameters of each direct part, by name; a shared tensor counts once, in the first part that has it."""
    seen: set[int] = set()
    counts = {}
    for name, part in model.named_children():
        fresh = {id(p): p.numel() for p in part.parameters() if id(p) not in seen}
        seen |= fresh.keys()
        counts[name] = sum(fresh.values())
    return counts
