"""sources: what is on disk comes out as examples, and what is wrong with it is said in one line."""

import io
import json
import pickle
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

from mmlm.core.batch import Caption
from mmlm.core.errors import CorruptImage, UserError
from mmlm.data.image_folder import ImageFolder
from mmlm.data.parquet_table import ParquetTable
from tests.conftest import draw


def png(colour: str = "red", size: tuple[int, int] = (4, 3)) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", size, colour).save(buffer, "PNG")
    return buffer.getvalue()


def folder_with(tmp_path: Path, *lines: object) -> Path:
    for name, colour in (("a.png", "red"), ("sub/b.png", "blue")):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(png(colour))
    text = "\n".join(line if isinstance(line, str) else json.dumps(line) for line in lines)
    (tmp_path / "captions.jsonl").write_text(text + "\n", encoding="utf-8")
    return tmp_path


def one_line(error: pytest.ExceptionInfo) -> str:
    assert "\n" not in str(error.value)
    return str(error.value)


def test_image_folder(tmp_path):
    source = ImageFolder(
        folder_with(
            tmp_path,
            {"image": "a.png", "captions": ["ein rotes Bild", "rot"], "language": "de", "concept": "red"},
            "",
            {"image": "sub/b.png", "caption": "a blue picture", "photographer": "me"},
            {"image": None, "caption": "only text"},
            {"image": "a.png", "caption": "a red picture", "language": "en", "concept": "red"},
        )
    )
    assert len(source) == 3
    first, second, third = (source[index] for index in range(3))
    assert first.id == "a.png"
    assert first.concept == "red"
    assert first.captions == (Caption("ein rotes Bild", "de"), Caption("rot", "de"), Caption("a red picture", "en"))
    assert first.image.shape == (3, 3, 4)
    assert first.image[:, 0, 0].tolist() == [255, 0, 0]
    assert (second.id, second.concept, second.captions) == ("sub/b.png", None, (Caption("a blue picture"),))
    assert (third.id, third.image, third.captions) == ("line 4", None, (Caption("only text"),))
    assert list(source.captions()) == [*first.captions, *second.captions, *third.captions]


def test_image_folder_with_another_captions_file(tmp_path):
    folder_with(tmp_path)
    (tmp_path / "val.jsonl").write_text('{"image": "a.png", "caption": "x"}')
    assert len(ImageFolder(str(tmp_path), captions="val.jsonl")) == 1


def test_an_image_without_captions_is_an_example(tmp_path):
    source = ImageFolder(folder_with(tmp_path, {"image": "a.png", "captions": []}))
    assert source[0].captions == ()


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ('{"image": "a.png", ', "is not JSON"),
        ('["a.png"]', "must be an object"),
        ({"image": "a.png"}, "needs 'image' and either"),
        ({"caption": "x"}, "needs 'image' and either"),
        ({"image": "a.png", "caption": "x", "captions": ["y"]}, "needs 'image' and either"),
        ({"image": "a.png", "captoin": "x"}, "did you mean 'caption'"),
        ({"image": "a.png", "caption": "x", "langauge": "en"}, "did you mean 'language'"),
        ({"image": "a.png", "captions": "x"}, "a list of strings"),
        ({"image": "a.png", "captions": ["x", 3]}, "a list of strings"),
        ({"image": 3, "caption": "x"}, "'image' must be a string, not 3"),
        ({"image": "a.png", "caption": "x", "concept": 7}, "'concept' must be a string, not 7"),
        ({"image": "sub/b.png", "caption": "x", "concept": "red"}, "an earlier line 'blue'"),
    ],
)
def test_a_bad_line_is_named_by_its_number(tmp_path, line, said):
    folder_with(tmp_path, {"image": "sub/b.png", "caption": "ok", "concept": "blue"}, line)
    with pytest.raises(UserError) as error:
        ImageFolder(tmp_path)
    assert f"{tmp_path / 'captions.jsonl'}:2: " in one_line(error)
    assert said in one_line(error)


