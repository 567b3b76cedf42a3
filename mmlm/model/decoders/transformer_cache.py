"""What our Transformer decoder keeps from one token to the next."""

from dataclasses import dataclass, field

from torch import Tensor

from mmlm.model.attention import KeyValueCache, rows_of_images


@dataclass
class DecoderCache:
    """Keys and values that decoding keeps from step to step; see ``DecodingCache``."""

    num_images: int
    """B."""
    unimodal: list[KeyValueCache]
    """Self-attention of each unimodal layer."""
    multimodal: list[KeyValueCache]
    """Self-attention of each multimodal layer; with a prefix, each image's keys and values are there once."""
    memory: list[tuple[Tensor, Tensor]] = field(default_factory=list)
    """Cross-attention keys and values of each multimodal layer, float[B, K, M, d], made once; empty with a prefix."""

    @property
    def num_tokens(self) -> int:
        """Text tokens decoded so far, without the prefix."""
        return self.unimodal[0].num_tokens

    def copy_rows(self, source: Tensor, target: Tensor) -> None:
        """See ``DecodingCache``."""
        for kept in (*self.unimodal, *self.multimodal):
            kept.copy_rows(source, target)

    def keep_images(self, images: Tensor) -> None:
        """See ``DecodingCache``."""
        keys = self.unimodal[0].keys
        rows = rows_of_images(images, 1 if keys is None else len(keys) // self.num_images)
        for kept in (*self.unimodal, *self.multimodal):
            kept.keep_rows(images, rows)
        self.memory = [(keys[images], values[images]) for keys, values in self.memory]
        self.num_images = len(images)
