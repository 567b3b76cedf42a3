"""What lies at a path: every format that a source reads is known by its files, and the rest is told."""

import io
import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from mmlm.core.batch import Caption
from mmlm.core.errors import UserError
from mmlm.data.recognise import ClassCaptions, recognise
from mmlm.data.sources import texts_of
from tests.conftest import draw, write_lines
from tests.data.tables import IMAGE, write_saved
from tests.data.tars import write_tar

TEXTS = ["a red square", "a blue circle"]


def images(folder: Path) -> list[str]:
    folder.mkdir(parents=True, exist_ok=True)
    names = ["one.png", "two.png"]
    for name, text in zip(names, TEXTS, strict=True):
        draw(*text.split()[1:]).save(folder / name)
    return names


def jsonl(folder: Path) -> Path:
    write_lines(folder, [{"image": n, "caption": t} for n, t in zip(images(folder), TEXTS, strict=True)])
    return folder


def parquet(folder: Path, name: str = "test.parquet") -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    cells = []
    for text in TEXTS:
        file = io.BytesIO()
        draw(*text.split()[1:]).save(file, format="PNG")
        cells.append({"bytes": file.getvalue(), "path": None})
    pq.write_table(pa.table({"text": TEXTS, "image": cells}), folder / name)
    return folder


def tar(folder: Path, name: str = "0000.tar") -> Path:
    """The images are written as files first."""
    members = [((folder / name).read_bytes(), text) for name, text in zip(images(folder), TEXTS, strict=True)]
    for image in folder.glob("*.png"):
        image.unlink()
    write_tar(
        folder / name, [m for n, (data, text) in enumerate(members) for m in ((f"{n}.png", data), (f"{n}.txt", text))]
    )
    return folder


def saved(folder: Path) -> Path:
    cells = [{"bytes": (folder / name).read_bytes(), "path": None} for name in images(folder)]
    for image in folder.glob("*.png"):
        image.unlink()
    folder.rmdir()
    return write_saved(folder, [pa.table({"text": TEXTS, "image": pa.array(cells, IMAGE)})], 1)


def saved_splits(folder: Path) -> Path:
    write_saved(folder / "train", [pa.table({"text": TEXTS})], 1)
    (folder / "dataset_dict.json").write_text('{"splits": ["train"]}')
    return folder


def table(folder: Path, name: str = "rows.csv", delimiter: str = ";") -> Path:
    rows = [["file_name", "caption"], *map(list, zip(images(folder), TEXTS, strict=True))]
    (folder / name).write_text("\n".join(map(delimiter.join, rows)))
    return folder


def coco(folder: Path, split: str = "val2017") -> Path:
    content = {
        "images": [{"id": i, "file_name": name} for i, name in enumerate(images(folder / split))],
        "annotations": [{"image_id": i, "caption": text} for i, text in enumerate(TEXTS)],
    }
    (folder / "annotations").mkdir(exist_ok=True)
    (folder / "annotations" / f"captions_{split}.json").write_text(json.dumps(content))
    return folder


def karpathy(folder: Path) -> Path:
    named = zip(images(folder / "flickr30k-images"), TEXTS, strict=True)
    content = [{"filename": name, "split": "test", "sentences": [{"raw": text}]} for name, text in named]
    (folder / "dataset_flickr30k.json").write_text(json.dumps({"images": content}))
    return folder


def paired(folder: Path) -> Path:
    for name, text in zip(images(folder), TEXTS, strict=True):
        (folder / name).with_suffix(".txt").write_text(text)
    return folder


def classes(folder: Path) -> Path:
    for text in TEXTS:
        name = text.removeprefix("a ").replace(" ", "_")
        (folder / name).mkdir(parents=True)
        draw(*text.split()[1:]).save(folder / name / "1.png")
    return folder


