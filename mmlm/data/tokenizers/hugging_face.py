"""Any tokenizer of transformers."""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import cast

from mmlm.core.batch import Caption
from mmlm.core.errors import ArgumentError, UserError
from mmlm.core.local_files import locate
from mmlm.core.wording import first_line
from mmlm.data.tokenizer import frame, normalise_text, one_thread, until_end


class HuggingFace:
    """Any tokenizer of transformers, by hub name or folder.

    The tokenizer's own padding, begin and end tokens are kept where there are such. A token that is missing, or that
    has a second role (GPT-2 begins with its end token; many language models pad with it), gets a new id after the
    vocabulary, so ``vocab_size`` may be up to 3 larger than the tokenizer's own. All languages share one start.
    """

    def __init__(self, name_or_path: str) -> None:
        """``package:NAME/folder`` stands for a folder of a Python package. UserError if it cannot be loaded."""
        try:
            self._load(locate(name_or_path, "name_or_path"))
        except (OSError, ValueError) as error:
            raise ArgumentError(f"name_or_path: {name_or_path!r} cannot be loaded: {first_line(error)}") from error

    def _load(self, place: str) -> None:
        from transformers import AutoTokenizer  # takes a second, which other tokenizers do without

        # Special tokens written in a text are split into pieces like any other text.
        model = AutoTokenizer.from_pretrained(place, split_special_tokens=True, trust_remote_code=False)
        self._model = model
        # Vocabularies of encoders (BERT) have no begin and end: their class token and separator serve as such.
        end = model.eos_token_id if model.eos_token_id is not None else model.sep_token_id
        start = model.bos_token_id if model.bos_token_id is not None else model.cls_token_id
        taken: list[int] = []
        self.vocab_size = max(model.get_vocab().values()) + 1
        # End first: where one token has two roles it stays the end, and the other role gets a new id.
        for wished in (end, start, model.pad_token_id):
            if wished is None or wished in taken:
                wished, self.vocab_size = self.vocab_size, self.vocab_size + 1
            taken.append(wished)
        self.end_id, self._start_id, self.pad_id = taken
        self._special = {*taken, *model.all_special_ids}

    def fit(self, captions: Iterable[Caption]) -> None:
        """Does nothing: the vocabulary is given."""

    def start_id(self, language: str | None) -> int:
        """The start id of every caption, whatever its language."""
        return self._start_id

    def encode(self, text: str, language: str | None, max_tokens: int) -> list[int]:
        """See :class:`Tokenizer`. Ids that the tokenizer itself declares special are left out."""
        ids = [i for i in self._pieces(text) if i not in self._special]
        return frame(self.start_id(language), ids, self.end_id, max_tokens)

    def _pieces(self, text: str) -> list[int]:
        with one_thread():
            return self._model.encode(normalise_text(text), add_special_tokens=False)

    def decode(self, ids: Sequence[int]) -> str:
        """See :class:`Tokenizer`."""
        kept = [i for i in until_end(ids, self.end_id) if i not in self._special]
        # The annotation allows for a list of texts, which a list of lists of ids would give.
        return normalise_text(cast(str, self._model.decode(kept, clean_up_tokenization_spaces=False)))

    def count_unknown(self, text: str) -> int:
        """See :class:`Tokenizer`."""
        if self._model.unk_token_id is None:
            return 0
        return self._pieces(text).count(self._model.unk_token_id)

    def save(self, folder: Path) -> None:
        """Writes the tokenizer's own files into ``folder``, so that a run can be read without the hub."""
        Path(folder).mkdir(parents=True, exist_ok=True)
        self._model.save_pretrained(folder)

    def restore(self, folder: Path) -> None:
        """Reads the files that :meth:`save` wrote. UserError if they cannot be loaded."""
        try:
            self._load(str(folder))
        except Exception as error:  # of damaged files; the package tokenizers raises nothing more exact
            raise UserError(f"{folder}: the tokenizer cannot be loaded: {first_line(error)}") from error
