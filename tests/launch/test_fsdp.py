"""``parallel=fsdp`` by real ranks: the run of a single process, that goes on anywhere."""

import shutil

import pytest

from mmlm.core.errors import STOPPED
from tests.launch.processes import FAULTY, LOCAL, RANDOM, commands
from tests.launch.test_local import close
from tests.run.test_resume import assert_same_runs, rows

pytestmark = pytest.mark.slow

FSDP = ("parallel=fsdp", *LOCAL)
PLAIN = (*FAULTY, "train.steps=6", "train.save_every=2", "train.ema_decay=0.9", "train.eval_every=3")
"""Without dropout, whose draws are a rank's own: so all numbers of ranks train the same run."""


@pytest.fixture(scope="module")
def stopped(place, tiny_there, folder_of):
    """A run of ``PLAIN`` that two ranks stopped at step 4."""
    with commands(place) as started:
        settings = (*tiny_there, *PLAIN, *FSDP, "name=fsdp_stopped")
        outcome = started.run("mmlm.train", *settings, fault="parent-SIGTERM:0:3")
    assert (outcome.status, outcome.err) == (STOPPED, ""), outcome
    return folder_of("fsdp_stopped")


def test_stopped_and_resumed_it_is_never_stopped(ordered, tiny_there, folder_of):
    settings = (*tiny_there, *RANDOM, *FSDP)
    assert ordered.run("mmlm.train", *settings, "name=fsdp").status == 0
    stopped = ordered.run("mmlm.train", *settings, "name=fsdp_twice", fault="parent-SIGTERM:0:3")
    assert (stopped.status, stopped.err) == (STOPPED, "")
    resumed = ordered.run("mmlm.train", *settings, "name=fsdp_twice")
    assert (resumed.status, resumed.err) == (0, "")
    assert "resumed at step 4" in resumed.out
    assert_same_runs(folder_of("fsdp"), folder_of("fsdp_twice"))


@pytest.mark.parametrize("then", [(), ("parallel=ddp", *LOCAL)])
def test_a_single_process_and_ddp_go_on_with_it(ordered, stopped, tiny_there, folder_of, then):
    name = "fsdp_then_ddp" if then else "fsdp_then_alone"
    shutil.copytree(stopped.parent, folder_of(name).parent)
    assert ordered.run("mmlm.train", *tiny_there, *PLAIN, f"name={name}_straight").status == 0
    resumed = ordered.run("mmlm.train", *tiny_there, *PLAIN, *then, f"name={name}")
    assert (resumed.status, resumed.err) == (0, ""), resumed
    assert "resumed at step 4" in resumed.out
    close(folder_of(name), folder_of(f"{name}_straight"))


def test_its_checkpoints_are_evaluated_and_exported(ordered, stopped, tmp_path):
    evaluated = ordered.run("mmlm.evaluate", f"run={stopped}", "splits=[validation]")
    assert (evaluated.status, evaluated.err) == (0, "")
    exported = ordered.run("mmlm.export", f"run={stopped}", f"to={tmp_path / 'model'}")
    assert (exported.status, exported.err) == (0, "")
    assert (tmp_path / "model" / "model.safetensors").is_file()
    assert [row["step"] for row in rows(stopped)] == [1, 2, 3, 3, 4]
