"""COCO's captions: which images and captions come, in which order, at what size in memory; and what is refused."""

import json
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch

from mmlm.core.batch import Caption
from mmlm.core.errors import ArgumentError, CorruptImage, UserError
from mmlm.data.coco import CocoCaptions
from tests.conftest import draw

FILE = "annotations/captions_train2017.json"


def write(folder: Path, content: object, file: str = FILE) -> Path:
    (folder / file).parent.mkdir(parents=True, exist_ok=True)
    (folder / file).write_text(json.dumps(content))
    return folder


def published() -> dict[str, Any]:
    """Three images, the captions in an order of their own, and keys beside that nobody reads."""
    images = [
        {"license": 1, "file_name": "000000000030.jpg", "coco_url": "http://x", "height": 16, "width": 16, "id": 30},
        {"license": 2, "file_name": "000000000009.jpg", "coco_url": "http://y", "height": 16, "width": 16, "id": 9},
        {"license": 3, "file_name": "000000000025.jpg", "coco_url": "http://z", "height": 16, "width": 16, "id": 25},
    ]
    annotations = [
        {"image_id": 25, "id": 7, "caption": "a blue circle"},
        {"image_id": 30, "id": 5, "caption": "a red square"},
        {"image_id": 25, "id": 1, "caption": " a round, blue\nthing \n"},
        {"image_id": 25, "id": 8, "caption": "un rond bleu, très simple 🔵"},
    ]
    return {"info": {"year": 2017, "id": 3}, "licenses": [{"id": 1}], "images": images, "annotations": annotations}


@pytest.fixture
def coco(tmp_path: Path) -> Path:
    folder = write(tmp_path / "coco", published())
    (folder / "train2017").mkdir()
    draw("red", "square").save(folder / "train2017" / "000000000030.jpg")
    draw("blue", "circle").save(folder / "train2017" / "000000000025.jpg")
    return folder


def test_an_image_has_all_its_captions_and_one_without_any_is_left_out(coco):
    source = CocoCaptions(coco, language="en")
    examples = [source[i] for i in range(len(source))]
    assert [example.id for example in examples] == ["000000000030.jpg", "000000000025.jpg"]
    expected = [
        (Caption("a red square", "en"),),
        tuple(Caption(text, "en") for text in ("a blue circle", "a round, blue thing", "un rond bleu, très simple 🔵")),
    ]
    assert [example.captions for example in examples] == expected
    assert list(source.captions()) == [caption for captions in expected for caption in captions]
    assert [example.concept for example in examples] == [None, None]
    assert examples[0].image.shape == (3, 16, 16)
    assert examples[0].image[0].float().mean() > examples[1].image[0].float().mean()


def test_a_worker_has_the_same_examples_without_the_file(coco):
    source = CocoCaptions(coco)
    copied = pickle.dumps(source)
    (coco / FILE).unlink()
    copy = pickle.loads(copied)
    assert list(copy.captions()) == list(source.captions())
    assert copy[1].captions == source[1].captions
    assert torch.equal(copy[1].image, source[1].image)


