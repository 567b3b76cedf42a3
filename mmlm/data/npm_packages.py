"""npm packages as sources of the data sets that ship with the repo: pinned, fetched once, and verified.

Only the builders of these data sets need this file; training reads the Parquet files that they wrote.
"""

import base64
import hashlib
import shutil
import subprocess
import tarfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from mmlm.core.errors import UserError


@dataclass(frozen=True)
class Package:
    """One npm package, pinned by version and by the sha512 of its tarball (npm's ``integrity`` string)."""

    name: str
    version: str
    integrity: str

    @property
    def tarball(self) -> str:
        """File name that ``npm pack`` gives the tarball."""
        return f"{self.name.lstrip('@').replace('/', '-')}-{self.version}.tgz"


def fetch(package: Package, folder: Path) -> Path:
    """The path of the package's verified tarball in ``folder``, where ``npm pack`` downloads it if it is missing.

    Raises ``UserError`` if npm is missing, the download fails, or the tarball's sha512 is not the pinned one.
    """
    path = folder / package.tarball
    if not path.exists():
        _download(package, folder)
    verify(package, path)
    return path


def verify(package: Package, path: Path) -> None:
    """Compares the tarball with the pinned sha512. Raises ``UserError`` if they differ."""
    digest = "sha512-" + base64.b64encode(hashlib.sha512(path.read_bytes()).digest()).decode()
    if digest != package.integrity:
        raise UserError(
            f"{path}: its sha512 is not the one pinned for {package.name}@{package.version}; "
            "delete the file and run again (a second failure means that the package was tampered with)"
        )


def read_members(tarball: Path, wanted: Callable[[str], bool]) -> dict[str, bytes]:
    """The contents of the tarball's files whose path (without npm's leading ``package/``) is ``wanted``, by path."""
    found: dict[str, bytes] = {}
    with tarfile.open(tarball, "r:gz") as archive:
        for member in archive:
            name = member.name.split("/", 1)[-1]
            if member.isfile() and wanted(name):
                stream = archive.extractfile(member)
                if stream is not None:
                    found[name] = stream.read()
    return found


def _download(package: Package, folder: Path) -> None:
    npm = shutil.which("npm")
    if npm is None:
        raise UserError(f"npm: not found, and {package.name} is fetched with it; install Node.js 18 or newer")
    folder.mkdir(parents=True, exist_ok=True)
    spec = f"{package.name}@{package.version}"
    result = subprocess.run(
        [npm, "pack", spec, "--pack-destination", str(folder)], capture_output=True, text=True, check=False
    )
    if result.returncode != 0 or not (folder / package.tarball).exists():
        errors = [line for line in result.stderr.splitlines() if line.startswith(("npm error", "npm ERR!"))]
        reason = errors[0] if errors else f"npm exited with {result.returncode}"
        raise UserError(f"npm pack {spec} failed ({reason}); check the network and the registry in your npm settings")
