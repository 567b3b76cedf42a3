"""Space-to-depth on the grid of patches: fewer tokens, each as wide as the patches it is made of (Idefics3)."""

import math
from dataclasses import dataclass

from torch import Tensor

from mmlm.core.errors import ArgumentError, UserError
from mmlm.model.attention import identity_attention


@dataclass(frozen=True)
class PixelShuffle:
    """Concatenates each square of ``factor`` x ``factor`` patches into one token (Idefics3, arXiv:2408.12637).

    "Pixel shuffle" is that paper's name; the operation is space-to-depth, the inverse of the pixel shuffle of
    super-resolution (arXiv:1609.05158). Inside a token the patches stand row by row. A factor of 1 changes nothing.

    Raises:
        UserError: a factor that does not divide the grid; or, with a factor above 1, prefix tokens (which have no place
            on the grid) or patch dropout.
    """

    grid: tuple[int, int]
    """Rows and columns of the patches."""
    factor: int = 1
    """r: side, in patches, of the square that becomes one token."""
    num_prefix_tokens: int = 0
    """Class and register tokens in front of the encoder's patches."""
    drops_patches: bool = False
    """True if the encoder has patch dropout."""

    def __post_init__(self) -> None:
        rows, columns = self.grid
        if self.factor < 1:
            raise ArgumentError(f"pixel_shuffle: {self.factor} must be at least 1; 1 keeps every patch")
        if rows % self.factor or columns % self.factor:
            common = math.gcd(rows, columns)
            fits = ", ".join(str(factor) for factor in range(1, common + 1) if common % factor == 0)
            raise ArgumentError(
                f"pixel_shuffle: {self.factor} does not divide the grid of {rows} x {columns} patches; "
                f"use one that does: {fits}"
            )
        if self.factor > 1 and self.num_prefix_tokens:
            raise ArgumentError(
                f"pixel_shuffle: {self.factor} takes patches only, and the encoder keeps "
                f"{self.num_prefix_tokens} prefix tokens (class, registers); use an encoder without them or "
                "pixel_shuffle=1"
            )
        if self.factor > 1 and self.drops_patches:
            raise ArgumentError(
                f"pixel_shuffle: {self.factor} needs every patch, and the encoder leaves some out in training; "
                "use encoder.patch_dropout=0 or pixel_shuffle=1"
            )

    @property
    def num_tokens(self) -> int:
        """M: tokens of the result."""
        return self.num_prefix_tokens + self.grid[0] * self.grid[1] // self.factor**2

    def __call__(self, tokens: Tensor) -> Tensor:
        """float[B, N, D] -> float[B, N / r^2, r^2 * D]. Raises UserError if r > 1 and patches are missing."""
        if self.factor == 1:
            return tokens
        rows, columns = self.grid
        if tokens.shape[1] != rows * columns:
            raise UserError(
                f"bridge.pixel_shuffle: {self.factor} needs all {rows} x {columns} patches and got {tokens.shape[1]} "
                "tokens; use encoder.patch_dropout=0 or bridge.pixel_shuffle=1"
            )
        squares = tokens.unflatten(1, (rows // self.factor, self.factor, columns // self.factor, self.factor))
        # [B, rows / r, r, columns / r, r, D]: bring both sides of a square together, then join its patches.
        return squares.transpose(2, 3).flatten(3).flatten(1, 2)

    def attention(self, patches: Tensor) -> Tensor:
        """float[B, N, D] -> float32[B, M, N]: 1 / r^2 on each patch of a token (the identity if r is 1)."""
        # Shuffled like features, the one-hot rows of the identity tell which patches each token is made of.
        places = self(identity_attention(patches[:1]))
        return places.unflatten(2, (self.factor**2, -1)).mean(dim=2).expand(len(patches), -1, -1)
