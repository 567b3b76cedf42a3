#!/usr/bin/env python3
"""A throwaway SLURM cluster on one Debian machine, for tests and for learning: real daemons, several nodes on one host.

    sudo ./cluster.py up DIR [--nodes 2] [--cpus 2] [--install]   then: export SLURM_CONF=DIR/slurm.conf
    sudo ./cluster.py stop-node DIR n2       the node and all that runs on it is killed, as by a power cut
    sudo ./cluster.py start-node DIR n2      and comes back
    sudo ./cluster.py down DIR               stops what ``up`` started, by pid file; DIR stays, for its logs

Everything stands below DIR: configuration, keys, state, logs, pid files. The one thing outside is a line in /etc/hosts,
which ``down`` removes. Ports are free ones, so that several clusters can run side by side.

Partitions: ``main`` (the default), ``low`` (its jobs are requeued when another partition needs the nodes), ``high``
(takes nodes from ``low``). There are no cgroups, no accounting database and no systemd.
"""

import argparse
import fcntl
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

PACKAGES = ("slurmctld", "slurmd", "slurm-client", "munge")
PROGRAMS = ("slurmctld", "slurmd", "sbatch", "munged")
HOSTS = Path("/etc/hosts")
LONGEST_FOLDER = 60
"""Characters of DIR: munged's socket lies below it, and the path of a Unix socket has 107 at most."""
PATIENCE = 60.0
"""Seconds to wait for daemons to start or to end. They take two or three on an idle machine."""

SETTINGS = """\
ClusterName=local
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={port}
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
# A requeued job may start again only after its old credential has expired: 120 seconds unless told otherwise.
AuthInfo=socket={munge},cred_expire=5
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool-%n
SlurmctldPidFile={folder}/run/slurmctld.pid
SlurmdPidFile={folder}/run/slurmd-%n.pid
SlurmctldLogFile={folder}/log/slurmctld.log
SlurmdLogFile={folder}/log/slurmd-%n.log
# Without cgroups: processes are found by their parents, and nothing is bound to a CPU.
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
MpiDefault=none
SelectType=select/cons_tres
# Cores are handed out, memory is not: with memory, a job that asks for none would get all of a node's.
SelectTypeParameters=CR_Core
# Node sizes are what is written here, even where the machine has fewer cores or less memory.
SlurmdParameters=config_overrides
SchedulerType=sched/backfill
SchedulerParameters=batch_sched_delay=0,sched_interval=2,bf_interval=2
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
# A preempted job gets the signal of its --signal option when its GraceTime begins, not only SIGTERM.
SlurmctldParameters=preempt_send_user_signal
JobRequeue=1
# A node that was down serves again as soon as it reports, whatever took it down.
ReturnToService=2
# Seconds: from SIGTERM to SIGKILL; until a silent node is down; for an answer.
KillWait=20
SlurmdTimeout=10
MessageTimeout=5
"""
PARTITIONS = """\
PartitionName=main Nodes=ALL Default=YES MaxTime=INFINITE PriorityTier=10 PreemptMode=OFF
PartitionName=low  Nodes=ALL MaxTime=INFINITE PriorityTier=1  PreemptMode=REQUEUE GraceTime=20
PartitionName=high Nodes=ALL MaxTime=INFINITE PriorityTier=20 PreemptMode=OFF
"""


class ClusterError(Exception):
    """The cluster cannot be started or used. The message says why, in one line."""


# Starting


def up(folder: Path, nodes: int, cpus: int, install: bool) -> None:
    """Starts a cluster of ``nodes`` nodes (n1, n2, ...) with ``cpus`` cores each, and waits until all are idle.

    Raises ClusterError, after stopping what it started.
    """
    _check_machine(folder, install)
    names = [f"n{number}" for number in range(1, nodes + 1)]
    for part in ("state", "run", "log", "munge", *(f"spool-{name}" for name in names)):
        (folder / part).mkdir(parents=True, exist_ok=True)
    _write_configuration(folder, names, cpus)
    try:
        _change_hosts(folder, names)
        _start_munge(folder)
        _run(["slurmctld", "-c", "-f", str(folder / "slurm.conf")])
        for name in names:
            _start_slurmd(folder, name, "-c")
        _wait(lambda: _idle_nodes(folder) >= set(names), f"the nodes are not idle; see {folder / 'log'}")
    except ClusterError:
        down(folder)
        raise


