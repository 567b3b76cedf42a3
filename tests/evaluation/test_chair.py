"""CHAIR of captions by hand: which objects they name, and which of them are there."""

import json
import re

import pytest
import torch

from mmlm.core.batch import Caption, Example
from mmlm.core.errors import ArgumentError, UserError
from mmlm.evaluation.chair import Chair
from mmlm.evaluation.generation.settings import GenerationSettings
from mmlm.evaluation.object_words import plurals, read_object_words
from mmlm.evaluation.written_captions import GREEDY

CATEGORIES = ["person", "dog", "hot dog", "baseball bat", "tv", "bus"]
SYNONYMS = """person, man, woman, policeman

dog, puppy
hot dog
Baseball Bat, bat
tv, television, TV monitor
bus
"""


@pytest.fixture
def words(tmp_path):
    file = tmp_path / "synonyms.txt"
    file.write_text(SYNONYMS, encoding="utf-8")
    return file


@pytest.mark.parametrize(
    ("caption", "objects"),
    [
        ("A man walks his dog.", ["person", "dog"]),
        ("Two men, women and people with puppies", ["person", "person", "person", "dog"]),
        ("a hot dog and hot dogs for a dog", ["hot dog", "hot dog", "dog"]),
        ("the policemen's buses", ["person", "bus"]),
        ("a baseball bat, a bat; baseball bats", ["baseball bat"] * 3),
        ("a TV monitor and TVs", ["tv", "tv"]),
        ("a busy human doghouse with a monitor", []),
        ("", []),
    ],
)
def test_the_objects_of_a_caption(words, caption, objects):
    assert read_object_words(words, CATEGORIES).mentions(caption) == objects


def test_plurals():
    for word, expected in {
        "cat": {"cats"},
        "bus": {"buses"},
        "couch": {"couches"},
        "baby": {"babies"},
        "toy": {"toys"},
        "knife": {"knives"},
        "snowman": {"snowmen"},
        "human": {"humans"},
        "potato": {"potatos", "potatoes"},
        "y": {"ys"},
    }.items():
        assert plurals(word) == expected


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("dog, puppy\ncat\n", "line 2: 'cat, ...' must hold the name of one category of the instances, and holds none"),
        ("dog, bus\n", "line 1: 'dog, ...' must hold .* and holds several: dog, bus"),
        ("dog, pet\nbus, pet\n", "line 2: 'pet' is an object of line 1 too; remove one of them"),
        ("dog\n", "has no line with 'bus', a category of the instances; add one"),
    ],
)
def test_a_wrong_file_of_synonyms(tmp_path, text, said):
    file = tmp_path / "synonyms.txt"
    file.write_text(text, encoding="utf-8")
    with pytest.raises(UserError, match=f"^{re.escape(str(file))}.*{said}"):
        read_object_words(file, ["dog", "bus"])
    file.write_bytes(b"dog\xff")
    with pytest.raises(UserError, match="is not UTF-8"):
        read_object_words(file, ["dog"])
    with pytest.raises(UserError, match="there is no such file"):
        read_object_words(tmp_path / "none", ["dog"])


SHOWN = {"a.jpg": ["person", "dog", "dog"], "b.jpg": ["bus"], "c.jpg": [], "d.jpg": ["tv", "person"]}
TRUE = {"a.jpg": "a person", "b.jpg": "a man in a bus", "c.jpg": "grass", "d.jpg": "a TV", "e.jpg": "a dog"}
SAID = {
    "a.jpg": "a dog, a puppy and a bat",  # two of three mentions are there; 1 of 2 objects
    "b.jpg": "a woman in a bus",  # the person is in the true caption only; 2 of 2 objects, or 1 of 1
    "c.jpg": "green grass",  # nothing
    "d.jpg": "dogs",  # 0 of 1; 0 of 2
    "e.jpg": "dogs and a bus",  # not listed
}


@pytest.fixture
def files(tmp_path, words):
    images = [{"id": number, "file_name": name} for number, name in enumerate(SHOWN)]
    annotations = [
        {"image_id": number, "category_id": 10 + CATEGORIES.index(kind), "bbox": [0, 0, 1, 1]}
        for number, kinds in enumerate(SHOWN.values())
        for kind in kinds
    ]
    categories = [{"id": 10 + number, "name": name} for number, name in enumerate(CATEGORIES)]
    file = tmp_path / "instances.json"
    file.write_text(json.dumps({"images": images, "annotations": annotations, "categories": categories}))
    return str(file), str(words)


@pytest.fixture
def split(make_split):
    """The images, of which ``SAID`` was written."""
    pixels = torch.zeros(3, 16, 16, dtype=torch.uint8)
    made = make_split([Example(f"val2017/{id}", pixels, (Caption(text),), id) for id, text in TRUE.items()])
    made.written[None, GREEDY.in_words] = list(SAID.values())
    return made


def test_chair_by_hand(split, files):
    evaluator = Chair(*files)
    values = dict(evaluator(split))
    assert values["scored"] == 4
    assert values["CHAIRs"] == 2 / 4
    assert values["CHAIRi"] == pytest.approx(2 / 6)
    assert values["recall"] == pytest.approx((1 + 2 + 0 + 0) / (2 + 2 + 0 + 2))
    declared = {*evaluator.figures, *(name for one in evaluator.figures.values() for name in one.helpers())}
    assert values.keys() == declared
    for name in evaluator.figures:
        assert values[f"{name}/low"] <= values[name] <= values[f"{name}/high"]
    assert values["CHAIRs/chance"] > values["CHAIRs"]
    (items,) = evaluator.per_item(split)
    assert items.values.tolist() == [1, 0, 0, 1]
    assert items.outputs == list(SAID.values())[:4]
    assert evaluator.rules["shown"] == "instances and true captions"


def test_true_captions_may_not_count(split, files):
    values = dict(Chair(*files, true_captions=False)(split))
    assert (values["CHAIRs"], values["CHAIRi"]) == (3 / 4, 3 / 6)
    assert values["recall"] == 2 / 5


def test_captions_that_name_nothing(split, files):
    split.written[None, GREEDY.in_words] = ["grass"] * 5
    values = dict(Chair(*files)(split))
    assert values["CHAIRs"] == values["recall"] == 0
    assert "CHAIRi" not in values


def test_another_decoding(split, files):
    beam = GenerationSettings(beams=2, max_tokens=4)
    evaluator = Chair(*files, true_captions=False).with_decoding(beam)
    assert (evaluator.decoding, evaluator.rules["shown"]) == (beam, "instances")
    assert evaluator.rules["decoding"] == beam.in_words


def test_what_a_user_gets_wrong_is_one_line(make_split, files, tmp_path):
    instances, synonyms = files
    with pytest.raises(ArgumentError, match=r"instances: null must be .* give evaluators\.chair\.instances=FILE"):
        Chair(None, synonyms)
    with pytest.raises(ArgumentError, match="synonyms: null"):
        Chair(instances, None)
    split = make_split([Example("z.jpg", torch.zeros(3, 16, 16, dtype=torch.uint8), (Caption("a dog"),), None)])
    with pytest.raises(UserError, match=r"is listed in .* \(the first is 'z.jpg'\); images are known by 'file_name'"):
        dict(Chair(*files)(split))
