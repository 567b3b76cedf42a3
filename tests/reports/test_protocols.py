"""In what protocols differ: each fact and rule by name, and nothing where runs cannot be compared."""

import pytest

from mmlm.core.errors import UserError
from mmlm.reports.json_file import JsonNode
from mmlm.reports.protocols import ScoredBy, parse_protocol, refuse_unlike, unlike_protocols

RULES = {"retrieval": {"protocol": "coco", "ties": "last"}, "captioning": {"words": "PTB"}}


def scored(precision="fp32", evaluators=RULES, examples="abc", decoding="whole"):
    facts = {"examples": examples, "precision": precision, "max_tokens": "32", "decoding": decoding}
    return {"val": ScoredBy(str((facts, evaluators)), facts, evaluators)}


def test_like_protocols_are_compared():
    refuse_unlike("runs", {"a": scored(), "b": scored()})
    assert unlike_protocols({"a": scored(), "b": {}}) is None, "a run that is older than protocols"
    assert unlike_protocols({"a": scored(), "b": {"other": scored()["val"]}}) is None, "another split"
    fewer = {"retrieval": RULES["retrieval"]}
    assert unlike_protocols({"a": scored(), "b": scored(evaluators=fewer)}) is None, "an evaluator of one run alone"


def test_each_difference_is_named():
    other = {"retrieval": {"protocol": "distinct", "ties": "last"}, "captioning": {}}
    told = unlike_protocols({"a": scored(), "b": scored("bf16", other)})
    assert told == (
        "val: the precision (a: fp32, b: bf16); val: retrieval's protocol (a: coco, b: distinct); "
        "val: captioning's words (a: PTB, b: not told)"
    )
    with pytest.raises(
        UserError, match=r"^against: scored under unlike .*val: the examples \(a: abc, b: xyz\); evaluate"
    ):
        refuse_unlike("against", {"a": scored(), "b": scored(examples="xyz")})


def test_another_way_of_decoding_images_is_another_protocol():
    told = unlike_protocols({"a": scored(), "b": scored(decoding="at a fraction")})
    assert told == "val: how images are decoded (a: whole, b: at a fraction)"


def test_what_is_in_the_file():
    entry = {"hash": "1", "examples": "abc", "precision": "fp32", "max_tokens": 32, "evaluators": RULES}
    assert parse_protocol(JsonNode(entry, "scores.json")) == ScoredBy("1", scored()["val"].facts, RULES)
    entry["decoding"] = "at a fraction"
    assert parse_protocol(JsonNode(entry, "scores.json")).facts["decoding"] == "at a fraction"
    with pytest.raises(UserError, match="max_tokens: should be a int"):
        parse_protocol(JsonNode({**entry, "max_tokens": "many"}, "scores.json"))
