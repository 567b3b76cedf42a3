"""Ids, captions and concepts of many examples, in a few arrays: what most formats come down to once they are read.

A million examples with a caption of 50 letters take 100 MB so, and a process that is sent them takes no more. As lists
of Python's texts they would take 400 MB, in each worker, and pages that processes share would be copied as soon as
somebody looks at a text, since its count of references lies beside it.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice, repeat
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from mmlm.core.batch import Caption, ExampleTexts
from mmlm.core.wording import whole_characters
from mmlm.data.groups import grouped

ROWS_AT_ONCE = 2**10
"""Rows that are Python's texts at a time, before they become Arrow's."""
LISTED_AT_ONCE = 2**12
"""Examples that are Python's texts at a time, where all are gone through."""
SCHEMA = pa.schema(
    {
        "line": pa.int64(),
        "image": pa.large_string(),
        "captions": pa.large_list(pa.large_string()),
        "concept": pa.large_string(),
        "language": pa.large_string(),
        "kinds": pa.large_list(pa.large_string()),
    }
)
"""A ``Row``."""


class Row(NamedTuple):
    """What a line or a row of a file says about one image."""

    line: int
    """Where it begins in the file, from 1."""
    image: str | None
    """None for text only."""
    texts: Sequence[str]
    """Its captions. Under the name that they have in a ``Source``, a row could pass for one."""
    concept: str | None
    language: str | None
    """Of all its captions."""
    kinds: Sequence[str | None] | None = None
    """The kind of each caption; None if none has one."""


@dataclass
class TwoConcepts(Exception):  # noqa: N818 - told by whoever knows the file
    """Two rows give one image different concepts."""

    image: str
    line: int
    concept: str | None
    first_line: int
    first_concept: str | None


class CaptionTable:
    """What a file says of its examples. See ``of_rows`` and ``of_lists``."""

    def __init__(
        self,
        names: pa.LargeStringArray,
        texts: pa.LargeStringArray,
        offsets: np.ndarray,
        language: str | None,
        languages: pa.DictionaryArray | None = None,
        concepts: pa.DictionaryArray | None = None,
        has_image: pa.BooleanArray | None = None,
        kinds: tuple[np.ndarray, tuple[str | None, ...]] | None = None,
    ) -> None:
        """Example i has the name ``names[i]`` and the captions ``texts[offsets[i]:offsets[i + 1]]``.

        ``languages`` are those of the captions, or None where all are in ``language``; ``concepts`` those of examples,
        or None for none; ``has_image`` None if all have one. ``kinds`` are a small integer for each caption, and the
        kinds that these are places of, the last of them None; None if no caption has a kind.
        """
        self._names, self._texts, self._offsets, self._language = names, texts, offsets, language
        self._languages, self._concepts, self._has_image = languages, concepts, has_image
        self._kinds = kinds

    @staticmethod
    def of_lists(names: Sequence[str], captions: Sequence[Sequence[str]], language: str | None) -> "CaptionTable":
        """A name and its captions for each example, all in one language."""
        lists = pa.array(captions, pa.large_list(pa.large_string()))
        return CaptionTable(pa.array(names, pa.large_string()), lists.flatten(), lists.offsets.to_numpy(), language)

    @staticmethod
    def of_rows(rows: Iterable[Row]) -> tuple["CaptionTable", np.ndarray]:
        """The examples of rows, and int64[examples] the line that each is first named in.

        Rows of one image are one example, at the place of the first of them, with the captions of all. A row without an
        image is one of its own, by the name ``line 17``. Raises ``TwoConcepts``.
        """
        table = _as_table(rows)
        images = table["image"].combine_chunks().dictionary_encode()
        codes = images.indices.fill_null(-1).to_numpy().astype(np.int64)
        alone = np.flatnonzero(codes < 0)
        codes[alone] = len(codes) + alone
        groups = grouped(codes)
        table = table.take(pa.array(groups.rows)).combine_chunks()
        starts = groups.starts[:-1]
        concepts = table["concept"].combine_chunks().dictionary_encode()
        _check_concepts(table, concepts, np.repeat(starts, np.diff(groups.starts)))
        captions = table["captions"].combine_chunks()
        lengths = captions.value_lengths().to_numpy()
        languages = table["language"].combine_chunks().dictionary_encode()
        firsts = table.select(["line", "image"]).take(pa.array(starts))
        lines = firsts["line"].combine_chunks()
        names = firsts["image"].combine_chunks()
        has_image = names.is_valid()
        if len(alone):
            line, blank = (pa.scalar(text, pa.large_string()) for text in ("line", " "))
            of_lines = pc.binary_join_element_wise(line, lines.cast(pa.large_string()), blank)
            names = pc.if_else(has_image, names, of_lines)
        return CaptionTable(
            names,
            captions.flatten(),
            np.concatenate([[0], np.cumsum(np.add.reduceat(lengths, starts))]),
            None,
            languages.take(pa.array(np.repeat(np.arange(len(table)), lengths)))
            if languages.null_count < len(table)
            else None,
            concepts.take(pa.array(starts)) if concepts.null_count < len(table) else None,
            has_image if len(alone) else None,
            _kinds_of(table, lengths),
        ), lines.to_numpy()

    def __len__(self) -> int:
        """Number of examples."""
        return len(self._names)

    @property
    def nbytes(self) -> int:
        """What the arrays take."""
        parts = (self._names, self._texts, self._offsets, self._languages, self._concepts, self._has_image)
        kinds = 0 if self._kinds is None else self._kinds[0].nbytes
        return kinds + sum(part.nbytes for part in parts if part is not None)

    def name(self, index: int) -> str:
        """The name of an example."""
        return self._names[index].as_py()

    def image(self, index: int) -> str | None:
        """The name of an example's image; None if it has none."""
        return self.name(index) if self._has_image is None or self._has_image[index].as_py() else None

    def concept(self, index: int) -> str | None:
        """The concept of an example."""
        return None if self._concepts is None else self._concepts[index].as_py()

    def captions_of(self, index: int) -> tuple[Caption, ...]:
        """The captions of an example."""
        return tuple(self._captions(int(self._offsets[index]), int(self._offsets[index + 1])))

    def captions(self) -> Iterator[Caption]:
        """Every caption of every example, in order."""
        for start in range(0, len(self._texts), LISTED_AT_ONCE):
            yield from self._captions(start, min(len(self._texts), start + LISTED_AT_ONCE))

    def texts(self) -> Iterator[ExampleTexts]:
        """Every example, in order."""
        for start in range(0, len(self), LISTED_AT_ONCE):
            names = self._names.slice(start, LISTED_AT_ONCE).to_pylist()
            count = len(names)
            concepts = [None] * count if self._concepts is None else self._concepts.slice(start, count).to_pylist()
            there = [True] * count if self._has_image is None else self._has_image.slice(start, count).to_pylist()
            offsets = self._offsets[start : start + count + 1].tolist()
            captions = list(self._captions(offsets[0], offsets[-1]))
            for place, (name, concept, has_image) in enumerate(zip(names, concepts, there, strict=True)):
                first, end = (offset - offsets[0] for offset in offsets[place : place + 2])
                yield ExampleTexts(name, tuple(captions[first:end]), concept, has_image)

    def images(self) -> Iterator[tuple[int, str]]:
        """The number of each example that has an image, and the image's name."""
        for start in range(0, len(self), LISTED_AT_ONCE):
            names = self._names.slice(start, LISTED_AT_ONCE).to_pylist()
            there = None if self._has_image is None else self._has_image.slice(start, LISTED_AT_ONCE).to_pylist()
            yield from ((start + i, name) for i, name in enumerate(names) if there is None or there[i])

    def _captions(self, start: int, end: int) -> Iterator[Caption]:
        texts = self._texts.slice(start, end - start).to_pylist()
        languages = repeat(self._language)
        if self._languages is not None:
            languages = self._languages.slice(start, end - start).to_pylist()
        if self._kinds is None:
            return map(Caption, texts, languages)
        places, kinds = self._kinds
        return map(Caption, texts, languages, (kinds[place] for place in places[start:end].tolist()))


