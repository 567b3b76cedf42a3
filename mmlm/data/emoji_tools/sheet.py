"""The contact sheet of the emoji data card: the same concepts, one row for each hand."""

import io
from collections.abc import Mapping, Sequence
from pathlib import Path

import pyarrow as pa
from PIL import Image, ImageDraw

CELL = 48
LABEL_WIDTH = 84
QUALITY = 80
CONCEPTS = (
    *("1f600", "1f62d", "1f47b", "1f469", "1f44d", "1f436", "1f422", "1f338", "1f34e", "1f355"),
    *("1f3e0", "1f697", "2600", "1f308", "26bd", "1f3b8", "1f4a1", "1f511", "2764", "267b"),
)
"""Twenty things that nearly every hand drew, from all over Unicode's tree."""


def contact_sheet(tables: Mapping[str, pa.Table], concepts: Sequence[str] = CONCEPTS) -> Image.Image:
    """RGB image: a labelled row for each table with an image column, a column for each concept, grey where missing."""
    rows = {name: _images(table, concepts) for name, table in tables.items() if "image" in table.column_names}
    sheet = Image.new("RGB", (LABEL_WIDTH + CELL * len(concepts), CELL * len(rows)), "white")
    pen = ImageDraw.Draw(sheet)
    for top, (name, images) in enumerate(rows.items()):
        pen.text((4, top * CELL + CELL // 2 - 6), name, fill="black", font_size=12)
        for left, concept in enumerate(concepts):
            corner = (LABEL_WIDTH + left * CELL, top * CELL)
            if concept in images:
                drawing = images[concept].resize((CELL - 4, CELL - 4), Image.Resampling.LANCZOS)
                sheet.paste(drawing, (corner[0] + 2, corner[1] + 2))
            else:
                pen.rectangle((corner[0] + 18, corner[1] + 18, corner[0] + 30, corner[1] + 30), fill="lightgrey")
    return sheet


def write_contact_sheet(tables: Mapping[str, pa.Table], path: Path) -> None:
    """Write the sheet as WebP."""
    contact_sheet(tables).save(path, "WEBP", quality=QUALITY, method=6)


def _images(table: pa.Table, concepts: Sequence[str]) -> dict[str, Image.Image]:
    found = {}
    for concept, image in zip(table["concept"].to_pylist(), table["image"].to_pylist(), strict=True):
        if concept in concepts:
            with Image.open(io.BytesIO(image["bytes"])) as opened:
                found[concept] = opened.convert("RGB")
    return found
