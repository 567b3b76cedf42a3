"""Text to token ids and back: our byte-level BPE, and pretrained tokenizers behind the same small protocol.

With every tokenizer, padding, start and end are three ids of their own, and no text of a caption can become one of them
(except for the padding of ``OpenClip(own_padding=False)``, which shares its id with a token as in open_clip).
"""

import itertools
import json
import os
import unicodedata
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Protocol, cast

import tokenizers
from tokenizers import decoders, models, pre_tokenizers, trainers

from mmlm.core.errors import ArgumentError, UserError
from mmlm.core.flow import Caption
from mmlm.core.local_files import locate
from mmlm.core.wording import first_line


class Tokenizer(Protocol):
    """The interface of a tokenizer that the rest of the package uses."""

    @property
    def vocab_size(self) -> int:
        """Number of ids, special ones included: every id is below it."""
        ...

    @property
    def pad_id(self) -> int:
        """The id of padding. Nobody finds padding by this id: the lengths of captions tell where it is."""
        ...

    @property
    def end_id(self) -> int:
        """The id after a caption's last token."""
        ...

    def fit(self, captions: Iterable[Caption]) -> None:
        """Called once before training: learns the vocabulary from the captions. Pretrained tokenizers do nothing."""
        ...

    def start_id(self, language: str | None) -> int:
        """The id a caption starts with. A tokenizer with one per language raises UserError for a language it lacks."""
        ...

    def encode(self, text: str, language: str | None, max_tokens: int) -> list[int]:
        """Start, tokens, end: at most ``max_tokens`` ids (at least 2). A longer text loses its tail, not the end id."""
        ...

    def decode(self, ids: Sequence[int]) -> str:
        """The text of ``ids`` up to the first end id; padding and start ids are skipped."""
        ...

    def count_unknown(self, text: str) -> int:
        """Number of pieces of ``text`` that the vocabulary lacks and :meth:`encode` leaves out."""
        ...

    def save(self, folder: Path) -> None:
        """Writes what :meth:`restore` needs into ``folder``, which is made if it is missing."""
        ...

    def restore(self, folder: Path) -> None:
        """Becomes the tokenizer saved in ``folder``. UserError if there is none, or one with other settings."""
        ...


def normalise_text(text: str) -> str:
    """The text in Unicode NFC, with single spaces for white space, none at the ends, and ``?`` for lone surrogates."""
    whole = text.encode("utf-8", "replace").decode("utf-8")
    return " ".join(unicodedata.normalize("NFC", whole).split())


