"""Parts of the recurrent decoder: cells, layers, soft attention over the image, packing of captions by time step."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor, nn

from mmlm.model.packing import Layout, rows_of

CellName = Literal["lstm", "gru"]
State = tuple[Tensor, ...]
"""State of a cell between two steps, float[n, D] each: (hidden, cell) of an LSTM, (hidden,) of a GRU."""


def lstm_step(inputs: Tensor, recurrent: Tensor, state: State) -> State:
    """One step of an LSTM with forget gates.

    ``inputs`` and ``recurrent``, float[n, 4 * D] each, are the contributions of the input and of the hidden state to
    the gates, in PyTorch's order: input, forget, cell, output.
    """
    input_gate, forget_gate, cell_gate, output_gate = (inputs + recurrent).chunk(4, dim=-1)
    cell = forget_gate.sigmoid() * state[1] + input_gate.sigmoid() * cell_gate.tanh()
    return output_gate.sigmoid() * cell.tanh(), cell


def gru_step(inputs: Tensor, recurrent: Tensor, state: State) -> State:
    """One step of a GRU (arXiv:1406.1078).

    ``inputs`` and ``recurrent``, float[n, 3 * D] each, are the contributions of the input and of the hidden state to
    the gates, in PyTorch's order: reset, update, new. Differs from the paper as PyTorch does: the reset gate acts after
    the product with the recurrent weights and not before, so that one product serves all gates.
    """
    reset_in, update_in, new_in = inputs.chunk(3, dim=-1)
    reset_recurrent, update_recurrent, new_recurrent = recurrent.chunk(3, dim=-1)
    reset, update = (reset_in + reset_recurrent).sigmoid(), (update_in + update_recurrent).sigmoid()
    new = (new_in + reset * new_recurrent).tanh()
    return (new + update * (state[0] - new),)


@dataclass(frozen=True)
class Cell:
    """A kind of recurrent cell: its sizes and its step function."""

    num_gates: int
    """Gates, D outputs of the linear layers each."""
    num_states: int
    """Tensors in its ``State``."""
    step: Callable[[Tensor, Tensor, State], State]
    """(contribution of the input, contribution of the hidden state, state) -> next state."""


CELLS: Mapping[CellName, Cell] = {"lstm": Cell(4, 2, lstm_step), "gru": Cell(3, 1, gru_step)}


@dataclass(frozen=True)
class Steps:
    """Packs C captions by time step (as ``PackedSequence`` does): all first tokens, all second tokens, and so on.

    Longer captions come first, so that the captions that go on after a step are the first rows of the state. No step
    is then spent on padding, and every layer outside of the recurrence runs once over the P real tokens.
    """

    order: Tensor
    """int64[C]: numbers of the captions, longest first."""
    sizes: tuple[int, ...]
    """Number of captions that have a token at each step; the sum is P."""
    index: Tensor
    """int64[P]: place of each packed token in the flattened [C * T]."""

    @classmethod
    def of_lengths(cls, lengths: Tensor, num_tokens: int) -> "Steps":
        """The packing of captions with ``lengths`` int64[C] real tokens, padded to ``num_tokens``."""
        order = lengths.argsort(descending=True, stable=True)
        real = Layout.mask(lengths[order], num_tokens)
        places = order[:, None] * num_tokens + torch.arange(num_tokens, device=lengths.device)
        sizes = tuple(size for size in real.sum(dim=0).tolist() if size)
        # Transposed, both go step by step, and within a step caption by caption.
        return cls(order, sizes, places.T[real.T])

    @classmethod
    def without_padding(cls, tokens: Tensor) -> "Steps":
        """The packing of int64[C, T] tokens that are all real; captions keep their order."""
        count, num_tokens = tokens.shape
        index = torch.arange(count * num_tokens, device=tokens.device).view(count, num_tokens).T.flatten()
        return cls(torch.arange(count, device=tokens.device), (count,) * num_tokens, index)

    def pack(self, padded: Tensor) -> Tensor:
        """Padded [C, T] -> packed [P], step by step."""
        return padded.flatten().index_select(0, self.index)

    def pad(self, packed: Tensor, num_tokens: int) -> Tensor:
        """Packed [P, D] -> padded [C, T, D], zeros at padding."""
        flat = packed.new_zeros(len(self.order) * num_tokens, packed.shape[1])
        return flat.index_copy(0, self.index, packed).view(len(self.order), num_tokens, packed.shape[1])

    def row_major(self, packed: Tensor) -> Tensor:
        """Packed [P, D], step by step -> [P, D] caption by caption, in the batch's order."""
        return packed.index_select(0, self.index.argsort())


