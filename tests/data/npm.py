"""Tarballs as npm packs them."""

import io
import tarfile
from pathlib import Path


def tarball(path: Path, files: dict[str, bytes | str]) -> Path:
    """Writes ``files``, by path in the package, into a tarball; returns its path."""
    with tarfile.open(path, "w:gz") as archive:
        for name, data in files.items():
            data = data.encode() if isinstance(data, str) else data
            member = tarfile.TarInfo(f"package/{name}")
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))
    return path