class BytePair:
    """Byte-level byte-pair encoding (arXiv:1508.07909; on bytes as in GPT-2), trained on the training captions.

    Training starts from 256 tokens, one for each byte, and joins the most frequent pair of neighbouring tokens to a new
    token (a merge) until the vocabulary is full. Ids: padding 0, end 1, start 2, one start per language, then the 256
    bytes, then the merges. The BPE model does not know the special ids: its own ids are shifted by their number, so no
    text can spell one. :meth:`decode` gives back every normalised text exactly (lower-cased if ``lowercase``).
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
        # Merges stay within words; a word's token includes the space before it. The leading space that is added makes a
        # word the same token at the start of a caption as inside it; decode() takes it off again.
        model.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
        model.decoder = decoders.ByteLevel()
        trainer = trainers.BpeTrainer(
            vocab_size=self._requested_size - self._num_special,
            # All 256 bytes, seen in training or not, so that every text can be encoded. Sorted: a set has no fixed
            # order, and the order decides the ids.
            initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
            show_progress=False,
        )
        with _one_thread():
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
        return _frame(self.start_id(language), ids, self.end_id, max_tokens)

    def decode(self, ids: Sequence[int]) -> str:
        """See :class:`Tokenizer`. Bytes that are no valid UTF-8, which a model may generate, become U+FFFD."""
        model = self._fitted()
        # Tokens may end in the middle of a character, so they are joined before they are decoded as UTF-8.
        kept = [i - self._num_special for i in _until_end(ids, self.end_id) if i >= self._num_special]
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
        for name, value in settings.items():
            if content[name] != value:
                raise UserError(f"{path}: was saved with {name}={content[name]}, but tokenizer.{name}={value}")
        self._model = tokenizers.Tokenizer.from_str(json.dumps(content["model"]))

    def _prepare(self, text: str) -> str:
        """The text that is encoded. Lower-casing may undo NFC, so it is normalised again."""
        text = normalise_text(text)
        return normalise_text(text.lower()) if self._lowercase else text

    def _training_texts(self, captions: Iterable[Caption]) -> Iterator[str]:
        for caption in captions:
            self.start_id(caption.language)  # raises for a language that was not declared
            yield self._prepare(caption.text)

    def _fitted(self) -> tokenizers.Tokenizer:
        if self._model is None:
            raise RuntimeError("this BytePair tokenizer has no vocabulary yet: call fit(captions) or restore(folder)")
        return self._model


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
        return _frame(self.start_id(language), ids, self.end_id, max_tokens)

    def decode(self, ids: Sequence[int]) -> str:
        """See :class:`Tokenizer`. The original case and spacing are lost."""
        kept = [i for i in _until_end(ids, self.end_id) if i not in self._special]
        return self._model.decode(kept).strip()

    def count_unknown(self, text: str) -> int:
        """0: every byte has an id."""
        return 0

    def save(self, folder: Path) -> None:
        """Does nothing: the vocabulary is part of the package."""

    def restore(self, folder: Path) -> None:
        """Does nothing: the vocabulary is part of the package."""


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
        model = AutoTokenizer.from_pretrained(place, split_special_tokens=True)
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
        return _frame(self.start_id(language), ids, self.end_id, max_tokens)

    def _pieces(self, text: str) -> list[int]:
        with _one_thread():
            return self._model.encode(normalise_text(text), add_special_tokens=False)

    def decode(self, ids: Sequence[int]) -> str:
        """See :class:`Tokenizer`."""
        kept = [i for i in _until_end(ids, self.end_id) if i not in self._special]
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
        except (OSError, ValueError) as error:
            raise UserError(f"{folder}: the tokenizer cannot be loaded: {first_line(error)}") from error


_COMPARED = 1000
"""Number of captions, and of tokens of each, that ``same_tokens`` compares."""


def same_tokens(one: Tokenizer, other: Tokenizer, captions: Iterable[Caption]) -> bool:
    """True if an id means the same to both: equal special ids, texts of all ids and ids of the first captions."""
    if (one.vocab_size, one.pad_id, one.end_id) != (other.vocab_size, other.pad_id, other.end_id):
        return False
    if any(one.decode([i]) != other.decode([i]) for i in range(one.vocab_size)):
        return False
    for caption in itertools.islice(captions, _COMPARED):
        try:
            ids = other.encode(caption.text, caption.language, _COMPARED)
        except UserError:  # a language that it lacks
            return False
        if ids != one.encode(caption.text, caption.language, _COMPARED):
            return False
    return True


def _frame(start: int, ids: list[int], end: int, max_tokens: int) -> list[int]:
    """Start, as many of ``ids`` as fit, end."""
    if max_tokens < 2:
        raise UserError(f"max_tokens={max_tokens} must be at least 2: a caption has a start and an end")
    return [start, *ids[: max_tokens - 2], end]


def _until_end(ids: Sequence[int], end: int) -> list[int]:
    """The ids before the first ``end``, or all of them."""
    kept = [int(i) for i in ids]
    return kept[: kept.index(end)] if end in kept else kept


@contextmanager
def _one_thread() -> Iterator[None]:
    """Keeps the package `tokenizers` from starting threads, unless the user has set its environment variable.

    Once it has used threads, it warns on standard error at every later fork (data workers, subprocesses).
    """
    name = "TOKENIZERS_PARALLELISM"
    if name in os.environ:
        yield
        return
    os.environ[name] = "false"
    try:
        yield
    finally:
        del os.environ[name]