@dataclass(frozen=True)
class ImageContext:
    """The images of a batch, and each caption's row of them in the order of ``Steps``."""

    images: Tensor
    """float[B, M, Dm]: the bridge's memory of all images."""
    image_index: Tensor | None
    """int64[C]: the row of ``images`` that each caption reads, or ``TEXT_ONLY``; None: caption i reads row i."""
    memory: Tensor
    """float[C, M, Dm]: the memory of each caption's image."""
    start: State
    """Initial state of the first layer, float[C, D] each; zeros for a text-only caption."""
    has_image: Tensor | None = None
    """float[C, 1]: 0 for text-only captions, 1 for others; None if every caption has an image."""
    keys: Tensor | None = None
    """float[C, M, D]: projected memory, the same at every step; None until ``SoftAttention.with_keys`` adds it."""

    def first(self, count: int) -> "ImageContext":
        """The context of the first ``count`` captions, once shorter captions have ended. Needs ``keys``."""
        if count == len(self.memory):
            return self
        # Cutting the previous step's slice, not the whole, keeps the backward pass short: each step's gradient is
        # padded to the size of the step before and not to C.
        assert self.keys is not None, "keys are made before the first step"
        has_image = None if self.has_image is None else self.has_image[:count]
        return replace(self, memory=self.memory[:count], has_image=has_image, keys=self.keys[:count])

    def of_images(self, images: Tensor) -> "ImageContext":
        """The context of these images int64[n] alone, for decoding: caption i reads row i, and the start is over."""
        assert self.keys is not None, "decoding begins with the keys of every image"
        return replace(self, images=self.images[images], memory=self.memory[images], keys=self.keys[images])


class SoftAttention(nn.Module):
    """Attention of a hidden state over the memory of an image, once a step (Show, Attend and Tell).

    Scores are ``additive``, ``v . tanh(W_q h + W_k m)`` (arXiv:1409.0473), or ``dot``, ``W_q h . W_k m / sqrt(D)``.
    With ``gated`` the context is multiplied by ``sigmoid(w . h + b)`` (arXiv:1502.03044, section 4.2.1), so that the
    decoder can ignore the image at a step.
    """

    def __init__(self, width: int, memory_width: int, attention: Literal["additive", "dot"], gated: bool) -> None:
        super().__init__()
        self.query = nn.Linear(width, width)
        # No bias: with "dot" it would add the same to the scores of all memory tokens, which softmax ignores; with
        # "additive" the query's bias already does its work.
        self.key = nn.Linear(memory_width, width, bias=False)
        self.score = nn.Linear(width, 1, bias=False) if attention == "additive" else None
        self.gate = nn.Linear(width, 1) if gated else None

    def with_keys(self, image_context: ImageContext) -> ImageContext:
        """Adds the keys, if they are not there: called before the first step, for all steps."""
        if image_context.keys is not None:
            return image_context
        # Projected once for each image and then copied to its captions.
        keys, image_index = self.key(image_context.images), image_context.image_index
        return replace(image_context, keys=keys if image_index is None else rows_of(keys, image_index))

    def forward(self, hidden: Tensor, image_context: ImageContext) -> tuple[Tensor, Tensor]:
        """Hidden states float[n, D] of n captions and their images -> context float[n, Dm], weights float[n, M].

        Both are 0 for a text-only caption. With fewer images than captions, the captions of an image stand together.
        """
        assert image_context.keys is not None, "keys are made before the first step"
        if len(image_context.keys) != len(hidden):
            return self._of_copies(hidden, image_context.keys, image_context.memory)
        query = self.query(hidden)[:, None]
        if self.score is not None:
            scores = self.score(torch.tanh(image_context.keys + query)).squeeze(-1)
        else:
            scores = (image_context.keys @ query.transpose(1, 2)).squeeze(-1) / math.sqrt(query.shape[-1])
        weights = scores.softmax(dim=-1)
        if image_context.has_image is not None:
            weights = weights * image_context.has_image
        context = (weights[:, None] @ image_context.memory).squeeze(1)
        return (context if self.gate is None else context * self.gate(hidden).sigmoid()), weights

    def _of_copies(self, hidden: Tensor, keys: Tensor, memory: Tensor) -> tuple[Tensor, Tensor]:
        """``forward`` for several captions of each image, whose keys and memory are read where they are."""
        query = self.query(hidden).unflatten(0, (len(keys), -1))
        if self.score is not None:
            scores = self.score(torch.tanh(keys[:, None] + query[:, :, None])).squeeze(-1)
        else:
            scores = query @ keys.transpose(1, 2) / math.sqrt(query.shape[-1])
        weights = scores.softmax(dim=-1)
        context = (weights @ memory).flatten(0, 1)
        return (context if self.gate is None else context * self.gate(hidden).sigmoid()), weights.flatten(0, 1)


