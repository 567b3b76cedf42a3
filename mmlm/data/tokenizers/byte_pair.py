"""Our byte-level BPE, trained on the training captions."""

import json
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import tokenizers
from tokenizers import decoders, models, pre_tokenizers, trainers

from mmlm.core.batch import Caption
from mmlm.core.errors import ArgumentError, UserError
from mmlm.core.scripts import UNSPACED
from mmlm.core.wording import first_line
from mmlm.data.tokenizer import frame, normalise_text, one_thread, until_end


class BytePair:
    """Byte-level byte-pair encoding (arXiv:1508.07909; on bytes as in GPT-2), trained on the training captions.

    Training starts from 256 tokens, one for each byte, and joins the most frequent pair of neighbouring tokens to a new
    token (a merge) until the vocabulary is full. Ids: padding 0, end 1, start 2, one start per language, then the 256
    bytes, then the merges. The BPE model does not know the special ids: its own ids are shifted by their number, so no
    text can spell one. :meth:`decode` gives back every normalised text exactly (lower-cased if ``lowercase``).

    Unlike in GPT-2, a character of a script that puts no spaces between words (Han, Kana, Thai) is never merged with
    others.
    """

    FILE = "byte_pair.json"
    """The saved tokenizer's file in its folder."""
    pad_id = 0
    end_id = 1

    def __init__(self, vocab_size: int, languages: Sequence[str] = ("en",), lowercase: bool = False) -> None:
        """``vocab_size`` is the largest number of ids, special ones included; a small corpus gives fewer.

        Raises UserError for a language named twice, or a size without room for the bytes and special ids.
        """
        self._starts = {None: 2} | {language: 3 + i for i, language in enumerate(languages)}
        if len(self._starts) != 1 + len(languages):
            raise ArgumentError(f"languages: {list(languages)} names a language twice; name each once")
        self._num_special = 2 + len(self._starts)
        if vocab_size < self._num_special + 256:
            least = self._num_special + 256
            raise ArgumentError(f"vocab_size: {vocab_size} must be at least {least} (256 bytes and special ids)")
        self._requested_size = vocab_size
        self._languages = tuple(languages)
        self._lowercase = lowercase
        self._model: tokenizers.Tokenizer | None = None

    @property
    def vocab_size(self) -> int:
        """The number of ids that there are. Raises RuntimeError before :meth:`fit` or :meth:`restore`."""
        return self._num_special + self._fitted().get_vocab_size()

    def fit(self, captions: Iterable[Caption]) -> None:
        """Trains on ``captions``, whose languages must all be declared. The same captions give the same ids."""
        model = tokenizers.Tokenizer(models.BPE())
        # Merges stay within words; a word's token includes the space before it. A script without spaces has no words to
        # stay within, and whole sentences would become tokens: there, each character is a word.
        characters = pre_tokenizers.Split(tokenizers.Regex(UNSPACED.pattern), behavior="isolated")
        model.pre_tokenizer = pre_tokenizers.Sequence([characters, pre_tokenizers.ByteLevel(add_prefix_space=False)])
        model.decoder = decoders.ByteLevel()
        trainer = trainers.BpeTrainer(
            vocab_size=self._requested_size - self._num_special,
            # All 256 bytes, seen in training or not, so that every text can be encoded. Sorted: a set has no fixed
            # order, and the order decides the ids.
            initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
            show_progress=False,
        )
        with one_thread():
            model.train_from_iterator(self._training_texts(captions), trainer)
        self._model = model

    def start_id(self, language: str | None) -> int:
        """The start id of ``language``, or the plain one for None. UserError for a language that was not declared."""
        if language not in self._starts:
            raise UserError(
                f"a caption's language is {language!r}, but tokenizer.languages={list(self._languages)}; add it there"
            )
        return self._starts[language]

    def encode(self, text: str, language: str | None, max_tokens: int) -> list[int]:
        """See :class:`Tokenizer`. Raises RuntimeError before :meth:`fit` or :meth:`restore`."""
        model = self._fitted()
        prepared = self._prepare(text)
        pieces = model.encode(prepared, add_special_tokens=False).ids if prepared else []
        ids = [piece + self._num_special for piece in pieces]
        return frame(self.start_id(language), ids, self.end_id, max_tokens)

    def decode(self, ids: Sequence[int]) -> str:
        """See :class:`Tokenizer`. Bytes that are no valid UTF-8, which a model may generate, become U+FFFD."""
        model = self._fitted()
        # Tokens may end in the middle of a character, so they are joined before they are decoded as UTF-8.
        kept = [i - self._num_special for i in until_end(ids, self.end_id) if i >= self._num_special]
        return model.decode(kept, skip_special_tokens=False).removeprefix(" ")

    def count_unknown(self, text: str) -> int:
        """0: every byte has an id."""
        return 0

    def save(self, folder: Path) -> None:
        """See :class:`Tokenizer`."""
        content = {
            "languages": list(self._languages),
            "lowercase": self._lowercase,
            "model": json.loads(self._fitted().to_str()),
        }
        Path(folder).mkdir(parents=True, exist_ok=True)
        (Path(folder) / self.FILE).write_text(json.dumps(content, ensure_ascii=False, indent=1), encoding="utf-8")

    def restore(self, folder: Path) -> None:
        """See :class:`Tokenizer`."""
        path = Path(folder) / self.FILE
        if not path.is_file():
            raise UserError(f"{path}: there is no saved BytePair tokenizer; give the folder that one was saved in")
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
        except ValueError as error:
            raise UserError(f"{path}: is damaged ({error}); restore it from a copy") from None
        settings = {"languages": list(self._languages), "lowercase": self._lowercase}
        if not isinstance(content, dict) or not {*settings, "model"} <= content.keys():
            raise UserError(f"{path}: is damaged (it lacks a key that it was saved with); restore it from a copy")
        for name, value in settings.items():
            if content[name] != value:
                raise UserError(f"{path}: was saved with {name}={content[name]}, but tokenizer.{name}={value}")
        try:
            self._model = tokenizers.Tokenizer.from_str(json.dumps(content["model"]))
        except Exception as error:  # the package raises nothing more exact
            raise UserError(f"{path}: is damaged ({first_line(error)}); restore it from a copy") from None

    def _prepare(self, text: str) -> str:
        """The text that is encoded. Lower-casing may undo NFC, so it is normalised again.

        A leading space makes a word the same token at the start of a caption as inside it; ``decode`` takes it off.
        """
        text = normalise_text(text)
        text = normalise_text(text.lower()) if self._lowercase else text
        return f" {text}" if text else text

    def _training_texts(self, captions: Iterable[Caption]) -> Iterator[str]:
        for caption in captions:
            self.start_id(caption.language)  # raises for a language that was not declared
            yield self._prepare(caption.text)
            if caption.source is not None:
                yield from (self._prepare(text) for turn in caption.turns for text in (turn.read, turn.written))
                yield self._prepare(caption.source)

    def _fitted(self) -> tokenizers.Tokenizer:
        if self._model is None:
            raise RuntimeError("this BytePair tokenizer has no vocabulary yet: call fit(captions) or restore(folder)")
        return self._model
