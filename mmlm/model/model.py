"""The model composed of its parts, and the two projections into the embedding space."""

from collections.abc import Collection
from dataclasses import dataclass
from typing import Any, TypeVar

import torch.nn.functional as F
from torch import Tensor, nn

from mmlm.core.batch import Batch
from mmlm.core.computing import at_least_float32
from mmlm.core.errors import UserError
from mmlm.core.keyed_random import stream
from mmlm.core.keyed_start import keyed_start
from mmlm.core.model_output import ModelOutput, ModelSizes, Pairs, VisiblePatches
from mmlm.core.views import (
    CAPTION,
    EMBED,
    KEPT_BY_DROPOUT,
    NO_VIEW_INPUTS,
    ImageView,
    PatchView,
    StepKey,
    TextPattern,
    TextView,
    View,
    ViewInputs,
)
from mmlm.model import never_empty
from mmlm.model.attention import AttentionRecord
from mmlm.model.packing import rows_of
from mmlm.model.protocols import Bridge, Decoder, Encoder, EncoderOutput, TextEncoder

_PATCH_DROPOUT = stream("mmlm.model.patch_dropout")

Part = TypeVar("Part")


@dataclass(frozen=True)
class ImageFeatures:
    """Encoded images, for retrieval (``embedding``) and captioning (``memory``) without another encoder pass."""

    embedding: Tensor
    """float32[B, E], unit length."""
    memory: Tensor | None
    """float[B, M, Dm]: the bridge's memory, which the decoder reads; None without a bridge."""

    def __getitem__(self, rows: Tensor | slice) -> "ImageFeatures":
        """Features of a subset of the images, in the order of ``rows``."""
        return ImageFeatures(self.embedding[rows], None if self.memory is None else self.memory[rows])


