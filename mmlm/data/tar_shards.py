"""Tar shards as the webdataset library and img2dataset write them: ``0017.jpg`` beside ``0017.txt``, many a file."""

from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from mmlm.core.batch import Caption, Example, ExampleTexts
from mmlm.core.errors import ArgumentError, CorruptImage, UserError
from mmlm.core.wording import cut, listed, printable
from mmlm.data.class_folder import PLACE, read_names
from mmlm.data.images import decode_image
from mmlm.data.parquet_files import told_apart
from mmlm.data.recent import Recent
from mmlm.data.shard_files import find_shards
from mmlm.data.stored import OpenedFile, Place, is_file, place_of
from mmlm.data.tar_index import Summary, rows_of, summaries
from mmlm.data.tar_members import TEXTS
from mmlm.data.tar_texts import TextRules, json_object

OPEN_SHARDS = 128
"""Shards that each process keeps open at most: a file, and the rows of its index."""
OPEN_BYTES = 100 * 2**20
"""Bytes of all those rows at most."""


class TarShards:
    """Images and captions in tar files, each of which has members such as ``0017.jpg`` and ``0017.txt``.

    Members of one key are one example, wherever they lie in the file; ``mmlm/data/tar_members.py`` has the rule of keys
    and endings. An image is any of ``IMAGES`` there, by its ending. Samples that lack the image or all of ``texts`` are
    left out; they are counted, and told (see ``remarks``), as are links, texts that cannot be used, and gaps in the
    shards' numbers. The example's id is ``<name of the shard>/<key>``.

    An index is made once beside each shard (``mmlm/data/tar_index.py``). By that, any example is read directly, and
    memory is needed for the list of the shards only. An image costs one read at its place in the shard. In an order by
    windows of shards (``data.shuffle_window``), the reads of a shard come close after one another.

    A shard that vanishes, is cut off or is replaced while a run goes on makes its images a ``CorruptImage`` each. A
    data worker is sent the list of shards as it was found, so that files that are added meanwhile change nothing.

    Args:
        folder: the folder of the data set, or its URL (``s3://bucket/cc12m``). Null, which ``${data.path}`` is until it
            is given, is refused.
        files: the shards, from ``folder`` on or with their whole path: one or several names or patterns, with ``*``,
            ranges such as ``{00000..00099}.tar``, and lists such as ``{train,more}/*.tar``.
        texts: which members have the captions: ``txt`` (a caption), ``json`` (an object with captions), ``cls`` (a
            class); of several, the captions of all. Null takes the first of these that any sample has beside its image.
        json_captions: the keys of captions in a JSON object; the first that it has counts. A text, or a list of texts.
        json_language: the key of their language: a text, or a list with one for each caption.
        json_kind: the key of their kind, in the same way.
        json_concept: the key of the concept.
        caption: the caption of a class, with ``{}`` once: ``a photo of a {}``. The concept is what the ``cls`` says.
        names: a JSON file ``{"281": "tabby cat", ...}`` of the words for each ``cls``; null takes what it says.
        language: the language of captions that name none.

    Raises:
        ArgumentError: no ``folder``, unknown ``texts``, a ``caption`` without the place of the class.
        UserError: a shard that is not there, is cut off (with the byte), or has two members of one name; one in which
            no sample is whole (with the endings that it has); JSON objects without any of the keys; no samples at all.

    The format is that of the webdataset library (Aizman, Maltby, Breuel, "High Performance I/O For Large Scale Deep
    Learning", 2019, 2001.01858), which reads shards from beginning to end and cannot go on at an exact example.
    """

    def __init__(
        self,
        folder: str | Path | None,
        files: str | Sequence[str] = "*.tar",
        texts: Sequence[str] | None = None,
        json_captions: str | Sequence[str] = ("captions", "caption"),
        json_language: str = "language",
        json_kind: str = "kind",
        json_concept: str = "concept",
        caption: str = "a photo of a {}",
        names: str | Path | None = None,
        language: str | None = None,
    ) -> None:
        if folder is None:
            raise ArgumentError("folder: null must be the folder of the data set; give data.path=FOLDER")
        if caption.count(PLACE) != 1:
            raise ArgumentError(f"caption: '{caption}' must have {PLACE} once, where the name of the class goes")
        if texts is not None and (not texts or set(texts) - set(TEXTS) or len(set(texts)) < len(texts)):
            raise ArgumentError(f"texts: {list(texts)} must be some of {', '.join(TEXTS)}, none of them twice, or null")
        self._rules = TextRules(
            json_captions=(json_captions,) if isinstance(json_captions, str) else tuple(json_captions),
            json_language=json_language,
            json_kind=json_kind,
            json_concept=json_concept,
            caption=caption,
            names=None if names is None else read_names(Path(names)),
            language=language,
        )
        found = find_shards(place_of(folder), files)
        self._paths, missing = found.paths, found.missing
        self._names = told_apart(self._paths)
        read = summaries(self._paths)
        self._texts = tuple(texts) if texts is not None else _first_texts(read)
        self._digests = [summary.digest for summary in read]
        self._sizes = [summary.complete(self._texts) for summary in read]
        for path, size, summary in zip(self._paths, self._sizes, read, strict=True):
            if not size and summary.endings:
                raise UserError(_none_is_whole(path, self._texts, summary))
        self._ends = np.cumsum(self._sizes)  # int64[shards]: the index behind the last example of each
        if not len(self):
            raise UserError(f"{self._paths[0]}: no sample in it{_and_more(self._paths)}; give shards that have some")
        self._remarks = tuple(_remarks(self._paths, missing, self._texts, read, self._sizes))
        self._begin()
        if self._texts == ("json",):
            self._check_keys()

    def _begin(self) -> None:
        # No method of this source: it would hold the open files in a circle.
        make = partial(_open_shard, self._paths, self._digests, self._texts)
        self._open = Recent(make, _bytes_of, OPEN_SHARDS, OPEN_BYTES)

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name != "_open"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._begin()

    @property
    def held(self) -> tuple[int, int]:
        """How many shards are open, and the bytes of their indexes: ``OPEN_BYTES`` at most, or one shard."""
        return self._open.held

    def __len__(self) -> int:
        """Number of samples with an image and one of the texts, over all shards."""
        return int(self._ends[-1])

    def shard_sizes(self) -> Sequence[int]:
        """See ``mmlm.data.order.Sharded``."""
        return self._sizes

    def remarks(self) -> Iterator[str]:
        """See ``mmlm.data.remarks.HasRemarks``."""
        return iter(self._remarks)

    def __getitem__(self, index: int) -> Example:
        """See ``Source``. Raises IndexError beyond the last example."""
        return self.reduced(index, None)

    def reduced(self, index: int, at_least: int | None) -> Example:
        """See ``mmlm.data.sources.ReadsReduced``."""
        number, place = self._find(index)
        shard = self._shard(number, place)
        id = self._id(number, shard, place)
        captions, concept = self._rules.read(shard.texts(place))
        return Example(id, decode_image(shard.image(place, id), id, at_least), captions, concept)

    def encoded(self, index: int) -> bytes:
        """See ``mmlm.data.sources.GivesBytes``."""
        number, place = self._find(index)
        shard = self._shard(number, place)
        return shard.image(place, self._id(number, shard, place))

    def captions(self) -> Iterator[Caption]:
        """See ``Source``. Raises UserError for a shard that is no longer there."""
        for example in self.texts():
            yield from example.captions

    def texts(self) -> Iterator[ExampleTexts]:
        """See ``mmlm.data.sources.ListsTexts``. Raises UserError for a shard that is no longer there."""
        for number, size in enumerate(self._sizes):
            # Not by way of the open shards: going through all captions needs none of them a second time.
            shard = _open_shard(self._paths, self._digests, self._texts, number) if size else None
            if isinstance(shard, UserError):
                raise UserError(str(shard))
            for place in range(size):
                assert shard is not None
                captions, concept = self._rules.read(shard.texts(place))
                yield ExampleTexts(self._id(number, shard, place), captions, concept, True)

    def _find(self, index: int) -> tuple[int, int]:
        """The number of the shard of an example, and its place among the examples of the shard."""
        if not 0 <= index < len(self):
            raise IndexError(f"{index} is none of the {len(self)} examples")
        number = int(np.searchsorted(self._ends, index, side="right"))
        return number, index - int(self._ends[number]) + self._sizes[number]

    def _id(self, number: int, shard: "_Shard", place: int) -> str:
        return f"{self._names[number]}/{shard.key(place)}"

    def _shard(self, number: int, place: int) -> "_Shard":
        """The shard, open. Raises CorruptImage."""
        try:
            shard = self._open(number)
        except UserError as error:
            shard = error
        if isinstance(shard, UserError):
            # Its keys are not known any more.
            name = f"{self._names[number]}/{place}"
            raise CorruptImage(
                name, f"its shard cannot be read ({str(shard).removeprefix(f'{self._paths[number]}: ')})"
            )
        return shard

    def _check_keys(self) -> None:
        """Raises UserError if the first JSON object has no key of captions: a misspelt one would be silent."""
        number, place = self._find(0)
        content = json_object(self._shard(number, place).texts(place)["json"] or "")
        if not any(key in content for key in self._rules.json_captions):
            keys = listed([cut(printable(key), 30) for key in content], 20) or "no key"
            wanted = " or ".join(repr(key) for key in self._rules.json_captions)
            raise UserError(f"{self._paths[number]}: its JSON has no {wanted}, but {keys}; set json_captions to one")


