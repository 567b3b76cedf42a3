"""Recurrent text decoder: an LSTM or GRU with attention over the image at each word (Show, Attend and Tell)."""

from dataclasses import dataclass
from typing import Literal, cast

import torch
from torch import Tensor, nn

from mmlm.core.batch import TEXT_ONLY
from mmlm.core.errors import ArgumentError
from mmlm.core.keyed_start import keyed_start
from mmlm.core.ranges import check_dropout
from mmlm.model.attention import AttentionRecord, rows_of_images
from mmlm.model.blocks import INIT_STD, init_linears
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
from mmlm.model.packing import rows_of
from mmlm.model.protocols import Fusion, TextStates


@dataclass
class RecurrentCache:
    """Decoding's memory between two calls of ``decode``; see ``DecodingCache``."""

    states: list[State]
    """Each layer's state after the last token of each caption; before the first token one for each image."""
    image_context: ImageContext
    """The images, with their keys projected: once an image."""

    @property
    def copies(self) -> int:
        """Captions of each image."""
        return len(self.states[0][0]) // len(self.image_context.memory)

    def copy_rows(self, source: Tensor, target: Tensor) -> None:
        """See ``DecodingCache``."""
        for state in self.states:
            for part in state:
                part[target] = part[source]

    def keep_images(self, images: Tensor) -> None:
        """See ``DecodingCache``."""
        rows = rows_of_images(images, self.copies)
        self.states = [tuple(part[rows] for part in state) for state in self.states]
        self.image_context = self.image_context.of_images(images)


