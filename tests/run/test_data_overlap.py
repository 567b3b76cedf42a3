"""A run tells what its training data and validation splits have in common, and counts it once."""

import json

import pytest

from mmlm.record.folder import find_run
from mmlm.run import data_overlap

SHARED = (
    "data: in common with the training data (all 8 images looked at): validation 8 equal and 0 similar of 8 images, "
)


def test_the_overlap_is_told_by_every_session_and_counted_once(train_tiny, tmp_path, monkeypatch, shapes):
    assert SHARED in train_tiny("train.save_every=1").out  # it trains and validates on the same folder
    folder = find_run(str(tmp_path / "runs"))
    (folder / "report.html").unlink()
    with monkeypatch.context() as patch:
        patch.setattr(data_overlap, "overlap", lambda *_: pytest.fail("counted a second time"))
        assert SHARED in train_tiny("train.save_every=1").out
    text = (shapes / "captions.jsonl").read_text()
    (shapes / "captions.jsonl").write_text(text.replace("a red", "a crimson"))
    counted: list[int] = []
    whole = data_overlap.overlap
    monkeypatch.setattr(data_overlap, "overlap", lambda *given: counted.append(1) or whole(*given))
    assert train_tiny("train.save_every=1", "resume=changed").status == 0  # other data
    assert counted == [1]
    (folder / "overlap.json").write_text("{}")
    assert SHARED in train_tiny("train.save_every=1", "resume=changed").out  # a damaged file
    assert counted == [1, 1]


def test_it_can_be_left_out(train_tiny, tmp_path):
    assert "in common with" not in train_tiny("data.overlap_images=null").out
    folder = find_run(str(tmp_path / "runs"))
    assert not (folder / "overlap.json").exists()
    assert json.loads((folder / "data.json").read_text())
