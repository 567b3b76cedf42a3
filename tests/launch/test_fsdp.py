"""``parallel=fsdp`` by real ranks: the run of a single process, that goes on anywhere."""

import shutil

import pytest

from mmlm import evaluate, export
from mmlm.core.errors import STOPPED
from tests.launch.processes import LOCAL, RANDOM, commands
from tests.launch.test_local import close
from tests.run.test_resume import assert_same_runs, rows

pytestmark = pytest.mark.slow

FSDP = ("parallel=fsdp", *LOCAL)


@pytest.fixture(scope="module")
def stopped(place, alike, folder_of):
    """A run of ``ALIKE`` that two ranks stopped at step 4."""
    with commands(place) as started:
        settings = (*alike, *FSDP, "name=fsdp_stopped")
        outcome = started.run("mmlm.train", *settings, fault="parent-SIGTERM:0:3")
    assert (outcome.status, outcome.err) == (STOPPED, ""), outcome
    return folder_of("fsdp_stopped")


@pytest.mark.thorough
def test_stopped_and_resumed_it_is_never_stopped(ordered, here, tiny_there, folder_of):
    settings = (*tiny_there, *RANDOM, *FSDP)
    assert here(*settings, "name=fsdp").status == 0
    stopped = ordered.run("mmlm.train", *settings, "name=fsdp_twice", fault="parent-SIGTERM:0:3")
    assert (stopped.status, stopped.err) == (STOPPED, "")
    resumed = here(*settings, "name=fsdp_twice")
    assert (resumed.status, resumed.err) == (0, "")
    assert "resumed at step 4" in resumed.out
    assert_same_runs(folder_of("fsdp"), folder_of("fsdp_twice"))


@pytest.mark.parametrize("then", [(), ("parallel=ddp", *LOCAL)])
def test_a_single_process_and_ddp_go_on_with_it(here, stopped, straight_alone, alike, folder_of, then):
    name = "fsdp_then_ddp" if then else "fsdp_then_alone"
    shutil.copytree(stopped.parent, folder_of(name).parent)
    resumed = here(*alike, *then, f"name={name}")
    assert (resumed.status, resumed.err) == (0, ""), resumed
    assert "resumed at step 4" in resumed.out
    close(folder_of(name), straight_alone)


def test_its_checkpoints_are_evaluated_and_exported(here, stopped, tmp_path):
    evaluated = here(f"run={stopped}", "plugins=[own_faults]", "splits=[validation]", module=evaluate)
    assert (evaluated.status, evaluated.err) == (0, "")
    exported = here(f"run={stopped}", "plugins=[own_faults]", f"to={tmp_path / 'model'}", module=export)
    assert (exported.status, exported.err) == (0, "")
    assert (tmp_path / "model" / "model.safetensors").is_file()
    assert [row["step"] for row in rows(stopped)] == [1, 2, 3, 3, 4]