class ImageTextModel(nn.Module):
    """Image encoder, bridge and text decoder trained together (CoCa, arXiv:2205.01917), or a subset of these parts.

    The image embedding is projected from the encoder's pooled vector, or from the bridge's if the encoder does not
    pool. The text embedding is projected from ``text_encoder`` or, without one, from the decoder's image-free layers.
    Without a decoder and a bridge the model is a pair of towers (CLIP, arXiv:2103.00020).

    Args:
        encoder, bridge, text_encoder, decoder: the parts.
        embedding_width: E, the width both modalities are projected to for contrastive learning; None projects neither:
            both towers end in projections of their own (SigLIP), and E is the width that they share.

    Raises:
        UserError: parts that do not fit together.
    """

    def __init__(
        self,
        encoder: Encoder,
        bridge: Bridge | None,
        decoder: Decoder | None,
        embedding_width: int | None = 256,
        text_encoder: TextEncoder | None = None,
    ) -> None:
        super().__init__()
        _check_parts(encoder, bridge, decoder, text_encoder)
        self.encoder, self.bridge, self.text_encoder, self.decoder = encoder, bridge, text_encoder, decoder
        image_width = _image_width(encoder, bridge)
        with keyed_start("image_projection"):
            self.image_projection = _projection(image_width, embedding_width)
        # A text encoder ends in a norm; the decoder's text states come from the middle of its stack, without one.
        self.text_norm: nn.Module
        if text_encoder is None:
            text_width = _needed(decoder).text_width
            self.text_norm = nn.LayerNorm(text_width)
        else:
            text_width, self.text_norm = text_encoder.width, nn.Identity()
        if embedding_width is None and image_width != text_width:
            raise UserError(
                f"model.embedding_width: null needs vectors of one width, and the image's has {image_width} and the "
                f"text's {text_width}; set the width that both are projected to"
            )
        self._embedding_width = image_width if embedding_width is None else embedding_width
        with keyed_start("text_projection"):
            self.text_projection = _projection(text_width, embedding_width)

    def forward(
        self, batch: Batch, views: Collection[View], drawn: ViewInputs = NO_VIEW_INPUTS, probe: bool = False
    ) -> ModelOutput:
        """Runs each of ``views`` once. Views that need the same pass, above all that over the images, share it.

        Args:
            batch: images uint8[B, 3, S, S] and captions int64[C, T].
            views: the union of what the objectives ask for.
            drawn: the random inputs of the views (masks, patches, other pixels) that have any.
            probe: put an identity node (see ``_probe``) behind the encoder, so that a diagnosis can ask for gradients
                at ``image_tokens`` and ``image_pooled`` of the result, even if the encoder is frozen.
        """
        # All views of whole images share one pass through encoder and bridge.
        image_vector = image_tokens = image_pooled = memory = None
        if any(_sees_whole_images(view, drawn) for view in views):
            # Patch dropout belongs to training only: a teacher gets the same ``drawn``, but runs in eval mode.
            drops = KEPT_BY_DROPOUT in drawn and self.encoder.training
            kept = _patches_drawn(drawn, KEPT_BY_DROPOUT) if drops else None
            encoded = never_empty.encoded(self.encoder, batch.images, kept)
            image_tokens, image_pooled = encoded.tokens, encoded.pooled
            if probe:
                image_tokens = _probe(image_tokens)
                image_pooled = None if image_pooled is None else _probe(image_pooled)
            image_vector, memory = self.through_bridge(EncoderOutput(image_tokens, image_pooled))

        # Embeddings come before text views. The first pass of gradient caching asks for EMBED alone and has to draw the
        # same dropout masks as the second pass, which asks for all views.
        image_embedding = text_embedding = text = None
        if EMBED in views:
            image_embedding = self._embed_image(_needed(image_vector))
            if self.text_encoder is not None:
                pooled = never_empty.encoded_text(self.text_encoder, batch.tokens, batch.lengths)
            else:
                text = never_empty.text_states(_needed(self.decoder), batch.tokens, batch.lengths)
                pooled = text.pooled
            text_embedding = self._embed_text(pooled)

        # One decoder pass for each text view, in the order of their names: a set has an order of its own in every
        # process, and dropout has to be the same in all. Captioning goes on from the text states made above.
        hidden: dict[View, Tensor] = {}
        for text_view in sorted((view for view in views if isinstance(view, TextView)), key=lambda view: view.name):
            pattern = None if text_view == CAPTION else drawn[text_view]
            assert pattern is None or isinstance(pattern, TextPattern), "the input of a text view is a pattern"
            given = (batch.tokens, batch.lengths, _needed(memory), batch.image_index)
            hidden[text_view] = batch.written(never_empty.hidden(_needed(self.decoder), *given, text, pattern))

        # Pixels other than the batch's images (crops, say) take a pass of their own.
        view_embedding: dict[View, Tensor] = {}
        for image_view in sorted((view for view in views if isinstance(view, ImageView)), key=lambda view: view.name):
            vector = image_vector
            if image_view in drawn:
                pixels = drawn[image_view]
                assert isinstance(pixels, Tensor), "the input of an image view is pixels"
                vector, _ = self.through_bridge(never_empty.encoded(self.encoder, pixels))
            view_embedding[image_view] = self._embed_image(_needed(vector))

        # A patch view also has its own pass: the encoder must see the listed patches only.
        patches: dict[View, VisiblePatches] = {}
        for patch_view in views:
            if isinstance(patch_view, PatchView):
                kept = _patches_drawn(drawn, patch_view)
                patches[patch_view] = VisiblePatches(never_empty.some_tokens(self.encoder, batch.images, kept), kept)

        return ModelOutput(
            image_embedding,
            text_embedding,
            hidden,
            head_weight=None if self.decoder is None else self.decoder.head_weight,
            patches=patches,
            image_tokens=image_tokens,
            image_pooled=image_pooled,
            memory=memory,
            view_embedding=view_embedding,
        )

    def fuse(self, output: ModelOutput, pairs: Pairs) -> Tensor:
        """float[Q, D]: the decoder's hidden state at the end token of each pair's text, reading the pair's image.

        Called after ``forward``, by objectives that match images and texts; ``output`` is that forward's result.
        """
        # ``hidden`` gives one state for each token that has a next one. A padding column behind the end token makes the
        # end token such a token; each text then has ``pairs.lengths`` rows, of which the last is that of its end token.
        tokens, lengths = F.pad(pairs.tokens, (0, 1)), pairs.lengths + 1
        hidden = never_empty.hidden(_needed(self.decoder), tokens, lengths, _needed(output.memory), pairs.image_index)
        return hidden[pairs.lengths.cumsum(0) - 1]

    @property
    def sizes(self) -> ModelSizes:
        """Widths and sizes that objectives build their own heads for."""
        return ModelSizes(
            embedding_width=self._embedding_width,
            patch_width=self.encoder.width,
            grid=self.encoder.grid,
            decoder_width=None if self.decoder is None else self.decoder.width,
            vocab_size=None if self.decoder is None else self.decoder.vocab_size,
            patch_size=self.encoder.patch_size if self.encoder.sees_some else None,
        )

    def draw(self, batch: Batch, step_key: StepKey) -> ViewInputs:
        """Patches int64[B, K] of each image that survive patch dropout; empty in eval mode or without patch dropout.

        Called once a batch by the train step, beside the objectives' own draws. Keyed by seed, step and image, so that
        ranks and micro-batches do not change the choice.
        """
        encoder = self.encoder
        if not (encoder.drops_patches and encoder.training):
            return NO_VIEW_INPUTS
        num_patches = encoder.grid[0] * encoder.grid[1]
        return {KEPT_BY_DROPOUT: step_key.chosen(batch.image_key, num_patches, encoder.num_kept, _PATCH_DROPOUT)}

    def through_bridge(self, encoded: EncoderOutput) -> tuple[Tensor, Tensor | None]:
        """The vector float[B, Dp] that is projected to the image embedding, and the memory float[B, M, Dm]."""
        vector, memory = encoded.pooled, None
        if self.bridge is not None:
            bridged = never_empty.bridged(self.bridge, encoded.tokens)
            vector, memory = vector if bridged.pooled is None else bridged.pooled, bridged.memory
        return _needed(vector), memory

    def _embed_image(self, pooled: Tensor) -> Tensor:
        return _unit(self.image_projection(pooled))

    def _embed_text(self, pooled: Tensor) -> Tensor:
        return _unit(self.text_projection(self.text_norm(pooled)))

    def encode_image(self, images: Tensor) -> ImageFeatures:
        """uint8[B, 3, S, S] -> embedding and memory."""
        pooled, memory = self.through_bridge(never_empty.encoded(self.encoder, images))
        return ImageFeatures(self._embed_image(pooled), memory)

    def encode_text(self, tokens: Tensor, lengths: Tensor) -> Tensor:
        """int64[C, T], int64[C] -> float32[C, E], unit length."""
        if self.text_encoder is not None:
            return self._embed_text(never_empty.encoded_text(self.text_encoder, tokens, lengths))
        return self._embed_text(never_empty.text_states(_needed(self.decoder), tokens, lengths).pooled)

    def caption_hidden(self, features: ImageFeatures, batch: Batch) -> Tensor:
        """float[P, D] at ``batch.target_mask``, reading ``features`` in place of the batch's images."""
        given = (batch.tokens, batch.lengths, _needed(features.memory), batch.image_index)
        return batch.written(never_empty.hidden(_needed(self.decoder), *given))

    def start_decoding(self, features: ImageFeatures, room: int | None = None) -> Any:
        """An empty cache for ``decode``, with room for captions of ``room`` tokens; see ``Decoder``."""
        return _needed(self.decoder).start_decoding(_needed(features.memory), room)

    def decode(self, tokens: Tensor, cache: Any) -> Tensor:
        """The next int64[B * n, t] tokens -> logits float32[B * n, t, V]; see ``Decoder``. Changes ``cache``."""
        return _needed(self.decoder).decode(tokens, cache).float()

    def attention_maps(self, batch: Batch) -> Tensor:
        """float32[C, T - 1, rows, columns]: the decoder's attention over the patches at each target's prediction.

        These are the weights of the last layer that reads the memory, averaged over heads, times the bridge's
        ``patch_attention``. Each map sums to at most 1: in prefix mode the text takes its share, and so do prefix
        tokens that the encoder keeps. Text-only captions get zeros. Only for a decoder with ``records_attention``.
        """
        bridge = _needed(self.bridge)
        patches = self.encoder(never_empty.at_least_one(batch.images)).tokens
        record = AttentionRecord()
        memory = bridge(patches).memory
        _needed(self.decoder).hidden(batch.tokens, batch.lengths, memory, batch.image_index, record=record)
        over_memory = record.weights[-1].mean(dim=1)
        # [C, T - 1, M] @ [C, M, N]: attention over memory tokens, passed on to the patches that each is made of.
        over_patches = over_memory @ rows_of(bridge.patch_attention(patches), batch.image_index).float()
        # ``rows_of`` gives a text-only caption the row of some image.
        over_patches = over_patches * (batch.image_index >= 0)[:, None, None]
        return over_patches[..., self.encoder.num_prefix_tokens :].unflatten(-1, self.encoder.grid)


