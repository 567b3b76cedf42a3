"""CLIP's tokenizer, as open_clip has it."""

from collections.abc import Iterable, Sequence
from pathlib import Path

from mmlm.core.batch import Caption
from mmlm.core.errors import UserError
from mmlm.data.tokenizer import frame, normalise_text, until_end


class OpenClip:
    """open_clip's CLIP tokenizer (49,408 ids, lower-cased, cleaned by ftfy), for its weights and for parity with it.

    open_clip pads with 0, which is also a token (a ``!`` inside a word). With ``own_padding`` padding is an id of its
    own, 49,408. Without it padding is 0 as in open_clip, so that the vocabulary has the 49,408 rows of open_clip's
    weights; lengths tell where padding is, so the token 0 is read, predicted and written all the same. Needs the
    optional package open_clip_torch, whose wheel has the vocabulary. All languages share one start.
    """

    def __init__(self, own_padding: bool = True) -> None:
        """Raises UserError if open_clip_torch is not installed."""
        try:
            from open_clip.tokenizer import SimpleTokenizer
        except ImportError:
            raise UserError("the OpenClip tokenizer needs a package: pip install open_clip_torch") from None
        self._model = SimpleTokenizer()
        self._special = set(self._model.all_special_ids)
        self.pad_id, self.vocab_size = 0, self._model.vocab_size
        if own_padding:
            self.pad_id, self.vocab_size = self.vocab_size, self.vocab_size + 1
            self._special.add(self.pad_id)
        self.end_id = self._model.eot_token_id

    def fit(self, captions: Iterable[Caption]) -> None:
        """Does nothing: the vocabulary is given."""

    def start_id(self, language: str | None) -> int:
        """The start id of every caption, whatever its language."""
        return self._model.sot_token_id

    def encode(self, text: str, language: str | None, max_tokens: int) -> list[int]:
        """See :class:`Tokenizer`. ``<start_of_text>`` and ``<end_of_text>`` in a text are left out."""
        ids = [i for i in self._model.encode(normalise_text(text)) if i not in self._special]
        return frame(self.start_id(language), ids, self.end_id, max_tokens)

    def decode(self, ids: Sequence[int]) -> str:
        """See :class:`Tokenizer`. The original case and spacing are lost."""
        kept = [i for i in until_end(ids, self.end_id) if i not in self._special]
        return self._model.decode(kept).strip()

    def count_unknown(self, text: str) -> int:
        """0: every byte has an id."""
        return 0

    def save(self, folder: Path) -> None:
        """Does nothing: the vocabulary is part of the package."""

    def restore(self, folder: Path) -> None:
        """Does nothing: the vocabulary is part of the package."""