def test_missing_folder_file_and_images(tmp_path):
    with pytest.raises(UserError, match="there is no such folder") as error:
        ImageFolder(tmp_path / "none")
    one_line(error)
    with pytest.raises(UserError, match=r"captions\.jsonl: there is no such file"):
        ImageFolder(tmp_path)
    folder_with(tmp_path, {"image": "a.png", "caption": "x"}, {"image": "gone.png", "caption": "x"})
    with pytest.raises(UserError, match=r"gone\.png: there is no such file \(1 of 2 images are missing\)") as error:
        ImageFolder(tmp_path)
    one_line(error)
    folder_with(tmp_path, "")
    with pytest.raises(UserError, match="has no line"):
        ImageFolder(tmp_path)


def test_a_damaged_image_is_corrupt_only_when_it_is_read(tmp_path):
    folder_with(tmp_path, {"image": "a.png", "caption": "x"})
    (tmp_path / "a.png").write_bytes(b"not a picture")
    source = ImageFolder(tmp_path)
    assert list(source.captions()) == [Caption("x")]
    with pytest.raises(CorruptImage, match=r"a\.png: is not an image"):
        source[0]


def table_file(path: Path, images: list, captions: list, **columns: list) -> Path:
    pq.write_table(pa.table({"image": images, "caption": captions, **columns}), path)
    return path


def test_parquet_table_over_several_files(tmp_path):
    table_file(tmp_path / "1.parquet", [{"bytes": png("red"), "path": None}, None], ["one", None], label=[5, 6])
    table_file(tmp_path / "2.parquet", [{"bytes": png("blue"), "path": "b.png"}], ["two"], label=[7])
    source = ParquetTable(str(tmp_path / "*.parquet"), concept_column="label", language="en")
    assert len(source) == 3
    assert [source[index].id for index in range(3)] == ["1.parquet/0", "1.parquet/1", "2.parquet/0"]
    assert [source[index].concept for index in range(3)] == ["5", "6", "7"]
    assert source[0].image[:, 0, 0].tolist() == [255, 0, 0]
    assert source[1].image is None
    assert source[1].captions == ()
    assert source[2].image[:, 0, 0].tolist() == [0, 0, 255]
    assert list(source.captions()) == [Caption("one", "en"), Caption("two", "en")]


def test_parquet_lists_of_captions_binary_images_and_ids(tmp_path):
    path = tmp_path / "x.parquet"
    pq.write_table(pa.table({"pixels": [png(), png()], "texts": [["a", None, "b"], []], "key": ["u", "v"]}), path)
    source = ParquetTable([path], image_column="pixels", caption_column="texts", id_column="key")
    assert source[0].captions == (Caption("a"), Caption("b"))
    assert source[1].captions == ()
    assert (source[0].id, source[1].id, source[0].concept) == ("u", "v", None)
    assert source[0].image.shape == (3, 3, 4)


def test_parquet_reads_the_path_where_there_are_no_bytes(tmp_path):
    (tmp_path / "a.png").write_bytes(png("blue"))
    type = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    rows = pa.array([{"bytes": None, "path": "a.png"}, {"bytes": None, "path": None}], type=type)
    source = ParquetTable(table_file(tmp_path / "x.parquet", rows, ["x", "y"]))
    assert source[0].image[:, 0, 0].tolist() == [0, 0, 255]
    with pytest.raises(CorruptImage, match=r"x\.parquet/1: the row has neither bytes nor a path"):
        source[1]


def test_parquet_corrupt_image_is_named_by_its_id(tmp_path):
    source = ParquetTable(table_file(tmp_path / "x.parquet", [{"bytes": b"junk", "path": None}], ["x"]))
    with pytest.raises(CorruptImage, match=r"^x\.parquet/0: is not an image"):
        source[0]


def test_parquet_travels_to_a_worker(tmp_path):
    source = ParquetTable(table_file(tmp_path / "x.parquet", [{"bytes": png(), "path": None}], ["x"]), language="de")
    copy = pickle.loads(pickle.dumps(source))
    assert copy[0].captions == source[0].captions
    assert copy[0].image.equal(source[0].image)


