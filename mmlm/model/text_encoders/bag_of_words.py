"""A text tower that knows which tokens a text has, and not in which order."""

from torch import Tensor, nn

from mmlm.core.ranges import check_counts, check_ratio
from mmlm.model.blocks import FeedForward, init_linears
from mmlm.model.text_encoders.pooling import pooled


class BagOfWords(nn.Module):
    """The mean of the tokens' embeddings, then a feed-forward layer with a residual: no positions, no attention.

    A text and any order of its tokens have the same vector, so that contrastive learning with this tower shows what the
    words alone are good for: the control of an ablation on word order ("bags-of-words", arXiv:2210.01936).

    Args:
        vocab_size: tokens, V.
        width: D.
        mlp_ratio: hidden units of the feed-forward layer, in widths.

    Raises:
        ArgumentError: a width below 1, or a ratio that leaves no hidden unit.
    """

    vocabulary = None

    def __init__(self, vocab_size: int, width: int = 192, mlp_ratio: float = 4.0) -> None:
        super().__init__()
        check_counts({"width": width})
        check_ratio("mlp_ratio", mlp_ratio, width)
        self.width = width
        self.token_embedding = nn.Embedding(vocab_size, width)
        self.norm_in = nn.LayerNorm(width)
        self.feed_forward = FeedForward(width, mlp_ratio)
        self.norm = nn.LayerNorm(width)
        init_linears(self)

    def forward(self, tokens: Tensor, lengths: Tensor) -> Tensor:
        """int64[C, T], int64[C] -> float[C, D], after the last norm; start and end are tokens of every text."""
        mean = pooled(self.token_embedding(tokens), lengths, "mean")
        return self.norm(mean + self.feed_forward(self.norm_in(mean)))