def _as_table(rows: Iterable[Row]) -> pa.Table:
    """The rows of ``SCHEMA``; texts that hold half a character are made whole, as those of a ``Caption`` are."""
    left = iter(rows)
    batches = []
    while some := list(islice(left, ROWS_AT_ONCE)):
        lines, images, captions, concepts, languages, kinds = zip(*some, strict=True)
        columns = (
            lines,
            images,
            [[text if text.isascii() else whole_characters(text) for text in texts] for texts in captions],
            [None if concept is None else whole_characters(concept) for concept in concepts],
            [None if language is None else whole_characters(language) for language in languages],
            [each and [None if kind is None else whole_characters(kind) for kind in each] for each in kinds],
        )
        arrays = [pa.array(cells, field.type) for cells, field in zip(columns, SCHEMA, strict=True)]
        batches.append(pa.RecordBatch.from_arrays(arrays, schema=SCHEMA))
    return pa.Table.from_batches(batches, schema=SCHEMA)


def _kinds_of(rows: pa.Table, lengths: np.ndarray) -> tuple[np.ndarray, tuple[str | None, ...]] | None:
    """The kinds of a ``CaptionTable``, by int64[rows] the number of captions of each row."""
    lists = rows["kinds"].combine_chunks()
    named = lists.flatten().dictionary_encode()  # without the rows that have none
    if named.null_count == len(named):
        return None
    kinds = (*named.dictionary.to_pylist(), None)
    places = np.full(lengths.sum(), -1, dtype=np.min_scalar_type(-len(kinds)))
    places[np.repeat(lists.is_valid().to_numpy(zero_copy_only=False), lengths)] = named.indices.fill_null(-1)
    return places, kinds


def _check_concepts(rows: pa.Table, concepts: pa.DictionaryArray, firsts: np.ndarray) -> None:
    """Raises TwoConcepts unless each row has the concept of the row int64[rows] ``firsts`` of its image."""
    codes = concepts.indices.fill_null(-1).to_numpy()
    other = np.flatnonzero(codes != codes[firsts])
    if len(other):
        # The first in the file: rows are in the order of their images here.
        here = int(other[np.argmin(rows["line"].combine_chunks().to_numpy()[other])])
        first = int(firsts[here])
        lines = rows["line"]
        raise TwoConcepts(
            rows["image"][here].as_py(),
            lines[here].as_py(),
            concepts[here].as_py(),
            lines[first].as_py(),
            concepts[first].as_py(),
        )
