"""What lies at a path or a URL of images with captions: the source that reads it, recognised by the files there."""

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from mmlm.core.batch import Caption, Example, ExampleTexts
from mmlm.core.errors import UserError
from mmlm.core.wording import listed
from mmlm.data.arrow_parts import ArrowParts
from mmlm.data.class_folder import SUFFIXES, ClassFolder
from mmlm.data.coco import CocoCaptions
from mmlm.data.csv_rows import header_of
from mmlm.data.image_folder import ImageFolder
from mmlm.data.karpathy import KarpathyCaptions
from mmlm.data.order import has_shards
from mmlm.data.paired_files import PairedFiles
from mmlm.data.parquet_files import column_names, expand, text_columns
from mmlm.data.parquet_table import ParquetTable
from mmlm.data.recognise_urls import url_files
from mmlm.data.remarks import remarks_of
from mmlm.data.saved_dataset import INFO, SPLITS, STATE, SavedDataset, arrow_files, saved_splits
from mmlm.data.sources import Source, gives_bytes, texts_of
from mmlm.data.stored import Place, Url, place_of
from mmlm.data.tar_shards import TarShards
from mmlm.data.text_table import TextTable

CAPTIONS = "captions.jsonl"
LOOKED_FOR = (
    f"{CAPTIONS}, annotations/captions_NAME.json with the images in NAME/, dataset_NAME.json, .parquet, .tar, .csv or "
    ".tsv, a data set saved by the datasets library, images with a .txt beside each, or a folder of images for each "
    "class"
)
"""All that is recognised, in the order in which it is looked for."""
IMAGE_COLUMNS = ("image", "image_path", "file_name", "filename", "filepath", "path", "file")
"""Names of a column of images or their paths; the first that is there is taken."""
CAPTION_COLUMNS = ("caption", "captions", "text", "title", "description")
"""Names of a column of captions; the first that is there is taken."""
_SPLIT = re.compile(r"(train|training|val|valid|validation|dev|test)(?![a-z])", re.IGNORECASE)
"""The beginning of a name that belongs to one split of a data set."""
_KARPATHY = "dataset_"
"""How the names of Karpathy's files begin."""
_SHOWN = 5
"""Names that a message lists."""


@dataclass(frozen=True)
class Recognised:
    """A source, and in words what it was taken for."""

    source: Source
    what: str
    """Such as ``a folder of images for each class``."""


@dataclass(frozen=True)
class ClassCaptions:
    """How the images of a class folder are captioned; see ``ClassFolder``."""

    caption: str = "a photo of a {}"
    names: str | None = None


class _InLanguage:
    """A source in which captions without a language are in ``language``."""

    def __init__(self, source: Source, language: str) -> None:
        self._source, self._language = source, language

    def __len__(self) -> int:
        return len(self._source)

    def __getitem__(self, index: int) -> Example:
        example = self._source[index]
        return replace(example, captions=self._tagged(example.captions))

    def wrapped(self) -> Sequence[Source]:
        """See ``mmlm.data.sources.Wraps``."""
        return (self._source,)

    def encoded(self, index: int) -> bytes | None:
        """See ``mmlm.data.sources.GivesBytes``."""
        assert gives_bytes(self._source)
        return self._source.encoded(index)

    def shard_sizes(self) -> Sequence[int]:
        """See ``mmlm.data.order.Sharded``."""
        assert has_shards(self._source)
        return self._source.shard_sizes()

    def captions(self) -> Iterator[Caption]:
        """See ``Source``."""
        return (self._tagged_one(caption) for caption in self._source.captions())

    def texts(self) -> Iterator[ExampleTexts]:
        """See ``ListsTexts``."""
        return (replace(texts, captions=self._tagged(texts.captions)) for texts in texts_of(self._source))

    def remarks(self) -> Iterator[str]:
        """See ``HasRemarks``."""
        return iter(remarks_of(self._source))

    def _tagged(self, captions: Sequence[Caption]) -> tuple[Caption, ...]:
        return tuple(map(self._tagged_one, captions))

    def _tagged_one(self, caption: Caption) -> Caption:
        return replace(caption, language=self._language) if caption.language is None else caption


