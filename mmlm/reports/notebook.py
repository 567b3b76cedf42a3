"""Pictures and tables as a piece of HTML for a notebook: every style stands in its element; no script, no network."""

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

import torch
import torch.nn.functional as F
from torch import Tensor

_SIDE = 128
"""Pixels of a side of the square that a picture is shown in."""
_FONT = "font:13px/1.4 system-ui,sans-serif"
_FIRST, _OTHER = "font-weight:600", "opacity:.7"
"""The first line below a picture, and the others; on grounds of any colour."""
_DIMMED = 0.2
"""Brightness of what the decoder did not look at."""


@dataclass(frozen=True)
class Picture:
    """A picture with lines of text below it."""

    address: str
    """A ``data:`` address (see ``thumbnail_uri``); empty for a picture that is not there."""
    lines: Sequence[str]
    """The first one is bold."""


def gallery(title: str, pictures: Sequence[Picture]) -> str:
    """Pictures beside each other, below a title, which may be empty."""
    head = f'<div style="font-weight:600;margin-bottom:6px" dir="auto">{escape(title)}</div>' if title else ""
    figures = "".join(map(_figure, pictures))
    return f'<div style="{_FONT}">{head}<div style="display:flex;flex-wrap:wrap;gap:12px">{figures}</div></div>'


def table(title: str, rows: Sequence[Sequence[str]]) -> str:
    """A table without heads, below a title."""
    cell = '<td style="text-align:left;padding:1px 14px 1px 0" dir="auto">'
    lines = "".join(f"<tr>{''.join(f'{cell}{escape(text)}</td>' for text in row)}</tr>" for row in rows)
    return f'<div style="{_FONT}"><div style="font-weight:600">{escape(title)}</div><table>{lines}</table></div>'


def lit(image: Tensor, where: Tensor) -> Tensor:
    """uint8[3, S, S], dimmed but for the places where a map float[rows, columns] is high.

    The highest value of the map has full brightness; it is spread over its patch without blurring.
    """
    share = where.float() / where.float().max().clamp(min=1e-12)
    bright = F.interpolate(share[None, None], image.shape[1:], mode="nearest")[0]
    return (image.float() * (_DIMMED + (1 - _DIMMED) * bright)).round().to(torch.uint8)


def _figure(picture: Picture) -> str:
    size = f"width:{_SIDE}px;height:{_SIDE}px"
    image = f'<img src="{escape(picture.address)}" alt="" style="{size};object-fit:contain">' if picture.address else ""
    lines = "".join(
        f'<div style="{_FIRST if number == 0 else _OTHER}" dir="auto">{escape(line)}</div>'
        for number, line in enumerate(picture.lines)
    )
    return f'<figure style="margin:0;width:{_SIDE}px;overflow-wrap:anywhere">{image}{lines}</figure>'
