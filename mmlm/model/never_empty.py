"""Calls the parts of a model, and never with nothing: a rank or a micro-batch may have no images, or no captions.

In place of nothing a part gets one black image or one caption of two tokens, and its result is cut back to no rows:
many models fail on an empty batch. The empty result keeps its graph, in which every weight gets a gradient of 0: data
parallelism waits for all of them.
"""

from dataclasses import replace

import torch
from torch import Tensor

from mmlm.core.views import TextPattern
from mmlm.model.protocols import Bridge, BridgeOutput, Decoder, Encoder, EncoderOutput, TextEncoder, TextStates


def encoded(encoder: Encoder, images: Tensor, kept: Tensor | None = None) -> EncoderOutput:
    """``encoder(images, kept)`` of uint8[B, 3, S, S] and, with patch dropout, int64[B, K]; B may be 0."""
    if len(images) == 0:
        made_up = encoded(encoder, at_least_one(images), None if kept is None else _first_patches(kept))
        return EncoderOutput(made_up.tokens[:0], None if made_up.pooled is None else made_up.pooled[:0])
    return encoder(images) if kept is None else encoder(images, kept)


def some_tokens(encoder: Encoder, images: Tensor, kept: Tensor) -> Tensor:
    """``encoder.some_tokens(images, kept)`` of uint8[B, 3, S, S] and int64[B, K]; B may be 0."""
    if len(images) == 0:
        return encoder.some_tokens(at_least_one(images), _first_patches(kept))[:0]
    return encoder.some_tokens(images, kept)


def bridged(bridge: Bridge, tokens: Tensor) -> BridgeOutput:
    """``bridge(tokens)`` of float[B, N, D]; B may be 0."""
    if len(tokens) == 0:
        made_up = bridge(at_least_one(tokens))
        return BridgeOutput(made_up.memory[:0], None if made_up.pooled is None else made_up.pooled[:0])
    return bridge(tokens)


def encoded_text(text_encoder: TextEncoder, tokens: Tensor, lengths: Tensor) -> Tensor:
    """``text_encoder(tokens, lengths)`` of int64[C, T] and int64[C]; C may be 0."""
    if len(lengths) == 0:
        return text_encoder(*_one_caption(tokens, lengths))[:0]
    return text_encoder(tokens, lengths)


def text_states(decoder: Decoder, tokens: Tensor, lengths: Tensor) -> TextStates:
    """``decoder.text(tokens, lengths)`` of int64[C, T] and int64[C]; C may be 0."""
    if len(lengths) == 0:
        made_up = decoder.text(*_one_caption(tokens, lengths))
        return TextStates(made_up.states[:0], made_up.pooled[:0])
    return decoder.text(tokens, lengths)


def hidden(
    decoder: Decoder,
    tokens: Tensor,
    lengths: Tensor,
    memory: Tensor,
    image_index: Tensor,
    text: TextStates | None = None,
    pattern: TextPattern | None = None,
) -> Tensor:
    """``decoder.hidden``, or with a pattern ``decoder.hidden_by``, of C captions and B images; either may be 0.

    Shapes are those of ``Decoder.hidden``; ``text`` is what ``text_states`` returned.
    """
    memory = at_least_one(memory)  # without images there are text-only captions alone, which do not read it
    if len(lengths) == 0:
        tokens, lengths = _one_caption(tokens, lengths)
        image_index = image_index.new_zeros(1)
        text = None if text is None else TextStates(at_least_one(text.states), at_least_one(text.pooled))
        if pattern is not None:
            masked = None if pattern.masked is None else pattern.masked.new_zeros(1, tokens.shape[1] - 1)
            pattern = replace(pattern, visible=pattern.visible.new_zeros(1), masked=masked)
        return hidden(decoder, tokens, lengths, memory, image_index, text, pattern)[:0]
    if pattern is None:
        return decoder.hidden(tokens, lengths, memory, image_index, text)
    return decoder.hidden_by(tokens, lengths, memory, image_index, pattern)


def at_least_one(rows: Tensor) -> Tensor:
    """[B, ...] -> the same, or [1, ...] of zeros if B is 0, which depend on ``rows`` as far as the graph knows."""
    return rows if len(rows) else torch.cat([rows, rows.new_zeros(1, *rows.shape[1:])])


def _first_patches(kept: Tensor) -> Tensor:
    """int64[0, K] -> int64[1, K]: the first K patches."""
    return torch.arange(kept.shape[1], device=kept.device)[None]


def _one_caption(tokens: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
    """int64[0, T], int64[0] -> one caption of two tokens, so that a decoder has something to predict."""
    return tokens.new_zeros(1, max(2, tokens.shape[1])), lengths.new_full((1,), 2)
