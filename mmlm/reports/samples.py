"""``samples.json``: the images a report shows, with true and generated captions, neighbours and attention."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field

from mmlm.core.errors import UserError
from mmlm.reports.json_file import JsonNode

_DATA_URI = re.compile(r"data:image/(?:png|webp|jpeg|gif);base64,[A-Za-z0-9+/]+={0,2}")


@dataclass(frozen=True)
class NearestCaption:
    """A caption of the split, close to an image in the embedding space."""

    text: str
    similarity: float
    """Cosine, -1 to 1."""
    match: bool
    """True if it is a caption of that image."""


@dataclass(frozen=True)
class Attention:
    """The decoder's attention over the image while it wrote each word."""

    words: tuple[str, ...]
    grid: tuple[int, int]
    """Rows and columns of patches (gh, gw)."""
    maps: tuple[tuple[float, ...], ...]
    """One map a word: gh * gw weights >= 0, row by row."""


@dataclass(frozen=True)
class SampleExample:
    """One validation image with its true captions, and the model's output for it."""

    id: str
    image: str
    """A ``data:image/...;base64,`` URI."""
    captions: tuple[str, ...]
    """The true captions."""
    generated: str | None
    """The caption that the decoder wrote; None for a model without a decoder."""
    exact: bool
    """True if ``generated`` is one of ``captions``, word for word."""
    nearest_captions: tuple[NearestCaption, ...]
    """Nearest first."""
    attention: Attention | None
    rank: int | None = None
    """The place of its best true caption among all captions, 1 being the nearest; None if it is not known."""


@dataclass(frozen=True)
class RetrievedImage:
    """An image of the split, close to a caption in the embedding space."""

    image: str
    """A ``data:image/...;base64,`` URI."""
    similarity: float
    """Cosine, -1 to 1."""
    match: bool
    """True if the caption is one of this image's."""


@dataclass(frozen=True)
class Query:
    """One caption and the images nearest to it."""

    caption: str
    images: tuple[RetrievedImage, ...]
    """Nearest first."""
    rank: int | None = None
    """The place of its best image among all images; None if it is not known."""


@dataclass(frozen=True)
class SplitSamples:
    """The pictures shown for one split."""

    examples: tuple[SampleExample, ...]
    queries: tuple[Query, ...]
    extremes: Mapping[str, tuple[SampleExample, ...]] = field(default_factory=dict)
    """The ``worst``, ``typical`` and ``best`` images by rank; none in files older than them."""


def parse_samples(root: JsonNode) -> Mapping[str, SplitSamples]:
    """The samples of each split, by its name. A missing value or a wrong type is a ``UserError`` that names it."""
    splits = root.get("splits", dict)
    return {name: _parse_split_samples(splits.get(name, dict)) for name in splits.value}


def _parse_split_samples(node: JsonNode) -> SplitSamples:
    extremes = node.get("extremes", dict, {})
    return SplitSamples(
        examples=tuple(_parse_example(example) for example in node.get("examples", list, []).items(dict)),
        queries=tuple(_parse_query(query) for query in node.get("queries", list, []).items(dict)),
        extremes={
            kind: tuple(_parse_example(example) for example in extremes.get(kind, list, []).items(dict))
            for kind in ("worst", "typical", "best")
            if kind in extremes.value
        },
    )


def _parse_rank(node: JsonNode) -> int | None:
    """The rank of an example or a query; older files have none."""
    return None if node.value.get("rank") is None else node.get("rank", int).value


def _parse_example(node: JsonNode) -> SampleExample:
    near = node.get("nearest_captions", list, []).items(dict)
    looked = node.value.get("attention")
    # null is written for a model without a decoder; a missing key is a fault of the file.
    silent = "generated" in node.value and node.value["generated"] is None
    return SampleExample(
        id=node.get("id", str).value,
        image=_parse_image(node.get("image", str)),
        captions=node.get("captions", list).values(str),
        generated=None if silent else node.get("generated", str).value,
        exact=node.get("exact", bool).value,
        nearest_captions=tuple(
            NearestCaption(n.get("text", str).value, n.get("similarity", float).value, n.get("match", bool).value)
            for n in near
        ),
        attention=None if looked is None else _parse_attention(node.get("attention", dict)),
        rank=_parse_rank(node),
    )


def _parse_query(node: JsonNode) -> Query:
    images = tuple(
        RetrievedImage(_parse_image(n.get("image", str)), n.get("similarity", float).value, n.get("match", bool).value)
        for n in node.get("images", list).items(dict)
    )
    return Query(caption=node.get("caption", str).value, images=images, rank=_parse_rank(node))


def _parse_attention(node: JsonNode) -> Attention:
    words = node.get("words", list).values(str)
    grid = node.get("grid", list).values(int)
    maps = tuple(weights.values(float) for weights in node.get("maps", list).items(list))
    if len(grid) != 2 or len(maps) != len(words) or any(len(weights) != grid[0] * grid[1] for weights in maps):
        raise UserError(
            f"{node.where}: needs one map of rows x columns weights a word, has {len(words)} words, grid {list(grid)} "
            f"and maps of {sorted({len(weights) for weights in maps})} weights; evaluate the run again"
        )
    return Attention(words, (grid[0], grid[1]), maps)


def _parse_image(node: JsonNode) -> str:
    # The page must stay self-contained, so nothing but an inlined raster image is allowed.
    address: str = node.value
    if not _DATA_URI.fullmatch(address):
        raise UserError(f"{node.where}: should be a data:image/...;base64 URI, is {address!r:.60}")
    return address
