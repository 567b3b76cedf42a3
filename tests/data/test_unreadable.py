"""Unreadable examples: named, counted by reason, and how many a run bears with."""

import pytest
import torch

from mmlm.data.unreadable import NAMED, BadCount, BadLimits, Unreadable, describe_too_many
from tests.data.pictures import Pictures, write_folder
from tests.data.test_loader import make_loader


def test_names_are_kept_up_to_a_number_and_all_reasons_are_counted():
    found = Unreadable()
    found.add(f"{n}.jpg: is damaged (byte {n})" for n in range(NAMED + 500))
    found.add(["x.jpg: the file is empty"] * 2)
    assert (len(found), len(found.names)) == (NAMED + 502, NAMED)
    assert found.by_reason() == f"{NAMED + 500:,} is damaged, 2 the file is empty"
    other = Unreadable()
    other.add(["0.jpg: is damaged (byte 0)", "y.jpg: the file is empty"])
    both = Unreadable.joined([other, found])
    assert len(both.names) == NAMED
    assert both.by_reason() == f"{NAMED + 500:,} is damaged, 3 the file is empty"


@pytest.mark.parametrize(
    ("bad", "size", "limits", "passes_at"),
    [
        ([0], 10, (0.01, 100), None),  # one example ends no run
        ([0], 10, (0.0, 100), 0),
        ([0, 7], 10, (0.01, 100), 7),
        ([0, 7], 10, (None, 100), None),
        ([0, 7, 12, 13], 10, (0.2, 100), None),  # two of ten in each of two epochs
        (range(50, 8050, 80), 10**9, (0.01, 100), None),  # a hundred, 1% of what is looked at
        (range(50, 8130, 80), 10**9, (0.01, 100), 8050),
        (range(0, 10**5, 101), 10**9, (0.01, 100), None),
        ([*range(0, 20_000, 101), 20_001, 20_002, 20_003], 10**9, (0.01, 100), 20_002),
        ([*range(5, 104)], 10**9, (None, 100), None),
        ([*range(5, 105)], 10**9, (None, 100), 104),
        ([*range(5, 50), *range(51, 140)], 10**9, (None, 100), None),
        ([*range(5, 105)], 50, (None, 100), 104),  # across the end of an epoch
        ([*range(5, 205)], 50, (None, None), None),
    ],
)
def test_a_limit_is_passed_at_one_position_however_the_positions_come(bad, size, limits, passes_at):
    for batch in (1, 7, 64, 10**9):
        count, at = BadCount(), []
        groups: dict[int, list[int]] = {}
        for position in bad:
            groups.setdefault(position // batch, []).append(position)
        for group in groups.values():
            count = BadCount(**count.state_dict())  # as over an interruption
            if count.add(group, BadLimits(*limits, size)) is not None:
                at = group
                break
        assert (passes_at in at) if passes_at is not None else not at


def test_the_line_says_which_limit_and_why():
    found = Unreadable()
    found.add(f"{n}.jpg: {reason}" for n, reason in enumerate(["the file is empty", *["is damaged (cut)"] * 4]))
    passed = BadCount().add([1, 3], BadLimits(0.01, None, 50))
    assert describe_too_many(passed, found) == (
        "2 of the first 4 examples of epoch 0 cannot be read, more than 1% of 50 (data.max_bad_share=0.01): "
        "4 is damaged, 1 the file is empty; first: 0.jpg: the file is empty; 1.jpg: is damaged (cut); 2.jpg: is "
        "damaged (cut); and 2 more; the state is saved; look at the files (python -m mmlm.lint data=PATH), or allow "
        "more"
    )


@pytest.mark.parametrize("ranks", [1, 2, 4])
def test_the_positions_of_bad_examples_are_those_of_the_run(tokenizer, tmp_path, ranks):
    """Whatever the ranks: position p is bad exactly if the example there is."""
    corrupt = (0, 3, 4, 11, 12)
    source = write_folder(tmp_path, Pictures(16, corrupt=corrupt))
    loaders = [make_loader(tokenizer, source, batch_size=8, rank=rank, world_size=ranks) for rank in range(ranks)]
    order = loaders[0]._shares._order.at(torch.arange(32)).indices.tolist()
    streams = [iter(loader) for loader in loaders]
    found = sorted(at for _ in range(4) for stream in streams for at in next(stream).corrupt_at)
    assert found == [place for place, index in enumerate(order) if index in corrupt]
