"""Recurrent text decoder: an LSTM or GRU that looks at the image before every word (Show, Attend and Tell)."""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from mmlm.core.errors import UserError
from mmlm.core.flow import TEXT_ONLY
from mmlm.core.keyed_start import keyed_start
from mmlm.model.blocks import INIT_STD, AttentionRecord, init_linears, rows_of
from mmlm.model.decoders.recurrent_layers import (
    CELLS,
    CellName,
    ImageContext,
    LayerOutput,
    RecurrentLayer,
    SoftAttention,
    State,
    Steps,
)
from mmlm.model.protocols import Fusion, TextStates


@dataclass
class RecurrentCache:
    """What decoding keeps: each layer's state, and the image with its keys."""

    states: list[State]
    sight: ImageContext


class RecurrentDecoder(nn.Module):
    """LSTM or GRU decoder with soft attention over the memory (Show, Attend and Tell, arXiv:1502.03044)::

        first state  tanh of a projection of the mean memory token (one for each part of the state)
        context z_t  soft attention over the memory by the state h_{t-1}, gated
        state h_t    cell([E y_t, z_t], h_{t-1})
        output       norm(E y_t + L_h h_t + L_z z_t), the paper's deep output (equation 7)

    Text alone, and a text-only caption, is read by the same cells from a state of zeros with a context of zeros; the
    state at the end token is the caption in one vector.

    Differs from the paper: embeddings are normalised (tied to the output projection they start too small for a sum
    with the context), the output is normalised, and there is neither hard attention nor the penalty that makes every
    place be looked at (equation 14). With several layers the first one attends and the others read its states.

    Args:
        vocab_size: tokens, V.
        memory_width: width of the bridge's memory, Dm.
        width: D, of embeddings, states and attention.
        cell: ``lstm`` or ``gru``.
        num_layers: recurrent layers (>= 1).
        attention: how a memory token is scored, ``additive`` or ``dot``; see ``SoftAttention``.
        gated_context: multiply the context by a learned gate.
        tie_weights: share the token embedding with the output projection (arXiv:1608.05859).
        dropout: probability, on what enters each layer and on the output, never on the recurrence (arXiv:1409.2329).

    Raises:
        UserError: fewer than one layer, or a dropout outside of [0, 1).
    """

    fusion: Fusion = "cross_attention"
    records_attention = True
    takes_patterns = False
    vocabulary = None

    def __init__(
        self,
        vocab_size: int,
        memory_width: int,
        width: int = 192,
        cell: CellName = "lstm",
        num_layers: int = 1,
        attention: Literal["additive", "dot"] = "additive",
        gated_context: bool = True,
        tie_weights: bool = True,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        if width < 1 or num_layers < 1:
            raise UserError(f"decoder: width={width} and num_layers={num_layers} must both be at least 1")
        if not 0 <= dropout < 1:
            raise UserError(f"decoder.dropout: {dropout} must lie in [0, 1); 0 turns it off")
        self.width, self.vocab_size, self.text_width = width, vocab_size, width
        self.cell = CELLS[cell]
        self.token_embedding = nn.Embedding(vocab_size, width)
        self.embedding_norm = nn.LayerNorm(width)
        self.initial_state = nn.Linear(memory_width, self.cell.num_states * width)
        looks = [SoftAttention(width, memory_width, attention, gated_context), *[None] * (num_layers - 1)]
        self.layers = nn.ModuleList(RecurrentLayer(self.cell, width, look) for look in looks)
        self.state_output = nn.Linear(width, width)
        self.context_output = nn.Linear(memory_width, width, bias=False)
        self.norm = nn.LayerNorm(width)
        self.dropout = nn.Dropout(dropout)
        self.head = nn.Linear(width, vocab_size, bias=False)
        init_linears(self)
        if cell == "lstm":
            # Remember at first: gradients reach early tokens (Jozefowicz et al., ICML 2015).
            for layer in self.layers:
                nn.init.ones_(layer.input.bias.detach()[width : 2 * width])
        with keyed_start("head"):
            nn.init.normal_(self.head.weight, std=INIT_STD)
        if tie_weights:
            self.head.weight = self.token_embedding.weight

    @property
    def head_weight(self) -> Tensor:
        """float32[V, D]: the output projection."""
        return self.head.weight

    def text(self, tokens: Tensor, lengths: Tensor) -> TextStates:
        """See ``Decoder``; the pooled vector is the last layer's state at the end token."""
        steps = Steps.of_lengths(lengths, tokens.shape[1])
        states = steps.pad(self._read(self._embed(tokens, steps), steps)[-1].hidden, tokens.shape[1])
        return TextStates(states, states[torch.arange(len(states), device=states.device), lengths - 1])

    def hidden(
        self,
        tokens: Tensor,
        lengths: Tensor,
        memory: Tensor,
        image_index: Tensor,
        text: TextStates | None = None,
        record: AttentionRecord | None = None,
    ) -> Tensor:
        """See ``Decoder``. ``text`` serves nothing: an image changes a caption's states from the first one on."""
        num_inputs = tokens.shape[1] - 1
        steps = Steps.of_lengths(lengths - 1, num_inputs)
        x = self._embed(tokens[:, :-1], steps)
        readings = self._read(x, steps, self._see(memory, image_index[steps.order]))
        if record is not None and readings[0].weights is not None:
            record.weights.append(steps.pad(readings[0].weights.float(), num_inputs)[:, None])
        return steps.row_major(self._output(x, readings))

    def _embed(self, tokens: Tensor, steps: Steps) -> Tensor:
        """int64[C, T] -> float[P, D], step by step."""
        return self.embedding_norm(self.token_embedding(steps.pack(tokens)))

    def _see(self, memory: Tensor, image_index: Tensor | None = None) -> ImageContext:
        """Memory float[B, M, Dm] -> what caption c has of row ``image_index[c]`` (of row c without an index)."""
        start = torch.tanh(self.initial_state(memory.mean(dim=1)))
        has_image, images = None, memory
        if image_index is not None:
            memory, start = (rows_of(part, image_index) for part in (memory, start))
            has_image = (image_index != TEXT_ONLY).to(memory.dtype)[:, None]
            start = start * has_image
        return ImageContext(images, image_index, memory, start.chunk(self.cell.num_states, dim=-1), has_image)

    def _start(self, count: int, sight: ImageContext | None) -> list[State]:
        """The first state of every layer, float[count, D]; only the first layer's comes from the image."""
        weight = self.token_embedding.weight
        zeros = (weight.new_zeros(count, self.width),) * self.cell.num_states
        return [zeros if number or sight is None else sight.start for number in range(len(self.layers))]

    def _read(
        self, x: Tensor, steps: Steps, sight: ImageContext | None = None, states: list[State] | None = None
    ) -> list[LayerOutput]:
        """Embedded tokens float[P, D] through every layer, going on from ``states``."""
        readings: list[LayerOutput] = []
        for number, state in enumerate(states or self._start(len(steps.order), sight)):
            entering = self.dropout(readings[-1].hidden if readings else x)
            readings.append(self.layers[number](entering, steps.sizes, state, None if number else sight))
        return readings

    def _output(self, x: Tensor, readings: list[LayerOutput]) -> Tensor:
        """float[P, D], ready for the output projection."""
        out = x + self.state_output(readings[-1].hidden)
        if readings[0].context is not None:
            out = out + self.context_output(readings[0].context)
        return self.dropout(self.norm(out))

    def start_decoding(self, memory: Tensor) -> RecurrentCache:
        """Memory float[B, M, Dm] -> the first states, with the memory's keys computed once."""
        sight = self.layers[0].attention.with_keys(self._see(memory))
        return RecurrentCache(self._start(len(memory), sight), sight)

    def decode(self, tokens: Tensor, cache: RecurrentCache) -> Tensor:
        """The next int64[B, t] tokens -> logits float[B, t, V]; the cache then holds the states after them."""
        steps = Steps.without_padding(tokens)
        x = self._embed(tokens, steps)
        readings = self._read(x, steps, cache.sight, cache.states)
        cache.states = [reading.state for reading in readings]
        return self.head(steps.row_major(self._output(x, readings))).unflatten(0, tokens.shape)
