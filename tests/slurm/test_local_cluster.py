"""slurm/local-cluster/cluster.py: a cluster that works, beside others, and leaves nothing behind."""

import shutil
import tempfile
from contextlib import suppress
from pathlib import Path

import pytest

from tests.slurm.local import bring_up, control

pytestmark = pytest.mark.slow


def test_a_job_runs_on_both_nodes(cluster):
    assert cluster.run("srun", "--nodes=2", "sh", "-c", "echo $SLURMD_NODENAME").split() in (["n1", "n2"], ["n2", "n1"])


def test_node_names_resolve(cluster):
    assert cluster.run("srun", "--nodes=1", "getent", "hosts", "n1", "n2").split()[0] == "127.0.0.1"


def test_a_second_cluster_runs_beside_it_and_leaves_nothing(cluster, tmp_path):
    hosts = Path("/etc/hosts").read_text()
    folder = Path(tempfile.mkdtemp(prefix="slurm-")).resolve()
    other, why = bring_up(folder, ("--nodes=1", "--cpus=1"))
    try:
        assert other is not None, why
        assert other.run("sinfo", "--noheader", "--format=%D %c", "--partition=main") == "1 1"
        assert cluster.run("sinfo", "--noheader", "--format=%D %c", "--partition=main") == "2 2"
        assert "runs in" in control("up", str(folder)).stderr
        assert "has no node n2" in control("stop-node", str(folder), "n2").stderr
        job = other.submit(tmp_path, "sleep 600")
        other.wait_for_state(job, "RUNNING")
        pids = [int(file.read_text()) for file in (folder / "run").glob("*.pid")]
        assert len(pids) == 3
    finally:
        stopped = control("down", str(folder))
    assert (stopped.returncode, stopped.stderr) == (0, "")
    # What has ended but nobody has waited for has no arguments.
    assert not any(Path(f"/proc/{pid}/cmdline").exists() and Path(f"/proc/{pid}/cmdline").read_text() for pid in pids)
    assert not any(str(folder).encode() in environment for environment in environments())
    assert Path("/etc/hosts").read_text() == hosts
    assert cluster.run("srun", "--nodes=2", "true") == ""
    shutil.rmtree(folder)


def environments() -> list[bytes]:
    """Of all processes that can be read; others come and go meanwhile."""
    found = []
    for path in Path("/proc").iterdir():
        with suppress(OSError):
            found.append((path / "environ").read_bytes() if path.name.isdigit() else b"")
    return found


def test_a_folder_with_a_long_path_is_refused_in_one_line(tmp_path):
    done = control("up", str(tmp_path / ("long" * 20)))
    assert done.returncode == 1
    assert done.stderr.startswith("cluster.py: ")
    assert done.stderr.count("\n") == 1
