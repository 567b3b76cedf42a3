"""One's own images: two disjoint parts by a hash of each image's id, and splits that lie there already."""

import json
from pathlib import Path

import pytest

from mmlm.core.batch import Caption
from mmlm.core.errors import ArgumentError, UserError
from mmlm.data.own import OwnImages
from mmlm.data.own_splits import own_splits
from mmlm.data.sources import texts_of
from tests.conftest import draw, write_lines


def many(folder: Path, numbers: range) -> Path:
    """An image folder with an image for each number."""
    folder.mkdir(exist_ok=True)
    picture = draw("red", "square")
    for number in numbers:
        picture.save(folder / f"{number}.png")
    write_lines(folder, [{"image": f"{number}.png", "caption": f"number {number}"} for number in numbers])
    return folder


def ids(source: OwnImages) -> list[str]:
    return [texts.id for texts in texts_of(source)]


def test_the_parts_are_disjoint_and_make_up_the_whole(tmp_path):
    folder = str(many(tmp_path / "photos", range(200)))
    train, validation = (OwnImages(folder, part, 0.2) for part in ("train", "validation"))
    every = OwnImages(folder)
    assert sorted(ids(train) + ids(validation)) == sorted(ids(every))
    assert 25 <= len(validation) <= 55, "a fifth of 200, by chance"
    assert (len(train), len(every)) == (len(ids(train)), 200)
    assert [train[row].id for row in (0, 5)] == [ids(train)[row] for row in (0, 5)]
    assert list(train.captions()) == [Caption(f"number {Path(one).stem}") for one in ids(train)]


def test_more_images_change_the_part_of_no_other(tmp_path):
    folder = many(tmp_path / "photos", range(100))
    before = set(ids(OwnImages(str(folder), "validation")))
    many(folder, range(50, 150))
    after = set(ids(OwnImages(str(folder), "validation")))
    both = {f"{number}.png" for number in range(50, 100)}
    assert after & both == before & both != set()


def test_of_few_images_two_are_held_out_and_of_too_few_none_can_be(tmp_path):
    few = str(many(tmp_path / "few", range(4)))
    assert (len(OwnImages(few, "train")), len(OwnImages(few, "validation"))) == (2, 2)
    assert len(OwnImages(few, "train", 0.999)) >= 1
    two = str(many(tmp_path / "two", range(2)))
    assert len(OwnImages(two)) == 2
    with pytest.raises(UserError, match=r"two: holds 2 examples, too few to hold 2 out; give validation images"):
        OwnImages(two, "train")
    with pytest.raises(ArgumentError, match=r"held_out: 1\.0 must lie between 0 and 1"):
        OwnImages(few, "train", 1.0)


def test_captions_without_a_language_are_in_the_one_that_is_given(tmp_path):
    folder = many(tmp_path / "photos", range(5))
    file = folder / "captions.jsonl"
    more = json.dumps({"image": "0.png", "caption": "nul", "language": "de"})
    file.write_text(f"{file.read_text()}{more}\n")
    languages = {caption.text: caption.language for caption in OwnImages(str(folder), language="en").captions()}
    assert (languages["nul"], languages["number 0"]) == ("de", "en")


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (("train/", "val/", "test/"), ("train", "val")),
        (("train.csv", "validation.csv", "images/"), ("train.csv", "validation.csv")),
        (("annotations/captions_train2017.json", "annotations/captions_val2017.json", "train2017/", "val2017/"), None),
        (("train-00000.parquet", "dev-00000.parquet"), ("train-00000.parquet", "dev-00000.parquet")),
        (("training/", "value/"), None),
        (("train/", "valley/"), None),
        (("train_a.csv", "train_b.csv", "val.csv"), None),
        (("captions.jsonl", "train/", "val/"), None),
        (("cats/", "dogs/"), None),
    ],
)
def test_splits_are_told_by_their_names(tmp_path, names, expected):
    for name in names:
        place = tmp_path / name
        place.mkdir(parents=True) if name.endswith("/") else (
            place.parent.mkdir(exist_ok=True, parents=True),
            place.touch(),
        )
    found = own_splits(tmp_path)
    if expected is None and names[0].startswith("annotations"):
        expected = names[:2]
    told = None if found is None else (found.train, found.validation)
    assert told == (None if expected is None else tuple(tmp_path / name for name in expected))
