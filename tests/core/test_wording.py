"""The words of error messages."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, Optional

import pytest

from mmlm.core.wording import closest, describe, did_you_mean, listed, shown


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