class _Shard:
    """One open shard. Its file is closed when nobody holds it any more."""

    def __init__(self, path: Place, rows: pa.RecordBatch, texts: tuple[str, ...]) -> None:
        """Raises OSError."""
        whole = np.any([rows[text].is_valid().to_numpy(zero_copy_only=False) for text in texts], axis=0)
        # A copy of what is needed, so that the rest is free.
        rows = rows.select(["key", "offset", "length", *texts]).take(pa.array(np.flatnonzero(whole)))
        self._keys, self._texts = rows["key"], {text: rows[text] for text in texts}
        self._offsets, self._lengths = rows["offset"].to_numpy(), rows["length"].to_numpy()  # int64[examples] each
        self.nbytes = rows.nbytes
        self._file = OpenedFile(path)

    def key(self, place: int) -> str:
        return self._keys[place].as_py()

    def texts(self, place: int) -> dict[str, str | None]:
        """By ending, in the order of the setting."""
        return {ending: texts[place].as_py() for ending, texts in self._texts.items()}

    def image(self, place: int, id: str) -> bytes:
        """The encoded image. Raises CorruptImage."""
        offset, length = int(self._offsets[place]), int(self._lengths[place])
        try:
            data = self._file.read(offset, length)
        except OSError as error:
            raise CorruptImage(id, f"its shard cannot be read ({error.strerror})") from error
        if len(data) < length:
            raise CorruptImage(id, f"its shard is cut off: {len(data)} of its {length} bytes are there")
        return data


