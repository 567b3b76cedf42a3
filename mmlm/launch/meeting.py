"""The store through which the ranks of a run meet, and their process group.

A process that is the only rank of its run needs neither, and the functions here have nothing to do.
"""

import json
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import timedelta
from pathlib import Path

import torch
import torch.distributed as dist

from mmlm.core.distributed import OtherRankFailed
from mmlm.core.errors import UserError
from mmlm.launch.rank_info import Backend, RankInfo, RankSettings, Starter

_MEETING_SECONDS = 300.0
"""How long ranks wait for each other, and for rank 0's config: before the config, no setting is known."""


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