def _check_machine(folder: Path, install: bool) -> None:
    if os.geteuid() != 0:
        raise ClusterError("needs root: slurmd starts the processes of other users")
    if len(str(folder)) > LONGEST_FOLDER:
        raise ClusterError(f"{folder} has more than {LONGEST_FOLDER} characters; choose a shorter folder")
    if _pids(folder):
        raise ClusterError(f"a cluster runs in {folder} already; stop it with: cluster.py down {folder}")
    if install and any(shutil.which(name) is None for name in PROGRAMS):
        _run(["apt-get", "update", "-qq"])
        quiet = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
        _run(["apt-get", "install", "-y", "-qq", "--no-install-recommends", *PACKAGES], quiet)
    missing = [name for name in PROGRAMS if shutil.which(name) is None]
    if missing:
        raise ClusterError(f"there is no {', '.join(missing)}; install them: apt-get install {' '.join(PACKAGES)}")


def _write_configuration(folder: Path, names: Sequence[str], cpus: int) -> None:
    host = socket.gethostname().split(".")[0]
    port, *node_ports = _free_ports(1 + len(names))
    lines = [SETTINGS.format(host=host, port=port, folder=folder, munge=folder / "munge" / "socket")]
    for name, node_port in zip(names, node_ports, strict=True):
        # Several nodes of one host differ by their port; slurmd -N says which of them it is.
        where = f"NodeName={name} NodeHostname={host} NodeAddr=127.0.0.1 Port={node_port}"
        lines.append(f"{where} CPUs={cpus} CoresPerSocket={cpus} RealMemory=4000 State=UNKNOWN\n")
    (folder / "slurm.conf").write_text("".join(lines) + PARTITIONS, encoding="utf-8")
    # Which cgroup version there is would be looked up otherwise, which fails where none is mounted.
    (folder / "cgroup.conf").write_text("CgroupPlugin=cgroup/v1\nCgroupAutomount=no\n", encoding="utf-8")


def _free_ports(count: int) -> list[int]:
    """Ports that nothing listens on, all different."""
    sockets = [socket.socket() for _ in range(count)]
    try:
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [each.getsockname()[1] for each in sockets]
    finally:
        for each in sockets:
            each.close()


def _change_hosts(folder: Path, names: Sequence[str]) -> None:
    """Lets node names resolve to this machine, or with no names removes them again.

    Training takes the name of its first node as the address where ranks meet, and a name that does not resolve is
    tried again and again until the time limit. The file is changed in place: containers have it mounted.
    """
    mark = f"# SLURM in {folder}"
    with HOSTS.open("r+", encoding="utf-8") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        lines = [line for line in file.read().splitlines() if not line.endswith(mark)]
        if names:
            lines.append(f"127.0.0.1 {' '.join(names)} {mark}")
        file.seek(0)
        file.write("\n".join(lines) + "\n")
        file.truncate()


def _start_munge(folder: Path) -> None:
    """A munged (what SLURM's daemons and commands prove who they are with) of our own, with a key of our own."""
    place = folder / "munge"
    os.chmod(place, 0o755)  # users' commands have to reach the socket
    key = place / "key"
    if not key.exists():
        key.touch(mode=0o600)
        key.write_bytes(os.urandom(128))
    files = {"key": "key", "socket": "socket", "pid": "../run/munged.pid", "log": "../log/munged.log", "seed": "seed"}
    options = [f"--{name}-file={os.path.normpath(place / file)}" for name, file in files.items() if name != "socket"]
    _run(["munged", f"--socket={place / 'socket'}", *options, "--force"])


def _start_slurmd(folder: Path, name: str, *options: str) -> None:
    _run(["slurmd", "-f", str(folder / "slurm.conf"), "-N", name, *options])


def _idle_nodes(folder: Path) -> set[str]:
    shown = _slurm(folder, "sinfo", "--noheader", "--Node", "--partition=main", "--states=idle", "--format=%N")
    return set(shown.stdout.split())


# Stopping


def down(folder: Path) -> None:
    """Cancels all jobs, ends the daemons that ``up`` started here, and removes the names of the nodes."""
    if _pids(folder):
        _slurm(folder, "scancel", "--full", "--user=root")
        deadline = time.monotonic() + 15
        while time.monotonic() < deadline and _slurm(folder, "squeue", "--noheader").stdout.strip():
            time.sleep(0.2)
    for name in _node_names(folder):
        _kill_all(_pids_on_node(folder, name), signal.SIGKILL)
    _kill_all(list(_pids(folder).values()), signal.SIGTERM)
    _change_hosts(folder, ())


