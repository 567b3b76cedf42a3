"""Builds the emoji data set from pinned npm packages: ``python -m mmlm.data.prepare_emoji [--check]``.

Writes one Parquet file per hand, the checksums and the contact sheet into ``mmlm/data/emoji/``. With ``--check`` it
writes nothing, but compares the decoded pixels and the text of a fresh build with the files that are there. About 171
MB are downloaded once. Needs npm, and resvg-py (``pip install 'mmlm[emoji]'``) for the SVG sets.
"""

import argparse
import hashlib
import io
import json
import sys
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image
from rich.console import Console
from rich.progress import track

from mmlm.core.errors import UserError
from mmlm.data.emoji import FOLDER, LANGUAGES, NAMES
from mmlm.data.emoji_tools import corrections
from mmlm.data.emoji_tools.compare import content_digest, differences
from mmlm.data.emoji_tools.drawings import (
    Concept,
    Drawing,
    concept_key,
    datasource_drawings,
    icon_set_drawings,
    lobehub_drawings,
    openmoji_drawings,
    render,
    slug,
)
from mmlm.data.emoji_tools.sheet import write_contact_sheet
from mmlm.data.emoji_tools.sources import (
    DERIVED_NAMES_PACKAGE,
    HANDS,
    NAMES_PACKAGE,
    NOTO_PACKAGE,
    Hand,
    packages,
)
from mmlm.data.npm_packages import fetch, read_members

WEBP_QUALITY = 90
"""Quality of lossy WebP, 0 to 100."""
CHECKSUMS = "SHA256SUMS"
CONTENT_DIGESTS = "content.json"
CONTACT_SHEET = "contact_sheet.webp"
OPEN_SET = "fluent_flat"
MIRROR_OF_OPEN_SET = "fluent_3d"
"""The hand whose drawings are taken only where ``OPEN_SET`` has the concept; see ``choose_drawings``."""
_SKIN_TONES = "Component"
"""The category of the skin-tone swatches, which are no emoji of their own."""


@dataclass(frozen=True)
class Annotation:
    """CLDR's short name and keywords of one concept in one language."""

    name: str
    keywords: tuple[str, ...]


def _names(concept: Concept) -> tuple[str, ...]:
    return slug(concept.name), slug(concept.unicode_name)


def _joined_names(concept: Concept) -> tuple[str, ...]:
    return tuple(name.replace("-", "") for name in _names(concept))


READERS: Mapping[str, Callable[[Path, Sequence[Concept]], dict[str, Drawing]]] = {
    "noto": datasource_drawings("google"),
    "twemoji": datasource_drawings("twitter"),
    "noto_v1": icon_set_drawings(_names, corrections.NOTO_V1_ICONS),
    "fxemoji": icon_set_drawings(_joined_names, corrections.FXEMOJI_ICONS),
    "openmoji": openmoji_drawings(),
    "fluent_flat": icon_set_drawings(_names),
    "fluent_3d": lobehub_drawings(),
}

LEFT_OUT: Mapping[str, frozenset[str]] = {
    "noto": corrections.NOTO_LEFT_OUT,
    "noto_v1": corrections.NOTO_V1_LEFT_OUT,
    "fxemoji": corrections.FXEMOJI_LEFT_OUT,
    "fluent_flat": corrections.FLUENT_FLAT_LEFT_OUT,
}


def read_annotations(main: Path, derived: Path) -> dict[str, dict[str, Annotation]]:
    """Language -> concept -> annotation. The second CLDR tarball has composed names (flags, keycaps, people)."""
    found: dict[str, dict[str, Annotation]] = {language: {} for language in LANGUAGES}
    for tarball, folder in ((main, "annotations"), (derived, "annotationsDerived")):
        paths = {f"{folder}/{language}/annotations.json": language for language in LANGUAGES}
        for path, data in read_members(tarball, paths.__contains__).items():
            for text, entry in json.loads(data)[folder]["annotations"].items():
                key = concept_key("-".join(f"{ord(character):04x}" for character in text))
                if "tts" in entry:
                    annotation = Annotation(entry["tts"][0], tuple(entry.get("default", ())))
                    found[paths[path]].setdefault(key, annotation)
    return found