def test_a_worker_is_sent_little_more_than_the_texts(coco):
    count = 20_000
    texts = [f"a bicycle replica with a clock as its front wheel, number {i}" for i in range(count)]
    content = published()
    content["images"] = [{"id": i, "file_name": f"{30 + i:012d}.jpg"} for i in range(count // 5)]
    content["annotations"] = [{"id": i, "image_id": i % (count // 5), "caption": text} for i, text in enumerate(texts)]
    source = CocoCaptions(write(coco, content))
    assert len(source) == count // 5
    size = sum(map(len, texts)) + len("000000000030.jpg") * len(source)
    assert len(pickle.dumps(source)) < size + 12 * count
    assert [caption.text for caption in source.captions()] == [
        text for i in range(count // 5) for text in texts[i :: count // 5]
    ]


def test_other_files_and_folders_and_ids_of_that_form(coco, tmp_path):
    content = {
        "images": [{"id": "a", "file_name": "val/1.png"}],
        "annotations": [{"image_id": "a", "caption": "a dot"}],
    }
    write(coco, content, "mine.json")
    elsewhere = tmp_path / "disk"
    (elsewhere / "val").mkdir(parents=True)
    draw("blue", "circle").save(elsewhere / "val" / "1.png")
    example = CocoCaptions(coco, "mine.json", elsewhere)[0]
    assert (example.id, example.captions) == ("val/1.png", (Caption("a dot"),))
    assert CocoCaptions(tmp_path, coco / "mine.json", "disk")[0].id == "val/1.png"


def test_an_image_that_is_missing_or_damaged_is_told_when_it_is_read(coco):
    source = CocoCaptions(coco)
    (coco / "train2017" / "000000000025.jpg").write_bytes(b"\xff\xd8")
    with pytest.raises(CorruptImage):
        source[1]
    (coco / "train2017" / "000000000025.jpg").unlink()
    with pytest.raises(CorruptImage, match="there is no such file"):
        source[1]
    assert source[0].id == "000000000030.jpg"


def refused(*arguments: Any) -> str:
    with pytest.raises(UserError) as error:
        CocoCaptions(*arguments)
    assert "\n" not in str(error.value)
    return str(error.value)


def test_missing_files_and_folders_are_told_with_their_cure(coco):
    with pytest.raises(
        ArgumentError, match=r"^folder: null must be the folder of the data set; give data\.path=FOLDER$"
    ):
        CocoCaptions(None)
    assert refused(coco, "none.json") == (
        f"{coco / 'none.json'}: there is no such file; unpack COCO's annotations there, or name the file it is"
    )
    assert refused(coco, FILE, "none") == (
        f"{coco / 'none'}: there is no such folder; unpack COCO's images there, or name the folder"
    )
    (coco / "val2017").mkdir()
    assert refused(coco, FILE, "val2017").startswith(f"{coco / 'val2017' / '000000000030.jpg'}: there is no such image")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"images": [', "is not JSON (Expecting value: line 1 column 13 (char 12)); it may be cut off"),
        ("", "is not JSON ("),
        (b"\xff\xfe\xfa", "is not JSON ("),
        ("[]", "has no list 'images'; give a file of captions"),
        ('{"images": []}', "has no list 'annotations'; give a file of captions, such as captions_train2017.json"),
        ('{"images": [], "annotations": {}}', "has no list 'annotations'"),
        ('{"images": [], "annotations": []}', "has no captions; give a file of captions"),
    ],
)
def test_a_file_that_is_no_file_of_captions(coco, text, message):
    (coco / FILE).write_bytes(text if isinstance(text, bytes) else text.encode())
    assert refused(coco).startswith(f"{coco / FILE}: {message}")


@pytest.mark.parametrize(
    ("place", "item", "message"),
    [
        ("images", 3, "images[1]: 3 must be an object"),
        ("images", {"file_name": "a.jpg"}, "images[1]: id null must be a whole number or a text"),
        ("images", {"id": True, "file_name": "a.jpg"}, "images[1]: id true must be"),
        ("images", {"id": 1.5, "file_name": "a.jpg"}, "images[1]: id 1.5 must be"),
        ("images", {"id": 9}, "images[1]: file_name null must be a text that is not blank"),
        ("images", {"id": 30, "file_name": "a.jpg"}, "images[1]: id 30 is that of '000000000030.jpg' too; give each"),
        (
            "images",
            {"id": 9, "file_name": "000000000030.jpg"},
            "images[1]: file_name '000000000030.jpg' is that of image 30 too; list each image once",
        ),
        ("annotations", ["a"], 'annotations[1]: ["a"] must be an object'),
        (
            "annotations",
            {"id": 4, "image_id": 31, "caption": "a"},
            "annotations[1] (id 4): image_id 31 is not among 'images'; add the image, or remove this",
        ),
        ("annotations", {"id": 4, "caption": "a"}, "annotations[1] (id 4): image_id null must be"),
        ("annotations", {"image_id": 30, "caption": 5}, "annotations[1]: caption 5 must be a text that is not blank"),
        ("annotations", {"id": 4, "image_id": 30, "caption": " \n"}, 'annotations[1] (id 4): caption " \\n" must be'),
        (
            "annotations",
            {"image_id": 30, "caption": "\ud83d"},
            'annotations[1]: caption "\\ud83d" has half a character',
        ),
        ("annotations", {"image_id": 30, "caption": ["a" * 99]}, f'annotations[1]: caption ["{"a" * 75}... must be'),
        (
            "annotations",
            {"id": 4, "image_id": 30, "bbox": [1, 2, 3, 4]},
            "annotations[1] (id 4): has no caption; give a file of captions, such as captions_train2017.json",
        ),
    ],
)
def test_a_mistake_is_told_with_its_place(coco, place, item, message):
    content = published()
    content[place][1] = item
    assert refused(write(coco, content)).startswith(f"{coco / FILE}: {message}")
