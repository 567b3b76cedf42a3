"""Start and end of every image encoder: uint8 pixels to normalised floats, and backbone tokens to ``EncoderOutput``."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from mmlm.core.errors import ArgumentError
from mmlm.model.protocols import EncoderOutput

Pool = Literal["cls", "mean"]
"""How an encoder pools: by its class token, or by the mean of its patch tokens."""
OwnPool = Literal["cls", "mean", "own"]
"""``own``: by what the library's architecture pools with itself, as by the attention pool of SigLIP."""


def readout_pool(pool: OwnPool | None) -> Pool | None:
    """What is left to ``Readout``: None where the architecture pools itself."""
    return None if pool == "own" else pool


class Normalize(nn.Module):
    """uint8[B, 3, S, S] -> float32[B, 3, S, S]: ``(x / 255 - mean) / std``, for each colour channel."""

    mean: Tensor
    """float32[1, 3, 1, 1], times 255. Mean and deviation are constants: not saved."""
    std: Tensor
    """float32[1, 3, 1, 1], times 255."""

    def __init__(self, mean: Sequence[float], std: Sequence[float]) -> None:
        super().__init__()
        self.register_buffer("mean", 255 * torch.tensor(mean).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("std", 255 * torch.tensor(std).view(1, 3, 1, 1), persistent=False)

    def forward(self, images: Tensor) -> Tensor:
        return (images - self.mean) / self.std


@dataclass(frozen=True)
class Readout:
    """Turns a backbone's tokens into an ``EncoderOutput``: pools, and drops or keeps prefix tokens.

    Args:
        num_prefix_tokens: class and register tokens that the backbone puts in front of its patches.
        has_class_token: true if the first prefix token is a class token.
        pool: ``cls`` pools the class token, ``mean`` averages the patch tokens, None leaves pooling to the bridge.
        keep_prefix_tokens: true if the prefix tokens stay in the output.

    Raises:
        UserError: ``cls`` without a class token, or ``keep_prefix_tokens`` without prefix tokens.
    """

    num_prefix_tokens: int
    has_class_token: bool
    pool: Pool | None
    keep_prefix_tokens: bool

    def __post_init__(self) -> None:
        if self.pool == "cls" and not self.has_class_token:
            raise ArgumentError("pool: 'cls' needs a class token and this architecture has none; use mean or null")
        if self.pool not in (None, "cls", "mean"):
            raise ArgumentError(f"pool: '{self.pool}' is not one of cls, mean, null")
        if self.keep_prefix_tokens and self.num_prefix_tokens == 0:
            raise ArgumentError(
                "keep_prefix_tokens: this architecture has no class or register tokens to keep; use false"
            )

    @property
    def num_kept(self) -> int:
        """Number of prefix tokens in the output."""
        return self.num_prefix_tokens if self.keep_prefix_tokens else 0

    def pooled_width(self, width: int) -> int | None:
        """Width of the pooled vector, for tokens of ``width``; None without pooling."""
        return None if self.pool is None else width

    def __call__(self, tokens: Tensor) -> EncoderOutput:
        """float[B, prefix + N, D] -> tokens float[B, N or prefix + N, D] and pooled float[B, D] or None."""
        patches = tokens[:, self.num_prefix_tokens :]
        pooled = None
        if self.pool is not None:
            pooled = tokens[:, 0] if self.pool == "cls" else patches.mean(dim=1)
        return EncoderOutput(tokens if self.keep_prefix_tokens else patches, pooled)