def _open_shard(
    paths: Sequence[Place], digests: Sequence[int], texts: tuple[str, ...], number: int
) -> _Shard | UserError:
    """A shard, if it still has the samples that the index of its digest tells of.

    That it has changed is a value, which is remembered: to find it out may need all of its headers. Raises UserError if
    it cannot be opened, which may pass.
    """
    path = paths[number]
    try:
        return _Shard(path, rows_of(path, digests[number]), texts)
    except UserError as error:
        if not is_file(path):
            raise
        return UserError(str(error))
    except OSError as error:
        raise UserError(f"{path}: cannot be opened ({error.strerror})") from error


def _bytes_of(shard: _Shard | UserError) -> int:
    return shard.nbytes if isinstance(shard, _Shard) else 0


def _first_texts(read: Sequence[Summary]) -> tuple[str, ...]:
    return next(((text,) for text in TEXTS if any(summary.complete([text]) for summary in read)), ("txt",))


def _none_is_whole(path: Place, texts: Sequence[str], summary: Summary) -> str:
    wanted = " or ".join(f"KEY.{text}" for text in texts)
    return (
        f"{path}: no sample has an image and a text: that wants KEY.jpg (or .png, .webp, ...) and {wanted}, where KEY "
        f"has no dot; the endings after the first dot are {listed([repr(e) for e in summary.endings], 10)}; rename the "
        "members, or set texts"
    )


def _and_more(paths: Sequence[Place]) -> str:
    return f", nor in the {len(paths) - 1:,} others" if len(paths) > 1 else ""


def _remarks(
    paths: Sequence[Place], missing: Sequence[str], texts: Sequence[str], read: Sequence[Summary], sizes: Sequence[int]
) -> Iterator[str]:
    """What a user should know of the shards, summed over all of them."""
    where = f"{len(paths):,} tar shards" if len(paths) > 1 else str(paths[0])
    if missing:
        yield f"{where}: {len(missing):,} missing by their numbers ({listed([*map(printable, missing)], 5)})"
    images = sum(sum(summary.kinds) for summary in read) - sum(sizes)
    counts = [
        (images, f"images without {' or '.join(texts)}"),
        (sum(summary.texts_alone for summary in read), "texts without an image"),
        (sum(summary.links for summary in read), "links, devices or pieces of files"),
    ]
    told = [f"{count:,} {what}" for count, what in counts if count]
    if told:
        yield f"{where}: left out {', '.join(told)}"
    reasons = sorted({reason for summary in read for reason in summary.unusable})
    bad = [f"{sum(summary.unusable.get(reason, 0) for summary in read):,} {printable(reason)}" for reason in reasons]
    if bad:
        yield f"{where}: texts that cannot be used: {', '.join(bad)}"
    empty = [path.name for path, summary in zip(paths, read, strict=True) if not summary.endings]
    if empty:
        yield f"{where}: {len(empty):,} without a sample ({listed(empty, 5)})"
