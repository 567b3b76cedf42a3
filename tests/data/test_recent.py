"""Recent: the results of a function that were asked for last are kept, up to a number of items and of bytes."""

import pytest

from mmlm.data.recent import Recent


def test_what_was_asked_for_last_is_kept():
    made = []
    recent = Recent(lambda key: made.append(key) or key * 10, lambda value: value, most_items=3, most_bytes=80)
    assert [recent(key) for key in (1, 2, 3, 1, 4, 1, 3, 2)] == [10, 20, 30, 10, 40, 10, 30, 20]
    assert made == [1, 2, 3, 4, 2], "2 was the oldest when 4 came"
    made.clear()
    assert recent(5) == 50
    assert recent(2) == 20
    assert recent(5) == 50
    assert made == [5], "20 + 50 bytes fit, and 10 or 30 more do not"
    assert recent(50) == 500
    assert recent(50) == 500
    assert made == [5, 50], "one is kept whatever its size"
    assert recent.held == (1, 500)


def test_an_error_is_not_kept():
    answers = iter([ValueError("away"), "back"])

    def make(key):
        answer = next(answers)
        if isinstance(answer, Exception):
            raise answer
        return answer

    recent = Recent(make, len, most_items=2, most_bytes=100)
    with pytest.raises(ValueError, match="away"):
        recent(0)
    assert recent(0) == recent(0) == "back"
