"""The manifest: what it finds, what it never blames, and that a process killed at any moment leaves no false alarm."""

import json
import os
from pathlib import Path

import pytest

from mmlm.core.errors import UserError
from mmlm.record.folder import write_whole
from mmlm.record.manifest import (
    DamagedFileError,
    Growing,
    Prefix,
    accept,
    announce,
    announce_prefixes,
    check_files,
    read_manifest,
    read_recorded,
    write_recorded,
)

MANIFEST = "manifest.jsonl"


def test_a_file_is_read_as_it_was_written_or_refused_in_one_line(tmp_path):
    file = tmp_path / "scores.json"
    write_recorded(file, "first")
    write_recorded(file, "sëcond")
    assert read_recorded(file) == "sëcond".encode()
    file.write_text("sëcont", encoding="utf-8")
    with pytest.raises(DamagedFileError) as refused:
        read_recorded(file)
    assert str(refused.value) == (
        f"{file}: is damaged (it does not have the checksum it was written with); no training is lost: python -m "
        f"mmlm.evaluate run={tmp_path} writes it anew; if you changed it on purpose: python -m mmlm.verify "
        f"run={tmp_path} accept=[scores.json]"
    )
    assert isinstance(refused.value, UserError)
    accept(tmp_path, "scores.json")
    assert read_recorded(file) == "sëcont".encode()


def test_a_file_that_no_line_names_is_read_as_it_is(tmp_path):
    (tmp_path / "old").write_text("x")
    assert read_recorded(tmp_path / "old") == b"x"
    write_recorded(tmp_path / "new", "y")
    assert read_recorded(tmp_path / "old") == b"x"


def test_each_file_has_one_line_for_each_content(tmp_path):
    for text in ("a", "b", "a", "a"):
        write_recorded(tmp_path / "file", text)
    lines = [json.loads(line) for line in (tmp_path / MANIFEST).read_text().splitlines()]
    assert [line["file"] for line in lines] == ["file", "file"]
    assert len({line["sha256"] for line in lines}) == 2


class KilledError(BaseException):
    """Stands for SIGKILL: nothing of ours catches it."""


@pytest.mark.parametrize("moment", ["before the line", "half of the line", "before the file", "before the rename"])
def test_killed_at_any_moment_the_file_is_the_old_one_and_no_damage_is_told(tmp_path, monkeypatch, moment):
    file = tmp_path / "config.yaml"
    write_recorded(file, "old")
    whole = os.write

    def killed(*arguments: object, **named: object) -> None:
        raise KilledError

    def half(descriptor: int, content: bytes) -> None:
        whole(descriptor, content[: len(content) // 2])
        raise KilledError

    with monkeypatch.context() as patch:
        if moment == "before the line":
            patch.setattr(os, "open", killed)
        elif moment == "half of the line":
            patch.setattr(os, "write", half)
        elif moment == "before the file":
            patch.setattr(Path, "write_bytes", killed)
        else:
            patch.setattr(Path, "replace", killed)
        with pytest.raises(KilledError):
            write_recorded(file, "new")
    assert read_recorded(file) == b"old"
    write_recorded(file, "new")  # whoever goes on
    assert read_recorded(file) == b"new"


def test_two_processes_that_write_at_once_take_nothing_from_each_other(tmp_path):
    """Both put their line down before either puts its file in place."""
    file, texts = tmp_path / "scores.json", ("one", "two")
    for text in texts:
        announce(tmp_path, {file.name: text.encode()})
    for text in texts:
        write_whole(file, text)
        assert read_recorded(file) == text.encode()


def test_what_grows_begins_with_what_is_on_record(tmp_path):
    file = tmp_path / "metrics.jsonl"
    file.write_bytes(b"one\n")
    grown = Growing(file.read_bytes())
    announce_prefixes(tmp_path, file.name, grown.prefix)
    file.write_bytes(b"one\ntwo\n")
    grown.add(b"two\n")
    assert grown.prefix == Prefix.of(b"one\ntwo\n")
    assert read_recorded(file) == b"one\ntwo\n", "rows that are not on record yet"
    announce_prefixes(tmp_path, file.name, grown.prefix)
    for damaged, said in ((b"one\n", "it has 4 bytes, and at least 8 were written"), (b"ome\ntwo\n", "first 8 bytes")):
        file.write_bytes(damaged)
        with pytest.raises(DamagedFileError, match=said):
            read_recorded(file)
    # A shorter file is about to take its place: until then, and after it, either is right.
    announce_prefixes(tmp_path, file.name, Prefix.of(b"one\n"), Prefix.of(b"one\ntwo\n"))
    for right in (b"one\n", b"one\ntwo\n", b"one\nthree\n"):
        file.write_bytes(right)
        assert read_recorded(file) == right


def test_a_damaged_line_of_the_manifest_blames_no_file_for_sure(tmp_path):
    write_recorded(tmp_path / "scores.json", "a")
    write_recorded(tmp_path / "scores.json", "b")
    manifest = tmp_path / MANIFEST
    lines = manifest.read_bytes().splitlines(keepends=True)
    manifest.write_bytes(lines[0] + lines[1].replace(b"sha", b"shb"))
    assert read_manifest(tmp_path).damaged == (2,)
    with pytest.raises(DamagedFileError, match=r"written with, or line 2 of manifest\.jsonl is not\)"):
        read_recorded(tmp_path / "scores.json")
    accept(tmp_path, MANIFEST)
    assert manifest.read_bytes() == lines[0]


def test_a_file_on_record_that_is_gone_is_named(tmp_path):
    write_recorded(tmp_path / "config.json", "a")
    write_recorded(tmp_path / "README.md", "a")
    (tmp_path / "README.md").unlink()
    check_files(tmp_path, spared=["README.md"])
    (tmp_path / "config.json").unlink()
    with pytest.raises(DamagedFileError, match=r"config\.json: is damaged \(it is missing\)"):
        check_files(tmp_path, spared=["README.md"])
