"""A disk that is full or broken costs the checkpoint being written, not those before, and is told in one line."""

import errno
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from mmlm.checkpoints import files as checkpoint_files
from mmlm.checkpoints.checkpoint import latest_checkpoint, load_weights, save_checkpoint
from mmlm.checkpoints.files import explained
from mmlm.core.errors import UserError


def save(root: Path, step: int, value: float = 1.0) -> Path:
    return save_checkpoint(root, step, {"model": {"weight": torch.full((3, 4), value)}}, {"position": step})


def names(root: Path) -> list[str]:
    return sorted(path.name for path in root.iterdir())


def refuse(number: int):
    def call(*arguments: object) -> None:
        raise OSError(number, os.strerror(number))

    return call


@pytest.mark.parametrize(
    ("number", "fix"),
    [
        (errno.ENOSPC, "free space there"),
        (errno.EDQUOT, "free space there"),
        (errno.EACCES, "make that folder writable"),
        (errno.EROFS, "make that folder writable"),
        (errno.EIO, "look at that disk"),
    ],
)
@pytest.mark.parametrize("call", ["flush", "write_json", "begin"])
def test_an_error_of_the_disk_leaves_the_one_before_and_no_half(tmp_path, monkeypatch, number, fix, call):
    before = save(tmp_path, 10)
    with monkeypatch.context() as patch:
        module = sys.modules["mmlm.checkpoints.checkpoint"] if call == "begin" else checkpoint_files
        patch.setattr(module, call, refuse(number))
        with pytest.raises(UserError) as raised:
            save(tmp_path, 20)
    assert str(raised.value) == (
        f"checkpoint {tmp_path / 'step=000020'} could not be written ({os.strerror(number)}); step=000010 is intact; "
        f"{fix}, then give the same command again"
    )
    assert names(tmp_path) == ["step=000010"]
    assert latest_checkpoint(tmp_path) == (before, [])
    assert latest_checkpoint(tmp_path)[0] != save(tmp_path, 20)


def test_the_first_one_has_none_before_it(tmp_path, monkeypatch):
    monkeypatch.setattr(checkpoint_files, "flush", refuse(errno.ENOSPC))
    with pytest.raises(UserError, match=r"\(No space left on device\); there is none before it; free space there"):
        save(tmp_path / "checkpoints", 1)
    assert names(tmp_path / "checkpoints") == []


def test_one_that_was_to_be_replaced_has_its_name_again(tmp_path, monkeypatch):
    folder = save(tmp_path, 10, value=1.0)
    rename = Path.rename
    fails = refuse(errno.EIO)
    monkeypatch.setattr(Path, "rename", lambda a, b: fails() if a.name.startswith(".saving") else rename(a, b))
    with pytest.raises(UserError, match="could not be written"):
        save(tmp_path, 10, value=2.0)
    assert names(tmp_path) == ["step=000010"]
    assert load_weights(folder)["weight"].unique().item() == 1.0


def test_other_errors_are_bugs(tmp_path):
    with pytest.raises(RuntimeError, match="shapes"), explained(tmp_path, 1):
        raise RuntimeError("shapes differ")


WRITE = """
import sys, torch
from pathlib import Path
from mmlm.checkpoints.checkpoint import save_checkpoint
from mmlm.core.errors import UserError
root = Path(sys.argv[1])
small = {"model": {"weight": torch.ones(10)}}
large = torch.ones(int(sys.argv[2]) // 4)
LIMIT
save_checkpoint(root, 10, small, {})
for step, weights, state in ((20, {"model": {"weight": large}}, {}), (30, small, {"moments": large})):
    try:
        save_checkpoint(root, step, weights, state)
    except UserError as error:
        print(error)
"""
LIMIT = """
import resource, signal
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, resource.RLIM_INFINITY))
"""


def write_too_much(root: Path, size: int, limit: str = "") -> list[str]:
    """The lines about weights and state of ``size`` bytes that could not be written, from another process."""
    command = [sys.executable, "-W", "error", "-c", WRITE.replace("LIMIT", limit), str(root), str(size)]
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2]), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=240)
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout.splitlines()


def check_refused(root: Path, lines: list[str], reason: str) -> None:
    assert len(lines) == 2
    for line, step in zip(lines, (20, 30), strict=True):
        assert line == (
            f"checkpoint {root / f'step=0000{step}'} could not be written ({reason}); step=000010 is intact; "
            "free space there, then give the same command again"
        )
    assert names(root) == ["step=000010"]
    assert latest_checkpoint(root) == (root / "step=000010", [])


@pytest.mark.slow
@pytest.mark.parametrize("size", [120_000, 10_000_000])
def test_a_file_that_really_cannot_grow(tmp_path, size):
    check_refused(tmp_path, write_too_much(tmp_path, size, LIMIT), "File too large")


@pytest.mark.slow
@pytest.mark.parametrize("size", [250_000, 10_000_000])
def test_a_disk_that_is_really_full(tmp_path, size):
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=200k", "tmpfs", str(disk)], capture_output=True, text=True
    )
    if mounted.returncode:
        pytest.skip(f"no small disk can be mounted here: {mounted.stderr.strip()}")
    try:
        root = disk / "checkpoints"
        check_refused(root, write_too_much(root, size), "No space left on device")
        save(root, 40)  # the space has been given back
    finally:
        subprocess.run(["umount", str(disk)], check=True)
