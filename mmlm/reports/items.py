"""``items.json``: what the scores of each split are made of, image by image and text by text."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from mmlm.core.errors import UserError
from mmlm.reports.json_file import JsonNode


@dataclass(frozen=True)
class ImageItem:
    """One image of a split; a value that there is not is None."""

    id: str
    shown: str | None
    """What it shows: its first true caption."""
    words: int | None
    """Of its shortest true caption."""
    rank: int | None
    """Of its best true caption among all captions of the split, 1 being the best."""
    wrong: str | None
    """What the nearest caption shows, if that is none of the image's own."""
    said: str | None
    """The caption that the decoder wrote."""
    exact: bool | None
    cider: float | None
    attributes: Mapping[str, str]
    """What else is known of it, such as the artist."""


@dataclass(frozen=True)
class TextItem:
    """One distinct caption of a split."""

    language: str | None
    words: int | None
    rank: int | None
    """Of its best image among all images of the split."""


@dataclass(frozen=True)
class ConfusionMatrix:
    """Numbers of images by their own class (rows) and the class that they were given to (columns)."""

    by: str
    """The evaluator."""
    classes: tuple[str, ...]
    counts: tuple[tuple[float, ...], ...]


@dataclass(frozen=True)
class SplitItems:
    """The items of one split."""

    images: tuple[ImageItem, ...]
    texts: tuple[TextItem, ...]
    num_images: int
    """Images of the split: of a large one, only some are among ``images``, evenly spaced."""
    num_texts: int
    confusion: ConfusionMatrix | None = None
    """None if no evaluator gave the images to a few classes."""


def parse_items(root: JsonNode) -> Mapping[str, SplitItems]:
    """The items of each split, by its name. A missing column or a wrong type is a ``UserError`` that names it."""
    splits = root.get("splits", dict)
    return {name: _parse_split(splits.get(name, dict)) for name in splits.value}


def _parse_split(node: JsonNode) -> SplitItems:
    of, images, texts = node.get("of", dict), node.get("images", dict), node.get("texts", dict)
    ids = images.get("id", list).values(str)
    names = images.get("attributes", dict, {})
    attributes = {name: _column(names, name, str, len(ids)) for name in names.value}
    kinds: Mapping[str, type] = {
        "shown": str, "words": int, "rank": int, "wrong": str, "said": str, "exact": bool, "cider": float
    }  # fmt: skip
    columns = {key: _column(images, key, kind, len(ids)) for key, kind in kinds.items()}
    ranks = texts.get("rank", list).value
    of_text = {key: _column(texts, key, kind, len(ranks)) for key, kind in (("language", str), ("words", int))}
    return SplitItems(
        images=tuple(
            ImageItem(
                id=id,
                **{key: column[row] for key, column in columns.items()},
                attributes={name: column[row] for name, column in attributes.items() if column[row] is not None},
            )
            for row, id in enumerate(ids)
        ),
        texts=tuple(
            TextItem(of_text["language"][row], of_text["words"][row], rank)
            for row, rank in enumerate(_column(texts, "rank", int, len(ranks)))
        ),
        num_images=of.get("images", int).value,
        num_texts=of.get("texts", int).value,
        confusion=parse_confusion(node.get("confusion", dict)) if "confusion" in node.value else None,
    )


def parse_confusion(node: JsonNode) -> ConfusionMatrix:
    """A confusion matrix. Raises UserError for a wrong type or shape."""
    classes = node.get("classes", list).values(str)
    rows = node.get("counts", list)
    counts = tuple(
        tuple(float(JsonNode(value, f"{rows.where}[{n}]").check(float).value) for value in row)
        for n, row in enumerate(rows.values(list))
    )
    if [len(row) for row in counts] != [len(classes)] * len(classes):
        raise UserError(f"{rows.where}: has not {len(classes)} rows of {len(classes)} values; evaluate the run again")
    return ConfusionMatrix(node.get("by", str).value, tuple(classes), counts)


def _column(node: JsonNode, key: str, kind: type, count: int) -> list[Any]:
    """The plain values of a column, each a ``kind`` or None. Raises UserError, also if there are not ``count``."""
    column = node.get(key, list)
    if len(column.value) != count:
        raise UserError(f"{column.where}: has {len(column.value)} values, not {count}; evaluate the run again")
    for row, value in enumerate(column.value):
        if value is not None:
            JsonNode(value, f"{column.where}[{row}]").check(kind)
    return list(column.value)
