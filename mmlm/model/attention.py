"""Multi-head attention, its masks, and its cache of keys and values."""

import math
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mmlm.core.batch import TEXT_ONLY
from mmlm.core.errors import ArgumentError
from mmlm.core.ranges import check_heads


@dataclass
class KeyValueCache:
    """Keys and values of all tokens that one attention layer has read so far, for decoding token by token.

    Those of a caption lie in memory that is taken once, at the first ``extend``. Those of a prefix, which all captions
    of an image read, are there once an image.
    """

    room: int
    """Tokens of a caption that find place."""
    shared: tuple[Tensor, Tensor] | None = None
    """float[B, K, M, d] each, for K key-value heads: keys and values of each image's prefix, before its captions."""
    keys: Tensor | None = None
    """float[C, K, room, d], C a multiple of B: of the captions, image by image; beyond ``num_tokens`` undefined."""
    values: Tensor | None = None
    """As ``keys``."""
    num_tokens: int = 0
    """T, tokens of every caption so far, without the prefix."""

    @property
    def length(self) -> int:
        """The tokens that a new one finds before it: prefix and caption."""
        return self.num_tokens + (0 if self.shared is None else self.shared[0].shape[2])

    def extend(self, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """Appends keys and values float[C, K, t, d] and returns those of all T + t tokens of the captions.

        Raises ValueError if there is no room for them.
        """
        start, end = self.num_tokens, self.num_tokens + keys.shape[2]
        if end > self.room:
            raise ValueError(f"{end} tokens are more than the cache has room for, {self.room}")
        if self.keys is None or self.values is None:
            shape = (*keys.shape[:2], self.room, keys.shape[3])
            self.keys, self.values = keys.new_empty(shape), values.new_empty(shape)
        self.keys[:, :, start:end] = keys
        self.values[:, :, start:end] = values
        self.num_tokens = end
        return self.keys[:, :, :end], self.values[:, :, :end]

    def copy_rows(self, source: Tensor, target: Tensor) -> None:
        """The captions ``target`` int64[n] get the tokens of the captions ``source`` int64[n], none of them in both."""
        for kept in (self.keys, self.values):
            if kept is not None:
                kept[target, :, : self.num_tokens] = kept[source, :, : self.num_tokens]

    def keep_rows(self, images: Tensor, rows: Tensor) -> None:
        """Only the prefixes of ``images`` and the captions ``rows``, int64[n] each, remain, in this order."""
        if self.shared is not None:
            self.shared = self.shared[0][images], self.shared[1][images]
        self.keys = None if self.keys is None else self.keys[rows]
        self.values = None if self.values is None else self.values[rows]


def rows_of_images(images: Tensor, copies: int) -> Tensor:
    """int64[n * copies]: the rows of the captions of ``images`` int64[n], if every image has ``copies`` of them."""
    return (images[:, None] * copies + torch.arange(copies, device=images.device)).flatten()


@dataclass
class AttentionRecord:
    """Collects attention weights of the layers that it is passed to. For reports, never in training."""

    weights: list[Tensor] = field(default_factory=list)
    """float32[C, H, Tq, Tk] for each recorded layer, in the order of the layers."""


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
        check_heads(width, num_heads)
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

    def attend_copies(self, queries: Tensor, keys: Tensor, values: Tensor) -> Tensor:
        """``attend`` where several captions read each memory: queries float[B * n, H, t, d] -> float[B * n, t, D].

        Keys and values are float[B, K, M, d]. The n captions of an image are queries side by side, so that its keys
        are neither copied nor read more than once.
        """
        copies, num_tokens = len(queries) // len(keys), queries.shape[2]
        if copies == 1:
            return self.attend(queries, keys, values)
        out = self.attend(_side_by_side(queries, copies), keys, values)
        return out.unflatten(1, (copies, num_tokens)).flatten(0, 1)

    def attend_behind(self, queries: Tensor, shared: tuple[Tensor, Tensor], own: tuple[Tensor, Tensor]) -> Tensor:
        """One softmax over the prefix of an image and, causal, over a caption's own tokens -> float[B * n, t, D].

        Args:
            queries: float[B * n, H, t, d], the last t tokens of each caption.
            shared: keys and values of the prefixes, float[B, K, M, d] each, read as in ``attend_copies``.
            own: those of each caption's T tokens, float[B * n, K, T, d] each.
        """
        (prefix_keys, prefix_values), (keys, values) = shared, own
        copies, (num_tokens, num_keys) = len(queries) // len(prefix_keys), (queries.shape[2], keys.shape[2])
        queries = queries / math.sqrt(queries.shape[-1])
        to_prefix = _grouped(_side_by_side(queries, copies), prefix_keys.transpose(-1, -2))
        to_own = _grouped(queries, keys.transpose(-1, -2))
        if num_tokens > 1:
            seen = torch.ones(num_tokens, num_keys, dtype=torch.bool, device=keys.device).tril(num_keys - num_tokens)
            to_own = to_own.masked_fill(~seen, -torch.inf)
        scores = torch.cat([_one_below_another(to_prefix, copies), to_own], dim=-1)
        weights = scores.softmax(dim=-1).to(values.dtype)
        on_prefix, on_own = weights.split([prefix_keys.shape[2], num_keys], dim=-1)
        read = _one_below_another(_grouped(_side_by_side(on_prefix, copies), prefix_values), copies)
        return (read + _grouped(on_own, values)).transpose(1, 2).flatten(2)


def _side_by_side(x: Tensor, copies: int) -> Tensor:
    """[B * n, H, t, d] -> [B, H, n * t, d]."""
    return x.unflatten(0, (-1, copies)).transpose(1, 2).flatten(2, 3)


def _one_below_another(x: Tensor, copies: int) -> Tensor:
    """[B, H, n * t, d] -> [B * n, H, t, d]."""
    return x.unflatten(2, (copies, -1)).transpose(1, 2).flatten(0, 1)


def _grouped(x: Tensor, y: Tensor) -> Tensor:
    """[C, H, t, a] @ [C, K, a, b] -> [C, H, t, b], where each of the K serves H / K in a row."""
    groups = x.shape[1] // y.shape[1]
    if groups == 1:
        return x @ y
    product = x.unflatten(1, (-1, groups)).flatten(2, 3) @ y
    return product.unflatten(2, (groups, -1)).flatten(1, 2)


def attention_weights(queries: Tensor, keys: Tensor, mask: Tensor | None = None, causal: bool = False) -> Tensor:
    """float32[C, H, Tq, Tk]: the softmax weights that ``scaled_dot_product_attention`` uses but does not return.

    Keys float[C, K, Tk, d] may have fewer heads than queries float[C, H, Tq, d]; head k serves H / K queries in a row.
    """
    keys = keys.repeat_interleave(queries.shape[1] // keys.shape[1], dim=1)
    device = "cpu" if queries.is_meta else queries.device.type  # autocast does not know the meta device
    with torch.autocast(device, enabled=False):  # it would make the product bfloat16
        scores = queries.float() @ keys.float().transpose(-1, -2) / math.sqrt(queries.shape[-1])
    if causal:
        mask = torch.ones(scores.shape[-2:], dtype=torch.bool, device=scores.device).tril()
    if mask is not None:
        scores = scores.masked_fill(~mask, float("-inf"))
    return scores.softmax(dim=-1)


def visible_mask(visible: Tensor, num_tokens: int) -> Tensor:
    """bool[C, 1, T, T], true where a token may look: a causal mask, plus a prefix that every token sees.

    ``visible`` int64[C] is the length of each caption's prefix (prefix language modelling); 0 is causal attention.
    """
    positions = torch.arange(num_tokens, device=visible.device)
    causal = positions[:, None] >= positions[None, :]
    return (causal[None] | (positions[None, None, :] < visible[:, None, None]))[:, None]


def prefix_mask(
    num_memory: int, num_tokens: int, image_index: Tensor, visible: Tensor | None = None, causal_prefix: bool = True
) -> Tensor:
    """bool[C, 1, M + T, M + T], true where a token of [prefix, text] may look: causal, plus what is ``visible``.

    Text of a caption without an image (``image_index`` int64[C] is ``TEXT_ONLY``) does not look at the prefix.
    ``visible`` int64[C] is the number of leading text tokens that every text token sees; None is causal attention.
    Without ``causal_prefix``, tokens of the prefix see all of the prefix, and still no text.
    """
    size = num_memory + num_tokens
    causal = torch.ones(size, size, dtype=torch.bool, device=image_index.device).tril()
    if not causal_prefix:
        causal[:num_memory, :num_memory] = True
    positions = torch.arange(size, device=image_index.device)
    text_to_prefix = (positions[:, None] >= num_memory) & (positions[None, :] < num_memory)
    hidden = text_to_prefix[None] & (image_index == TEXT_ONLY)[:, None, None]
    mask = (causal[None] & ~hidden)[:, None]
    if visible is not None:
        # Only text to text is opened: a text-only caption still does not see the prefix.
        mask[..., num_memory:, num_memory:] |= visible_mask(visible, num_tokens)
    return mask


def identity_attention(patches: Tensor) -> Tensor:
    """float[B, N, D] -> float32[B, N, N]: the ``patch_attention`` of a bridge whose memory token n is patch n."""
    batch, num_patches, _ = patches.shape
    return torch.eye(num_patches, device=patches.device).expand(batch, -1, -1)
