"""Parts of somebody's own package, as small as a part can be: an encoder that pools, a text tower, a shy decoder."""

import torch
from torch import Tensor, nn

from mmlm.model.decoders.transformer import TransformerDecoder
from mmlm.model.encoders.timm_vit import TimmVit
from mmlm.model.protocols import EncoderOutput


class PooledVit(nn.Module):
    """A ViT that pools by the mean."""

    def __init__(self, image_size: int, width: int, depth: int, num_heads: int, patch_size: int) -> None:
        super().__init__()
        self.vit = TimmVit(image_size, patch_size=patch_size, width=width, depth=depth, num_heads=num_heads)
        self.width, self.grid = self.vit.width, self.vit.grid
        self.num_prefix_tokens, self.pooled_width = 0, self.width
        self.drops_patches = self.sees_some = False

    def forward(self, images: Tensor) -> EncoderOutput:
        """uint8[B, 3, S, S] -> tokens float[B, N, D] and their mean."""
        tokens = self.vit(images).tokens
        return EncoderOutput(tokens, tokens.mean(dim=1))


class BagOfTokens(nn.Module):
    """Embeds a caption by the mean of its tokens, whatever they are."""

    vocabulary = None

    def __init__(self, vocab_size: int, width: int) -> None:
        super().__init__()
        self.width = width
        self.embedding = nn.Embedding(vocab_size, width)
        self.output = nn.Linear(width, width)

    def forward(self, tokens: Tensor, lengths: Tensor) -> Tensor:
        """int64[C, T], int64[C] -> float[C, D]."""
        real = torch.arange(tokens.shape[1], device=tokens.device)[None, :] < lengths[:, None]
        mean = (self.embedding(tokens) * real[..., None]).sum(dim=1) / lengths[:, None]
        return self.output(mean)


class ShyDecoder(TransformerDecoder):
    """A decoder that cannot say where it looked."""

    def __init__(self, vocab_size: int, memory_width: int, max_tokens: int, width: int, num_heads: int) -> None:
        super().__init__(vocab_size, memory_width, max_tokens, width, num_heads)
        self.records_attention = False
