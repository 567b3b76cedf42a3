"""The keys and values of a language model of transformers while it decodes, in memory that is taken once."""

from dataclasses import dataclass, field
from typing import Any, cast

import torch
from torch import LongTensor, Tensor
from transformers import Cache, DynamicCache, PreTrainedConfig
from transformers.cache_utils import DynamicLayer

from mmlm.model.attention import rows_of_images
from mmlm.model.decoders.gated_cross_attention import Memory


class RoomyLayer(DynamicLayer):
    """A ``DynamicLayer`` that takes memory for ``room`` tokens once and hands out the part that is filled.

    ``keys`` and ``values`` are views of that part, so that everything else is inherited and a language model sees no
    difference; ``StaticCache`` of transformers would have it attend to all of the room in every step.
    """

    def __init__(self, room: int) -> None:
        super().__init__()
        self.room = room
        self._memory: tuple[Tensor, Tensor] | None = None

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """Appends float[C, K, t, d] each, and returns those of all tokens. Arguments are those of transformers."""
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        start = self.get_seq_length()
        end = start + key_states.shape[-2]
        if self._memory is None:
            self._memory = self._roomy(key_states, start, self.keys), self._roomy(value_states, start, self.values)
        keys, values = self._memory
        keys[..., start:end, :] = key_states
        values[..., start:end, :] = value_states
        self.keys, self.values = keys[..., :end, :], values[..., :end, :]
        return self.keys, self.values

    def _roomy(self, like: Tensor, filled: int, kept: Tensor | None) -> Tensor:
        memory = like.new_empty((*like.shape[:-2], self.room, like.shape[-1]))
        if filled and kept is not None:
            memory[..., :filled, :] = kept
        return memory

    def copy_rows(self, source: Tensor, target: Tensor) -> None:
        """The rows ``target`` int64[n] get the tokens of the rows ``source`` int64[n]."""
        for kept in (self.keys, self.values):
            if kept is not None and kept.numel():
                kept[target] = kept[source]

    def reorder_cache(self, beam_idx: Tensor) -> None:
        """Keeps the rows ``beam_idx`` int64[n], in this order; the next ``update`` takes new memory."""
        super().reorder_cache(cast(LongTensor, beam_idx))
        self._memory = None


def empty_layers(config: PreTrainedConfig, room: int) -> Cache:
    """An empty cache for the LM of ``config``, with room for ``room`` tokens.

    Layers that keep something else than all keys and values (a sliding window, a state) keep it as transformers does.
    """
    cache = DynamicCache(config=config)
    cache.layers = [RoomyLayer(room) if type(layer) is DynamicLayer else layer for layer in cache.layers]
    return cache


@dataclass
class LanguageModelCache:
    """State that decoding keeps from step to step; see ``DecodingCache``."""

    layers: Cache
    """The language model's own keys and values. A prefix's are made once an image and then copied to its captions:
    the model's own attention reads one row for each caption."""
    num_images: int
    """B."""
    memories: list[Memory] = field(default_factory=list)
    """The image's keys and values for each gated block, made once; empty with a prefix."""
    num_tokens: int = 0
    """Text tokens decoded so far, without the prefix."""
    num_rows: int | None = None
    """Captions; None before the first call of ``decode``."""

    def spread(self, num_rows: int) -> None:
        """Makes place for ``num_rows`` captions before the first of their tokens; later it changes nothing."""
        if self.num_rows is None and num_rows != self.num_images:
            images = torch.arange(self.num_images)
            rows = images.repeat_interleave(num_rows // self.num_images)
            self.layers.reorder_cache(cast(LongTensor, rows))
        self.num_rows = num_rows

    def copy_rows(self, source: Tensor, target: Tensor) -> None:
        """See ``DecodingCache``."""
        order = torch.arange(self.num_rows or self.num_images, device=source.device)
        order[target] = source
        for layer in self.layers.layers:
            if isinstance(layer, RoomyLayer):
                layer.copy_rows(source, target)
            else:
                layer.reorder_cache(cast(LongTensor, order))

    def keep_images(self, images: Tensor) -> None:
        """See ``DecodingCache``."""
        rows = rows_of_images(images, (self.num_rows or self.num_images) // self.num_images)
        self.layers.reorder_cache(cast(LongTensor, rows))
        self.memories = [Memory((memory.source[0][images], memory.source[1][images])) for memory in self.memories]
        self.num_images = len(images)
        self.num_rows = None if self.num_rows is None else len(rows)
