"""Our Transformer as a separate text tower."""

from typing import Literal

import torch
from torch import Tensor, nn

from mmlm.core.errors import ArgumentError
from mmlm.core.keyed_start import keyed_start
from mmlm.core.ranges import check_dropout, check_heads
from mmlm.model.blocks import INIT_STD, check_sizes, init_linears, sinusoidal_positions
from mmlm.model.packing import Layout
from mmlm.model.text_encoders.pooling import pooled
from mmlm.model.transformer_layers import DecoderLayer, LayerSettings, Positions


class TransformerTextEncoder(nn.Module):
    """Pre-norm Transformer over a text: CLIP's text tower (arXiv:2103.00020), or a bidirectional one.

    ``attention="causal"`` with ``pool="end"`` is CLIP's: the end token stands last, so it attends to the whole text.
    Layers, positions and packing are those of ``TransformerDecoder``.

    Differs from CLIP: no projection (``ImageTextModel`` has one), exact GELU instead of its quick approximation.

    Args:
        vocab_size: tokens, V.
        max_tokens: longest text, start and end included.
        width: D.
        num_heads: attention heads, H.
        num_layers: layers (>= 1).
        mlp_ratio: hidden units of the feed-forward, in widths.
        attention: ``causal`` (a token sees those before it) or ``bidirectional``.
        pool: the state at the ``end`` token, or the ``mean`` over all real tokens.
        positions: ``sinusoidal`` and ``learned`` are added to the token embedding; ``rotary`` turns queries and keys.
        packed: run token-wise layers on real tokens only.
        dropout: probability, on the output of every sub-layer.

    Raises:
        UserError: fewer than one layer, a dropout outside of [0, 1), or heads that do not divide the width.
    """

    vocabulary = None
    fixed_positions: Tensor | None
    """float32[max_tokens, D]: sinusoidal positions; None with other kinds. Not saved: a constant."""

    def __init__(
        self,
        vocab_size: int,
        max_tokens: int,
        width: int = 192,
        num_heads: int = 4,
        num_layers: int = 2,
        mlp_ratio: float = 4.0,
        attention: Literal["causal", "bidirectional"] = "causal",
        pool: Literal["mean", "end"] = "end",
        positions: Positions = "learned",
        packed: bool = True,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        check_sizes({"num_layers": num_layers}, width, mlp_ratio)
        check_heads(width, num_heads)
        check_dropout(dropout)
        if positions == "rotary" and (width // num_heads) % 2:
            raise ArgumentError(f"positions: rotary needs an even head width, not {width} / {num_heads}")
        self.width, self.max_tokens, self.packed = width, max_tokens, packed
        self.causal, self.pool = attention == "causal", pool
        self.token_embedding = nn.Embedding(vocab_size, width)
        self.position_embedding = nn.Parameter(torch.zeros(max_tokens, width)) if positions == "learned" else None
        fixed = sinusoidal_positions(max_tokens, width) * INIT_STD if positions == "sinusoidal" else None
        self.register_buffer("fixed_positions", fixed, persistent=False)
        layer = LayerSettings(
            width=width,
            num_heads=num_heads,
            num_key_value_heads=None,
            feed_forward="gelu",
            mlp_ratio=mlp_ratio,
            norm="layer_norm",
            rotary=positions == "rotary",
            dropout=dropout,
        )
        self.layers = nn.ModuleList(DecoderLayer(layer) for _ in range(num_layers))
        self.norm = nn.LayerNorm(width)
        init_linears(self, num_residual_layers=2 * num_layers)
        if self.position_embedding is not None:
            with keyed_start("position_embedding"):
                nn.init.normal_(self.position_embedding, std=INIT_STD)

    def forward(self, tokens: Tensor, lengths: Tensor) -> Tensor:
        """int64[C, T], int64[C] -> float[C, D], after the last norm."""
        num_tokens = tokens.shape[1]
        if num_tokens > self.max_tokens:
            raise ValueError(f"{num_tokens} tokens are more than the text encoder's max_tokens {self.max_tokens}")
        layout = Layout.of_lengths(lengths, num_tokens, self.packed)
        # Padding stands behind the text, where causal attention never sees it. Bidirectional attention needs a mask.
        mask = None if self.causal else Layout.mask(lengths, num_tokens)[:, None, None]
        x = self._embed(tokens, layout)
        for layer in self.layers:
            x = layer(x, layout, mask=mask)
        return pooled(layout.pad(self.norm(x)), lengths, self.pool)

    def places(self, lengths: Tensor, num_tokens: int) -> int:
        """See ``mmlm.model.text_places.CountsPlaces``."""
        return Layout.places(lengths, num_tokens, self.packed)

    def _embed(self, tokens: Tensor, layout: Layout) -> Tensor:
        """int64[C, T] -> packed float[P, D]."""
        x = self.token_embedding(layout.pack(tokens))
        table = self.position_embedding if self.position_embedding is not None else self.fixed_positions
        if table is None:
            return x
        positions = torch.arange(tokens.shape[1], device=tokens.device).expand_as(tokens)
        return x + table[layout.pack(positions)]