def read_concepts(datasource: Path, english: Mapping[str, Annotation]) -> list[Concept]:
    """Every emoji without skin-tone variants, in Unicode's order."""
    entries = json.loads(read_members(datasource, lambda name: name == "emoji.json")["emoji.json"])
    concepts = []
    for entry in sorted(entries, key=lambda entry: entry["sort_order"]):
        if entry["category"] != _SKIN_TONES:
            key = concept_key(entry["unified"])
            concepts.append(
                Concept(key, english[key].name, entry["name"] or "", entry["category"], entry["subcategory"])
            )
    return concepts


def choose_drawings(hand: Hand, drawings: Mapping[str, Drawing], open_set: Collection[str]) -> dict[str, Drawing]:
    """A hand's drawings without its known errors; of the 3D set only the concepts in Microsoft's ``open_set``.

    Microsoft released only some of its emoji under the MIT licence, those of the flat package. The origin of the
    country flags and families that only the 3D package has is not documented.
    """
    left_out = LEFT_OUT.get(hand.name, frozenset())
    allowed = open_set if hand.name == MIRROR_OF_OPEN_SET else drawings.keys()
    return {concept: drawing for concept, drawing in drawings.items() if concept in allowed and concept not in left_out}


def encode_webp(image: Image.Image) -> bytes:
    """The smaller of lossless WebP (flat drawings) and WebP at ``WEBP_QUALITY`` (shaded ones)."""
    lossy, lossless = io.BytesIO(), io.BytesIO()
    image.save(lossy, "WEBP", quality=WEBP_QUALITY, method=6)
    image.save(lossless, "WEBP", lossless=True, quality=100, method=4)
    return min(lossy.getvalue(), lossless.getvalue(), key=len)


def make_table(
    hand: Hand,
    concepts: Sequence[Concept],
    drawings: Mapping[str, Drawing],
    annotations: Mapping[str, Mapping[str, Annotation]],
    console: Console,
) -> pa.Table:
    """The hand's Parquet table: one row for each concept it drew, in the order of ``concepts``."""
    drawn = [concept for concept in concepts if concept.code_points in drawings]
    images = [
        {
            "bytes": encode_webp(render(drawings[concept.code_points])),
            "path": f"{hand.name}/{concept.code_points}.webp",
        }
        for concept in track(
            drawn, f"draw  {hand.name:12}", console=console, transient=True, disable=not console.is_terminal
        )
    ]
    return pa.table(
        {
            "image": pa.array(images, pa.struct({"bytes": pa.binary(), "path": pa.string()})),
            "style": pa.array([hand.name] * len(drawn), pa.string()),
            **_text_columns(drawn, annotations),
        }
    )


def make_names_table(concepts: Sequence[Concept], annotations: Mapping[str, Mapping[str, Annotation]]) -> pa.Table:
    """CLDR's own Parquet table: every concept's names and, stored only here, its keywords."""
    keywords = [
        {language: list(annotations[language][concept.code_points].keywords) for language in LANGUAGES}
        for concept in concepts
    ]
    lists = pa.struct({language: pa.list_(pa.string()) for language in LANGUAGES})
    return pa.table({**_text_columns(concepts, annotations), "keywords": pa.array(keywords, lists)})


def _text_columns(
    concepts: Sequence[Concept], annotations: Mapping[str, Mapping[str, Annotation]]
) -> dict[str, pa.Array]:
    captions = [
        {language: annotations[language][concept.code_points].name for language in LANGUAGES} for concept in concepts
    ]
    return {
        "concept": pa.array([concept.code_points for concept in concepts], pa.string()),
        "captions": pa.array(captions, pa.struct({language: pa.string() for language in LANGUAGES})),
        "group": pa.array([concept.group for concept in concepts], pa.string()),
        "subgroup": pa.array([concept.subgroup for concept in concepts], pa.string()),
    }


