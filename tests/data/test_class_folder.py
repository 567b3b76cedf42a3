"""Folders of classes: ids, captions, concepts by name; and what is refused."""

import json
import pickle
from pathlib import Path

import pytest
import torch

from mmlm.core.batch import Caption
from mmlm.core.errors import CorruptImage, UserError
from mmlm.data.class_folder import ClassFolder
from tests.conftest import draw


def fill(folder: Path, classes: dict[str, list[str]]) -> Path:
    for name, files in classes.items():
        for file in files:
            (folder / name / file).parent.mkdir(parents=True, exist_ok=True)
            draw("red" if "cat" in name else "blue", "square").save(folder / name / file)
    return folder


@pytest.fixture
def animals(tmp_path: Path) -> Path:
    folder = fill(tmp_path / "animals", {"tabby_cat": ["b.png", "a.JPG"], "dog": ["1/x.webp"]})
    (folder / "dog" / "notes.txt").write_text("no image")
    (folder / "dog" / ".hidden.png").write_bytes(b"")
    (folder / ".cache").mkdir()
    (folder / "README.md").write_text("no class")
    return folder


def test_each_image_has_its_class_as_caption_and_concept(animals):
    source = ClassFolder(animals, language="en")
    examples = [source[i] for i in range(len(source))]
    assert [example.id for example in examples] == ["dog/1/x.webp", "tabby_cat/a.JPG", "tabby_cat/b.png"]
    assert [example.concept for example in examples] == ["dog", "tabby_cat", "tabby_cat"]
    expected = [Caption(f"a photo of a {words}", "en") for words in ("dog", "tabby cat", "tabby cat")]
    assert [example.captions for example in examples] == [(caption,) for caption in expected]
    assert list(source.captions()) == expected
    assert examples[2].image.shape == (3, 16, 16)
    assert torch.equal(pickle.loads(pickle.dumps(source))[2].image, examples[2].image)


def test_names_give_the_words_and_may_know_more_classes(animals, tmp_path):
    names = tmp_path / "names.json"
    names.write_text(json.dumps({"dog": "golden retriever", "tabby_cat": "cat", "fish": "trout"}))
    source = ClassFolder(animals, "{}, drawn", names)
    assert [caption.text for caption in source.captions()] == ["golden retriever, drawn", "cat, drawn", "cat, drawn"]
    assert source[0].concept == "dog"


def test_a_class_is_the_same_in_two_folders_whatever_its_number_there(animals, tmp_path):
    other = fill(tmp_path / "other", {"ape": ["1.png"], "tabby_cat": ["2.png"]})
    first, second = ClassFolder(animals), ClassFolder(other)
    assert {e.concept: e.captions for e in map(first.__getitem__, range(3))}["tabby_cat"] == second[1].captions


def test_a_damaged_image_is_told_when_it_is_read(animals):
    (animals / "dog" / "1" / "x.webp").write_bytes(b"RIFF")
    source = ClassFolder(animals)
    with pytest.raises(CorruptImage):
        source[0]
    assert source[1].concept == "tabby_cat"


def test_mistakes_are_told_with_their_cure(animals, tmp_path):
    def refused(*arguments) -> str:
        with pytest.raises(UserError) as error:
            ClassFolder(*arguments)
        assert "\n" not in str(error.value)
        return str(error.value)

    names = tmp_path / "names.json"
    assert refused(tmp_path / "none").endswith(
        "there is no such folder; give the one that holds a folder for each class"
    )
    (tmp_path / "flat").mkdir()
    assert "holds no folder; make one for each class" in refused(tmp_path / "flat")
    assert refused(animals, "a photo") == "caption: 'a photo' must have {} once, where the name of the class goes"
    assert "there is no such file" in refused(animals, "{}", names)
    names.write_text("[")
    assert "is not JSON" in refused(animals, "{}", names)
    names.write_text('{"dog": 3}')
    assert "must be an object of texts" in refused(animals, "{}", names)
    names.write_text('{"dog": "dog"}')
    assert "has no words for the folder tabby_cat; add them" in refused(animals, "{}", names)
    names.write_text('{"dog": "pet", "tabby_cat": "pet"}')
    assert refused(animals, "{}", names).startswith("'pet': is the name of the folders dog")
    (animals / "empty").mkdir()
    assert refused(animals).startswith(f"{animals / 'empty'}: holds no image (.png, ")
