"""The page of a search: what was looked for, and the images found. One file that needs no other and no network."""

import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

from PIL import Image
from torch import Tensor

from mmlm.reports.document import document

THUMBNAIL = 360
"""Pixels of the longer side of an image on the page, at most."""
_OWN_STYLE = """
.gallery.found { grid-template-columns: repeat(auto-fill, minmax(158px, 1fr)); }
.gallery.found img { padding: 0; }
.asked { display: flex; gap: 22px; align-items: center; }
.asked h1 { min-width: 0; }
header .lead { overflow-wrap: anywhere; }
.asked img { width: 128px; height: 128px; object-fit: contain; border: 1px solid var(--line); flex: none; }
.near { display: block; height: 4px; margin: 5px 0 3px; border-radius: 2px; background: var(--line); }
.near i { display: block; height: 4px; border-radius: 2px; background: var(--series-1); }
@media (max-width: 640px) {
  .gallery.found { grid-template-columns: repeat(2, minmax(0, 1fr)); }
  .asked img { width: 88px; height: 88px; }
}
"""


@dataclass(frozen=True)
class FoundImage:
    """An image that a search found."""

    name: str
    """Its path inside of the folder."""
    similarity: float
    """Cosine, -1 to 1."""
    thumbnail: str
    """As ``thumbnail_uri`` makes it; empty for a file that cannot be read any more."""


def thumbnail_uri(image: Tensor) -> str:
    """uint8[3, H, W] -> a small WebP image as a ``data:`` address."""
    picture = Image.fromarray(image.permute(1, 2, 0).numpy())
    picture.thumbnail((THUMBNAIL, THUMBNAIL))
    buffer = io.BytesIO()
    picture.save(buffer, format="WEBP", quality=82)
    return "data:image/webp;base64," + base64.b64encode(buffer.getvalue()).decode()


def contact_sheet(query: str, query_image: str | None, found: Sequence[FoundImage], about: str) -> str:
    """The whole page as HTML.

    ``query`` is the text, or the name of the image whose thumbnail ``query_image`` is. ``about`` is a line that says
    among what was searched, and with which model.
    """
    asked = f'<h1 dir="auto">{escape(query)}</h1>'
    if query_image is not None:
        asked = f'<div class="asked"><img src="{query_image}" alt=""><h1 dir="auto">{escape(query)}</h1></div>'
    cards = "".join(_card(rank, image) for rank, image in enumerate(found, start=1))
    body = (
        f'<header><p class="eyebrow">images nearest to</p>{asked}<p class="lead">{escape(about)}</p></header>'
        '<section><p class="note">Nearest first; the bar and the number are the cosine similarity.</p>'
        f'<div class="gallery found">{cards}</div></section>'
    )
    return document(query, body, "written by mmlm", style=_OWN_STYLE)


def _card(rank: int, image: FoundImage) -> str:
    name = escape(image.name)
    picture = f'<img src="{image.thumbnail}" alt="{name}">' if image.thumbnail else ""
    share = min(max(image.similarity, 0), 1)
    return (
        f'<figure>{picture}<figcaption><span class="near"><i style="width:{100 * share:.0f}%"></i></span>'
        f'<span class="generated number">{rank}. {image.similarity:.3f}</span>'
        f'<p class="truth" dir="auto">{name}</p></figcaption></figure>'
    )
