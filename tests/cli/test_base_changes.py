"""What a config changes of ``caption_base``, as it is composed, and as a run writes it down."""

from mmlm.cli.base_changes import changes_from_base
from mmlm.cli.checked_config import compose_checked
from mmlm.record.changes import Change, read_changes


def test_the_base_itself_changes_nothing():
    assert changes_from_base(compose_checked(["experiment=caption_base", "seed=3", "data.workers=7"])).changes == []


def test_an_override_is_a_change_and_what_changes_no_number_is_none():
    changes = changes_from_base(compose_checked(["experiment=caption_base", "train.steps=7", "train.log_every=3"]))
    assert changes.base == "caption_base"
    assert changes.changes == [Change("train.steps", "1344", "7")]


def test_another_experiment_is_compared_with_the_base_too():
    found = {
        change.key: change for change in changes_from_base(compose_checked(["experiment=caption_baseline"])).changes
    }
    assert found["train.precision"].here.endswith("fp32")
    assert found["optim._target_"].here.endswith("AdamW")
    assert found["optim.momentum"] == Change("optim.momentum", "0.95", None)
    assert "experiment" not in found


def test_a_run_writes_it_down(trained):
    changes = read_changes(trained("train.steps=2"))
    assert Change("train.steps", "1344", "2") in changes.changes