def _sees_whole_images(view: View, drawn: ViewInputs) -> bool:
    """True if a view needs the shared pass over the batch's images; patch views and other pixels have their own."""
    return not isinstance(view, PatchView) and not (isinstance(view, ImageView) and view in drawn)


def _patches_drawn(drawn: ViewInputs, view: PatchView) -> Tensor:
    """int64[B, K]: the patches drawn for a patch view."""
    kept = drawn[view]
    assert isinstance(kept, Tensor), "the input of a patch view is patch numbers"
    return kept


def _probe(tensor: Tensor) -> Tensor:
    """An identity node: ``autograd.grad`` at it returns only the gradient that its consumers send.

    Without the node, the gradient at the tokens would include that of the pooled vector, which is computed from the
    same tokens. A frozen encoder's result needs no gradient; detaching it makes a leaf that can take one.
    """
    # A copy and no view: sharding hangs its hooks on it, and a view that somebody changes in place would lose them.
    return tensor.clone() if tensor.requires_grad else tensor.detach().requires_grad_()


def _needed(part: Part | None) -> Part:
    """Narrows the type of a part or tensor that ``_check_parts`` and the views guarantee to be there."""
    assert part is not None, "this view needs a part that the model does not have"
    return part


def _projection(width: int, embedding_width: int | None) -> nn.Module:
    if embedding_width is None:
        return nn.Identity()
    projection = nn.Linear(width, embedding_width, bias=False)
    nn.init.normal_(projection.weight, std=width**-0.5)
    return projection


