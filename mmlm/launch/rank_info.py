"""Which rank this process is, as whoever started it says in the environment, and the settings of ranks. No torch.

Ranks are started by ``launcher=local`` or torchrun (both set RANK, WORLD_SIZE, ...), or by ``srun`` (SLURM_*). A
process that none of them started is the only rank.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum

from mmlm.core.errors import ArgumentError, UserError
from mmlm.core.ranges import check_above_zero

COMMAND = "MMLM_COMMAND"
"""Environment variable: the command that resumes this run, for messages."""
ATTEMPT = "MMLM_ATTEMPT"
"""Environment variable, set by launcher=local: how often all ranks have been started again."""


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
    if _number(environment, "SLURM_STEP_NUM_TASKS", "1") > 1 and "SLURM_STEP_ID" in environment:
        return _from_slurm(environment)
    return RankInfo(attempt=_number(environment, "SLURM_RESTART_COUNT", "0"))


def _from_torch(environment: Mapping[str, str]) -> RankInfo:
    if environment["WORLD_SIZE"] == "1" and "LOCAL_RANK" not in environment:
        return RankInfo()  # a job of one process, as Kubeflow starts it
    try:
        return RankInfo(
            rank=_number(environment, "RANK"),
            local_rank=_number(environment, "LOCAL_RANK"),
            world_size=_number(environment, "WORLD_SIZE"),
            address=environment["MASTER_ADDR"],
            port=_number(environment, "MASTER_PORT"),
            starter=Starter.local if ATTEMPT in environment else Starter.torchrun,
            attempt=_number(environment, ATTEMPT if ATTEMPT in environment else "TORCHELASTIC_RESTART_COUNT", "0"),
        )
    except KeyError as error:
        raise UserError(f"RANK and WORLD_SIZE are set and {error} is not; start ranks by torchrun or srun") from None


def _from_slurm(environment: Mapping[str, str]) -> RankInfo:
    nodes = environment.get("SLURM_STEP_NODELIST", environment.get("SLURM_NODELIST", "127.0.0.1"))
    # Every rank computes the same port from the job, with nobody to ask. Two jobs on one node seldom have the same.
    number = _number(environment, "SLURM_JOB_ID", "0") * 31 + _number(environment, "SLURM_STEP_ID")
    try:
        return RankInfo(
            rank=_number(environment, "SLURM_PROCID"),
            local_rank=_number(environment, "SLURM_LOCALID"),
            world_size=_number(environment, "SLURM_STEP_NUM_TASKS"),
            address=environment.get("MASTER_ADDR", first_host(nodes)),
            port=_number(environment, "MASTER_PORT", str(20000 + number % 20000)),
            starter=Starter.srun,
            attempt=_number(environment, "SLURM_RESTART_COUNT", "0"),
        )
    except KeyError as error:
        raise UserError(f"SLURM_STEP_NUM_TASKS is set and {error} is not; start ranks by srun") from None


def _number(environment: Mapping[str, str], name: str, otherwise: str | None = None) -> int:
    """The whole number in an environment variable. Raises KeyError if it is not set, UserError if it is no number."""
    text = environment[name] if otherwise is None else environment.get(name, otherwise)
    if not text.isdecimal():
        raise UserError(f"{name}={text!r} in the environment is no whole number; start ranks by torchrun or srun")
    return int(text)


def first_host(nodes: str) -> str:
    """The first host of a host list of SLURM: ``gpu[03-05,9],cpu1`` -> ``gpu03``."""
    bracket = re.match(r"([^,\[]+)(?:\[(\w+))?([^,]*)", nodes)
    if bracket is None:
        return nodes
    prefix, first, rest = bracket.groups()
    return prefix if first is None else prefix + first + rest.partition("]")[2]
