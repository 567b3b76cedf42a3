"""Where a process stands among the ranks, and how rank 0 hands the run to the others."""

import multiprocessing
import socket
from pathlib import Path

import pytest
import torch.distributed as dist

from mmlm.core.errors import UserError
from mmlm.launch.meeting import Meeting, is_lost_connection
from mmlm.launch.rank_info import RankInfo, Starter, first_host, rank_from_environment

TORCH = {"RANK": "3", "LOCAL_RANK": "1", "WORLD_SIZE": "4", "MASTER_ADDR": "host", "MASTER_PORT": "29500"}
STEP = {
    "SLURM_JOB_ID": "12",
    "SLURM_STEP_ID": "0",
    "SLURM_PROCID": "1",
    "SLURM_LOCALID": "0",
    "SLURM_STEP_NUM_TASKS": "2",
    "SLURM_STEP_NODELIST": "gpu[03-04]",
}


def test_without_a_launcher_a_process_is_alone():
    assert rank_from_environment({}) == RankInfo()
    assert rank_from_environment({}).alone


def test_torchrun_and_the_local_launcher_are_told_apart():
    assert rank_from_environment(TORCH) == RankInfo(3, 1, 4, "host", 29500, Starter.torchrun)
    assert rank_from_environment(TORCH | {"MMLM_ATTEMPT": "2"}).starter is Starter.local
    assert rank_from_environment(TORCH | {"TORCHELASTIC_RESTART_COUNT": "5"}).attempt == 5


@pytest.mark.parametrize("left_out", ["LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT"])
def test_half_an_environment_is_refused(left_out):
    with pytest.raises(UserError, match=f"'{left_out}' is not; start ranks by torchrun or srun"):
        rank_from_environment({key: value for key, value in TORCH.items() if key != left_out})
    with pytest.raises(UserError, match="'SLURM_LOCALID' is not; start ranks by srun"):
        rank_from_environment({key: value for key, value in STEP.items() if key != "SLURM_LOCALID"})


@pytest.mark.parametrize(
    "environment", [TORCH | {"RANK": "one"}, TORCH | {"MASTER_PORT": ""}, STEP | {"SLURM_PROCID": "-1"}]
)
def test_what_is_no_number_is_refused(environment):
    with pytest.raises(UserError, match=r"^[A-Z_]+='(one||-1)' in the environment is no whole number; start ranks by"):
        rank_from_environment(environment)


def test_a_job_of_one_process_without_a_local_rank_is_alone():
    """As Kubeflow and clouds start it."""
    one = {"RANK": "0", "WORLD_SIZE": "1", "MASTER_ADDR": "job-master-0", "MASTER_PORT": "23456"}
    assert rank_from_environment(one).alone


def test_a_step_of_several_tasks_is_srun():
    rank_info = rank_from_environment(STEP | {"SLURM_RESTART_COUNT": "1"})
    assert (rank_info.rank, rank_info.local_rank, rank_info.world_size) == (1, 0, 2)
    assert (rank_info.address, rank_info.starter, rank_info.attempt) == ("gpu03", Starter.srun, 1)
    assert 20000 <= rank_info.port < 40000
    assert rank_info.port == rank_from_environment(STEP | {"SLURM_PROCID": "0"}).port


def test_a_batch_script_and_a_step_of_one_task_are_alone():
    batch = {"SLURM_JOB_ID": "12", "SLURM_PROCID": "0", "SLURM_NTASKS": "2"}
    assert rank_from_environment(batch).alone
    assert rank_from_environment(batch | {"SLURM_RESTART_COUNT": "2"}) == RankInfo(attempt=2)
    assert rank_from_environment(STEP | {"SLURM_STEP_NUM_TASKS": "1", "SLURM_PROCID": "0"}).alone


def test_the_address_and_port_of_the_environment_win_under_srun():
    rank_info = rank_from_environment(STEP | {"MASTER_ADDR": "other", "MASTER_PORT": "4000"})
    assert (rank_info.address, rank_info.port) == ("other", 4000)


@pytest.mark.parametrize(
    ("nodes", "first"),
    [
        ("n1", "n1"),
        ("n1,n2", "n1"),
        ("gpu[03-05,9],cpu1", "gpu03"),
        ("gpu[7,9]", "gpu7"),
        ("rack1-gpu[2-3].site", "rack1-gpu2.site"),
    ],
)
def test_the_first_host_of_slurms_lists(nodes, first):
    assert first_host(nodes) == first


def free_port() -> int:
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        return listening.getsockname()[1]


def meet(rank: int, port: int, said: "multiprocessing.Queue[object]", status: int | None) -> None:
    """One rank: rank 0 publishes a run or refuses with a status, the other says what it received."""
    meeting = Meeting(RankInfo(rank, rank, 2, "127.0.0.1", port, Starter.srun))
    if rank > 0:
        said.put(meeting.receive())
    elif status is None:
        meeting.publish(Path("runs/x"), "experiment: x")
        meeting.refuse(9)  # too late to be heard
        meeting.store.wait(["read/1"])
    else:
        meeting.refuse(status)


@pytest.mark.parametrize("status", [None, 2])
@pytest.mark.slow
def test_rank_0_hands_the_run_or_its_refusal_to_the_others(status):
    context, port = multiprocessing.get_context("spawn"), free_port()
    said = context.Queue()
    ranks = [context.Process(target=meet, args=(rank, port, said, status)) for rank in range(2)]
    for process in ranks:
        process.start()
    received = said.get(timeout=240)
    for process in ranks:
        process.join(120)
    assert [process.exitcode for process in ranks] == [0, 0]
    assert received == ((Path("runs/x"), "experiment: x") if status is None else 2)


def test_errors_of_the_connection_are_told_from_others():
    assert is_lost_connection(RuntimeError("[gloo/transport/tcp/pair.cc:1] Connection closed by peer"))
    assert is_lost_connection(dist.DistBackendError("NCCL error"))
    assert not is_lost_connection(RuntimeError("mat1 and mat2 shapes cannot be multiplied"))
    assert not is_lost_connection(ValueError("gloo"))
