"""The rank of this process, the store through which the ranks of a run meet, and their process group.

Ranks are started by ``launcher=local`` or torchrun (both set RANK, WORLD_SIZE, ...), or by ``srun`` (SLURM_*). A
process that none of them started is the only rank, and the functions here have nothing to do.
"""

import json
import os
import re
import socket
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import timedelta
from enum import StrEnum
from pathlib import Path

import torch
import torch.distributed as dist

from mmlm.core.distributed import OtherRankFailed
from mmlm.core.errors import ArgumentError, UserError
from mmlm.core.ranges import check_above_zero

COMMAND = "MMLM_COMMAND"
"""Environment variable: the command that resumes this run, for messages."""
ATTEMPT = "MMLM_ATTEMPT"
"""Environment variable, set by launcher=local: how often all ranks have been started again."""
_MEETING_SECONDS = 300.0
"""How long ranks wait for each other, and for rank 0's config: before the config, no setting is known."""


class Backend(StrEnum):
    """The backend of the process group."""

    auto = "auto"
    gloo = "gloo"
    nccl = "nccl"


LONGEST_TIMEOUT = 1e8
"""Seconds: three years, which is within what every clock and library can wait."""


@dataclass
class RankSettings:
    """Settings of how ranks communicate and watch each other."""

    backend: Backend = Backend.auto
    """auto (nccl on CUDA, else gloo), gloo or nccl."""
    timeout_seconds: float = 600.0
    """Seconds that a rank waits for the others in a collective before it gives up."""
    watchdog_seconds: float = 300.0
    """Seconds without progress after which a rank writes its stacks to RUN/stacks/ and says which rank is late."""

    def __post_init__(self) -> None:
        check_above_zero(self, "timeout_seconds", "watchdog_seconds")
        if self.timeout_seconds > LONGEST_TIMEOUT:
            raise ArgumentError(f"timeout_seconds: {self.timeout_seconds:g} must be at most {LONGEST_TIMEOUT:g}")
        if self.watchdog_seconds >= self.timeout_seconds:
            raise ArgumentError(
                f"watchdog_seconds: {self.watchdog_seconds:g} must be below ranks.timeout_seconds, "
                f"{self.timeout_seconds:g}, or the ranks give up before it reports"
            )


class Starter(StrEnum):
    """The program that started this process."""

    itself = "a single process"
    local = "launcher=local"
    torchrun = "torchrun"
    srun = "srun"


@dataclass(frozen=True)
class RankInfo:
    """The rank of this process, and how to reach the others."""

    rank: int = 0
    local_rank: int = 0
    """The number of this rank among those of its machine; selects the accelerator."""
    world_size: int = 1
    address: str = "127.0.0.1"
    """Host of the store through which ranks meet."""
    port: int = 0
    """Port of that store."""
    starter: Starter = Starter.itself
    attempt: int = 0
    """How often all ranks have been started again."""

    @property
    def alone(self) -> bool:
        """Whether this is the only rank."""
        return self.world_size == 1


def rank_from_environment(environment: Mapping[str, str]) -> RankInfo:
    """Reads a process's rank from its environment variables. Raises UserError if they are incomplete."""
    if "RANK" in environment and "WORLD_SIZE" in environment:
        return _from_torch(environment)
    # Only in a job step, by srun. A batch script also has SLURM_PROCID and the like, and is no rank.
    if int(environment.get("SLURM_STEP_NUM_TASKS", 1)) > 1 and "SLURM_STEP_ID" in environment:
        return _from_slurm(environment)
    return RankInfo(attempt=int(environment.get("SLURM_RESTART_COUNT", "0")))


def _from_torch(environment: Mapping[str, str]) -> RankInfo:
    try:
        return RankInfo(
            rank=int(environment["RANK"]),
            local_rank=int(environment["LOCAL_RANK"]),
            world_size=int(environment["WORLD_SIZE"]),
            address=environment["MASTER_ADDR"],
            port=int(environment["MASTER_PORT"]),
            starter=Starter.local if ATTEMPT in environment else Starter.torchrun,
            attempt=int(environment.get(ATTEMPT, environment.get("TORCHELASTIC_RESTART_COUNT", "0"))),
        )
    except KeyError as error:
        raise UserError(f"RANK and WORLD_SIZE are set and {error} is not; start ranks by torchrun or srun") from None


def _from_slurm(environment: Mapping[str, str]) -> RankInfo:
    nodes = environment.get("SLURM_STEP_NODELIST", environment.get("SLURM_NODELIST", "127.0.0.1"))
    # Every rank computes the same port from the job, with nobody to ask. Two jobs on one node seldom have the same.
    number = int(environment.get("SLURM_JOB_ID", "0")) * 31 + int(environment["SLURM_STEP_ID"])
    return RankInfo(
        rank=int(environment["SLURM_PROCID"]),
        local_rank=int(environment["SLURM_LOCALID"]),
        world_size=int(environment["SLURM_STEP_NUM_TASKS"]),
        address=environment.get("MASTER_ADDR", first_host(nodes)),
        port=int(environment.get("MASTER_PORT", 20000 + number % 20000)),
        starter=Starter.srun,
        attempt=int(environment.get("SLURM_RESTART_COUNT", "0")),
    )


def first_host(nodes: str) -> str:
    """The first host of a host list of SLURM: ``gpu[03-05,9],cpu1`` -> ``gpu03``."""
    bracket = re.match(r"([^,\[]+)(?:\[(\w+))?([^,]*)", nodes)
    if bracket is None:
        return nodes
    prefix, first, rest = bracket.groups()
    return prefix if first is None else prefix + first + rest.partition("]")[2]


