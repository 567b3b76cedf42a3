"""Perceiver Resampler: latents attend to the encoder's tokens and to each other in each layer (Flamingo)."""

from typing import cast

import torch
from torch import Tensor, nn

from mmlm.core.keyed_start import keyed_start
from mmlm.model.attention import MultiHeadAttention, attention_weights
from mmlm.model.blocks import INIT_STD, FeedForward, check_sizes, init_linears
from mmlm.model.protocols import BridgeOutput


class ResamplerLayer(nn.Module):
    """Latents attend to the patches and to themselves in one softmax, then a feed-forward layer; both pre-norm."""

    def __init__(self, width: int, num_heads: int, mlp_ratio: float) -> None:
        super().__init__()
        self.attention_norm = nn.LayerNorm(width)
        self.attention = MultiHeadAttention(width, num_heads)
        self.feed_forward_norm = nn.LayerNorm(width)
        self.feed_forward = FeedForward(width, mlp_ratio)

    def forward(self, latents: Tensor, patches: Tensor) -> Tensor:
        """Latents float[B, L, D], patches float[B, N, D] -> latents float[B, L, D]."""
        normed = self.attention_norm(latents)
        queries = self.attention.heads(self.attention.query(normed))
        keys, values = self.attention.keys_values(torch.cat([patches, normed], dim=1))
        latents = latents + self.attention.output(self.attention.attend(queries, keys, values))
        return latents + self.feed_forward(self.feed_forward_norm(latents))

    def patch_weights(self, latents: Tensor, patches: Tensor) -> Tensor:
        """float32[B, H, L, N]: each head's attention over the patches alone; rows sum to 1.

        A softmax without the latents equals the full softmax divided by the share that falls on patches.
        """
        queries = self.attention.heads(self.attention.query(self.attention_norm(latents)))
        keys, _ = self.attention.keys_values(patches)
        return attention_weights(queries, keys)


class PerceiverResampler(nn.Module):
    """Perceiver Resampler (Flamingo, arXiv:2204.14198; Perceiver, arXiv:2103.03206).

    ``num_latents`` learned latents pass ``depth`` layers: attention whose keys and values are the patches followed by
    the latents, then a feed-forward layer; a norm ends the stack. With ``pool``, one more latent stands first and
    becomes the pooled vector (as CoCa's contrastive query does, arXiv:2205.01917). That latent is not in the memory,
    but the other latents attend to it, as to each other.

    Differs from Flamingo: no time embeddings (one image, no frames); GELU for squared ReLU; the patches are normalised
    and projected to ``width`` once, before the first layer (Flamingo's resampler is as wide as its encoder); there is
    a pooled vector.

    Raises:
        UserError: a size below 1, or ``num_heads`` that do not divide ``width``.
    """

    def __init__(
        self,
        patch_width: int,
        width: int,
        depth: int = 2,
        num_heads: int = 4,
        num_latents: int = 16,
        mlp_ratio: float = 4.0,
        pool: bool = True,
    ) -> None:
        super().__init__()
        check_sizes({"depth": depth, "num_latents": num_latents}, width, mlp_ratio)
        self.memory_width, self.num_memory = width, num_latents
        self.pooled_width = width if pool else None
        # Row 0 is the pooling latent, if ``pool``. The values are drawn below.
        self.latent_queries = nn.Parameter(torch.zeros(num_latents + pool, width))
        self.patch_norm = nn.LayerNorm(patch_width)
        self.patch_projection = nn.Linear(patch_width, width)
        self.layers = nn.ModuleList(ResamplerLayer(width, num_heads, mlp_ratio) for _ in range(depth))
        self.norm = nn.LayerNorm(width)
        init_linears(self, num_residual_layers=2 * depth)
        # Small, so that the attention's result outweighs the latents themselves in the residual stream.
        with keyed_start("latent_queries"):
            nn.init.normal_(self.latent_queries, std=INIT_STD)

    def _start(self, patches: Tensor) -> tuple[Tensor, Tensor]:
        """float[B, N, Dp] -> inputs of the first layer: latents float[B, L, D] and patches float[B, N, D]."""
        return self.latent_queries.expand(len(patches), -1, -1), self.patch_projection(self.patch_norm(patches))

    def forward(self, patches: Tensor) -> BridgeOutput:
        """float[B, N, Dp] -> memory float[B, M, D] and pooled float[B, D] or None, for any number of patches N."""
        latents, patches = self._start(patches)
        for layer in self.layers:
            latents = layer(latents, patches)
        latents = self.norm(latents)
        if self.pooled_width is None:
            return BridgeOutput(memory=latents)
        return BridgeOutput(memory=latents[:, 1:], pooled=latents[:, 0])

    def patch_attention(self, patches: Tensor) -> Tensor:
        """float32[B, M, N]: last layer's attention over the patches, renormalised in each head, averaged over heads.

        An approximation: ignores information that reached the latents in earlier layers, or from each other.
        """
        latents, patches = self._start(patches)
        for layer in self.layers[:-1]:
            latents = layer(latents, patches)
        weights = cast(ResamplerLayer, self.layers[-1]).patch_weights(latents, patches).mean(dim=1)
        # The pooling latent, if there is one, stands first and is not in the memory.
        return weights[:, weights.shape[1] - self.num_memory :]
