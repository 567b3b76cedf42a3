"""The data set that ships with the repo: emoji drawn by seven hands (artists), named in twelve languages.

There is one Parquet file for each hand in ``emoji/`` beside this file, written by ``prepare_emoji``; the data card is
``emoji/README.md``. ``emoji_splits`` defines which hands and concepts are trained on and which are held out.
"""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from torch import Tensor

from mmlm.core.batch import Caption, Example, ExampleTexts
from mmlm.core.errors import ArgumentError, UserError
from mmlm.data.emoji_splits import SPLITS, division_of, family_of
from mmlm.data.images import decode_image

KEYWORDS = "-x-keywords"
"""The suffix of the language of a caption that lists keywords."""
FOLDER = Path(__file__).parent / "emoji"
LANGUAGES = ("en", "zh", "de", "fr", "es", "ja", "ru", "ar", "hi", "ko", "pt", "sw")
"""CLDR language codes of the captions and keywords, in the order of the Parquet columns."""
NAMES = "cldr"
"""Stem of the file with the names and keywords of every concept; the hands' own files repeat the names only."""


class Emoji:
    """One split of the emoji data: a map-style source of 64x64 images with their names.

    The captions of an image are its CLDR short name in each of ``languages`` and then, with ``keywords``, its keywords
    in each language, joined by commas. The language of a keyword caption is ``en-x-keywords`` and so on (private use,
    BCP 47), so that a tokenizer that knows it gives such captions a start of their own, by which a model can tell the
    two styles apart. The kinds are ``name`` and ``keywords``. Drawings of one emoji by several hands share a
    ``concept``.

    Decoded images are kept (12 kB each), so later epochs decode nothing. The tensor of an example is the kept one:
    callers must not write to it. Pickling, as for a loader's worker, leaves decoded images behind.
    """

    def __init__(
        self,
        split: str,
        languages: Sequence[str] = ("en",),
        keywords: bool = False,
        hands: Sequence[str] | None = None,
    ) -> None:
        """Reads the rows of the split. ``hands`` restricts it to some of its artists (None: all of them).

        Raises ``UserError`` for an unknown split or language, or a hand that the split does not have.
        """
        if split not in SPLITS:
            raise ArgumentError(f"split: {split!r} is no split of the emoji data; choose one of {', '.join(SPLITS)}")
        _check_choice("languages", languages, LANGUAGES, "the emoji data's languages")
        chosen = SPLITS[split].hands if hands is None else tuple(hands)
        _check_choice("hands", chosen, SPLITS[split].hands, f"the hands of split {split!r}")
        self._ids: list[str] = []
        self._concepts: list[str] = []
        self._captions: list[tuple[Caption, ...]] = []
        self._encoded: list[bytes] = []
        self._groups: list[str] = []
        self._decoded: dict[int, Tensor] = {}
        joined = _read_keywords(languages) if keywords else {}
        for hand in chosen:
            self._read(hand, SPLITS[split].division, languages, joined)

    def __len__(self) -> int:
        """Number of images."""
        return len(self._ids)

    def __getitem__(self, index: int) -> Example:
        """The example at ``index``, its image uint8[3, 64, 64]. Raises ``CorruptImage`` if the bytes are damaged."""
        image = self._decoded.get(index)
        if image is None:
            image = decode_image(self._encoded[index], self._ids[index])
            self._decoded[index] = image
        return Example(self._ids[index], image, self._captions[index], self._concepts[index])

    def encoded(self, index: int) -> bytes:
        """See ``mmlm.data.sources.GivesBytes``."""
        return self._encoded[index]

    def captions(self) -> Iterator[Caption]:
        """Every caption of every image, in order, without decoding an image."""
        for captions in self._captions:
            yield from captions

    def texts(self) -> Iterator[ExampleTexts]:
        """Every example without its image; see ``ListsTexts``."""
        for id, captions, concept in zip(self._ids, self._captions, self._concepts, strict=True):
            yield ExampleTexts(id, captions, concept, True)

    def attributes(self) -> Mapping[str, Mapping[str, str]]:
        """The artist and the group (Unicode's, such as ``Animals & Nature``) of each image, by its id."""
        hands = (id.split("/", 1)[0] for id in self._ids)
        return {
            "artist": dict(zip(self._ids, hands, strict=True)),
            "group": dict(zip(self._ids, self._groups, strict=True)),
        }

    def __getstate__(self) -> dict[str, object]:
        return {**self.__dict__, "_decoded": {}}

    def _read(self, hand: str, division: str, languages: Sequence[str], keywords: Mapping[str, list[Caption]]) -> None:
        """Adds the rows of one hand whose concept's family is in ``division``."""
        table = _read_table(FOLDER / f"{hand}.parquet", ("image", "concept", "captions", "group"))
        concepts = table["concept"].to_pylist()
        names = [_field(table, "captions", language) for language in languages]
        groups = table["group"].to_pylist()
        for row, (concept, encoded) in enumerate(zip(concepts, _field(table, "image", "bytes"), strict=True)):
            if division_of(family_of(concept)) == division:
                captions = (
                    Caption(column[row], language, "name") for column, language in zip(names, languages, strict=True)
                )
                self._ids.append(f"{hand}/{concept}")
                self._concepts.append(concept)
                self._captions.append((*captions, *keywords.get(concept, ())))
                self._encoded.append(encoded)
                self._groups.append(groups[row])


def _read_keywords(languages: Sequence[str]) -> dict[str, list[Caption]]:
    """For each concept one caption in each language that has keywords for it."""
    table = _read_table(FOLDER / f"{NAMES}.parquet", ("concept", "keywords"))
    columns = [_field(table, "keywords", language) for language in languages]
    return {
        concept: [
            Caption(", ".join(words), language + KEYWORDS, "keywords")
            for words, language in zip(rows, languages, strict=True)
            if words
        ]
        for concept, *rows in zip(table["concept"].to_pylist(), *columns, strict=True)
    }


def _field(table: pa.Table, column: str, field: str) -> list[Any]:
    """One field of a struct column as a Python list."""
    return pc.struct_field(table[column], field).to_pylist()


def _read_table(path: Path, columns: Sequence[str]) -> pa.Table:
    try:
        return pq.read_table(path, columns=list(columns))
    except FileNotFoundError:
        raise UserError(
            f"{path}: missing, though it ships with the package; reinstall it or run python -m mmlm.data.prepare_emoji"
        ) from None


def _check_choice(name: str, chosen: Sequence[str], known: Sequence[str], where: str) -> None:
    """Raises ``UserError`` unless ``chosen`` is a list of one or more distinct members of ``known``."""
    if isinstance(chosen, str) or not chosen or len(set(chosen)) != len(chosen):
        raise ArgumentError(
            f"{name}: {chosen!r} must be a list of one or more different names out of {', '.join(known)}"
        )
    for value in chosen:
        if value not in known:
            raise ArgumentError(f"{name}: {value!r} is not one of {where}: {', '.join(known)}")
