"""A source without the examples that a file lists."""

import pickle

import pytest

from mmlm.core.errors import UserError
from mmlm.data.without import Without
from tests.data.pictures import Pictures


def test_the_listed_examples_are_left_out_and_the_order_is_kept(tmp_path):
    (tmp_path / "drop.txt").write_text("picture/1\n\npicture/4\r\n")
    source = Pictures(6)
    kept = pickle.loads(pickle.dumps(Without(source, tmp_path / "drop.txt")))
    assert [kept[index].id for index in range(len(kept))] == [f"picture/{index}" for index in (0, 2, 3, 5)]
    assert list(kept.captions()) == [caption for index in (0, 2, 3, 5) for caption in source.captions_of(index)]
    assert [texts.id for texts in kept.texts()] == [kept[index].id for index in range(4)]


@pytest.mark.parametrize(
    ("lines", "said"),
    [
        (["picture/9"], "picture/9 is no example of the source"),
        (["picture/0", "picture/1"], "leaves no example"),
    ],
)
def test_a_list_that_does_not_fit_is_refused(tmp_path, lines, said):
    (tmp_path / "drop.txt").write_text("\n".join(lines))
    with pytest.raises(UserError, match=said):
        Without(Pictures(2), tmp_path / "drop.txt")
    with pytest.raises(UserError, match=r"none.txt: there is no such file"):
        Without(Pictures(2), tmp_path / "none.txt")
