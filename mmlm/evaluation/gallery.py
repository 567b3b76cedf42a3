"""What retrieval searches among: the images and distinct texts of a split, and which of them belong together."""

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Gallery:
    """The images and distinct texts of a split, and the pairs that belong together."""

    image_embedding: Tensor
    """float32[B, E]."""
    text_embedding: Tensor
    """float32[K, E], one row a distinct text."""
    pairs: Tensor
    """int64[P, 2]: (image row, text row); on the CPU, as ``positive_pairs`` makes it."""
    texts: tuple[str, ...]
    """The K distinct texts, in the order of ``text_embedding``."""
    languages: tuple[str | None, ...] = ()
    """The language of each text; empty where nobody has told."""

    def paired(self) -> "Gallery":
        """The gallery without the images that no text belongs to and the texts that belong to no image."""
        images, image_of_pair = self.pairs[:, 0].unique(return_inverse=True)
        texts, text_of_pair = self.pairs[:, 1].unique(return_inverse=True)
        return Gallery(
            image_embedding=self.image_embedding[images.to(self.image_embedding.device)],
            text_embedding=self.text_embedding[texts.to(self.text_embedding.device)],
            pairs=torch.stack([image_of_pair, text_of_pair], dim=1),
            texts=tuple(self.texts[row] for row in texts.tolist()),
            languages=tuple(self.languages[row] for row in texts.tolist()) if self.languages else (),
        )
