"""Scores by attribute and length, and what is taken for what: counted by hand, with Wilson's interval."""

import json
from dataclasses import replace

import pytest

from mmlm.core.errors import UserError
from mmlm.core.intervals import wilson
from mmlm.reports.breakdown import (
    MOST_VALUES,
    OTHERS,
    Mistake,
    image_tables,
    nearest_mistakes,
    said_mistakes,
    text_tables,
)
from mmlm.reports.breakdown_section import breakdown_section
from mmlm.reports.items import ConfusionMatrix, ImageItem, SplitItems, TextItem, parse_confusion, parse_items
from mmlm.reports.json_file import JsonNode


def image(number: int, rank: int | None = 1, **values) -> ImageItem:
    plain = ImageItem(f"ann/{number}", f"thing {number}", 2, rank, None, None, None, None, {"artist": "ann"})
    return replace(plain, **values)


def split(images, texts=(), of=None) -> SplitItems:
    return SplitItems(tuple(images), tuple(texts), of or len(images), len(texts))


def test_each_attribute_has_the_share_of_its_own_images():
    ann = [image(n, rank) for n, rank in enumerate((1, 5, 6, 20))]
    bob = [
        image(9, 2, attributes={"artist": "bob"}, words=12),
        image(10, None, attributes={"artist": "bob"}, words=None),
    ]
    artist, length = image_tables(split([*ann, *bob]))
    assert (artist.attribute, [row.value for row in artist.rows]) == ("artist", ["ann", "bob"])
    first, second = artist.rows
    assert (first.count, first.found.value, first.found.count) == (4, 0.5, 4)
    assert (first.found.low, first.found.high) == pytest.approx(wilson(0.5, 4))
    assert (second.count, second.found.count, second.exact) == (2, 1, None), "what has no caption has no rank"
    assert [(row.value, row.count) for row in length.rows] == [("2 words", 4), ("10 words and more", 1)]


def test_images_of_one_thing_do_not_count_as_independent():
    same = [image(n, 1 if n < 5 else 9, shown="one" if n < 5 else "other", exact=n < 5) for n in range(10)]
    other = image(99, attributes={"artist": "bob"})
    row = image_tables(split([*same, other]))[0].rows[0]
    assert (row.found.low, row.found.high) == pytest.approx(wilson(0.5, 2))
    assert row.exact == row.found


def test_an_attribute_without_two_values_has_no_table_and_many_values_share_a_row():
    assert image_tables(split([image(0), image(1)])) == []
    many = [image(n, attributes={"artist": f"hand {n % 20:02}"}) for n in range(100)]
    (table,) = image_tables(split(many))
    assert len(table.rows) == MOST_VALUES + 1
    assert (table.rows[-1].value, table.rows[-1].count) == (OTHERS, 100 - 5 * MOST_VALUES)


def test_captions_by_language_and_length():
    texts = [TextItem("en", 1, 1), TextItem("en", 5, 7), TextItem("de", 6, 3), TextItem(None, 9, None)]
    language, length = text_tables(split([], texts))
    assert [(row.value, row.count, row.found.value) for row in language.rows] == [("en", 2, 0.5), ("de", 1, 1.0)]
    assert [row.value for row in length.rows] == ["1 word", "5 or 6 words", "7 to 9 words"]
    assert length.rows[2].found is None


def test_the_most_frequent_wrong_answers_come_first():
    wrong = ["cat", "cat", "dog", "cat", None, "cat", "cat"]
    shown = ["lion", "lion", "wolf", "tiger", "fish", "lynx", "puma"]
    images = [image(n, shown=what, wrong=answer) for n, (what, answer) in enumerate(zip(shown, wrong, strict=True))]
    unscored = image(8, None, shown=None, wrong="cat")
    assert nearest_mistakes(split([*images, unscored])) == [
        Mistake("cat", 5, ("lion (2 times)", "lynx", "puma"), several=True),
        Mistake("dog", 1, ("wolf",), several=False),
    ]
    said = [image(0, said="a cat", exact=True), image(1, said="a cat", exact=False), image(2, said="", exact=False)]
    assert [one.answer for one in said_mistakes(split(said))] == ["(nothing)", "a cat"]


def test_a_page_says_how_many_items_it_is_made_of():
    images = [image(0), image(1, attributes={"artist": "bob"})]
    page = breakdown_section({"val": split(images, of=50_000), "empty": split([])}, {"val": "series-2"})
    assert "From 2 of 50,000 images, evenly spaced." in page
    assert page.count('role="tab"') == 1, "a split with nothing to tell has none"
    assert breakdown_section({"empty": split([])}, {}) == ""


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda c: c["images"]["rank"].append(3), r"items.json: splits: val: images: rank: has 2 values, not 1"),
        (lambda c: c["images"].update(rank=["x"]), r"images: rank\[0\]: should be a int, is 'x'"),
        (lambda c: c.pop("of"), r"items.json: splits: val: has no 'of'"),
        (lambda c: c["images"]["attributes"].update(artist=[3]), r"artist\[0\]: should be a str"),
    ],
)
def test_a_wrong_value_is_named_in_one_line(change, message):
    columns = {"shown": ["a"], "words": [1], "rank": [1], "wrong": [None], "said": [None], "exact": [None]}
    content = {
        "of": {"images": 1, "texts": 0},
        "images": {"id": ["x"], **columns, "cider": [None], "attributes": {"artist": ["ann"]}},
        "texts": {"language": [], "words": [], "rank": []},
    }
    assert parse_items(JsonNode({"splits": {"val": json.loads(json.dumps(content))}}, "items.json"))["val"].images
    change(content)
    with pytest.raises(UserError, match=message):
        parse_items(JsonNode({"splits": {"val": content}}, "items.json"))


def test_a_confusion_matrix_is_a_table_with_colours():
    matrix = ConfusionMatrix("zero_shot", ("<cat>", "dog"), ((3.0, 1.0), (0.0, 0.0)))
    page = breakdown_section({"val": replace(split([]), confusion=matrix)}, {})
    assert "Confusion matrix of zero_shot" in page
    assert page.count("&lt;cat&gt;") == 2
    assert ">3</td>" in page
    assert page.count("background:color-mix") == 2
    odd = {"by": "zero_shot", "classes": ["a", "b"], "counts": [[1, 2]]}
    with pytest.raises(UserError, match="has not 2 rows of 2 values"):
        parse_confusion(JsonNode(odd, "items.json"))
