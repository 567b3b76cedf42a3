"""A run tells what its training data and validation splits have in common, and counts it once."""

import json

import pytest

from mmlm.record.folder import find_run
from mmlm.run import data_overlap
from tests.conftest import write_shapes

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


def test_test_splits_are_compared_too_and_one_that_is_not_there_ends_no_training(train_tiny, tmp_path, shapes):
    """The data that a paper reports are those that must not have been trained on."""
    target = "_target_:mmlm.data.image_folder.ImageFolder"
    others = write_shapes(tmp_path / "others")
    lines = (others / "captions.jsonl").read_text().replace("a red", "a crimson")
    (others / "captions.jsonl").write_text(lines)
    mine = f"+data.test.mine={{{target},folder:{others}}}"
    outcome = train_tiny(mine, f"+data.test.gone={{{target},folder:{tmp_path / 'gone'}}}")
    assert outcome.status == 0, outcome.err
    known = 8 - lines.count("crimson")
    assert f"mine 8 equal and 0 similar of 8 images, all captions of {known} of 8 examples\n" in outcome.out
    assert f"data: data.test.gone is not compared with the training data: {tmp_path / 'gone'}" in outcome.out
    folder = find_run(str(tmp_path / "runs"))
    content = json.loads((folder / "overlap.json").read_text())
    assert list(content["overlap"]["splits"]) == ["validation", "mine"]
    assert content["overlap"]["splits"]["mine"]["known"] == known < 8
    assert list(json.loads((folder / "data.json").read_text())) == ["data.train", "data.validation.validation"]

    (others / "captions.jsonl").write_text(lines.replace("a crimson", "a red"))  # no reason to refuse the run
    assert "mine 8 equal and 0 similar of 8 images, all captions of 8 of 8 examples\n" in train_tiny(mine).out