def recognise(path: Place, language: str | None = None, classes: ClassCaptions | None = None) -> Recognised:
    """The source that reads the file or folder ``path``, whichever of the formats it is; by a URL, tar shards or
    Parquet files.

    Where a folder holds several of what ``LOOKED_FOR`` lists, the first counts, and ``what`` names the others.
    ``language`` is that of captions that name none. Raises UserError: for a path that is not there, one that holds
    nothing of it (the message says what was looked for and what is there), a folder of several splits, and whatever
    the source itself refuses.
    """
    if isinstance(path, Url):
        what, build = _of_url(path)
        return _recognised(build(), what, language)
    if not path.exists():
        raise UserError(f"{path}: there is no such file or folder; give one that holds {LOOKED_FOR}")
    try:
        found = list(_of_file(path) if path.is_file() else _of_folder(path, classes or ClassCaptions()))
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror}); make it readable, or give another") from error
    if not found:
        raise UserError(f"{path}: nothing in it is recognised; looked for {LOOKED_FOR}; {_contents(path)}")
    what, build = found[0]
    others = f" (not {', '.join(other for other, _ in found[1:])}, which is there too)" if found[1:] else ""
    return _recognised(build(), what + others, language)


def _recognised(source: Source, what: str, language: str | None) -> Recognised:
    return Recognised(source if language is None else _InLanguage(source, language), what)


_Found = tuple[str, Callable[[], Source]]
"""What something is taken for, and how its source is made."""


def _of_url(url: Url) -> _Found:
    """Raises UserError."""
    found = url_files(url)
    if found.kind == ".parquet":
        return found.what, lambda: _parquet(_one_split(url, expand(found.names)))
    names = [str(place) for place in _one_split(url, [place_of(name) for name in found.names])]
    return found.what, lambda: TarShards(str(url.parent), names)


def _of_file(file: Path) -> Iterator[_Found]:
    kind = file.suffix.lower()
    if kind == ".jsonl":
        yield f"the captions file {file.name}", lambda: ImageFolder(file.parent, file.name)
    elif kind == ".json" and file.stem.startswith(_KARPATHY):
        yield f"the test split of Karpathy's {file.name}", lambda: _karpathy(file)
    elif kind == ".json":
        yield f"COCO's captions {file.name}", lambda: _coco(file)
    elif kind == ".parquet":
        yield f"the Parquet file {file.name}", lambda: _parquet([file])
    elif kind == ".tar":
        yield f"the tar shard {file.name}", lambda: TarShards(file.parent, file.name)
    elif kind in (".csv", ".tsv"):
        yield f"the table {file.name}", lambda: _table(file)


def _of_folder(folder: Path, classes: ClassCaptions) -> Iterator[_Found]:
    if (folder / CAPTIONS).is_file():
        yield f"a folder with {CAPTIONS}", lambda: ImageFolder(folder)
    coco = sorted(file for place in (folder / "annotations", folder) for file in place.glob("captions_*.json"))
    if coco:
        yield "a COCO folder", lambda: _coco(_only(folder, coco))
    karpathy = sorted(file for file in folder.glob(f"{_KARPATHY}*.json") if file.name not in (INFO, SPLITS))
    if karpathy:
        yield f"the test split of Karpathy's {karpathy[0].name}", lambda: _karpathy(_only(folder, karpathy))
    parquet = sorted(file for place in (folder, folder / "data") for file in place.glob("*.parquet"))
    if parquet:
        yield f"{len(parquet)} Parquet file{'s' * (len(parquet) > 1)}", lambda: _parquet(_one_split(folder, parquet))
    tars = sorted(folder.glob("*.tar"))
    if tars:
        names = [file.name for file in _one_split(folder, tars)] if len(tars) > 1 else [tars[0].name]
        yield f"{len(tars)} tar shard{'s' * (len(tars) > 1)}", lambda: TarShards(folder, names)
    tables = sorted(file for file in folder.iterdir() if file.suffix.lower() in (".csv", ".tsv"))
    if tables:
        yield "a table", lambda: _table(_only(folder, tables))
    if (folder / STATE).is_file():
        yield "a data set saved by the datasets library", lambda: _saved(folder)
    elif splits := saved_splits(folder):
        raise UserError(f"{folder}: holds the splits {listed(splits, _SHOWN)}; give one, such as {folder / splits[0]}")
    images = [file for file in folder.iterdir() if _is_image(file)]
    if images and all(file.with_suffix(".txt").is_file() for file in images):
        yield "images with a .txt beside each", lambda: PairedFiles(folder)
    inner = sorted(one for one in folder.iterdir() if one.is_dir() and not one.name.startswith("."))
    if inner and not karpathy and all(any(map(_is_image, one.rglob("*"))) for one in inner):
        yield "a folder of images for each class", lambda: _class_folder(folder, inner, classes)


