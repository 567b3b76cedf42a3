"""The environment of a run (code, packages, machine), written into its folder for whoever reproduces the run."""

import hashlib
import json
import platform
import shlex
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch

from mmlm.core.computing import resolved
from mmlm.core.precision import Precision
from mmlm.record.folder import ENVIRONMENT
from mmlm.record.manifest import DamagedFileError, read_recorded, write_recorded

PACKAGES = (  # those that can change a number, or how it is shown
    "mmlm",
    "torch",
    "torchvision",
    "timm",
    "transformers",
    "tokenizers",
    "safetensors",
    "hydra-core",
    "omegaconf",
    "numpy",
    "pillow",
    "pyarrow",
    "wandb",
)

_PACKAGE = Path(__file__).resolve().parents[1]


@dataclass(frozen=True)
class Environment:
    """The environment of a run; field names are the keys of ``environment.json``."""

    command: str
    """The command line that started the run."""
    working_folder: str
    """Where it was given: relative paths of the config begin there."""
    git_commit: str | None
    """None outside a git checkout."""
    git_dirty: bool | None
    """Whether tracked files differed from that commit."""
    code: str
    """Digest of the source files of this package; another one is other code, whatever git says."""
    device: str
    precision: str
    """The name of the ``Precision`` that the run computes in, with ``auto`` resolved."""
    python: str
    platform: str
    packages: Mapping[str, str]
    """Versions of the installed ones of ``PACKAGES``."""
    model: Mapping[str, Mapping[str, int]]
    """``{"parameters": {part: count}, "flops": {part: count}}``; FLOPs as ``model.costs`` counts them."""


def describe_environment(
    device: torch.device, precision: Precision, model: Mapping[str, Mapping[str, int]]
) -> Environment:
    """The environment of this process; ``model`` has the counts of ``Environment.model``, which the caller knows."""
    status = _git("status", "--porcelain", "--untracked-files=no")
    return Environment(
        command=shlex.join(["python", "-m", "mmlm.train", *sys.argv[1:]]),
        working_folder=str(Path.cwd()),
        git_commit=_git("rev-parse", "HEAD"),
        git_dirty=None if status is None else bool(status),
        code=code_digest(),
        device=device_name(device),
        precision=resolved(precision, device).name,
        python=platform.python_version(),
        platform=platform.platform(),
        packages={name: found for name in PACKAGES if (found := _version(name))},
        model=model,
    )


def code_digest() -> str:
    """12 hexadecimal digits of the content of all Python files of this package, and of their names."""
    digest = hashlib.sha256()
    for file in sorted(_PACKAGE.rglob("*.py")):
        digest.update(f"{file.relative_to(_PACKAGE).as_posix()}\0".encode())
        digest.update(hashlib.sha256(file.read_bytes()).digest())
    return digest.hexdigest()[:12]


def device_name(device: torch.device) -> str:
    """``CPU, 2 threads``, or the name of the accelerator."""
    if device.type == "cpu":
        threads = torch.get_num_threads()
        return f"CPU, {threads} thread{'s' * (threads != 1)}"
    return torch.cuda.get_device_name(device)


def precision_of_run(configured: Precision, folder: Path, device: torch.device) -> Precision:
    """The precision of a run, with ``auto`` resolved: to what ``folder`` has on record, or else for ``device``.

    Without the record, a run that is resumed on another machine could go on in another precision. Raises
    DamagedFileError for a record that ``auto`` needs and that is damaged.
    """
    file = folder / ENVIRONMENT
    if configured is not Precision.auto or not file.is_file():
        return resolved(configured, device)
    try:
        recorded = json.loads(read_recorded(file)).get("precision")
    except (ValueError, AttributeError):
        raise DamagedFileError(file, "it holds no JSON object") from None
    return Precision[recorded] if recorded in Precision.__members__ else resolved(configured, device)


def working_folder_of_run(folder: Path) -> Path | None:
    """Where the relative paths of a run's config begin; None if nobody has written it down, or it is not there.

    Raises DamagedFileError.
    """
    file = folder / ENVIRONMENT
    if not file.is_file():
        return None
    try:
        recorded = json.loads(read_recorded(file)).get("working_folder")
    except (ValueError, AttributeError):
        raise DamagedFileError(file, "it holds no JSON object") from None
    found = Path(recorded) if isinstance(recorded, str) and recorded else None
    return found if found is not None and found.is_dir() else None


def save_environment(environment: Environment, folder: Path) -> None:
    """Writes ``environment.json``, whole or not at all: a resumed run takes its precision from it."""
    write_recorded(folder / ENVIRONMENT, json.dumps(asdict(environment), indent=2) + "\n")


def _git(*arguments: str) -> str | None:
    """The output of a git command in the checkout of this package; None without git or a checkout.

    A repository that this file lies in but does not belong to, such as that around a .venv, is none.
    """
    here = Path(__file__)
    try:
        for command in (["ls-files", "--error-unmatch", here.name], arguments):
            done = subprocess.run(
                ["git", *command], cwd=here.parent, capture_output=True, text=True, check=True, timeout=20
            )
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None
