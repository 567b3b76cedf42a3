"""Which texts the training data have as captions: 8 bytes a caption, whatever its length."""

import hashlib
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from mmlm.core.batch import Caption
from mmlm.core.distributed import gather_results, rank
from mmlm.evaluation.caption_words import normalised

READS_ALIKE = "NFKC, lower case, without punctuation and blanks around words; 64-bit digests"
"""When two captions read the same, for the protocol of scores."""
_WORD = re.compile(r"\w+")


def digest_of(text: str) -> int:
    """64 bits (BLAKE2b) of how a text reads: equal for texts that differ in capitals, punctuation and blanks only.

    Of n training captions, a text that is none of them has the digest of one with a probability of n / 2^64.
    """
    read = " ".join(_WORD.findall(normalised(text)))
    return int.from_bytes(hashlib.blake2b(read.encode("utf-8", "replace"), digest_size=8).digest(), "big")


@dataclass(frozen=True)
class TrainingCaptions:
    """The captions that a model was trained on, read when they are first asked for, and then known by their digests."""

    read: Callable[[], Iterable[Caption]]
    """Lists every caption of the training data; the only thing of them that is asked for. May raise UserError."""

    def __len__(self) -> int:
        """Captions that read differently."""
        return len(self._digests)

    def hold(self, texts: Sequence[str]) -> list[bool]:
        """Whether each text reads as one of the captions does.

        All ranks make the first call: rank 0 reads. Raises on all of them what ``read`` raises there.
        """
        asked = np.fromiter(map(digest_of, texts), np.uint64, len(texts))
        found: list[bool] = np.isin(asked, self._digests).tolist()
        return found

    @cached_property
    def _digests(self) -> NDArray[np.uint64]:
        """In order, each once."""
        every = gather_results(lambda: self._listed() if rank() == 0 else None)
        (found,) = (part for part in every if part is not None)
        return found

    def _listed(self) -> NDArray[np.uint64]:
        return np.unique(np.fromiter((digest_of(caption.text) for caption in self.read()), np.uint64))
