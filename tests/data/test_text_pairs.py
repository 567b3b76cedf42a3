"""Pairs of texts and chats: which come, under which ids, and what is refused in one line."""

import json
import pickle

import pytest

from mmlm.core.batch import Caption, Turn
from mmlm.core.errors import ArgumentError, UserError
from mmlm.data.text_pairs import LONGEST, TextPairs

QUESTION, ANSWER = {"role": "user", "content": "what?"}, {"role": "assistant", "content": "that"}


def test_pairs_of_tables_and_lines(tmp_path):
    (tmp_path / "a.csv").write_text('id;question;answer\n1;"two;  words";ja\n\n2;"a\nb";"c"\n', encoding="utf-16")
    table = TextPairs(tmp_path / "a.csv", "question", "answer", "de", encoding="utf-16")
    assert {table[i].id: table[i].captions for i in range(len(table))} == {
        "a.csv:2": (Caption("ja", "de", source="two; words"),),
        "a.csv:4": (Caption("c", "de", source="a b"),),
    }
    (tmp_path / "b.tsv").write_text("\ufefftarget\tsource\nyes\tis it, really?\n", encoding="utf-8")
    (tmp_path / "c.jsonl").write_text('{"source": "סוף", "target": " b\\n c ", "more": 1}\n\n', encoding="utf-8")
    source = pickle.loads(pickle.dumps(TextPairs([tmp_path / "b.tsv", tmp_path / "c.jsonl"])))
    examples = [source[i] for i in range(len(source))]
    assert [(example.id, example.captions[0]) for example in examples] == [
        ("b.tsv:2", Caption("yes", source="is it, really?")),
        ("c.jsonl:1", Caption("b c", source="סוף")),
    ]
    assert all(example.image is None and example.concept is None for example in examples)
    assert list(source.captions()) == [example.captions[0] for example in examples]
    assert [(one.id, one.captions, one.has_image) for one in source.texts()] == [
        (example.id, example.captions, False) for example in examples
    ]


def test_chats(tmp_path):
    rules, more = {"role": "system", "content": "be kind"}, [{"role": "user", "content": "and?"}, ANSWER]
    lines = [{"messages": [QUESTION, ANSWER]}, {"messages": [rules, QUESTION, ANSWER, *more], "id": 7}]
    (tmp_path / "chats.jsonl").write_text("\n".join(map(json.dumps, lines)))
    source = TextPairs(tmp_path / "chats.jsonl")
    assert list(source.captions()) == [
        Caption("that", source="what?"),
        Caption("that", source="and?", turns=(Turn("be kind what?", "that"),)),
    ]


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("[", r"a.jsonl:2: is not JSON"),
        ("[1]", r"a.jsonl:2: \[1\] must be an object with 'source' and 'target', or a chat"),
        ('{"source": "x", "answer": "y"}', r"a.jsonl:2: has no 'target' but answer, source; set target to"),
        ('{"source": " ", "target": "y"}', r"a.jsonl:2: source \" \" must be a text that is not blank"),
        ('{"source": "x", "target": 5}', r"a.jsonl:2: target 5 must be a text"),
        ({"source": "x" * (LONGEST + 1), "target": "y"}, r"a.jsonl:2: a text has 1,000,001 characters, and 1,000,000"),
        ({"messages": "hi"}, r'a.jsonl:2: messages "hi" must be a list of objects'),
        ({"messages": []}, r"a.jsonl:2: the chat has no message of a user; it must end with an answer"),
        ({"messages": [QUESTION]}, r"a.jsonl:2: the chat ends with a question; it must end with an answer"),
        ({"messages": [ANSWER]}, r"message 1: its role \"assistant\" must be 'user' or 'system', since"),
        ({"messages": [QUESTION, QUESTION]}, r"message 2: its role \"user\" must be 'assistant', since"),
        ({"messages": [QUESTION, {"role": "assistant"}]}, r"a.jsonl:2: message 2: content null must be a text"),
    ],
)
def test_a_line_that_is_wrong_is_named(tmp_path, line, said):
    text = line if isinstance(line, str) else json.dumps(line)
    (tmp_path / "a.jsonl").write_text(f'{{"source": "good", "target": "too"}}\n{text}\n')
    with pytest.raises(UserError, match=said) as error:
        TextPairs(tmp_path / "a.jsonl")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("", r"a.csv: is empty"),
        ("source,target\n", r"a.csv: has no pair of texts"),
        ("source,answer\nx,y\n", r"target: 'target' is no column of .*a.csv, which has 'source', 'answer'; name one"),
        ("source,source,target\nx,y,z\n", r"source: 'source' is the name of 2 columns of .*a.csv"),
        ("source,target\nx,y,z\n", r"a.csv:2: the number of cells, 3, must be the first row's, 2"),
        ("source,target\nx,y\n ,y\n", r'a.csv:3: source "" must be a text that is not blank'),
        ("source,target\nx,\n", r'a.csv:2: target "" must be a text that is not blank'),
        ('source,target\n"x,y\n', r"a.csv: line 2: the row that begins here has an unbalanced quote"),
        ("source,target\nx,\xe9\n".encode("latin-1"), r"a.csv: line 2: is not utf-8 \(byte 0xe9\); save it as UTF-8"),
    ],
)
def test_a_table_that_is_wrong_is_named(tmp_path, content, said):
    (tmp_path / "a.csv").write_bytes(content.encode() if isinstance(content, str) else content)
    with pytest.raises((ArgumentError, UserError), match=said):
        TextPairs(tmp_path / "a.csv")


def test_files_and_settings_that_are_wrong_are_named(tmp_path):
    (tmp_path / "a.txt").write_text("x\ty")
    (tmp_path / "b.jsonl").write_bytes(b'{"source": "x", "target": "\xff"}')
    for files, said in {"a.txt": r"a.txt: its ending must be", "missing.csv": r"there is no such file"}.items():
        with pytest.raises(UserError, match=said):
            TextPairs(tmp_path / files)
    with pytest.raises(UserError, match=r"b.jsonl:1: is not UTF-8"):
        TextPairs(tmp_path / "b.jsonl")
    with pytest.raises(ArgumentError, match=r"files: \[\] must name one file at least"):
        TextPairs([])
    with pytest.raises(ArgumentError, match="target: 'a' must be another column"):
        TextPairs(tmp_path / "b.jsonl", "a", "a")
    with pytest.raises(ArgumentError, match="encoding: 'base64' must be one"):
        TextPairs(tmp_path / "b.jsonl", encoding="base64")