class Meeting:
    """A key-value store that all ranks of a run share, before there is a process group and beside it."""

    def __init__(self, rank_info: RankInfo) -> None:
        """Connects to the store. Raises UserError if rank 0, or whoever keeps the store, is not there in time."""
        self.rank_info = rank_info
        self.store: dist.Store | None = None if rank_info.alone else _connect(rank_info)

    def publish(self, folder: Path, config: str) -> None:
        """Hands the run (its folder and the text of its config) to the other ranks. Called once, by rank 0."""
        if self.store is not None:
            self.store.set("run", json.dumps({"folder": str(folder), "config": config}))

    def refuse(self, status: int) -> None:
        """Makes the other ranks end with ``status``. Called by rank 0 if the run fails before it is published."""
        if self.store is None or self.store.check(["run"]):
            return
        self.store.set("run", json.dumps({"status": status}))
        # This process may keep the store: it must not end before the other ranks have read the status.
        with suppress(RuntimeError):
            self.store.wait([f"read/{rank}" for rank in range(1, self.rank_info.world_size)], timedelta(seconds=60))

    def receive(self) -> tuple[Path, str] | int:
        """Waits for rank 0; returns the folder and config that it published, or the status to end with."""
        if self.store is None:
            raise ValueError("a single process has nobody to receive a run from")
        try:
            said = json.loads(self.store.get("run"))
        except RuntimeError as error:
            first = str(error).splitlines()[0]
            raise UserError(
                f"rank {self.rank_info.rank}: rank 0 is gone before it composed the run ({first})"
            ) from None
        self.store.set(f"read/{self.rank_info.rank}", "1")
        return said["status"] if "status" in said else (Path(said["folder"]), said["config"])

    def claim(self, what: str) -> bool:
        """Whether this rank is the first to claim ``what``; True if the store does not answer."""
        try:
            return self.store is None or self.store.add(what, 1) == 1
        except RuntimeError:
            return True

    def is_claimed(self, what: str) -> bool:
        """Whether any rank has claimed ``what``; False if the store does not answer."""
        try:
            return self.store is not None and self.store.check([what])
        except RuntimeError:
            return False


def _connect(rank_info: RankInfo) -> dist.Store:
    timeout = timedelta(seconds=_MEETING_SECONDS)
    try:
        if rank_info.starter is Starter.torchrun:
            # torchrun has a store running already; a second one at its port could not start.
            store = next(iter(dist.rendezvous("env://", timeout=timeout)))[0]
        else:
            # Under srun, rank 0 keeps the store; with launcher=local, the process that started the ranks.
            hosts = rank_info.rank == 0 and rank_info.starter is Starter.srun
            store = dist.TCPStore(
                rank_info.address, rank_info.port, is_master=hosts, timeout=timeout, wait_for_workers=False
            )
    except RuntimeError as error:
        first = str(error).splitlines()[0]
        raise UserError(
            f"rank {rank_info.rank} of {rank_info.world_size} cannot reach {rank_info.address}:{rank_info.port} "
            f"({first}); set MASTER_ADDR and MASTER_PORT to a host and port that every node reaches"
        ) from None
    # A store that outlives the ranks still has the keys of earlier attempts.
    return dist.PrefixStore(f"mmlm/{rank_info.attempt}", store)


@contextmanager
def joined(meeting: Meeting, settings: RankSettings, device: torch.device) -> Iterator[None]:
    """Context with a process group of all ranks of the meeting, and with ``device`` as the current one.

    Raises UserError for a backend that does not fit the device.
    """
    rank_info = meeting.rank_info
    if device.type == "cuda":
        torch.cuda.set_device(device)
    if rank_info.alone:
        yield
        return
    if device.type == "cpu" and rank_info.starter is Starter.local:
        # gloo looks for its interface by the host name, which need not resolve on a laptop.
        os.environ.setdefault("GLOO_SOCKET_IFNAME", _loopback())
    backend = settings.backend
    if backend is Backend.auto:
        backend = Backend.nccl if device.type == "cuda" else Backend.gloo
    if backend is Backend.nccl and device.type != "cuda":
        raise UserError(f"ranks.backend: nccl needs CUDA, and this run is on {device.type}; use gloo or auto")
    # gloo beside nccl: evaluation also gathers tensors that are on the CPU.
    assert meeting.store is not None, "several ranks share a store"
    name = "cpu:gloo,cuda:nccl" if backend is Backend.nccl else "gloo"
    dist.init_process_group(
        name,
        store=dist.PrefixStore("group", meeting.store),
        rank=rank_info.rank,
        world_size=rank_info.world_size,
        timeout=timedelta(seconds=settings.timeout_seconds),
    )
    try:
        # A rank that fails right away would otherwise be gone while others are still connecting to it.
        dist.barrier()
        yield
    finally:
        dist.destroy_process_group()


def _loopback() -> str:
    """The name of the loopback interface: ``lo`` on Linux, ``lo0`` on macOS."""
    names = [name for _, name in socket.if_nameindex()]
    return next((name for name in ("lo", "lo0") if name in names), names[0])


def is_lost_connection(error: BaseException) -> bool:
    """Whether an error means that another rank is gone or silent, rather than that this rank has failed.

    gloo and NCCL raise plain RuntimeErrors in part, so the text of the message has to decide.
    """
    text = str(error)
    if isinstance(error, dist.DistError | OtherRankFailed):
        return True
    signs = ("gloo", "Connection closed by peer", "Connection reset", "Timed out waiting", "NCCL", "Broken pipe")
    return isinstance(error, RuntimeError) and any(sign in text for sign in signs)