def stop_node(folder: Path, name: str) -> None:
    """Kills a node's slurmd and every process of its jobs at once; the controller only notices its silence."""
    _check_node(folder, name)
    daemon = _pids(folder).get(f"slurmd-{name}")
    # The daemon first: it would report the end of the others.
    _kill_all([] if daemon is None else [daemon], signal.SIGKILL)
    _kill_all(_pids_on_node(folder, name), signal.SIGKILL)
    (folder / "run" / f"slurmd-{name}.pid").unlink(missing_ok=True)


def start_node(folder: Path, name: str) -> None:
    """Starts a node's slurmd again, without jobs (-c), as after a boot."""
    _check_node(folder, name)
    if f"slurmd-{name}" in _pids(folder):
        raise ClusterError(f"{name} runs already")
    _start_slurmd(folder, name, "-c")


def _check_node(folder: Path, name: str) -> None:
    if name not in _node_names(folder):
        raise ClusterError(f"{folder} has no node {name}; it has: {', '.join(_node_names(folder)) or 'none'}")


def _node_names(folder: Path) -> list[str]:
    return sorted(spool.name.removeprefix("spool-") for spool in folder.glob("spool-*"))


def _pids(folder: Path) -> dict[str, int]:
    """The daemons of this cluster that run, by the name of their pid file."""
    found = {}
    for file in (folder / "run").glob("*.pid"):
        text = file.read_text().strip()
        # A pid file can outlive its process, and the number be another's: ours names our folder in its arguments.
        if text.isdigit() and str(folder) in _read_process(int(text), "cmdline"):
            found[file.stem] = int(text)
    return found


def _pids_on_node(folder: Path, name: str) -> list[int]:
    """Processes of jobs on a node, as the environment that slurmd gave them says, and each one's slurmstepd."""
    ours = {f"SLURM_CONF={folder / 'slurm.conf'}", f"SLURMD_NODENAME={name}"}
    tasks = [pid for pid in _all_pids() if ours <= set(_read_process(pid, "environ").split("\0"))]
    # It would report the end of its tasks, and the job be over before the node is missed.
    above = {_parent(pid) for pid in tasks} - set(tasks)
    return [*(pid for pid in sorted(above) if "slurmstepd" in _read_process(pid, "cmdline")), *tasks]


def _parent(pid: int) -> int:
    status = re.search(r"^PPid:\s*(\d+)", _read_process(pid, "status"), re.MULTILINE)
    return int(status.group(1)) if status else 0


def _all_pids() -> Iterator[int]:
    return (int(place.name) for place in Path("/proc").iterdir() if place.name.isdigit())


def _read_process(pid: int, what: str) -> str:
    try:
        return Path(f"/proc/{pid}/{what}").read_text(errors="replace")
    except OSError:
        return ""


def _kill_all(pids: Sequence[int], number: signal.Signals) -> None:
    """Signals the processes and waits for their end."""
    for pid in pids:
        try:
            os.kill(pid, number)
        except ProcessLookupError:
            continue
    _wait(lambda: not any(_read_process(pid, "cmdline") for pid in pids), f"processes {pids} do not end")


# Running commands


def _slurm(folder: Path, *command: str) -> "subprocess.CompletedProcess[str]":
    environment = {**os.environ, "SLURM_CONF": str(folder / "slurm.conf")}
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=False, timeout=PATIENCE)


def _run(command: Sequence[str], environment: dict[str, str] | None = None) -> None:
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        said = " ".join((done.stderr or done.stdout).split())
        raise ClusterError(f"{command[0]} failed with status {done.returncode}: {said}")


def _wait(condition: Callable[[], bool], message: str) -> None:
    deadline = time.monotonic() + PATIENCE
    while not condition():
        if time.monotonic() > deadline:
            raise ClusterError(message)
        time.sleep(0.1)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    for name in ("up", "down", "stop-node", "start-node"):
        command = commands.add_parser(name)
        command.add_argument("folder", metavar="DIR", type=lambda text: Path(text).resolve())
        if name.endswith("node"):
            command.add_argument("node", metavar="NODE")
        if name == "up":
            command.add_argument("--nodes", type=int, default=2)
            command.add_argument("--cpus", type=int, default=2, help="cores of each node")
            command.add_argument("--install", action="store_true", help="install SLURM by apt-get if it is not there")
    given = parser.parse_args()
    try:
        if given.command == "up":
            up(given.folder, given.nodes, given.cpus, given.install)
            print(f"export SLURM_CONF={given.folder / 'slurm.conf'}")
        elif given.command == "down":
            down(given.folder)
        else:
            (stop_node if given.command == "stop-node" else start_node)(given.folder, given.node)
    except ClusterError as error:
        sys.exit(f"cluster.py: {error}")


if __name__ == "__main__":
    main()
