"""Tables of captions: cells, rows and characters as spreadsheets write them, size in memory, and what is refused."""

import csv
import io
import pickle
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from mmlm.core.batch import Caption
from mmlm.core.errors import ArgumentError, CorruptImage, UserError
from mmlm.data import caption_table
from mmlm.data.text_table import TextTable
from tests.conftest import draw

PLAIN = "image,caption\na.png,a red square\nb.png,a blue circle\n"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder of three images, for a table to be put in."""
    (tmp_path / "photos").mkdir()
    draw("red", "square").save(tmp_path / "a.png")
    draw("blue", "circle").save(tmp_path / "b.png")
    draw("blue", "square").save(tmp_path / "photos" / "c, d.png")
    return tmp_path


def table(folder: Path, content: str, saved: str = "utf-8", **arguments: Any) -> TextTable:
    (folder / "train.csv").write_bytes(content.encode(saved))
    return TextTable(folder, **arguments)


def rows(source: TextTable) -> list[tuple[str, list[str]]]:
    """The id and captions of each example; the list of captions alone has to agree with them."""
    examples = [source[i] for i in range(len(source))]
    assert list(source.captions()) == [caption for example in examples for caption in example.captions]
    return [(example.id, [caption.text for caption in example.captions]) for example in examples]


def refused(folder: Path, content: str | None = None, error: type[UserError] = UserError, **arguments: Any) -> str:
    """What is said of a table, without its folder."""
    if content is not None:
        (folder / "train.csv").write_text(content, encoding="utf-8")
    with pytest.raises(UserError) as caught:
        TextTable(folder, **arguments)
    message = str(caught.value)
    assert type(caught.value) is error
    assert "\n" not in message
    assert ";" in message or error is ArgumentError  # what to do
    return message.replace(f"{folder}/", "")


def test_each_row_is_an_image_with_its_caption_concept_and_language(folder):
    content = (
        "concept,note,image,language,caption\n"
        "square,x,a.png,en,a red square\n"
        ',,b.png,,"a blue circle, on white"\n'
        'square,,"photos/c, d.png",de,ein Quadrat\n'
    )
    source = table(folder, content, concept_column="concept", language_column="language", language="fr")
    examples = [source[i] for i in range(3)]
    assert len(source) == 3
    assert [example.id for example in examples] == ["a.png", "b.png", "photos/c, d.png"]
    assert [example.concept for example in examples] == ["square", None, "square"]
    captions = [Caption("a red square", "en"), Caption("a blue circle, on white", "fr"), Caption("ein Quadrat", "de")]
    assert [example.captions for example in examples] == [(caption,) for caption in captions]
    assert list(source.captions()) == captions
    assert examples[0].image.shape == (3, 16, 16)
    assert torch.equal(pickle.loads(pickle.dumps(source))[2].image, examples[2].image)


def test_without_columns_for_them_there_is_no_concept_and_one_language(folder):
    assert table(folder, PLAIN)[0].captions == (Caption("a red square", None),)
    example = table(folder, PLAIN, language="en")[1]
    assert (example.captions, example.concept) == ((Caption("a blue circle", "en"),), None)


def test_several_columns_of_captions_come_in_the_order_of_the_argument_without_blank_cells(folder):
    content = "image,short,long\na.png,square,a red square\nb.png,  ,a blue circle\n"
    source = table(folder, content, caption_columns=["long", "short"])
    assert rows(source) == [("a.png", ["a red square", "square"]), ("b.png", ["a blue circle"])]
    assert rows(table(folder, content, caption_columns="long")) == [
        ("a.png", ["a red square"]),
        ("b.png", ["a blue circle"]),
    ]


def test_rows_of_one_image_are_one_example_as_in_a_plain_loop(folder, monkeypatch):
    monkeypatch.setattr(caption_table, "ROWS_AT_ONCE", 4)  # images across several chunks
    generator = torch.Generator().manual_seed(0)
    names, languages = ["b.png", "photos/c, d.png", "a.png"], ["en", "de", ""]
    drawn = torch.randint(0, 3, (30, 3), generator=generator).tolist()
    expected: dict[str, list[Caption]] = {}
    text = io.StringIO()
    writer = csv.writer(text)
    writer.writerow(["image", "one", "two", "language", "concept"])
    for number, (image, language, blank) in enumerate(drawn):
        texts = [f"one, {number}", "" if blank else f'"two" {number}']
        writer.writerow([names[image], *texts, languages[language], ["x", "", "y"][image]])
        captions = expected.setdefault(names[image], [])
        captions += [Caption(caption, languages[language] or None) for caption in texts if caption]
    arguments = {"caption_columns": ["one", "two"], "language_column": "language", "concept_column": "concept"}
    source = table(folder, text.getvalue(), **arguments)
    examples = [source[i] for i in range(len(source))]
    assert {example.id: list(example.captions) for example in examples} == expected
    assert [example.id for example in examples] == list(expected)
    assert {e.id: e.concept for e in examples} == {"b.png": "x", "photos/c, d.png": None, "a.png": "y"}
    assert list(source.captions()) == [caption for captions in expected.values() for caption in captions]


@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "cp1252"])
@pytest.mark.parametrize("delimiter", [",", ";", "\t"])
def test_quotes_line_breaks_marks_and_delimiters_of_spreadsheets(folder, delimiter, encoding, end):
    lines = (
        f'"image"{delimiter}"caption"',
        f'a.png{delimiter}"a ""red"" square,',
        'of one\tcolour; très simple"',
        delimiter,  # a row that was cleared
        "",
        f'b.png{delimiter}5" of blue',
    )
    # A mark before UTF-8 is no encoding to be named.
    source = table(folder, end.join(lines), encoding, encoding=encoding.removesuffix("-sig"))
    assert rows(source) == [
        ("a.png", ['a "red" square, of one colour; très simple']),
        ("b.png", ['5" of blue']),
    ]


def test_a_mark_before_a_quoted_column_and_blanks_around_cells(folder):
    source = table(folder, '\ufeff"image", "caption"\n a.png , "red, square"\n')
    assert rows(source) == [("a.png", ["red, square"])]


def test_the_delimiter_is_that_by_which_the_columns_are_found(folder):
    assert rows(table(folder, "x,y|image|caption\n1|a.png|red, square; or so\n")) == [("a.png", ["red, square; or so"])]
    assert rows(table(folder, "image,text\tcaption\na.png\tred\n", image_column="image,text")) == [("a.png", ["red"])]
    assert rows(table(folder, "image:caption\na.png:red\n", delimiter=":")) == [("a.png", ["red"])]


def test_quotes_that_are_plain_characters(folder):
    content = 'image\tcaption\na.png\t"red" he said\nb.png\t"blue\n'
    assert "unbalanced quote" in refused(folder, content)
    assert rows(table(folder, content, quotes=False)) == [("a.png", ['"red" he said']), ("b.png", ['"blue'])]


def test_the_ending_may_be_left_out_and_images_are_beside_the_table(folder):
    (folder / "val.tsv").write_text(PLAIN.replace(",", "\t"))
    assert len(TextTable(folder, "val")) == 2
    assert len(TextTable("elsewhere", folder / "val.tsv")) == 2
    (folder / "photos" / "list.txt").write_text('image,caption\n"c, d.png",square\n../a.png,square\n')
    source = TextTable(folder, "photos/list.txt")
    assert [source[i].id for i in range(2)] == ["c, d.png", "../a.png"]


def test_a_row_takes_few_bytes_beside_its_text(folder):
    lines = [f"{number:06}.png,a photo of number {number:06}\n" for number in range(20_000)]
    (folder / "000000.png").write_bytes(b"")
    source = table(folder, "image,caption\n" + "".join(lines))
    assert len(source) == 20_000
    assert len(pickle.dumps(source)) < 20_000 * (len(lines[0]) + 40)


def test_a_later_image_that_is_missing_or_damaged_is_told_when_it_is_read(folder):
    (folder / "b.png").write_bytes(b"RIFF")
    source = table(folder, PLAIN + "none.png,nothing\n")
    for index in (1, 2):
        with pytest.raises(CorruptImage):
            source[index]
    assert source[0].id == "a.png"


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        (
            ["a.png,x", 'b.png,"y', "a.png,z"],
            "line 3: the row that begins here has an unbalanced quote (noticed in line",
        ),
        (['a.png,"x', 'b.png,"y"', "a.png,z"], "line 2: the row that begins here has an unbalanced quote (noticed in"),
        (['a.png,"x', 'y"', 'b.png,"x"y'], "line 4: the row that begins here has an unbalanced quote (noticed in"),
        (
            ["a.png,x,y"],
            "line 2: the number of cells, 3, must be the first row's, 2; put quotes around a cell with ',' or a line",
        ),
        (["a.png,x", "", "b.png"], "line 4: the number of cells, 1, must be the first row's, 2; put quotes around"),
        (['a.png,"x', 'y",z'], "lines 2 to 3: the number of cells, 3, must be"),
        (["a.png,x", " ,y"], "line 3: 'image' is blank; name the image, or remove the row"),
        (['a.png,"x', 'y"', "b.png, "], "line 4: has no caption in 'caption'; write one, or remove the row"),
    ],
)
def test_a_row_is_refused_by_its_line(folder: Path, rows: Sequence[str], message: str):
    assert refused(folder, "\n".join(["image,caption", *rows])).startswith(f"train.csv: {message}")


def test_columns_that_are_not_there_are_told_with_those_that_are(folder):
    expected = "image_column: 'picture' is no column of train.csv, which has 'image', 'caption'; name one of them"
    assert refused(folder, PLAIN, ArgumentError, image_column="picture") == expected
    assert refused(folder, PLAIN, ArgumentError, caption_columns=["caption", "text"]).startswith("caption_columns: 'te")
    assert refused(folder, PLAIN, ArgumentError, concept_column="class").startswith("concept_column: 'class' is no")
    assert refused(folder, PLAIN, ArgumentError, language_column="lang").startswith("language_column: 'lang' is no")
    assert refused(folder, PLAIN.replace(",", ":"), ArgumentError) == (
        "image_column: 'image' is no column of train.csv, which has 'image:caption'; name it, or give the delimiter"
    )
    # By comma there are more columns, but by semicolon one of those that are asked for.
    message = refused(folder, "image;text, or so, of it\na.png;x\n", ArgumentError)
    assert message.startswith(
        "caption_columns: 'caption' is no column of train.csv, which has 'image', 'text, or so, of "
    )
    assert "has 2 columns 'caption'; give each" in refused(folder, "image,caption,caption\na.png,x,y\n")
    assert rows(table(folder, "image,x,x,caption\na.png,1,2,y\n")) == [("a.png", ["y"])]


def test_two_concepts_of_an_image_are_told_with_both_lines(folder):
    content = "image,caption,class\nb.png,x,1\na.png,x,2\n\nb.png,y,1\nb.png,z,{}\n"
    expected = "train.csv: line 6: the concept of 'b.png' is {}, but '1' in line 2; give all rows of an image the same"
    assert refused(folder, content.format("3"), concept_column="class") == expected.format("'3'")
    assert refused(folder, content.format(""), concept_column="class") == expected.format("none")
    assert len(table(folder, content.format("1"), concept_column="class")) == 2


@pytest.mark.parametrize(
    ("saved", "read", "message"),
    [
        ("cp1252", "utf-8", "line 4: is not utf-8 (byte 0xe9); save it as UTF-8, or give the encoding"),
        ("utf-16", "utf-8", "line 1: is not utf-8 (byte 0xff)"),
        ("utf-8", "ascii", "line 4: is not ascii (byte 0xc3)"),
        ("utf-8", "utf-16", "line 1: is not utf-16"),
    ],
)
def test_another_encoding_is_told_with_the_line(folder, saved, read, message):
    (folder / "train.csv").write_bytes('image,caption\r\na.png,"x\r\ny"\r\né.png,z\r\n'.encode(saved))
    with pytest.raises(UserError) as error:
        TextTable(folder, encoding=read)
    assert str(error.value).startswith(f"{folder / 'train.csv'}: {message}")


def test_letters_of_two_bytes_without_a_mark_are_told(folder):
    (folder / "train.csv").write_bytes(PLAIN.encode("utf-16-le"))
    with pytest.raises(UserError, match=r"line 1: has a zero character, which utf-8 text has not; .* or utf-16-le"):
        TextTable(folder)
    assert len(TextTable(folder, encoding="utf-16-le")) == 2


def test_files_that_are_not_there_or_empty_are_told_with_their_cure(folder):
    expected = "train: is no file, nor with .csv or .tsv behind it (its folder has no table); name the table in file"
    assert refused(folder) == expected
    assert refused(folder, "", file="train.csv").startswith("train.csv: is empty; its first row must name the columns")
    assert refused(folder, "image,caption\n,\n").startswith("train.csv: has no row below the names of the columns; add")
    assert "(its folder has train.csv); name the table" in refused(folder, file="validation")
    assert refused(folder / "train.csv", None, ArgumentError).endswith("and train.csv as the file")
    message = "line 2 of train.csv names it; write paths from the table's folder on"
    assert refused(folder, "image,caption\nc.png,x\n") == f"c.png: there is no such image, but {message}"
    (folder / "train.tsv").write_text(PLAIN)
    assert refused(folder) == "train: is train.csv and train.tsv; write the ending too"


def test_arguments_that_no_table_can_serve(folder):
    table(folder, PLAIN)
    with pytest.raises(ArgumentError, match=r"folder: null must be the folder of the data set; give data.path=FOLDER"):
        TextTable(None)
    for encoding in ("utf-9", "base64", "utf\0"):
        assert refused(folder, None, ArgumentError, encoding=encoding).startswith(f"encoding: '{encoding}' must be one")
    for delimiter in (", ", "", '"', " ", "\n"):
        assert "must be one character" in refused(folder, None, ArgumentError, delimiter=delimiter)
    for columns in ([], ["caption", "caption"]):
        assert f"caption_columns: {columns} must name at" in refused(
            folder, None, ArgumentError, caption_columns=columns
        )
