"""Reads the hands' packages, package contents -> {concept: drawing}, and renders a drawing to 64x64 RGB pixels.

Only ``prepare_emoji`` needs this file. Drawings are taken as their artist placed them in the square (natural
margins), scaled to 64 pixels and laid on white.
"""

import io
import json
import re
import unicodedata
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from mmlm.core.errors import UserError
from mmlm.data.npm_packages import read_members

IMAGE_SIZE = 64
VARIATION_SELECTOR = "fe0f"


@dataclass(frozen=True)
class Concept:
    """One emoji: its code points, the names artists may have filed it under, and its place in Unicode's tree."""

    code_points: str
    """Lower-case hexadecimal, joined by ``-``, without variation selectors: ``1f468-200d-1f4bb``."""
    name: str
    """The English CLDR short name."""
    unicode_name: str
    group: str
    subgroup: str


Drawing = bytes | str
"""The bytes of a raster file, or the text of an SVG document."""


def concept_key(sequence: str) -> str:
    """``1F468-200D-2764-FE0F`` -> ``1f468-200d-2764``: lower case, no variation selectors."""
    return "-".join(part for part in sequence.lower().split("-") if part != VARIATION_SELECTOR)


def slug(name: str) -> str:
    """``Woman’s clothes: red`` -> ``womans-clothes-red``: how icon sets file a name."""
    plain = unicodedata.normalize("NFKD", name.lower()).encode("ascii", "ignore").decode()
    return re.sub(r"[^a-z0-9]+", "-", plain.replace("'", "")).strip("-")


def render(drawing: Drawing) -> Image.Image:
    """The drawing as an RGB image of 64x64 pixels on white: SVG by resvg, rasters scaled down with Lanczos."""
    if isinstance(drawing, str):
        drawing = _render_svg(drawing)
    with Image.open(io.BytesIO(drawing)) as opened:
        # Scale with premultiplied alpha: transparent pixels must not bleed their hidden colour into the outline.
        scaled = opened.convert("RGBA").convert("RGBa")
    if scaled.size != (IMAGE_SIZE, IMAGE_SIZE):
        side = max(scaled.size)
        square = Image.new("RGBa", (side, side))
        square.paste(scaled, ((side - scaled.width) // 2, (side - scaled.height) // 2))
        scaled = square.resize((IMAGE_SIZE, IMAGE_SIZE), Image.Resampling.LANCZOS)
    canvas = Image.new("RGBA", scaled.size, "white")
    canvas.alpha_composite(scaled.convert("RGBA"))
    return canvas.convert("RGB")


def _render_svg(svg: str) -> bytes:
    try:
        import resvg_py
    except ImportError as error:
        raise UserError(
            "resvg-py: not installed, and it renders the SVG drawings; pip install 'mmlm[emoji]'"
        ) from error
    return bytes(resvg_py.svg_to_bytes(svg_string=svg, width=IMAGE_SIZE, height=IMAGE_SIZE, skip_system_fonts=True))


def datasource_drawings(folder: str) -> Callable[[Path, Sequence[Concept]], dict[str, Drawing]]:
    """Reader of an ``emoji-datasource-*`` package: ``img/<folder>/64/<code points>.png``."""
    return _files_by_code_point(f"img/{folder}/64/", ".png", text=False)


def openmoji_drawings() -> Callable[[Path, Sequence[Concept]], dict[str, Drawing]]:
    """Reader of the ``openmoji`` package: ``color/svg/<CODE POINTS>.svg``."""
    return _files_by_code_point("color/svg/", ".svg", text=True)


def lobehub_drawings() -> Callable[[Path, Sequence[Concept]], dict[str, Drawing]]:
    """Reader of ``@lobehub/fluent-emoji-3d``: ``assets/<code points>.webp``."""
    return _files_by_code_point("assets/", ".webp", text=False)


def _files_by_code_point(
    prefix: str, suffix: str, text: bool
) -> Callable[[Path, Sequence[Concept]], dict[str, Drawing]]:
    def read(tarball: Path, concepts: Sequence[Concept]) -> dict[str, Drawing]:
        def key(name: str) -> str:
            return concept_key(name.removeprefix(prefix).removesuffix(suffix))

        wanted = {concept.code_points for concept in concepts}
        members = read_members(
            tarball, lambda name: name.startswith(prefix) and name.endswith(suffix) and key(name) in wanted
        )
        return {key(name): data.decode() if text else data for name, data in members.items()}

    return read


class IconSet:
    """One Iconify icon set (https://iconify.design/docs/types/iconify-json.html): named SVG bodies and aliases."""

    def __init__(self, tarball: Path) -> None:
        """Reads ``icons.json`` and, where the set has one, ``chars.json`` (code points -> icon name)."""
        members = read_members(tarball, lambda name: name in ("icons.json", "chars.json"))
        self._set = json.loads(members["icons.json"])
        chars = json.loads(members.get("chars.json", b"{}"))
        self.by_code_points: dict[str, str] = {concept_key(code): name for code, name in chars.items()}

    def names(self) -> set[str]:
        """Every icon's and alias's name."""
        return set(self._set["icons"]) | set(self._set.get("aliases", {}))

    def svg(self, name: str) -> str:
        """The icon as an SVG document. An alias may mirror its parent; quarter turns do not occur in our sets."""
        mirrored = False
        while name not in self._set["icons"]:
            alias = self._set["aliases"][name]
            mirrored ^= alias.get("hFlip", False)
            if alias.keys() - {"parent", "hFlip"}:
                raise ValueError(f"icon {name!r}: unsupported alias {alias}")
            name = alias["parent"]
        icon = self._set["icons"][name]
        width, height = (icon.get(side, self._set.get(side, 16)) for side in ("width", "height"))
        left, top = icon.get("left", 0), icon.get("top", 0)
        body = icon["body"]
        if mirrored:
            body = f'<g transform="translate({2 * left + width} 0) scale(-1 1)">{body}</g>'
        return (
            '<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" '
            f'viewBox="{left} {top} {width} {height}" width="{width}" height="{height}">{body}</svg>'
        )


def icon_set_drawings(
    name_of: Callable[[Concept], Sequence[str]], renamed: Mapping[str, str] | None = None
) -> Callable[[Path, Sequence[Concept]], dict[str, Drawing]]:
    """Reader of an Iconify package. ``renamed`` (code points -> icon) wins, then the set's own ``chars.json``, then
    the first of ``name_of(concept)`` that the set has.
    """

    def read(tarball: Path, concepts: Sequence[Concept]) -> dict[str, Drawing]:
        icons = IconSet(tarball)
        names = icons.names()
        chosen: dict[str, str] = {}
        for concept in concepts:
            known = [(renamed or {}).get(concept.code_points), icons.by_code_points.get(concept.code_points)]
            candidates = [name for name in (*known, *name_of(concept)) if name in names]
            if candidates:
                chosen[concept.code_points] = candidates[0]
        return {code_points: icons.svg(name) for code_points, name in chosen.items()}

    return read
