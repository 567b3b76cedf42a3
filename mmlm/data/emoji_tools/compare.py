"""Compares a rebuilt emoji table with the committed one by content: decoded pixels and text, not file bytes."""

import hashlib
import io
import json

import numpy as np
import pyarrow as pa
from PIL import Image

ENCODER_TOLERANCE = 2.0
"""Mean absolute difference (of 255) below which two images count as one drawing encoded by two libwebp versions."""


def decode_pixels(encoded: bytes) -> np.ndarray:
    """uint8[64, 64, 3] of one encoded image."""
    with Image.open(io.BytesIO(encoded)) as image:
        return np.asarray(image.convert("RGB"))


def content_digest(table: pa.Table) -> str:
    """SHA-256 of decoded pixels and text: equal for equal content, however the file is compressed."""
    digest = hashlib.sha256()
    for row in table.to_pylist():
        if "image" in row:
            digest.update(decode_pixels(row["image"].pop("bytes")).tobytes())
        digest.update(json.dumps(row, sort_keys=True, ensure_ascii=False).encode())
    return digest.hexdigest()


def differences(built: pa.Table, committed: pa.Table) -> list[str]:
    """The differences between two tables of one hand, one line each: rows, text, and pixels beyond the tolerance."""
    rows = {row["concept"]: row for row in built.to_pylist()}
    old_rows = {row["concept"]: row for row in committed.to_pylist()}
    found = [f"{concept}: only in the committed file" for concept in old_rows.keys() - rows.keys()]
    found += [f"{concept}: not in the committed file" for concept in rows.keys() - old_rows.keys()]
    for concept in rows.keys() & old_rows.keys():
        row, old = rows[concept], old_rows[concept]
        if "image" in row and "image" in old:
            distance = _pixel_distance(row["image"].pop("bytes"), old["image"].pop("bytes"))
            if distance > ENCODER_TOLERANCE:
                found.append(f"{concept}: the pixels differ by {distance:.1f} of 255 on average")
        if row != old:
            found.append(f"{concept}: the text differs")
    return sorted(found)


def _pixel_distance(encoded: bytes, old_encoded: bytes) -> float:
    """Mean absolute difference of the decoded images, of 255; infinite if their sizes differ."""
    pixels, old_pixels = (decode_pixels(data).astype(np.int16) for data in (encoded, old_encoded))
    return float(np.abs(pixels - old_pixels).mean()) if pixels.shape == old_pixels.shape else float("inf")