@pytest.mark.parametrize(
    ("make", "file", "what"),
    [
        (jsonl, "", "a folder with captions.jsonl"),
        (jsonl, "captions.jsonl", "the captions file captions.jsonl"),
        (parquet, "", "1 Parquet file"),
        (parquet, "test.parquet", "the Parquet file test.parquet"),
        (tar, "", "1 tar shard"),
        (tar, "0000.tar", "the tar shard 0000.tar"),
        (lambda folder: tar(tar(folder, "val_0.tar"), "val_1.tar"), "val_1.tar", "the tar shard val_1.tar"),
        (table, "", "a table"),
        (table, "rows.csv", "the table rows.csv"),
        (coco, "", "a COCO folder"),
        (coco, "annotations/captions_val2017.json", "COCO's captions captions_val2017.json"),
        (karpathy, "", "the test split of Karpathy's dataset_flickr30k.json"),
        (karpathy, "dataset_flickr30k.json", "the test split of Karpathy's dataset_flickr30k.json"),
        (saved, "", "a data set saved by the datasets library"),
        (paired, "", "images with a .txt beside each"),
        (classes, "", "a folder of images for each class"),
    ],
)
@pytest.mark.parametrize("name", ["photos", "bilder [1], näher?"])
def test_every_format_is_known_by_its_files(tmp_path, make, file, what, name):
    path = make(tmp_path / name) / file
    found = recognise(path, classes=ClassCaptions("a {}"))
    assert found.what == what
    assert {c.text for c in found.source.captions()} == set(TEXTS)
    assert found.source[0].image.shape == (3, 16, 16)
    tagged = recognise(path, "de", ClassCaptions("a {}")).source
    texts = {Caption(text, "de") for text in TEXTS}
    assert set(tagged.captions()) == {c for t in texts_of(tagged) for c in t.captions} == texts
    assert set(tagged[0].captions + tagged[1].captions) == texts
    assert len(tagged) == 2


def test_a_language_that_is_written_down_stays(tmp_path):
    images(tmp_path)
    write_lines(tmp_path, [{"image": "one.png", "caption": "ein Quadrat", "language": "de"}])
    assert list(recognise(tmp_path, "en").source.captions()) == [Caption("ein Quadrat", "de")]


def test_the_first_of_several_formats_counts_and_the_others_are_told(tmp_path):
    jsonl(parquet(tmp_path))
    assert recognise(tmp_path).what == "a folder with captions.jsonl (not 1 Parquet file, which is there too)"


def test_the_validation_images_of_a_whole_coco_are_taken(tmp_path):
    folder = coco(coco(tmp_path, "train2017"))
    (folder / "train2017" / "one.png").rename(folder / "train2017" / "other.png")
    assert [t.id for t in texts_of(recognise(folder).source)] == ["one.png", "two.png"]


def two_parquets(folder: Path) -> Path:
    return parquet(parquet(folder, "train-0.parquet"), "test-0.parquet")


def splits(folder: Path) -> Path:
    for name in ("train", "test"):
        classes(folder / name)
    return folder


def no_columns(folder: Path) -> Path:
    folder.mkdir()
    (folder / "prices.csv").write_text("fruit,price\napple,3\n")
    return folder


def nothing(folder: Path) -> Path:
    folder.mkdir()
    return folder


def only_images(folder: Path) -> Path:
    images(folder)
    return folder


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda folder: folder, "there is no such file or folder; give one that holds captions.jsonl, annotations/"),
        (nothing, "nothing in it is recognised; looked for captions.jsonl, .* each class; it is empty$"),
        (only_images, "it holds 2 images without captions: write captions.jsonl beside them"),
        (lambda folder: images(folder) and folder / "one.png", "looked for .*; the file ends in '.png'"),
        (two_parquets, "holds files of test and train; give one file"),
        (lambda folder: table(table(folder), "more.tsv", "\t"), "holds more.tsv, rows.csv; give one of them, such as"),
        (lambda f: tar(tar(f, "train-0.tar"), "val-0.tar"), "holds files of train and val; give one file"),
        (splits, "its folders test, train are splits and no classes; give one, such as .*test"),
        (saved_splits, "holds the splits train; give one, such as .*given/train"),
        (no_columns, "has no column image, .* or file; it has 'fruit', 'price'; rename one of them"),
    ],
)
def test_what_is_not_recognised_says_what_was_looked_for(tmp_path, make, message):
    with pytest.raises(UserError, match=message):
        recognise(make(tmp_path / "given"))


def test_coco_without_its_images(tmp_path):
    coco(tmp_path)
    (tmp_path / "val2017").rename(tmp_path / "elsewhere")
    with pytest.raises(UserError, match="the folder of its images is not there; looked for"):
        recognise(tmp_path)
