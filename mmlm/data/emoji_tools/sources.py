"""The packages that the emoji data set is made from, the hands (artists) in them, and the download of npm packages.

Only ``prepare_emoji`` needs this file; training reads the Parquet files that it wrote.
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


@dataclass(frozen=True)
class Hand:
    """One artist's drawings: the package they come from, their licence and who is to be credited."""

    name: str
    """Short name: the Parquet file's stem, the ``style`` column and the first half of an example's id."""
    title: str
    package: Package
    licence: str
    """SPDX identifier of the *images'* licence, which may differ from the package's own field."""
    copyright: str
    homepage: str


NOTO_PACKAGE = Package(
    "emoji-datasource-google",
    "16.0.0",
    "sha512-ZRexfzs7MVoLnmzZmNsO4TKhnAJp5D++Vm6PpUpH/jEQQlemp3l88CjZ+DoZ2faM9R4QxZkOPJCoT8DlPhfQ3A==",
)
"""Its ``emoji.json`` is also the list of concepts (code points, group, subgroup)."""

NAMES_PACKAGE = Package(
    "cldr-annotations-full",
    "48.2.0",
    "sha512-DV7A+rEcgUSNTRsVGNGqBZRmAkGfwhGHO5Q1dRwzBoBnVrHWp804JP7/QJdEc66iHmx3+zLWVIMCFLm0lW7PUQ==",
)
DERIVED_NAMES_PACKAGE = Package(
    "cldr-annotations-derived-full",
    "48.2.0",
    "sha512-log62km+AOzI7n/NEuNNFV0mg9DWnt67EYCh1RwxZq9dyRuyteB586LT83Ke8TchEfnwI9cIk2P31zO4nTvZmw==",
)

HANDS: tuple[Hand, ...] = (
    Hand(
        "noto",
        "Noto Emoji 2.048",
        NOTO_PACKAGE,
        "Apache-2.0",
        "Google LLC",
        "https://github.com/googlefonts/noto-emoji",
    ),
    Hand(
        "twemoji",
        "Twemoji 16.0.1",
        Package(
            "emoji-datasource-twitter",
            "16.0.0",
            "sha512-7F+uCuHH+7Qnrc15P5tnbvKkg9E6tlzi4MnT2uW1RlN4pLYTza6cP/dstIfSDMtpjFLWuZewWg8jBbuL2eyELQ==",
        ),
        "CC-BY-4.0",
        "Twitter, Inc and other contributors",
        "https://github.com/jdecked/twemoji",
    ),
    Hand(
        "noto_v1",
        "Noto Emoji, first version",
        Package(
            "@iconify-json/noto-v1",
            "1.2.5",
            "sha512-/DsVMius69Q0fRS53z7QK1TROSuar606jiIx+laXtdsYGMXpf6LtHBx6CGfoo3UHHb/XpBsw+1L1x3eyPqMuVA==",
        ),
        "Apache-2.0",
        "Google Inc.",
        "https://github.com/googlefonts/noto-emoji",
    ),
    Hand(
        "fxemoji",
        "Firefox OS Emoji",
        Package(
            "@iconify-json/fxemoji",
            "1.2.2",
            "sha512-UAasRaxzFUKfIGSmLwnoarsssA4LX0VLLuEmplIqM6ZNQqIQRtav8tZ4H1neTlBreXuMQyAifr5jP4kn78DpiQ==",
        ),
        "CC-BY-4.0",
        "Mozilla Foundation",
        "https://github.com/mozilla/fxemoji",
    ),
    Hand(
        "openmoji",
        "OpenMoji 17",
        Package(
            "openmoji",
            "17.0.0",
            "sha512-EBnYrNGdcdw+OSXmENeNE1yBNRu6tOraTmoOyUbJkTmvT/+XETp8RZLSJFzD3lrPc5N9CzsyPnRTk0Vp4UaI9w==",
        ),
        "CC-BY-SA-4.0",
        "Benedikt Groß, Daniel Utz and the OpenMoji contributors",
        "https://openmoji.org",
    ),
    Hand(
        "fluent_flat",
        "Fluent Emoji, flat",
        Package(
            "@iconify-json/fluent-emoji-flat",
            "1.2.6",
            "sha512-RY47RgPb47fYUiyrA64sIOL0+UU02s29sXpNBbIQRBUlPlfNFTKUmZDERGuxDs/7yNGWqQYvuaSYM1M4fRXlUw==",
        ),
        "MIT",
        "Microsoft Corporation",
        "https://github.com/microsoft/fluentui-emoji",
    ),
    Hand(
        "fluent_3d",
        "Fluent Emoji, 3D",
        Package(
            "@lobehub/fluent-emoji-3d",
            "1.1.0",
            "sha512-Wlq2lVStTnr8BDpIJ0pEnTKO4LuDxxqTEhTvRtD1DLRF0me7ogeRQjKoehDHXuVJ2Qaecgl5wRBv60lUAG3h7g==",
        ),
        "MIT",
        "Microsoft Corporation; packaged by LobeHub",
        "https://github.com/microsoft/fluentui-emoji",
    ),
)


def packages() -> tuple[Package, ...]:
    """Every package that the builder needs, without repetition."""
    return (*(hand.package for hand in HANDS), NAMES_PACKAGE, DERIVED_NAMES_PACKAGE)


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
        raise UserError(
            "npm: not found, and the emoji builder fetches its sources with it; install Node.js 18 or newer"
        )
    folder.mkdir(parents=True, exist_ok=True)
    spec = f"{package.name}@{package.version}"
    result = subprocess.run(
        [npm, "pack", spec, "--pack-destination", str(folder)], capture_output=True, text=True, check=False
    )
    if result.returncode != 0 or not (folder / package.tarball).exists():
        errors = [line for line in result.stderr.splitlines() if line.startswith(("npm error", "npm ERR!"))]
        reason = errors[0] if errors else f"npm exited with {result.returncode}"
        raise UserError(f"npm pack {spec} failed ({reason}); check the network and the registry in your npm settings")
