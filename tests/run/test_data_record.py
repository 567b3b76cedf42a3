"""A run goes on with the data that it began with, or with others if that is said."""

import hashlib
import json

import pytest

from mmlm.core.batch import Caption, ExampleTexts
from mmlm.record.folder import find_run
from mmlm.run.data_record import describe_data

EXAMPLES = [ExampleTexts("a", (Caption("one", "en"), Caption("two")), None, True), ExampleTexts("b", (), "c", False)]


def test_counts_and_digest():
    record = describe_data(iter(EXAMPLES))
    assert (record["examples"], record["captions"]) == (2, 2)
    assert record == describe_data(iter(EXAMPLES))
    others = [
        EXAMPLES[::-1],
        EXAMPLES[:1],
        [ExampleTexts("a", (Caption("one"), Caption("two")), None, True), EXAMPLES[1]],
        [ExampleTexts("a", (Caption("one", "en"), Caption("Two")), None, True), EXAMPLES[1]],
        [ExampleTexts("a", (Caption("one", "en", "title"), Caption("two")), None, True), EXAMPLES[1]],
        [ExampleTexts("a", (Caption("one", "en"), Caption("two", None, "title")), None, True), EXAMPLES[1]],
        [EXAMPLES[0], ExampleTexts("b", (), "d", False)],
        [EXAMPLES[0], ExampleTexts("b", (), "c", True)],
    ]
    digests = {describe_data(iter(examples))["digest"] for examples in (EXAMPLES, *others)}
    assert len(digests) == 1 + len(others)
    # Of data without kinds it stays what it was when kinds were not yet known, so that old runs go on.
    lines = '["a", null, true, [["one", "en"], ["two", null]]]\n["b", "c", false, []]\n'
    assert record["digest"] == hashlib.blake2b(lines.encode(), digest_size=16).hexdigest()


@pytest.mark.parametrize("stopped", [True, False], ids=["stopped", "finished"])
def test_a_run_does_not_go_on_with_other_data_unless_that_is_said(train_tiny, shapes, tmp_path, stopped):
    """The same command with one ``runs=`` in another project, or after somebody has edited the captions."""
    assert train_tiny("train.save_every=1").status == 0
    folder = find_run(str(tmp_path / "runs"))
    if stopped:
        (folder / "report.html").unlink()
    record = json.loads((folder / "data.json").read_text())
    assert set(record) == {"data.train", "data.validation.validation"}
    assert record["data.train"]["examples"] == 8
    text = (shapes / "captions.jsonl").read_text()
    (shapes / "captions.jsonl").write_text(text.replace("a red", "a crimson"))
    outcome = train_tiny("train.save_every=1")
    assert "data.train has changed since the run began (8 examples with 8 captions, but other ids or texts)" in (
        outcome.mistake
    )
    outcome = train_tiny("train.save_every=1", "resume=changed")
    assert (outcome.status, outcome.err) == (0, "")
    assert "data.train has changed since the run began" in outcome.out
    assert train_tiny("train.save_every=1").status == 0, "recorded"
    (shapes / "captions.jsonl").write_text(text)
    assert "has changed since the run began" in train_tiny("train.save_every=1").mistake
