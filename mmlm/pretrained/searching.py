"""A model that searches among images: those of a folder, by an index that is kept, or those of a list."""

import sys
import time
import warnings
from collections.abc import Sequence
from contextlib import nullcontext, suppress
from pathlib import Path
from typing import overload

from torch import Tensor

from mmlm.core.errors import UserError
from mmlm.core.wording import printable
from mmlm.data.class_folder import SUFFIXES
from mmlm.evaluation.nearest import nearest
from mmlm.pretrained.embedding import EmbeddingModel
from mmlm.pretrained.image_index import ImageIndex, default_folder, index_file, update_index
from mmlm.pretrained.inputs import AnyImage, Given
from mmlm.pretrained.results import Hit, SearchResult
from mmlm.record.console import Console


class SearchingModel(EmbeddingModel):
    """A model that finds the images most similar to a text or an image."""

    def index(self, folder: str | Path, out: str | Path | None = None, *, progress: bool = False) -> ImageIndex:
        """The embeddings of all images below a folder, by way of an index that is kept and brought up to date.

        The index is kept in ``out``; None is a place below the user's cache, that of ``python -m mmlm.search``. Files
        that cannot be read are in the index's ``unreadable``. Raises UserError for a folder without images.
        """
        folder, digest = Path(folder), self.digest()
        if not folder.is_dir():
            raise UserError(f"images: {folder} is no folder; give one, a list of images, or what index() has made")
        kept = index_file(default_folder(folder) if out is None else Path(out), digest)
        with Console(sys.stderr).activity() if progress else nullcontext() as activity:
            tick = _nothing if activity is None else activity.update
            return update_index(folder, kept, digest, self.encode_image, time.time_ns, tick, _warn)

    @overload
    def search(  # type: ignore[overload-overlap]  # a str is a query, which Python counts among the sequences
        self,
        query: AnyImage,
        images: str | Path | ImageIndex | Sequence[AnyImage],
        top: int = 10,
        language: str | None = None,
        batch_size: int = 64,
        *,
        progress: bool = False,
    ) -> SearchResult: ...

    @overload
    def search(
        self,
        query: Sequence[AnyImage],
        images: str | Path | ImageIndex | Sequence[AnyImage],
        top: int = 10,
        language: str | None = None,
        batch_size: int = 64,
        *,
        progress: bool = False,
    ) -> list[SearchResult]: ...

    def search(
        self,
        query: AnyImage | Sequence[AnyImage],
        images: str | Path | ImageIndex | Sequence[AnyImage],
        top: int = 10,
        language: str | None = None,
        batch_size: int = 64,
        *,
        progress: bool = False,
    ) -> SearchResult | list[SearchResult]:
        """The ``top`` images that are most similar to a query, exactly; several queries give a list.

        A query that is a str is a *text*; an image is given as a Path, a Pillow image, an array or a tensor. ``images``
        is a folder (see ``index``), what ``index`` has made of one, or a list of images. Raises UserError for an index
        of another model, for queries and images that are none, and for a str that is the path of an image.
        """
        if top < 1:
            raise UserError(f"top: {top} must be at least 1")
        queries: Given[AnyImage] = Given.of("query", query)
        vectors = self._query_vectors(queries, language)
        if isinstance(images, str | Path):
            images = self.index(images, progress=progress)
        if isinstance(images, ImageIndex):
            if images.model != self.digest():
                raise UserError(f"images: the index of {images.folder} is of another model; make one with index()")
            places: list[AnyImage] = [images.folder / name for name in images.names]
            names, gallery = list(images.names), images.vectors
        else:
            given: Given[AnyImage] = Given.of("images", images)
            places = list(given.items)
            names = [str(one) if isinstance(one, str | Path) else given.named(i) for i, one in enumerate(places)]
            gallery = self._embed_images(given, batch_size, progress).cpu()
        results = []
        for asked, vector in zip(queries.items, vectors, strict=True):
            values, rows = nearest(vector, gallery, top)
            found = zip(rows.tolist(), values.tolist(), strict=True)
            results.append(SearchResult(asked, tuple(Hit(row, names[row], value, places[row]) for row, value in found)))
        return results[0] if queries.single else results

    def _query_vectors(self, queries: Given[AnyImage], language: str | None) -> list[Tensor]:
        """float32[E] of each, on the CPU."""
        found = []
        for number, query in enumerate(queries.items):
            if isinstance(query, str):
                _check_query(query, queries.named(number))
                found.append(self.encode_text(query, language)[0].cpu())
            else:
                found.append(self._embed_images(Given(queries.named(number), [query], True), 1, False)[0].cpu())
        return found


def _check_query(text: str, name: str) -> None:
    """Raises UserError for a blank text, and for the path of an image, which was hardly meant as a text."""
    if not text.strip():
        raise UserError(f"{name}: is blank; give a text, or an image as a Path")
    if Path(text).suffix.lower() in SUFFIXES:
        with suppress(OSError, ValueError):  # too long for a path, as a text may be
            if Path(text).is_file():
                raise UserError(f"{name}: {printable(text)} is a file; to search by the image, give Path({text!r})")


def _nothing(doing: str) -> None:
    """Shows no progress."""


def _warn(line: str) -> None:
    warnings.warn(line, stacklevel=4)