@dataclass(frozen=True)
class LayerOutput:
    """The result of one layer over P packed tokens, step by step."""

    hidden: Tensor
    """float[P, D]: hidden state after each token."""
    state: State
    """State after the last step, of the captions that have a token there."""
    context: Tensor | None = None
    """float[P, Dm]: attention's result before each token; None without images."""
    weights: Tensor | None = None
    """float[P, M]: attention's weights before each token; None without images."""


class RecurrentLayer(nn.Module):
    """One recurrent layer of width D; with ``attention``, the image's context is part of its input at every step.

    The tokens' contribution to the gates is computed for all steps at once; only the recurrence and the attention,
    which depend on the previous state, run in the loop over steps.
    """

    def __init__(self, cell: Cell, width: int, attention: SoftAttention | None = None) -> None:
        super().__init__()
        self.cell, self.attention = cell, attention
        self.input = nn.Linear(width, cell.num_gates * width)
        self.recurrent = nn.Linear(width, cell.num_gates * width, bias=False)
        self.context = None
        if attention is not None:
            self.context = nn.Linear(attention.key.in_features, cell.num_gates * width, bias=False)

    def forward(
        self, x: Tensor, sizes: Sequence[int], state: State, image_context: ImageContext | None = None
    ) -> LayerOutput:
        """Packed float[P, D], step by step, from the initial ``state`` float[C, D] each.

        ``sizes`` is ``Steps.sizes``. Without ``image_context`` the text is read as if the context were 0.
        """
        hidden, contexts, weights = [], [], []
        if image_context is not None:
            assert self.attention is not None, "only a layer with attention reads images"
            image_context = self.attention.with_keys(image_context)
        # A batch without tokens takes one step over 0 captions: every parameter then has a gradient, which DDP waits
        # for.
        for inputs in self.input(x).split(list(sizes) or [0]):
            # Captions that have ended are the last rows of the state.
            state = tuple(part[: len(inputs)] for part in state)
            if image_context is not None:
                assert self.attention is not None, "only a layer with attention reads images"
                assert self.context is not None, "it comes with the attention"
                image_context = image_context.first(len(inputs))
                context, weight = self.attention(state[0], image_context)
                inputs = inputs + self.context(context)
                contexts.append(context)
                weights.append(weight)
            state = self.cell.step(inputs, self.recurrent(state[0]), state)
            hidden.append(state[0])
        if image_context is None:
            return LayerOutput(torch.cat(hidden), state)
        return LayerOutput(torch.cat(hidden), state, torch.cat(contexts), torch.cat(weights))