def _unit(embedding: Tensor) -> Tensor:
    """Scales each row to unit length, in at least float32."""
    return F.normalize(at_least_float32(embedding), dim=-1)


def _image_width(encoder: Encoder, bridge: Bridge | None) -> int:
    pooled = None if bridge is None else bridge.pooled_width
    return _needed(encoder.pooled_width) if pooled is None else pooled


def _check_parts(
    encoder: Encoder, bridge: Bridge | None, decoder: Decoder | None, text_encoder: TextEncoder | None
) -> None:
    """UserError for parts that do not make a model: no vector to embed, or a memory that nothing reads."""
    if decoder is None and bridge is not None:
        raise UserError("bridge: there is no decoder to read its memory; use bridge=none and encoder.pool=mean")
    if decoder is None and text_encoder is None:
        raise UserError("text_encoder: without a decoder there is nothing to embed texts; use text_encoder=transformer")
    if bridge is None and encoder.pooled_width is None:
        raise UserError("encoder.pool: without a bridge the encoder has to pool; use encoder.pool=mean or cls")


def parameter_counts(model: nn.Module) -> dict[str, int]:
    """Number of parameters of each direct child module; a shared tensor counts once, in the first child that has it."""
    seen: set[int] = set()
    counts = {}
    for name, part in model.named_children():
        fresh = {id(p): p.numel() for p in part.parameters() if id(p) not in seen}
        seen |= fresh.keys()
        counts[name] = sum(fresh.values())
    return counts
