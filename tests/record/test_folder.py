"""mmlm.record.folder: files of a run folder are replaced whole. (Finding a run is tested with the commands.)"""

import errno
import os
from pathlib import Path

import pytest

from mmlm.core.errors import UserError
from mmlm.record.folder import write_whole


def test_a_file_is_replaced_and_no_draft_is_left(tmp_path):
    for text in ("first", "näxt\n"):
        write_whole(tmp_path / "file", text)
        assert (tmp_path / "file").read_text(encoding="utf-8") == text
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_what_cannot_be_written_leaves_the_file_before(tmp_path, monkeypatch):
    write_whole(tmp_path / "file", "first")

    def full(self, content):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(UserError, match="No space left on device"):
        write_whole(tmp_path / "file", "second")
    assert (tmp_path / "file").read_text() == "first"


def test_any_text_can_be_written(tmp_path):
    write_whole(tmp_path / "file", "half \ud800")
    assert (tmp_path / "file").read_text(encoding="utf-8") == "half \\ud800"