def _only(folder: Path, files: Sequence[Path]) -> Path:
    """The only file, or the only one for validation. Raises UserError."""
    validation = [file for file in files if "val" in file.stem.lower()]
    for some in (files, validation):
        if len(some) == 1:
            return some[0]
    names = listed([str(file.relative_to(folder)) for file in files], _SHOWN)
    raise UserError(f"{folder}: holds {names}; give one of them, such as {files[0]}")


def _one_split(folder: Place, files: Sequence[Place]) -> Sequence[Place]:
    """The files, if their names do not tell of several splits. Raises UserError."""
    splits = {found[1].lower() for file in files if (found := _SPLIT.match(file.name)) is not None}
    if len(splits) > 1:
        several = " and ".join(sorted(splits))
        raise UserError(f"{folder}: holds files of {several}; give one file, or a folder with those of one split")
    return files


def _coco(annotations: Path) -> Source:
    name = annotations.stem.removeprefix("captions_")
    places = (annotations.parent / name, annotations.parent.parent / name, annotations.parent.parent / "images" / name)
    images = next((place for place in places if place.is_dir()), None)
    if images is None:
        raise UserError(f"{annotations}: the folder of its images is not there; looked for {listed(_names(places), 3)}")
    return CocoCaptions(images.parent, annotations.resolve(), images.resolve())


def _karpathy(file: Path) -> Source:
    name = file.stem.removeprefix(_KARPATHY)
    places = (file.parent / folder for folder in ("images", f"{name}-images", f"{name}_images"))
    images = next((place for place in places if place.is_dir()), file.parent)
    return KarpathyCaptions(file.parent, file.name, images.resolve(), "test")


def _parquet(files: Sequence[Place]) -> Source:
    columns = column_names(files[0])
    image, caption = (_column(files[0], columns, known) for known in (IMAGE_COLUMNS, CAPTION_COLUMNS))
    concept = "concept" if "concept" in columns else None
    language, kind = (name if name in text_columns(files[0]) else None for name in ("language", "kind"))
    names = [str(file) for file in files]
    return ParquetTable(names, image, caption, concept_column=concept, language_column=language, kind_column=kind)


def _saved(folder: Path) -> Source:
    files = arrow_files(folder, None)
    schema = ArrowParts(files[:1], []).schemas[0]
    image, caption = (_column(files[0], schema.names, known) for known in (IMAGE_COLUMNS, CAPTION_COLUMNS))
    concept, language = (name if name in schema.names else None for name in ("concept", "language"))
    return SavedDataset(folder, None, image, caption, concept_column=concept, language_column=language)


def _table(file: Path) -> Source:
    columns = header_of(file)
    image, caption = (_column(file, columns, known) for known in (IMAGE_COLUMNS, CAPTION_COLUMNS))
    concept, language = (name if name in columns else None for name in ("concept", "language"))
    return TextTable(file.parent, file.name, image, caption, concept, language)


def _column(file: Place, columns: Sequence[str], known: Sequence[str]) -> str:
    """The column of one of the known names. Raises UserError."""
    for name in known:
        if name in columns:
            return name
    there = listed([repr(column) for column in columns], 20)
    raise UserError(f"{file}: has no column {', '.join(known[:-1])} or {known[-1]}; it has {there}; rename one of them")


def _class_folder(folder: Path, inner: Sequence[Path], classes: ClassCaptions) -> Source:
    if all(_SPLIT.fullmatch(one.name) for one in inner):
        names = listed(_names(inner), _SHOWN)
        raise UserError(f"{folder}: its folders {names} are splits and no classes; give one, such as {inner[0]}")
    return ClassFolder(folder, classes.caption, classes.names)


def _is_image(file: Path) -> bool:
    return file.suffix.lower() in SUFFIXES and not file.name.startswith(".")


def _names(paths: Sequence[Path]) -> list[str]:
    return [path.name for path in paths]


def _contents(path: Path) -> str:
    """What lies there instead, for a message."""
    if path.is_file():
        return f"the file ends in '{path.suffix}'"
    images = sum(map(_is_image, path.iterdir()))
    others = sorted(one.name for one in path.iterdir() if not _is_image(one))
    if images:
        return f"it holds {images} image{'s' * (images > 1)} without captions: write {CAPTIONS} beside them"
    return f"it holds {listed(others, _SHOWN)}" if others else "it is empty"