def build(downloads: Path, console: Console) -> dict[str, pa.Table]:
    """Fetch, verify and convert everything: file stem -> table."""
    tarballs = {}
    for package in packages():
        console.print(f"fetch {package.name}@{package.version}")
        tarballs[package] = fetch(package, downloads)
    annotations = read_annotations(tarballs[NAMES_PACKAGE], tarballs[DERIVED_NAMES_PACKAGE])
    concepts = read_concepts(tarballs[NOTO_PACKAGE], annotations["en"])
    drawings = {hand.name: READERS[hand.name](tarballs[hand.package], concepts) for hand in HANDS}
    tables = {NAMES: make_names_table(concepts, annotations)}
    for hand in HANDS:
        chosen = choose_drawings(hand, drawings[hand.name], drawings[OPEN_SET].keys())
        tables[hand.name] = make_table(hand, concepts, chosen, annotations, console)
        console.print(f"draw  {hand.name:12} {len(tables[hand.name]):5} images")
    return tables


def write(tables: Mapping[str, pa.Table], folder: Path) -> None:
    """Writes the Parquet files, their two manifests (file checksums, content digests) and the contact sheet."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, table in tables.items():
        partial = folder / f"{name}.parquet.partial"
        # A dictionary saves space only where values repeat; it would store every unique name twice.
        pq.write_table(
            table,
            partial,
            compression="zstd",
            compression_level=22,
            use_dictionary=[column for column in ("style", "group", "subgroup") if column in table.column_names],
        )
        partial.replace(folder / f"{name}.parquet")
    sums = [f"{hashlib.sha256((folder / f'{n}.parquet').read_bytes()).hexdigest()}  {n}.parquet" for n in tables]
    (folder / CHECKSUMS).write_text("\n".join(sums) + "\n", encoding="utf-8")
    contents = {name: {"rows": len(table), "sha256": content_digest(table)} for name, table in tables.items()}
    (folder / CONTENT_DIGESTS).write_text(json.dumps(contents, indent=2) + "\n", encoding="utf-8")
    write_contact_sheet(tables, folder / CONTACT_SHEET)


def check(tables: Mapping[str, pa.Table], folder: Path, console: Console) -> bool:
    """Compares a fresh build with the committed files and prints the differences. True if there are none."""
    equal = True
    for name, table in tables.items():
        path = folder / f"{name}.parquet"
        if not path.exists():
            raise UserError(f"{path}: there is no such file to check against; run without --check to write it")
        found = differences(table, pq.read_table(path))
        console.print(f"{name:12} {'equal' if not found else f'{len(found)} differences'}")
        for line in found[:10]:
            console.print(f"    {line}")
        equal = equal and not found
    return equal


def main(arguments: Sequence[str] | None = None) -> int:
    """Entry point; returns the exit status: 0, 1 if ``--check`` found differences, 2 on a user's error."""
    parser = argparse.ArgumentParser(
        prog="python -m mmlm.data.prepare_emoji", description="Build the emoji data set from pinned npm packages."
    )
    parser.add_argument("--check", action="store_true", help="compare with the files that are there, write nothing")
    parser.add_argument(
        "--folder", type=Path, default=FOLDER, help="where the Parquet files are (default: %(default)s)"
    )
    parser.add_argument(
        "--downloads",
        type=Path,
        default=Path.home() / ".cache" / "mmlm" / "emoji",
        help="where the npm tarballs are kept (default: %(default)s)",
    )
    options = parser.parse_args(arguments)
    console = Console()
    try:
        tables = build(options.downloads, console)
        if options.check:
            return 0 if check(tables, options.folder, console) else 1
        write(tables, options.folder)
    except UserError as error:
        Console(stderr=True).print(f"error: {error}", style="red", markup=False, soft_wrap=True)
        return 2
    total = sum((options.folder / f"{name}.parquet").stat().st_size for name in tables)
    console.print(f"wrote {len(tables)} files, {total / 1e6:.1f} MB, to {options.folder}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
