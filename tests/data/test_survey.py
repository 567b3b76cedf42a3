"""Every example is read once, in order, by any number of threads; what is odd about it is named."""

import pytest

from mmlm.data.survey import LONG, caption_remarks, reason_of, survey
from mmlm.data.text_survey import token_costs
from tests.data.pictures import Pictures


@pytest.mark.parametrize("threads", [1, 3])
def test_every_example_is_read_once_in_order(threads):
    source, told = Pictures(20, corrupt=(3, 11), text_only=(5,)), []
    found = list(survey(source, threads, told.append))
    assert [one.index for one in found] == list(range(20))
    assert told == list(range(1, 21))
    assert [one.index for one in found if one.problem is not None] == [3, 11]
    assert found[3].id == "picture/3"
    assert reason_of(str(found[3].problem)) == "is not an image"
    assert [one.index for one in found if one.look is None] == [3, 5, 11]
    assert (found[4].size, found[5].size) == ((24, 25), None)
    assert found[4].captions == source[4].captions
    assert not any(one.remarks for one in found)


@pytest.mark.parametrize(
    ("text", "remark"),
    [
        ("a red square", None),
        ("line\nbreaks and\ttabs, ünïcödé, 中文, مرحبا", None),
        ("   \n ", "a caption is blank"),
        ("a" * (LONG + 1), "a caption has more than 10,000 characters"),
        ("a bell \x07", "a caption has control characters"),
        ("caf\N{REPLACEMENT CHARACTER}", "a caption has a character that was lost in another encoding"),
        ("<|endoftext|> a dog", "a caption spells a special token, such as <|endoftext|>"),
        ("[SEP]", "a caption spells a special token, such as [SEP]"),
    ],
)
def test_what_is_odd_about_a_caption(text, remark):
    assert list(caption_remarks(text)) == ([] if remark is None else [remark])


def test_reasons_are_alike_for_all_files():
    one = "has 12000 x 9,000 pixels, more than 64 megapixels; make it smaller first"
    assert (
        reason_of(one)
        == reason_of(one.replace("12000", "13"))
        == ("has N x N pixels, more than N megapixels; make it smaller first")
    )
    assert reason_of("is damaged (broken data stream (at 7))") == reason_of("is damaged (other)")


def test_the_costs_of_tokens_by_hand():
    # Batches of 2 in any order of 4 equal pairs: widths are multiples of 4, at most 10.
    costs = token_costs([3, 3, 3, 3], max_tokens=10, batch_size=2)
    assert (costs.tokens, costs.median, costs.longest, costs.cut, costs.lost) == (12, 3, 3, 0, 0)
    assert costs.padding == pytest.approx(1 - 12 / 16)
    costs = token_costs([12, 15], max_tokens=10, batch_size=2)
    assert (costs.tokens, costs.longest, costs.cut, costs.lost, costs.padding) == (27, 15, 2, 7, 0)
    costs = token_costs([2, 9], max_tokens=10, batch_size=2)
    assert costs.padding == pytest.approx(1 - 11 / 20)
