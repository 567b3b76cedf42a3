"""Transformer parts for bridges, decoders and text encoders: packing, attention, feed-forward, norms, positions."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mmlm.core.errors import ArgumentError
from mmlm.core.keyed_start import keyed_start

INIT_STD = 0.02
"""Initial standard deviation of embeddings, learned queries and positions (GPT-2)."""
PACK_MULTIPLE = 64
"""The number of packed rows is rounded up to a multiple of this, since each new shape compiles a kernel (oneDNN: 3 ms).
"""


@dataclass(frozen=True)
class Layout:
    """Converts C captions between padded ``[C, T, ...]`` and packed ``[P', ...]``.

    Token-wise layers (norms, projections, feed-forward) run on packed states: the real tokens of all captions, one
    caption after the other, then a few padding places that fill P' up to a multiple of ``PACK_MULTIPLE``. Only
    attention needs the padded states. In each padded row real tokens come first, so that causal attention never sees
    padding.
    """

    num_captions: int
    num_tokens: int
    index: Tensor | None
    """int64[P']: place of each packed token in the flattened [C * T]; None: no packing, every place is kept."""
    num_real: int = 0
    """P: number of real tokens; they come first in ``index``. Only set with packing."""

    @classmethod
    def of_lengths(
        cls, lengths: Tensor, num_tokens: int, packed: bool = True, multiple: int = PACK_MULTIPLE
    ) -> "Layout":
        """The layout of captions with ``lengths`` int64[C] real tokens, padded to ``num_tokens``.

        With ``packed``, the number of tokens is read on the CPU, which waits for the device.
        """
        if not packed:
            return cls(len(lengths), num_tokens, None)
        real = cls.mask(lengths, num_tokens).flatten()
        index = real.nonzero().squeeze(1)
        num_real = len(index)
        if num_real % multiple:
            # The first padding places fill up; fewer than needed where the padded batch has no more.
            filler = (~real).nonzero().squeeze(1)[: -num_real % multiple]
            index = torch.cat([index, filler])
        return cls(len(lengths), num_tokens, index, num_real)

    @staticmethod
    def mask(lengths: Tensor, num_tokens: int) -> Tensor:
        """bool[C, T]: true at real tokens."""
        return torch.arange(num_tokens, device=lengths.device)[None, :] < lengths[:, None]

    def pack(self, padded: Tensor) -> Tensor:
        """[C, T, ...] -> [P', ...]: drops padding, except for the places that fill up P'."""
        flat = padded.flatten(0, 1)
        return flat if self.index is None else flat.index_select(0, self.index)

    def pad(self, packed: Tensor) -> Tensor:
        """[P', ...] -> [C, T, ...]: padding is zeros, or leftovers at the places that filled up P'."""
        shape = (self.num_captions, self.num_tokens, *packed.shape[1:])
        if self.index is None:
            return packed.reshape(shape)
        flat = packed.new_zeros((self.num_captions * self.num_tokens, *packed.shape[1:]))
        return flat.index_copy(0, self.index, packed).view(shape)

    def real(self, packed: Tensor) -> Tensor:
        """[P', ...] -> [P, ...]: real tokens only."""
        return packed if self.index is None else packed[: self.num_real]


@dataclass
class KeyValueCache:
    """Keys and values of all tokens that one attention layer has read so far, for decoding token by token.

    float[C, K, T, d] each, for K key-value heads. T grows with every ``extend``.
    """

    keys: Tensor | None = None
    values: Tensor | None = None

    @property
    def length(self) -> int:
        """T, the tokens in the cache."""
        return 0 if self.keys is None else self.keys.shape[2]

    def extend(self, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """Appends keys and values float[C, K, t, d] and returns those of all T + t tokens."""
        self.keys = keys if self.keys is None else torch.cat([self.keys, keys], dim=2)
        self.values = values if self.values is None else torch.cat([self.values, values], dim=2)
        return self.keys, self.values


@dataclass
class AttentionRecord:
    """Collects attention weights of the layers that it is passed to. For reports, never in training."""

    weights: list[Tensor] = field(default_factory=list)
    """float32[C, H, Tq, Tk] for each recorded layer, in the order of the layers."""


def sinusoidal_positions(num_positions: int, width: int) -> Tensor:
    """float32[num_positions, width]: sine and cosine positions (arXiv:1706.03762, section 3.5), sines first.

    The paper interleaves sine and cosine; a fixed permutation of the columns changes nothing a linear layer can see.
    """
    frequencies = torch.exp(-math.log(10_000) * torch.arange(0, width, 2) / width)
    angles = torch.arange(num_positions)[:, None] * frequencies[None, :]
    return torch.cat([angles.sin(), angles.cos()], dim=1)[:, :width]


def rotate(x: Tensor, offset: int = 0, base: float = 10_000.0) -> Tensor:
    """Applies rotary positions (RoFormer, arXiv:2104.09864) to queries or keys float[C, H, T, d], d even.

    The first token has position ``offset``. Pairs column i with column i + d/2, as GPT-NeoX and Llama do; the paper
    pairs neighbours.
    """
    half = x.shape[-1] // 2
    frequencies = base ** (-torch.arange(half, device=x.device, dtype=torch.float32) / half)
    positions = torch.arange(offset, offset + x.shape[2], device=x.device, dtype=torch.float32)
    angles = positions[:, None] * frequencies[None, :]
    cosine, sine = angles.cos().to(x.dtype), angles.sin().to(x.dtype)
    first, second = x[..., :half], x[..., half:]
    return torch.cat([first * cosine - second * sine, second * cosine + first * sine], dim=-1)


class MultiHeadAttention(nn.Module):
    """Multi-head attention (arXiv:1706.03762), as self-attention or over a memory of another width.

    The caller runs its steps one by one (``query`` and ``keys_values``, then ``attend``, then ``output``), so that keys
    and values of a memory can be projected once and reused.

    With ``num_key_value_heads`` K below the number of heads H, each key and value head serves H / K query heads
    (grouped-query attention, arXiv:2305.13245; K = 1 is multi-query attention, arXiv:1911.02150). Keys, values and
    their cache are then H / K times smaller. None means K = H.

    Raises:
        UserError: ``num_heads`` does not divide ``width``, or ``num_key_value_heads`` does not divide ``num_heads``.
    """

    def __init__(
        self, width: int, num_heads: int, memory_width: int | None = None, num_key_value_heads: int | None = None
    ) -> None:
        super().__init__()
        if width < 1 or num_heads < 1 or width % num_heads:
            raise ArgumentError(f"num_heads: {num_heads} does not divide the width {width}; choose one that does")
        key_value_heads = num_heads if num_key_value_heads is None else num_key_value_heads
        if key_value_heads < 1 or num_heads % key_value_heads:
            raise ArgumentError(
                f"num_key_value_heads: {key_value_heads} does not divide the {num_heads} query heads; choose one that "
                "does, or null for as many"
            )
        self.head_width = width // num_heads
        self.key_width = key_value_heads * self.head_width
        self.query = nn.Linear(width, width)
        self.key_value = nn.Linear(memory_width or width, 2 * self.key_width)
        self.output = nn.Linear(width, width)

    def heads(self, x: Tensor) -> Tensor:
        """[C, T, H * d] -> [C, H, T, d]: splits queries into H heads, or keys and values into K heads."""
        return x.unflatten(-1, (-1, self.head_width)).transpose(1, 2)

    def keys_values(self, memory: Tensor) -> tuple[Tensor, Tensor]:
        """float[B, M, Dm] -> keys and values, float[B, K, M, d] each."""
        keys, values = self.key_value(memory).chunk(2, dim=-1)
        return self.heads(keys), self.heads(values)

    def attend(
        self,
        queries: Tensor,
        keys: Tensor,
        values: Tensor,
        mask: Tensor | None = None,
        causal: bool = False,
        record: AttentionRecord | None = None,
    ) -> Tensor:
        """Queries float[C, H, Tq, d] over keys and values float[C, K, Tk, d] -> float[C, Tq, D], before ``output``.

        ``mask`` is bool[C or 1, 1, Tq or 1, Tk], true where a query may look. ``causal`` (without ``mask``) lets a
        query see keys up to its own position, where the last query stands at the last key. ``record`` collects the
        weights.
        """
        # With a cache there are fewer queries than keys. PyTorch's ``is_causal`` aligns the *first* query with the
        # first key, which would hide almost the whole cache: such a mask is built here.
        if causal and queries.shape[2] != keys.shape[2]:
            ahead = keys.shape[2] - queries.shape[2]
            mask = torch.ones(queries.shape[2], keys.shape[2], dtype=torch.bool, device=queries.device).tril(ahead)
            causal = False
        # The fused attention returns no weights: a report computes them a second time.
        if record is not None:
            record.weights.append(attention_weights(queries, keys, mask, causal))
        grouped = keys.shape[1] != queries.shape[1]
        out = F.scaled_dot_product_attention(
            queries, keys, values, attn_mask=mask, is_causal=causal, enable_gqa=grouped
        )
        return out.transpose(1, 2).flatten(2)


def attention_weights(queries: Tensor, keys: Tensor, mask: Tensor | None = None, causal: bool = False) -> Tensor:
    """float32[C, H, Tq, Tk]: the softmax weights that ``scaled_dot_product_attention`` uses but does not return.

    Keys float[C, K, Tk, d] may have fewer heads than queries float[C, H, Tq, d]; head k serves H / K queries in a row.
    """
    keys = keys.repeat_interleave(queries.shape[1] // keys.shape[1], dim=1)
    with torch.autocast(queries.device.type, enabled=False):  # autocast would make the product bfloat16
        scores = queries.float() @ keys.float().transpose(-1, -2) / math.sqrt(queries.shape[-1])
    if causal:
        mask = torch.ones(scores.shape[-2:], dtype=torch.bool, device=scores.device).tril()
    if mask is not None:
        scores = scores.masked_fill(~mask, float("-inf"))
    return scores.softmax(dim=-1)


def rows_of(values: Tensor, image_index: Tensor) -> Tensor:
    """float[B, ...] -> float[C, ...]: the row of each caption's image.

    A text-only caption gets row 0, so callers have to mask its result; zeros if there are no images.
    """
    if len(values) == 0:
        # Adding the sum of no values keeps the graph connected: DDP waits for a gradient of every parameter of
        # encoder and bridge, also on a rank whose batch has no images.
        return values.new_zeros(len(image_index), *values.shape[1:]) + values.sum()
    rows = image_index.clamp(min=0)
    # Several captions read one image, so the backward pass sums into a row. On an accelerator ``index_select`` sums
    # with atomic additions, in no fixed order, and indexing sums in a fixed order. On a CPU both are deterministic, and
    # indexing is three times slower.
    return values.index_select(0, rows) if values.device.type == "cpu" else values[rows]


def visible_mask(visible: Tensor, num_tokens: int) -> Tensor:
    """bool[C, 1, T, T], true where a token may look: a causal mask, plus a prefix that every token sees.

    ``visible`` int64[C] is the length of each caption's prefix (prefix language modelling); 0 is causal attention.
    """
    positions = torch.arange(num_tokens, device=visible.device)
    causal = positions[:, None] >= positions[None, :]
    return (causal[None] | (positions[None, None, :] < visible[:, None, None]))[:, None]


def identity_attention(patches: Tensor) -> Tensor:
    """float[B, N, D] -> float32[B, N, N]: the ``patch_attention`` of a bridge whose memory token n is patch n."""
    batch, num_patches, _ = patches.shape
    return torch.eye(num_patches, device=patches.device).expand(batch, -1, -1)


class FeedForward(nn.Sequential):
    """Linear, GELU, linear: float[..., D] -> float[..., D] through ``mlp_ratio * D`` hidden units."""

    def __init__(self, width: int, mlp_ratio: float = 4.0, out_width: int | None = None) -> None:
        hidden = int(width * mlp_ratio)
        super().__init__(nn.Linear(width, hidden), nn.GELU(), nn.Linear(hidden, out_width or width))

    @property
    def output(self) -> nn.Linear:
        """The layer that writes into the residual stream."""
        return cast(nn.Linear, self[-1])


class SwiGlu(nn.Module):
    """Gated feed-forward (SwiGLU, arXiv:2002.05202): ``output(silu(gate(x)) * up(x))``, float[..., D] -> same.

    As in the paper without biases, and with two thirds of ``mlp_ratio * D`` hidden units, since there are three
    matrices where ``FeedForward`` has two: the number of weights is the same.
    """

    def __init__(self, width: int, mlp_ratio: float = 4.0) -> None:
        super().__init__()
        hidden = round(width * mlp_ratio * 2 / 3)
        self.gate_up = nn.Linear(width, 2 * hidden, bias=False)
        self.output = nn.Linear(hidden, width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """float[..., D] -> float[..., D]."""
        gate, up = self.gate_up(x).chunk(2, dim=-1)
        return self.output(F.silu(gate) * up)


class RmsNorm(nn.RMSNorm):
    """``x / rms(x) * weight`` (arXiv:1910.07467), in the dtype of ``x``.

    Differs from ``nn.RMSNorm``: epsilon is 1e-6 in every dtype; the weight is cast to the dtype of ``x``. Under
    autocast ``x`` is bfloat16 and the weight float32, for which PyTorch has no fused kernel and warns.
    """

    def __init__(self, width: int) -> None:
        super().__init__(width, eps=1e-6)

    def forward(self, x: Tensor) -> Tensor:
        """float[..., D] -> float[..., D]."""
        return F.rms_norm(x, self.normalized_shape, self.weight.to(x.dtype), self.eps)


FeedForwardKind = Literal["gelu", "swiglu"]
FEED_FORWARDS: Mapping[FeedForwardKind, type[FeedForward | SwiGlu]] = {"gelu": FeedForward, "swiglu": SwiGlu}
Norm = Literal["layer_norm", "rms_norm"]
NORMS: Mapping[Norm, type[nn.LayerNorm | RmsNorm]] = {"layer_norm": nn.LayerNorm, "rms_norm": RmsNorm}


def init_linears(module: nn.Module, num_residual_layers: int | None = None) -> None:
    """Initialises every linear layer and embedding inside, each keyed by its name in ``module`` (``keyed_start``).

    Linear weights are normal with variance 1 / inputs, so that signals keep their size at any width (GPT-2's fixed
    0.02 equals that at a width of 2,500, and shrinks signals in narrower layers). Biases are 0, embeddings
    normal(0, 0.02). With ``num_residual_layers``, the weights of layers that write into a residual stream (attention
    output, last layer of a feed-forward) are divided by its square root, so that the stream's variance does not grow
    with depth (GPT-2).
    """
    for name, part in module.named_modules():
        if not isinstance(part, nn.Embedding | nn.Linear):
            continue
        # By name, so that a layer more or another kind of sub-layer leaves the weights of all others as they are.
        with keyed_start(name):
            nn.init.normal_(part.weight, std=INIT_STD if isinstance(part, nn.Embedding) else part.in_features**-0.5)
        if isinstance(part, nn.Linear) and part.bias is not None:
            nn.init.zeros_(part.bias)
    if num_residual_layers is None:
        return
    with torch.no_grad():
        for part in module.modules():
            if isinstance(part, MultiHeadAttention | FeedForward | SwiGlu):
                part.output.weight /= math.sqrt(num_residual_layers)


def check_sizes(counts: Mapping[str, int], width: int, mlp_ratio: float) -> None:
    """UserError if one of ``counts`` (arguments by name) is below 1, or a feed-forward layer has no hidden units."""
    for key, value in counts.items():
        if value < 1:
            raise ArgumentError(f"{key}: {value} must be at least 1")
    if int(width * mlp_ratio) < 1:
        raise ArgumentError(f"mlp_ratio: {mlp_ratio} leaves no hidden units; use one above 0, such as 4.0")
