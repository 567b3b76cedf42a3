"""A decoder's layers over the image's tokens and, behind them, those of the text."""

from collections.abc import Iterable

import torch
from torch import Tensor, nn

from mmlm.model.attention import AttentionRecord, KeyValueCache
from mmlm.model.packing import Layout, real_rows


def read_prefixed(
    layers: Iterable[nn.Module],
    norm: nn.Module,
    prefix: Tensor,
    states: Tensor,
    lengths: Tensor,
    mask: Tensor,
    packed: bool,
    record: AttentionRecord | None = None,
) -> Tensor:
    """Self-attention over [prefix, text] in every layer, then ``norm`` -> float[P, D] at the real tokens of the text.

    Args:
        layers: ``DecoderLayer``s without cross-attention.
        norm: the norm behind them.
        prefix: float[C, M, D], that of each caption's image.
        states: float[C, T, D] of the text; values at padding do not matter.
        lengths: int64[C], real tokens of each text; P is their sum.
        mask: bool[C, 1, M + T, M + T], such as ``mmlm.model.attention.prefix_mask``.
        packed: run token-wise layers on real tokens only.
        record: collects each layer's weights of the text over the prefix, float32[C, H, T, M].
    """
    num_memory = prefix.shape[1]
    layout = Layout.of_lengths(lengths + num_memory, num_memory + states.shape[1], packed)
    full = None if record is None else AttentionRecord()
    x = layout.pack(torch.cat([prefix, states], dim=1))
    for layer in layers:
        x = layer(x, layout, mask=mask, self_record=full)
    if record is not None and full is not None:
        # The part of the self-attention over [prefix, text] that goes from text to prefix.
        record.weights += [weights[:, :, num_memory:, :num_memory] for weights in full.weights]
    return real_rows(norm(x), layout, lengths, skip=num_memory)


def prefix_caches(
    layers: Iterable[nn.Module], prefix: Tensor, room: int, mask: Tensor | None = None
) -> list[KeyValueCache]:
    """The cache of each layer after the prefix float[B, M, D] of each image, with room for ``room`` tokens of text.

    Tokens of a prefix see no text, so that their keys and values are the same at all steps and for all captions of an
    image. ``mask`` bool[1, 1, 1 or M, M] says what they see of each other; None is causal attention.
    """
    layout = Layout(len(prefix), prefix.shape[1], None)
    x, caches = layout.pack(prefix), []
    for layer in layers:
        cache = KeyValueCache(room=prefix.shape[1])
        x = layer(x, layout, mask=mask, cache=cache)
        assert cache.keys is not None, "the layer has filled it"
        assert cache.values is not None, "the layer has filled it"
        caches.append(KeyValueCache(room, shared=(cache.keys, cache.values)))
    return caches
