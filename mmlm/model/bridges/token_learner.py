"""TokenLearner: each memory token is a weighted mean of the patches, with weights that a small MLP computes."""

import torch
from torch import Tensor, nn

from mmlm.core.ranges import check_counts
from mmlm.model.blocks import init_linears
from mmlm.model.protocols import BridgeOutput


class TokenLearner(nn.Module):
    """Learned weighted means of the patches (TokenLearner, arXiv:2106.11297)::

        weights = softmax over the patches of MLP(norm(patches))        [B, M, N]
        memory  = projection(weights @ norm(patches))                   [B, M, D]

    The MLP reads one patch at a time and gives it a weight for each of the ``num_tokens`` memory tokens. Its cost grows
    linearly with the number of patches. With ``pool`` one weight more makes the pooled vector.

    Differs from the paper, which uses a sigmoid of convolutions and the mean over the patches: here the weights of a
    token are a softmax over the patches, as in version 1.1 of the authors' own code. They sum to 1, do not depend on
    the number of patches, and need no grid, so that class tokens and patch dropout are allowed.

    Raises:
        ArgumentError: fewer than 1 token, or a width below 1.
    """

    def __init__(
        self, patch_width: int, width: int, num_tokens: int = 8, hidden_width: int = 64, pool: bool = True
    ) -> None:
        super().__init__()
        check_counts({"width": width, "num_tokens": num_tokens, "hidden_width": hidden_width})
        self.num_memory = num_tokens
        self.memory_width, self.pooled_width = width, width if pool else None
        self.norm = nn.LayerNorm(patch_width)
        # The last layer has no bias: the same number for every patch, it would not change the softmax.
        self.score = nn.Sequential(
            nn.Linear(patch_width, hidden_width), nn.GELU(), nn.Linear(hidden_width, num_tokens + pool, bias=False)
        )
        self.projection = nn.Linear(patch_width, width)
        init_linears(self)

    def _weights(self, normed: Tensor) -> Tensor:
        """Normalised patches float[B, N, Dp] -> float[B, M or M + 1, N]; the pooled vector's row stands first."""
        return self.score(normed).transpose(1, 2).softmax(dim=-1)

    def forward(self, patches: Tensor) -> BridgeOutput:
        """float[B, N, Dp] -> memory float[B, M, D] and pooled float[B, D] or None."""
        normed = self.norm(patches)
        tokens = self.projection(self._weights(normed) @ normed)
        pools = self.pooled_width is not None
        return BridgeOutput(memory=tokens[:, int(pools) :], pooled=tokens[:, 0] if pools else None)

    def patch_attention(self, patches: Tensor) -> Tensor:
        """float32[B, M, N]: the weights of each memory token."""
        with torch.autocast(patches.device.type, enabled=False):
            weights = self._weights(self.norm(patches)).float()
        return weights[:, weights.shape[1] - self.num_memory :]