def test_parquet_errors_name_the_file_and_the_column(tmp_path):
    good = table_file(tmp_path / "x.parquet", [{"bytes": png(), "path": None}], ["x"])
    cases = [
        (lambda: ParquetTable(tmp_path / "none.parquet"), r"none\.parquet: there is no such Parquet file"),
        (lambda: ParquetTable([]), r"^files: \[\] names no Parquet file"),
        (lambda: ParquetTable(good, caption_column="text"), "no column 'text'; its columns are image, caption"),
        (lambda: ParquetTable(good, concept_column="label"), "no column 'label'"),
        (lambda: ParquetTable(good, image_column="caption"), "column 'caption' is string, but an image is"),
        (lambda: ParquetTable(good, caption_column="image"), "but captions are strings or lists"),
        (lambda: ParquetTable(__file__), "cannot be read as Parquet"),
    ]
    for build, said in cases:
        with pytest.raises(UserError, match=said) as error:
            build()
        one_line(error)
    empty = pa.table({"image": pa.array([], pa.binary()), "caption": pa.array([], pa.string())})
    pq.write_table(empty, tmp_path / "empty.parquet")
    with pytest.raises(UserError, match=r"empty\.parquet: has no rows"):
        ParquetTable(tmp_path / "empty.parquet")


OUTSIDE = ["../a.png", "x/../../a.png", "/a.png", "x/../../shapes/a.png"]


@pytest.mark.parametrize("name", OUTSIDE)
def test_an_image_outside_of_its_folder_is_refused_unless_that_is_allowed(tmp_path, write_captions, name):
    folder = tmp_path / "shapes"
    write_captions(folder, [{"image": name, "caption": "a"}])
    with pytest.raises(UserError, match=r"jsonl:1: the image '.*' lies outside of the folder; .*outside=true"):
        ImageFolder(folder)
    with pytest.raises(UserError, match="there is no such file"):
        ImageFolder(folder, outside=True)
    table = pa.table({"image": [{"bytes": None, "path": name}], "caption": ["a"]})
    pq.write_table(table, folder / "a.parquet")
    with pytest.raises(UserError, match="lies outside of the folder"):
        ParquetTable(folder / "a.parquet")
    assert len(ParquetTable(folder / "a.parquet", outside=True)) == 1


def test_a_path_that_turns_back_into_its_folder_is_inside(tmp_path, write_captions):
    write_captions(tmp_path, [{"image": "x/../a.png", "caption": "a"}])
    (tmp_path / "x").mkdir()
    draw("red", "square").save(tmp_path / "a.png")
    assert len(ImageFolder(tmp_path)) == 1


def test_rows_of_one_id_are_one_example(tmp_path):
    """A table with a row for each pair of an image and a caption is the one with a list of captions for each image."""
    red, blue = {"bytes": png("red"), "path": None}, {"bytes": png("blue"), "path": None}
    pairs = table_file(
        tmp_path / "pairs.parquet",
        [red, blue, red, red],
        ["a", "b", "c", None],
        key=["r", "b", "r", "r"],
        kind=[1, 2, 1, 1],
    )
    lists = table_file(tmp_path / "lists.parquet", [red, blue], [["a", "c"], ["b"]], key=["r", "b"], kind=[1, 2])
    one, other = (ParquetTable(file, id_column="key", concept_column="kind") for file in (pairs, lists))
    assert len(one) == len(other) == 2
    assert list(one.texts()) == list(other.texts())
    assert list(one.captions()) == list(other.captions()) == [Caption("a"), Caption("c"), Caption("b")]
    for index in range(2):
        assert one[index].captions == other[index].captions
        assert torch.equal(one[index].image, other[index].image)


def test_rows_without_an_id_are_examples_of_their_own(tmp_path):
    cells = [{"bytes": png(), "path": None}] * 3
    table = ParquetTable(
        table_file(tmp_path / "t.parquet", cells, ["a", "b", "c"], key=["x", None, None]), id_column="key"
    )
    assert [found.id for found in table.texts()] == ["x", "t.parquet/1", "t.parquet/2"]


@pytest.mark.parametrize(
    ("column", "values", "said"),
    [
        ("id_column", ["x", "x"], "id_column: row 0 of t.parquet and row 1 of t.parquet have the id 'x' and different"),
        ("concept_column", ["x", "y"], "concept_column: row 0 of t.parquet and row 1 of t.parquet have the id 'same'"),
    ],
)
def test_rows_of_one_id_that_disagree_are_refused(tmp_path, column, values, said):
    colours = ("red", "blue") if column == "id_column" else ("red", "red")
    cells = [{"bytes": png(colour), "path": None} for colour in colours]
    ids = values if column == "id_column" else ["same", "same"]
    file = table_file(tmp_path / "t.parquet", cells, ["a", "b"], ids=ids, kind=values)
    with pytest.raises(UserError) as error:
        ParquetTable(file, id_column="ids", concept_column="kind" if column == "concept_column" else None)
    assert one_line(error).startswith(said)


