"""Texts without images: which come, under which ids, and what is refused."""

import json
import pickle

import pytest

from mmlm.core.batch import Caption
from mmlm.core.errors import ArgumentError, UserError
from mmlm.data.text_lines import TextLines


def test_each_line_is_a_text_without_an_image(tmp_path):
    (tmp_path / "a.txt").write_text("\ufeffone\n\n two   words \r\nסוף, right to left\n", encoding="utf-8")
    lines = [{"text": "three\nlines", "id": 1}, {"text": '{"text": 1}'}]
    (tmp_path / "b.jsonl").write_text("\n".join(map(json.dumps, lines)) + "\n\n")
    source = pickle.loads(pickle.dumps(TextLines([tmp_path / "a.txt", tmp_path / "b.jsonl"], language="en")))
    examples = [source[index] for index in range(len(source))]
    assert {example.id: example.captions[0].text for example in examples} == {
        "a.txt:1": "one",
        "a.txt:3": "two words",
        "a.txt:4": "סוף, right to left",
        "b.jsonl:1": "three lines",
        "b.jsonl:2": '{"text": 1}',
    }
    assert all(example.image is None and example.concept is None for example in examples)
    assert list(source.captions()) == [example.captions[0] for example in examples]
    assert [(text.id, text.captions, text.has_image) for text in source.texts()] == [
        (example.id, example.captions, False) for example in examples
    ]
    assert source[0].captions == (Caption("one", "en"),)


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("[", r"a.jsonl:2: is not JSON"),
        ("[1]", r"a.jsonl:2: \[1\] must be an object with a text"),
        ('{"body": "x"}', r"a.jsonl:2: has no 'text' but body; set key"),
        ('{"text": 5}', r"a.jsonl:2: text 5 must be a text"),
        ('{"text": "\\ud83d"}', r"a.jsonl:2: .* half a character"),
    ],
)
def test_a_line_that_is_wrong_is_named(tmp_path, line, said):
    (tmp_path / "a.jsonl").write_text(f'{{"text": "good"}}\n{line}\n')
    with pytest.raises(UserError, match=said):
        TextLines(tmp_path / "a.jsonl")


def test_files_that_are_wrong_are_named(tmp_path):
    (tmp_path / "empty.txt").write_text("\n  \n")
    with pytest.raises(UserError, match=r"empty.txt: has no text"):
        TextLines(tmp_path / "empty.txt")
    with pytest.raises(UserError, match=r"missing.txt: there is no such file"):
        TextLines(tmp_path / "missing.txt")
    with pytest.raises(ArgumentError, match=r"files: \[\] must name one file at least"):
        TextLines([])
    with pytest.raises(ArgumentError, match="must name one file at least, and none twice"):
        TextLines([tmp_path / "empty.txt", tmp_path / "more" / "empty.txt"])
    (tmp_path / "own.jsonl").write_text('{"body": "a story"}')
    assert TextLines(tmp_path / "own.jsonl", key="body")[0].captions[0].text == "a story"