class RecurrentDecoder(nn.Module):
    """LSTM or GRU decoder with soft attention over the memory (Show, Attend and Tell, arXiv:1502.03044)::

        first state  tanh of a projection of the mean memory token (one for each part of the state)
        context z_t  soft attention over the memory by the state h_{t-1}, gated
        state h_t    cell([E y_t, z_t], h_{t-1})
        output       norm(E y_t + L_h h_t + L_z z_t), the paper's deep output (equation 7)

    A caption without an image (in ``text``, or a text-only one) is read by the same cells, with an initial state and a
    context of zeros. The state at the end token is the caption's pooled vector.

    Differs from the paper: embeddings are normalised (weights tied to the output projection start too small for a sum
    with the context); the output is normalised; there is neither hard attention nor the doubly stochastic penalty
    (equation 14). With several layers, only the first one attends to the image.

    Args:
        vocab_size: tokens, V.
        memory_width: width of the bridge's memory, Dm.
        width: D, of embeddings, states and attention.
        cell: ``lstm`` or ``gru``.
        num_layers: recurrent layers (>= 1).
        attention: how a memory token is scored, ``additive`` or ``dot``; see ``SoftAttention``.
        gated_context: multiply the context by a learned gate.
        tie_weights: share the token embedding with the output projection (arXiv:1608.05859).
        dropout: probability, on the input of each layer and on the output, never on the recurrence (arXiv:1409.2329).

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
            raise ArgumentError(f"width: {width} and num_layers={num_layers} must both be at least 1")
        check_dropout(dropout)
        self.width, self.vocab_size, self.text_width = width, vocab_size, width
        self.cell = CELLS[cell]
        self.token_embedding = nn.Embedding(vocab_size, width)
        self.embedding_norm = nn.LayerNorm(width)
        self.initial_state = nn.Linear(memory_width, self.cell.num_states * width)
        attentions = [SoftAttention(width, memory_width, attention, gated_context), *[None] * (num_layers - 1)]
        self.layers = nn.ModuleList(RecurrentLayer(self.cell, width, part) for part in attentions)
        self.state_output = nn.Linear(width, width)
        self.context_output = nn.Linear(memory_width, width, bias=False)
        self.norm = nn.LayerNorm(width)
        self.dropout = nn.Dropout(dropout)
        self.head = nn.Linear(width, vocab_size, bias=False)
        init_linears(self)
        if cell == "lstm":
            # A forget gate that starts open lets gradients reach early tokens (Jozefowicz et al., ICML 2015).
            for layer in self.layers:
                nn.init.ones_(cast(RecurrentLayer, layer).input.bias.detach()[width : 2 * width])
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
        states = steps.pad(self._run_layers(self._embed(tokens, steps), steps)[-1].hidden, tokens.shape[1])
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
        """See ``Decoder``. ``text`` is not used: the image changes a caption's states from the initial one on."""
        num_inputs = tokens.shape[1] - 1
        steps = Steps.of_lengths(lengths - 1, num_inputs)
        x = self._embed(tokens[:, :-1], steps)
        outputs = self._run_layers(x, steps, self._image_context(memory, image_index[steps.order]))
        if record is not None and outputs[0].weights is not None:
            record.weights.append(steps.pad(outputs[0].weights.float(), num_inputs)[:, None])
        return steps.row_major(self._output(x, outputs))

    def places(self, lengths: Tensor, num_tokens: int) -> int:
        """See ``mmlm.model.text_places.CountsPlaces``: no step is spent on padding."""
        return int(lengths.sum())

    def _embed(self, tokens: Tensor, steps: Steps) -> Tensor:
        """int64[C, T] -> packed float[P, D], step by step."""
        return self.embedding_norm(self.token_embedding(steps.pack(tokens)))

    def _image_context(self, memory: Tensor, image_index: Tensor | None = None) -> ImageContext:
        """Memory float[B, M, Dm] and int64[C] -> the context of captions that read row ``image_index[c]``.

        Without ``image_index`` caption i reads row i.
        """
        start = torch.tanh(self.initial_state(memory.mean(dim=1)))
        has_image, images = None, memory
        if image_index is not None:
            memory, start = (rows_of(part, image_index) for part in (memory, start))
            # ``rows_of`` gave a text-only caption the row of some image: its initial state and its context become 0.
            has_image = (image_index != TEXT_ONLY).to(memory.dtype)[:, None]
            start = start * has_image
        return ImageContext(images, image_index, memory, start.chunk(self.cell.num_states, dim=-1), has_image)

    def _initial_states(self, count: int, image_context: ImageContext | None) -> list[State]:
        """Each layer's initial state, float[count, D] each: from the image for the first layer, zeros for others."""
        weight = self.token_embedding.weight
        zeros = (weight.new_zeros(count, self.width),) * self.cell.num_states
        first = zeros if image_context is None else image_context.start
        return [first, *[zeros] * (len(self.layers) - 1)]

    def _run_layers(
        self, x: Tensor, steps: Steps, image_context: ImageContext | None = None, states: list[State] | None = None
    ) -> list[LayerOutput]:
        """Runs embedded tokens float[P, D] through all layers, from ``states`` or else the initial states."""
        outputs: list[LayerOutput] = []
        for number, state in enumerate(states or self._initial_states(len(steps.order), image_context)):
            inputs = self.dropout(outputs[-1].hidden if outputs else x)
            outputs.append(self.layers[number](inputs, steps.sizes, state, None if number else image_context))
        return outputs

    def _output(self, x: Tensor, outputs: list[LayerOutput]) -> Tensor:
        """Deep output float[P, D], ready for ``head_weight``: token, last layer's state and first layer's context."""
        out = x + self.state_output(outputs[-1].hidden)
        if outputs[0].context is not None:
            out = out + self.context_output(outputs[0].context)
        return self.dropout(self.norm(out))

    def start_decoding(self, memory: Tensor, room: int | None = None) -> RecurrentCache:
        """See ``Decoder``: the initial states, and the attention's keys for all steps. It has room for any length."""
        attention = cast(RecurrentLayer, self.layers[0]).attention
        assert attention is not None, "the first layer reads the image"
        image_context = attention.with_keys(self._image_context(memory))
        return RecurrentCache(self._initial_states(len(memory), image_context), image_context)

    def decode(self, tokens: Tensor, cache: RecurrentCache) -> Tensor:
        """See ``Decoder``. Updates the states in ``cache``, in place."""
        copies = len(tokens) // (len(cache.image_context.memory) * cache.copies)
        if copies > 1:  # the first tokens of several captions of each image
            cache.states = [tuple(part.repeat_interleave(copies, 0) for part in state) for state in cache.states]
        steps = Steps.without_padding(tokens)
        x = self._embed(tokens, steps)
        outputs = self._run_layers(x, steps, cache.image_context, cache.states)
        cache.states = [output.state for output in outputs]
        return self.head(steps.row_major(self._output(x, outputs))).unflatten(0, tokens.shape)