def test_files_of_one_name_have_ids_of_their_own(tmp_path):
    for year in ("2023", "2024"):
        (tmp_path / year).mkdir()
        table_file(tmp_path / year / "train.parquet", [{"bytes": png(), "path": None}] * 2, ["a", "b"])
    several = ParquetTable(tmp_path / "*" / "train.parquet")
    ids = ["2023/train.parquet/0", "2023/train.parquet/1", "2024/train.parquet/0", "2024/train.parquet/1"]
    assert [found.id for found in several.texts()] == ids
    assert [several[index].id for index in range(4)] == ids
    twice = ParquetTable([tmp_path / "2023/train.parquet"] * 2)
    assert len({found.id for found in twice.texts()}) == 4


def test_brackets_in_the_name_of_a_folder_are_no_pattern(tmp_path):
    folder = tmp_path / "photos [v2]"
    folder.mkdir()
    table_file(folder / "a.parquet", [{"bytes": png(), "path": None}], ["a"])
    assert len(ParquetTable(folder / "*.parquet")) == len(ParquetTable(str(tmp_path / "photos*" / "[ab].parquet"))) == 1


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (
            '{"image": "a.png", "caption": "a café"}\n'.encode("latin-1"),
            "captions.jsonl:1: is not UTF-8 (the byte 0xe9)",
        ),
        ('\n{"image": "a.png", "caption": "a"}'.encode("utf-16"), "captions.jsonl:1: is not UTF-8 (the byte 0xff)"),
    ],
)
def test_captions_in_another_encoding_are_refused_by_their_line(tmp_path, content, said):
    (tmp_path / "captions.jsonl").write_bytes(content)
    with pytest.raises(UserError) as error:
        ImageFolder(tmp_path)
    assert said in one_line(error)


def test_a_byte_order_mark_and_the_line_ends_of_windows_are_none_of_the_caption(tmp_path):
    (tmp_path / "a.png").write_bytes(png())
    (tmp_path / "captions.jsonl").write_bytes(b'\xef\xbb\xbf{"image": "a.png", "caption": "a caf\xc3\xa9"}\r\n')
    assert list(ImageFolder(tmp_path).captions()) == [Caption("a café")]


def test_parquet_captions_with_a_language_each(tmp_path):
    rows = {
        "image": [{"bytes": png(), "path": None}] * 4,
        "caption": [["a", "b"], ["c"], None, ["d", "e"]],
        "language": [["de", None], ["fr"], None, ["sw"]],
        "one": ["en", None, "en", "fr"],
    }
    pq.write_table(pa.table(rows), tmp_path / "a.parquet")
    each = ParquetTable(tmp_path / "a.parquet", language_column="language", language="en")
    assert [(c.text, c.language) for c in each.captions()] == [
        *(("a", "de"), ("b", "en"), ("c", "fr")),
        *(("d", "en"), ("e", "en")),  # one language of two captions: nobody knows which
    ]
    all_of_a_row = ParquetTable(tmp_path / "a.parquet", language_column="one")
    assert [c.language for c in all_of_a_row.captions()] == ["en", "en", None, "fr", "fr"]
    copy = pickle.loads(pickle.dumps(each))
    assert list(copy.captions()) == list(each.captions())
    with pytest.raises(UserError, match=r"column 'image' is struct.*, but languages are strings or lists of strings"):
        ParquetTable(tmp_path / "a.parquet", language_column="image")


def test_encoded_images_are_those_that_are_decoded(tmp_path):
    (tmp_path / "b.png").write_bytes(png("blue"))
    rows = {"image": [{"bytes": png(), "path": None}, {"bytes": None, "path": "b.png"}, None], "caption": ["a"] * 3}
    pq.write_table(pa.table(rows), tmp_path / "a.parquet")
    folder_with(tmp_path, {"image": "a.png", "caption": "x"}, {"image": None, "caption": "y"})
    assert [ParquetTable(tmp_path / "a.parquet").encoded(i) for i in range(3)] == [png(), png("blue"), None]
    assert [ImageFolder(tmp_path).encoded(i) for i in range(2)] == [png("red"), None]
