"""Karpathy's splits: which images and captions come, and what is refused."""

import json
from pathlib import Path
from typing import Any

import pytest

from mmlm.core.batch import Caption
from mmlm.core.errors import ArgumentError, UserError
from mmlm.data.karpathy import KarpathyCaptions
from tests.conftest import draw


def published() -> dict[str, Any]:
    def image(folder: str, name: str, split: str, *captions: str) -> dict[str, Any]:
        sentences = [{"tokens": ["x"], "raw": text, "imgid": 0, "sentid": 1} for text in captions]
        return {"filepath": folder, "filename": name, "split": split, "sentences": sentences, "cocoid": 9}

    images = [
        image("val2014", "1.jpg", "test", "A red\nsquare. "),
        image("train2014", "2.jpg", "train", "A blue circle", "Un rond bleu 🔵"),
        image("val2014", "3.jpg", "restval", "A green square"),
        image("val2014", "4.jpg", "restval"),
        image("val2014", "2.jpg", "val", "A yellow circle"),
    ]
    return {"images": images, "dataset": "coco"}


def write(folder: Path, content: object) -> Path:
    for inner in ("train2014", "val2014"):
        (folder / inner).mkdir(parents=True, exist_ok=True)
        for number in range(1, 5):
            draw("red", "square").save(folder / inner / f"{number}.jpg")
    (folder / "dataset_coco.json").write_text(json.dumps(content))
    return folder


@pytest.mark.parametrize(
    ("splits", "expected"),
    [
        (
            ("train", "restval"),
            {"train2014/2.jpg": ["A blue circle", "Un rond bleu 🔵"], "val2014/3.jpg": ["A green square"]},
        ),
        ("val", {"val2014/2.jpg": ["A yellow circle"]}),
        (["test"], {"val2014/1.jpg": ["A red square."]}),
    ],
)
def test_a_split_has_its_images_with_all_their_captions(tmp_path, splits, expected):
    source = KarpathyCaptions(write(tmp_path, published()), splits=splits, language="en")
    examples = [source[index] for index in range(len(source))]
    assert {example.id: [caption.text for caption in example.captions] for example in examples} == expected
    assert list(source.captions()) == [Caption(text, "en") for texts in expected.values() for text in texts]
    assert [(text.id, text.captions, text.has_image) for text in source.texts()] == [
        (example.id, example.captions, True) for example in examples
    ]
    assert all(example.image is not None and example.concept is None for example in examples)


def test_flickr30k_has_no_folders(tmp_path):
    write(tmp_path, {"images": [{"filename": "1.jpg", "split": "train", "sentences": [{"raw": "a dog"}]}]})
    source = KarpathyCaptions(tmp_path, images="val2014", splits="train")
    assert [source[0].id, source[0].captions[0].text] == ["1.jpg", "a dog"]


def change(place: int, **values: object) -> dict[str, Any]:
    content = published()
    content["images"][place] |= values
    return content


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ({"annotations": []}, "has no list 'images'; give a file of Karpathy's splits"),
        ({"images": [7]}, r"images\[0\]: 7 must be an object"),
        (change(1, filename="  "), r'images\[1\]: filename "  " must be a text that is not blank'),
        (change(4, filename="3.jpg"), r"images\[4\]: 'val2014/3.jpg' is images\[2\] too"),
        (change(1, split=None), r"images\[1\]: split null must be a text"),
        (change(1, sentences=["a"]), r"images\[1\]: sentences \[\"a\"\] must be a list of"),
        (change(1, sentences=[{"raw": "\ud83d"}]), "half a character"),
        (change(1, filepath="../secret"), r"images\[1\]: the image '../secret/2.jpg' lies outside of the folder"),
    ],
)
def test_what_is_wrong_in_the_file_is_named(tmp_path, content, said):
    with pytest.raises(UserError, match=said):
        KarpathyCaptions(write(tmp_path, content))


def test_what_is_wrong_beside_the_file_is_named(tmp_path):
    with pytest.raises(ArgumentError, match="folder: null must be the folder of the data set"):
        KarpathyCaptions(None)
    with pytest.raises(UserError, match=r"dataset_coco.json: there is no such file"):
        KarpathyCaptions(tmp_path)
    write(tmp_path, published())
    with pytest.raises(ArgumentError, match="has no 'tets'; did you mean 'test'"):
        KarpathyCaptions(tmp_path, splits="tets")
    with pytest.raises(UserError, match=r"images/train2014/2.jpg: there is no such image"):
        KarpathyCaptions(tmp_path, images="images")
    (tmp_path / "dataset_coco.json").write_text('{"images": [')
    with pytest.raises(UserError, match="is not JSON"):
        KarpathyCaptions(tmp_path)
    write(tmp_path, change(0, sentences=[]))
    with pytest.raises(ArgumentError, match=r"splits: \['test'\] has no image with a caption"):
        KarpathyCaptions(tmp_path, splits=["test"])
