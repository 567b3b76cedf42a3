"""mmlm.record.folder: files of a run folder are replaced whole. (Finding a run is tested with the commands.)"""

import pytest

from mmlm.record.folder import write_whole


def test_a_file_is_replaced_and_no_draft_is_left(tmp_path):
    for text in ("first", "näxt\n"):
        write_whole(tmp_path / "file", text)
        assert (tmp_path / "file").read_text(encoding="utf-8") == text
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_what_cannot_be_written_leaves_the_file_before(tmp_path):
    write_whole(tmp_path / "file", "first")
    with pytest.raises(UnicodeEncodeError):
        write_whole(tmp_path / "file", "half \ud800")
    assert (tmp_path / "file").read_text() == "first"
