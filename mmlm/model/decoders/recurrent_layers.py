"""Parts of a recurrent decoder: cells, their attention over the image, and captions in the order they are read."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor, nn

from mmlm.model.blocks import Layout, rows_of

CellName = Literal["lstm", "gru"]
State = tuple[Tensor, ...]
"""What a cell carries from step to step, float[n, D] each; the first is its output."""


def lstm_step(inputs: Tensor, recurrent: Tensor, state: State) -> State:
    """One step of an LSTM (with forget gates) from its gates' two summands, float[n, 4 * D] each.

    Gates stand in PyTorch's order: input, forget, candidate, output.
    """
    input_gate, forget_gate, candidate, output_gate = (inputs + recurrent).chunk(4, dim=-1)
    memory = forget_gate.sigmoid() * state[1] + input_gate.sigmoid() * candidate.tanh()
    return output_gate.sigmoid() * memory.tanh(), memory


def gru_step(inputs: Tensor, recurrent: Tensor, state: State) -> State:
    """One step of a GRU (arXiv:1406.1078) from its gates' two summands, float[n, 3 * D] each.

    Gates stand in PyTorch's order: reset, update, candidate. As there, the reset gate acts after the product with the
    recurrent weights (the paper: before), so that one product serves all gates.
    """
    reset_in, update_in, candidate_in = inputs.chunk(3, dim=-1)
    reset_on, update_on, candidate_on = recurrent.chunk(3, dim=-1)
    reset, update = (reset_in + reset_on).sigmoid(), (update_in + update_on).sigmoid()
    candidate = (candidate_in + reset * candidate_on).tanh()
    return (candidate + update * (state[0] - candidate),)


@dataclass(frozen=True)
class Cell:
    """A kind of recurrent cell."""

    num_gates: int
    num_states: int
    step: Callable[[Tensor, Tensor, State], State]


CELLS: Mapping[CellName, Cell] = {"lstm": Cell(4, 2, lstm_step), "gru": Cell(3, 1, gru_step)}


@dataclass(frozen=True)
class Steps:
    """The order in which recurrent layers read C captions: every first token, every second, and so on.

    Longer captions come first, so that those that go on after a step are the first rows of every state: no step is
    spent on padding, and everything outside of the recurrence is one product over the P real tokens.
    """

    order: Tensor
    """int64[C]: the captions, longest first."""
    sizes: tuple[int, ...]
    """How many captions have a token at each step; P is their sum."""
    index: Tensor
    """int64[P]: place of each token, in this order, in the flattened [C * T]."""

    @classmethod
    def of_lengths(cls, lengths: Tensor, num_tokens: int) -> "Steps":
        """For captions with ``lengths`` int64[C] real tokens, padded to ``num_tokens``."""
        order = lengths.argsort(descending=True, stable=True)
        real = Layout.mask(lengths[order], num_tokens)
        places = order[:, None] * num_tokens + torch.arange(num_tokens, device=lengths.device)
        sizes = tuple(size for size in real.sum(dim=0).tolist() if size)
        return cls(order, sizes, places.T[real.T])

    @classmethod
    def without_padding(cls, tokens: Tensor) -> "Steps":
        """For int64[C, T] tokens that are all real."""
        count, num_tokens = tokens.shape
        index = torch.arange(count * num_tokens, device=tokens.device).view(count, num_tokens).T.flatten()
        return cls(torch.arange(count, device=tokens.device), (count,) * num_tokens, index)

    def pack(self, padded: Tensor) -> Tensor:
        """[C, T] -> [P], step by step."""
        return padded.flatten().index_select(0, self.index)

    def pad(self, packed: Tensor, num_tokens: int) -> Tensor:
        """[P, D] -> [C, T, D], zeros at padding."""
        flat = packed.new_zeros(len(self.order) * num_tokens, packed.shape[1])
        return flat.index_copy(0, self.index, packed).view(len(self.order), num_tokens, packed.shape[1])

    def row_major(self, packed: Tensor) -> Tensor:
        """[P, D] step by step -> [P, D] caption by caption."""
        return packed.index_select(0, self.index.argsort())


@dataclass(frozen=True)
class ImageContext:
    """What each of C captions has of its image while it is read, in the order of the steps."""

    images: Tensor
    """float[B, M, Dm]: the memory of all images."""
    image_index: Tensor | None
    """int64[C]: the row of ``images`` that each caption reads, or ``TEXT_ONLY``; None: caption i reads row i."""
    memory: Tensor
    """float[C, M, Dm]."""
    start: State
    """The first state; zeros without an image."""
    has_image: Tensor | None = None
    """float[C, 1], 0 for text-only captions; None if there are none."""
    keys: Tensor | None = None
    """float[C, M, D]: the memory's part of the attention scores, the same at every step; None until a layer makes it.
    """

    def first(self, count: int) -> "ImageContext":
        """Memory and keys (made) of the first ``count`` captions. Narrowed step by step: so are then the gradients."""
        if count == len(self.memory):
            return self
        has_image = None if self.has_image is None else self.has_image[:count]
        return replace(self, memory=self.memory[:count], has_image=has_image, keys=self.keys[:count])


class SoftAttention(nn.Module):
    """One look at the memory: ``softmax`` over scores of its tokens against a state.

    Scores are ``additive``, ``v . tanh(W_q h + W_k m)`` (arXiv:1409.0473), or ``dot``, ``W_q h . W_k m / sqrt(D)``.
    With ``gated`` the context is multiplied by ``sigmoid(w . h + b)`` (arXiv:1502.03044, section 4.2.1), by which the
    decoder can look away.
    """

    def __init__(self, width: int, memory_width: int, attention: Literal["additive", "dot"], gated: bool) -> None:
        super().__init__()
        self.query = nn.Linear(width, width)
        # A bias here would add the same to the scores of all tokens (dot), or is the query's (additive).
        self.key = nn.Linear(memory_width, width, bias=False)
        self.score = nn.Linear(width, 1, bias=False) if attention == "additive" else None
        self.gate = nn.Linear(width, 1) if gated else None

    def with_keys(self, sight: ImageContext) -> ImageContext:
        """The same with its keys: projected once for each image and all steps."""
        if sight.keys is not None:
            return sight
        keys = self.key(sight.images)
        return replace(sight, keys=keys if sight.image_index is None else rows_of(keys, sight.image_index))

    def forward(self, hidden: Tensor, sight: ImageContext) -> tuple[Tensor, Tensor]:
        """float[n, D] of the n captions of ``sight`` -> context float[n, Dm], weights float[n, M] (0: no image)."""
        query = self.query(hidden)[:, None]
        if self.score is not None:
            scores = self.score(torch.tanh(sight.keys + query)).squeeze(-1)
        else:
            scores = (sight.keys @ query.transpose(1, 2)).squeeze(-1) / math.sqrt(query.shape[-1])
        weights = scores.softmax(dim=-1)
        if sight.has_image is not None:
            weights = weights * sight.has_image
        context = (weights[:, None] @ sight.memory).squeeze(1)
        return (context if self.gate is None else context * self.gate(hidden).sigmoid()), weights


@dataclass(frozen=True)
class LayerOutput:
    """What a layer made of P tokens, step by step."""

    hidden: Tensor
    """float[P, D]."""
    state: State
    """After the last step, of the captions that it still read."""
    context: Tensor | None = None
    """float[P, Dm]: what it saw before each token; None without images."""
    weights: Tensor | None = None
    """float[P, M]: where it looked."""


class RecurrentLayer(nn.Module):
    """One recurrent layer of width D; with ``attention`` a look at the image is part of its input at every step.

    The token's share of the gates is one product for all steps; the loop holds the recurrence and the look only.
    """

    def __init__(self, cell: Cell, width: int, attention: SoftAttention | None = None) -> None:
        super().__init__()
        self.cell, self.attention = cell, attention
        self.input = nn.Linear(width, cell.num_gates * width)
        self.recurrent = nn.Linear(width, cell.num_gates * width, bias=False)
        self.context = None
        if attention is not None:
            self.context = nn.Linear(attention.key.in_features, cell.num_gates * width, bias=False)

    def forward(self, x: Tensor, sizes: Sequence[int], state: State, sight: ImageContext | None = None) -> LayerOutput:
        """float[P, D], step by step, and a state of float[C, D] each -> the layer's reading."""
        hidden, contexts, weights = [], [], []
        if sight is not None:
            sight = self.attention.with_keys(sight)
        # No token at all is one step of nothing, so that every parameter is reached whatever a batch holds.
        for inputs in self.input(x).split(list(sizes) or [0]):
            state = tuple(part[: len(inputs)] for part in state)
            if sight is not None:
                sight = sight.first(len(inputs))
                context, weight = self.attention(state[0], sight)
                inputs = inputs + self.context(context)
                contexts.append(context)
                weights.append(weight)
            state = self.cell.step(inputs, self.recurrent(state[0]), state)
            hidden.append(state[0])
        if sight is None:
            return LayerOutput(torch.cat(hidden), state)
        return LayerOutput(torch.cat(hidden), state, torch.cat(contexts), torch.cat(weights))
