"""SigLIP's tokenizer: sentence pieces of texts in their canonical form."""

from mmlm.core.errors import UserError
from mmlm.data.tokenizer import frame, normalise_text
from mmlm.data.tokenizers.hugging_face import HuggingFace


class Siglip(HuggingFace):
    """The tokenizer of SigLIP and SigLIP 2, as open_clip has it: a tokenizer of transformers behind its cleaning.

    A text is mended by ftfy, HTML's ``&amp;`` and the like become characters, ``_`` becomes a blank, and ASCII
    punctuation is removed; then it is lower-cased. Pieces that the vocabulary lacks are its unknown piece, which is
    read like any other: ids equal those of open_clip's ``HFTokenizer(clean="canonicalize")``, between a start, which
    the text tower does not read, and the end. Needs the optional package open_clip_torch.

    Args:
        name_or_path: the tokenizer on the hub (``timm/ViT-B-16-SigLIP``) or in a folder.

    Raises:
        UserError: open_clip_torch is not installed, or the tokenizer cannot be loaded.
    """

    def __init__(self, name_or_path: str) -> None:
        try:
            from open_clip.tokenizer import get_clean_fn
        except ImportError:
            raise UserError("the Siglip tokenizer needs a package: pip install open_clip_torch") from None
        self._canonical = get_clean_fn("canonicalize")
        super().__init__(name_or_path)

    @property
    def own_pad_id(self) -> int | None:
        """The id that SigLIP fills texts with, which may be that of their end."""
        return self._model.pad_token_id

    def encode(self, text: str, language: str | None, max_tokens: int) -> list[int]:
        """See :class:`mmlm.data.tokenizer.Tokenizer`. Special tokens written in a text are cut like other text."""
        left_out = self._special - {self._model.unk_token_id}
        ids = [i for i in self._pieces(text) if i not in left_out]
        return frame(self.start_id(language), ids, self.end_id, max_tokens)

    def _pieces(self, text: str) -> list[int]:
        return super()._pieces(self._canonical(normalise_text(text)))
