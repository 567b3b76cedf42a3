"""Deaths of a run at one place are counted, named and ended; deaths at other places, and orderly ends, are not."""

import json
import os

import pytest

from mmlm.core.errors import UserError
from mmlm.record.folder import DOING, STARTS
from mmlm.record.starts import Doing, begin, end


@pytest.fixture
def dies(tmp_path):
    """``dies(newest, step, *ids)``: a start of two ranks, which dies in that step and leaves that checkpoint; returns
    what it was told to do."""
    left = [-1]

    def start(newest: int, step: int | None, *ids: str):
        begun = begin(tmp_path, left[0], ["one", "two", "one"])
        left[0] = newest
        for rank in range(2 if step is not None else 0):
            doing = Doing(tmp_path, rank)
            doing.at(step - 1, [f"a_much_longer_name_{rank}"])
            doing.at(step, ids[rank : rank + 1])
            doing.close()
        return begun

    return start


def test_two_deaths_at_one_place_go_back_a_checkpoint_and_four_end_the_run(dies, tmp_path):
    assert [dies(10, 14, "cat", "dog").goes_back for _ in range(2)] == [False, False]
    third = dies(10, 16)
    assert third.goes_back
    assert third.place == "at step 14, on the batch cat, dog, on one, two"
    assert dies(10, 13).place == "at step 16, on the batch cat, dog, on one, two"
    with pytest.raises(UserError) as error:
        dies(10, 14)
    assert str(error.value) == (
        f"the last 4 starts of {tmp_path} died at step 13, on the batch cat, dog, on one, two, with no new checkpoint "
        "between them; what was saved is intact (step 10); see what they said, or leave these examples out; the same "
        "command tries again"
    )
    assert not dies(10, 14).deaths, "whoever gives the command again knows of it"


@pytest.mark.parametrize(
    ("places", "counted"),
    [
        ([(10, 14), (10, 20), (10, 14)], [(10, 14)]),  # the last one, and none that it is far from
        ([(10, 14), (20, 21), (20, 26)], [(20, 21), (20, 26)]),
        ([(10, 14), (10, 12), (20, 24)], [(20, 24)]),  # something was saved
        ([(-1, 3), (-1, None)], [(-1, 3), (-1, None)]),
        ([(500, None), (500, 502)], [(500, None), (500, 502)]),
    ],
)
def test_only_deaths_near_the_last_one_with_nothing_saved_between_them_count(dies, places, counted):
    for newest, step in places:
        dies(newest, step)
    deaths = dies(30, 31).deaths
    expected = [death for death in places if death in counted]
    assert [(death.newest, death.step) for death in deaths][-1:] == expected[-1:]
    assert {(death.newest, death.step) for death in deaths} == set(counted)


def test_a_batch_that_nobody_has_seen_has_no_names(dies):
    dies(-1, 3)
    assert dies(-1, 3).place == "at step 3, waiting for its batch, on one, two"


def test_a_run_that_never_got_to_a_step_says_so(dies):
    for newest, told in ((-1, "before the step after 0, on one, two"), (7, "before the step after 7, on one, two")):
        for _ in range(2):
            dies(newest, None)
        assert dies(newest, None).place == told


def test_an_orderly_end_leaves_nothing(dies, tmp_path):
    for _ in range(6):
        assert dies(10, 14).deaths == ()
        end(tmp_path)
    end(tmp_path)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("text", ["", "[]", "{", '{"deaths": [], "now": {}}', '{"deaths": 3, "now": null}', "[" * 9999])
def test_a_damaged_record_counts_as_none(dies, tmp_path, text):
    dies(10, 14)
    (tmp_path / STARTS).write_text(text)
    assert dies(10, 14).deaths == ()
    (tmp_path / DOING / "0").write_text(text)
    (tmp_path / DOING / "1").write_text(json.dumps({"step": 15, "ids": ["x"]}) + "\nand what was longer")
    (death,) = dies(10, 14).deaths
    assert (death.step, death.ids) == (15, ("x",))


def test_what_a_rank_does_is_read_as_it_was_written_last_and_a_folder_that_is_gone_ends_nothing(tmp_path):
    begin(tmp_path, -1, ["one"])
    doing = Doing(tmp_path, 3)
    for step, ids in ((1, ["x" * 300, "y"]), (2, ["é"]), (3, [])):
        doing.at(step, ids)
        line = (tmp_path / DOING / "3").read_bytes().partition(b"\n")[0]
        assert json.loads(line) == {"step": step, "ids": ids}
    end(tmp_path)
    doing.at(4, ["still running"])
    doing.close()
    doing.at(5, [])
    Doing(tmp_path / "gone", 0).at(1, [])


def test_ids_are_shown_on_one_line(dies):
    dies(-1, 1, "a\nb", "c" + os.linesep)
    assert dies(-1, 1).place == "at step 1, on the batch a\\nb, c\\n, on one, two"
