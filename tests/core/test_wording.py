"""The words of error messages."""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, Optional

import pytest

from mmlm.core.wording import closest, describe, did_you_mean, listed, shown, utf8, whole_characters


@dataclass
class Augment:
    scale: float = 1.0


@pytest.mark.parametrize(
    ("hint", "words"),
    [
        (int, "an int"),
        (bool, "true or false"),
        (Path, "a path"),
        (float | None, "a float or null"),
        (Optional[str], "a string or null"),  # noqa: UP045
        (Annotated[int, "steps"], "an int"),
        (Literal["mean", 1, True], "one of 'mean', 1, true"),
        (list, "a list"),
        (Sequence[str], "a list in which each item is a string"),
        (tuple[int, ...], "a list in which each item is an int"),
        (tuple[int, str], "a list of an int, a string"),
        (dict[str, float], "a mapping in which each item is a float"),
        (list[Any], "a list"),
        (Augment, "an Augment (a mapping of its settings)"),
        (Exception, "an Exception part"),
        (None, "null"),
        (object, ""),
        (Any, ""),
    ],
)
def test_annotations_in_words(hint, words):
    assert describe(hint) == words


def test_values_as_a_config_writes_them():
    assert [shown(value) for value in (None, True, 1.5, "a", [1])] == ["null", "true", "1.5", "'a'", "[1]"]
    assert len(shown("x" * 100)) == 60


def test_suggestions():
    names = ["depth", "num_queries", "width"]
    assert closest("num_querys", names) == "num_queries"
    assert closest("zzz", names) is None
    assert did_you_mean("widht", names) == "; did you mean 'width'?"
    assert did_you_mean("zzz", names) == "; there are: depth, num_queries, width"
    assert did_you_mean("zzz", []) == ""


def test_a_list_is_cut_and_says_how_many_more_there_are():
    assert listed(["a", "b"], 2) == "a, b"
    assert listed(["a", "b", "c", "d"], 2) == "a, b and 2 more"
    assert listed(["a", "b", "c"], 1, "; ", "; and") == "a; and 2 more"
    assert listed([], 2) == ""


@pytest.mark.parametrize(
    ("text", "whole"),
    [
        ("a red square", "a red square"),
        ("ein grünes 😀", "ein grünes 😀"),
        ("a \ud83d square", "a � square"),
        ("\ude00\ud83d", "��"),
        ("a \ud83d\ude00", "a 😀"),
        ("", ""),
    ],
)
def test_halves_of_surrogate_pairs_become_characters_that_can_be_written(text, whole):
    assert whole_characters(text) == whole
    assert whole_characters(whole) == whole
    assert utf8(whole) == whole.encode()


def test_a_name_in_no_encoding_is_written_and_stays_apart_from_others():
    names = [os.fsdecode(b"a\xff.png"), os.fsdecode(b"a\xfe.png")]
    assert [utf8(name) for name in names] == [b"a\\udcff.png", b"a\\udcfe.png"]
