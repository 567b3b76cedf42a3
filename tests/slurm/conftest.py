"""A real SLURM for the tests of this folder; it is skipped, with the reason, where none can be started."""

import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.slurm.local import LocalCluster, bring_up, control

REQUIRED = "MMLM_REQUIRE_SLURM"
"""Environment variable: at 1, these tests fail rather than being skipped where there is no SLURM."""


@pytest.fixture(scope="session")
def running_cluster() -> Iterator[LocalCluster]:
    """One cluster for all tests of a process. With ``pytest -n 2 --dist loadfile`` a file needs one."""
    # Not tmp_path: the path of a Unix socket must be short.
    folder = Path(tempfile.mkdtemp(prefix="slurm-")).resolve()
    found, why = bring_up(folder)
    if found is None:
        shutil.rmtree(folder)
        (pytest.fail if os.environ.get(REQUIRED) == "1" else pytest.skip)(f"no SLURM here: {why}")
    try:
        yield found
    finally:
        stopped = control("down", str(folder))
        assert stopped.returncode == 0, stopped.stderr
        shutil.rmtree(folder)


@pytest.fixture
def cluster(running_cluster: LocalCluster) -> Iterator[LocalCluster]:
    """The cluster without jobs and with all nodes idle, also after a test that failed."""
    yield running_cluster
    running_cluster.run("scancel", "--user=root")
    for name in ("n1", "n2"):
        if not (running_cluster.folder / "run" / f"slurmd-{name}.pid").exists():
            running_cluster.start_node(name)
    running_cluster.wait(lambda: not running_cluster.run("squeue", "--noheader"), "jobs do not end")
    running_cluster.wait(
        lambda: all(running_cluster.node_state(name) == "idle" for name in ("n1", "n2")), "nodes are not idle"
    )
