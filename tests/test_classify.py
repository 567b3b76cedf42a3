"""``python -m mmlm.classify``: probabilities by the plain formula, where their scale comes from, the table, the CSV."""

import csv
import json
import math
import re

import pytest

from mmlm import classify, export
from mmlm.checkpoints.checkpoint import latest_checkpoint, load_weights
from mmlm.commands.classify import read_labels
from mmlm.core.errors import UserError
from mmlm.data.images import read_image
from mmlm.pretrained import from_pretrained

LABELS = {"red": ["a red square", "a red circle"], "blue, and more": "a blue square", "none": ["nothing"]}


def plain_probabilities(model, images, scale: float) -> list[list[float]]:
    """Of LABELS with the templates {} and my {}, by loops."""
    classes = []
    for words in LABELS.values():
        prompts = [t.format(w) for w in ([words] if isinstance(words, str) else words) for t in ("{}", "my {}")]
        embedded = [model.encode_text([prompt])[0].double() for prompt in prompts]
        mean = sum(embedded) / len(embedded)
        classes.append(mean / math.sqrt((mean * mean).sum()))
    rows = []
    for image in images:
        vector = model.encode_image([image])[0].double()
        terms = [math.exp(scale * float(vector @ one)) for one in classes]
        rows.append([term / sum(terms) for term in terms])
    return rows


def test_probabilities_are_the_plain_formula_and_the_scale_is_told(trained, command, shapes, tmp_path):
    folder, exported = trained("evaluators=retrieval"), tmp_path / "exported"
    command(export, f"run={folder}", f"to={exported}")
    (tmp_path / "labels.json").write_text(json.dumps(LABELS))
    given = (
        f"images={shapes}",
        f"labels={tmp_path / 'labels.json'}",
        "templates=['{}','my {}']",
        f"out={tmp_path / 'index'}",
        f"csv={tmp_path / 'new' / 'table.csv'}",
        "top=2",
    )
    checkpoint, _ = latest_checkpoint(folder / "checkpoints")
    learned = load_weights(checkpoint, "model")["objective.objectives.contrastive.logit_scale"].exp().item()
    names = sorted(path.name for path in shapes.glob("*.png"))
    images = [read_image(shapes / name) for name in names]
    model = from_pretrained(exported)
    source = "of the run's objective contrastive"
    for run, more, scale, told in (
        (folder, (), learned, source),
        (exported, (), learned, source),
        (exported, ("scale=7.5",), 7.5, "that was given"),
    ):
        outcome = command(classify, f"run={run}", *given, *more)
        assert outcome.status == 0
        assert outcome.err.splitlines()[-2:] == [
            f"mmlm: probabilities: softmax over {scale:.4g} x similarity, the scale {told}",
            "mmlm: prompts: {}, my {}",
        ]
        expected = plain_probabilities(model, images, scale)
        with (tmp_path / "new" / "table.csv").open(newline="", encoding="utf-8") as stream:
            header, *rows = csv.reader(stream)
        assert header == ["image", "label", "probability", *(f"probability of {label}" for label in LABELS)]
        assert [row[0] for row in rows] == names
        for row, found in zip(rows, expected, strict=True):
            assert [float(value) for value in row[3:]] == pytest.approx(found, abs=2e-5)
            assert row[1] == list(LABELS)[found.index(max(found))]
            assert float(row[2]) == pytest.approx(max(found), abs=2e-5)
        lines = outcome.out.splitlines()[:-1]
        for line, name, found in zip(lines, names, expected, strict=True):
            assert line.endswith(name)
            shares = [float(share) for share in re.findall(r"([\d.]+)%", line)]
            assert shares == pytest.approx([100 * value for value in sorted(found)[:0:-1]], abs=0.06)
            assert len(line) <= 80
    assert "0 of them embedded now" in outcome.err, "the index serves every call"


def test_labels_are_read_as_people_write_them(tmp_path):
    file = tmp_path / "labels.txt"
    file.write_bytes("\ufeff cat \r\n\r\nKäse\r\ncat: a pet\r\n".encode())
    assert read_labels(file) == {"cat": ["cat"], "Käse": ["Käse"], "cat: a pet": ["cat: a pet"]}
    (tmp_path / "labels.json").write_text('{"n01": "cat", "n02": ["dog", "hound"]}')
    assert read_labels(tmp_path / "labels.json") == {"n01": ["cat"], "n02": ["dog", "hound"]}


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.txt", b"cat\ndog\ncat\n", "line 3: 'cat' is there twice; remove one"),
        ("a.txt", b"cat\n", "has 1; write at least two, one a line"),
        ("a.txt", b"", "has 0; write at least two"),
        ("a.txt", "Käse\n".encode("latin-1"), "is not UTF-8 .byte 1.; save it as UTF-8"),
        ("a.json", b"[", "is not JSON"),
        ("a.json", b'["cat", "dog"]', "must be an object, such as"),
        ("a.json", b'{"cat": "x", "dog": 3}', "'dog' must have words"),
        ("a.json", b'{"cat": "x", "dog": []}', "'dog' must have words"),
        ("a.json", b'{"cat": "x", "cat": "y"}', "'cat' is there twice"),
    ],
)
def test_labels_that_are_none(tmp_path, name, content, message):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match=message):
        read_labels(tmp_path / name)


def test_mistakes_of_classify(trained, command, shapes, tmp_path):
    folder = trained("evaluators=retrieval", "objective=captioning")
    labels = tmp_path / "labels.txt"
    labels.write_text("red\nblue\n")
    given = (f"run={folder}", f"images={shapes}", f"labels={labels}", f"out={tmp_path / 'out'}")
    for argument, message in (
        ("labels=gone.txt", "labels: gone.txt cannot be read (No such file or directory)"),
        ("templates=[]", "templates: [] has no prompt"),
        ("templates=[photo]", "templates: 'photo' must have {} once"),
        ("scale=0", "scale: 0.0 must be above 0 and finite"),
        ("top=0", "top: 0 must be at least 1"),
        ("images=nowhere", "images: nowhere is no folder"),
    ):
        assert message in command(classify, *given, argument).mistake
    outcome = command(classify, *given)
    assert outcome.status == 0
    assert "the scale of CLIP, since this run has none of its own; set another by scale=" in outcome.err
    assert "has no objective that compares images with texts, so that similarities may mean nothing" in outcome.err
    assert len(outcome.out.splitlines()) == 8
