"""Data workers end with the process that trains, however it ends; one that is killed or has no room costs nothing."""

import errno
import gc
import os
import pickle
import signal
import subprocess
import sys
import time
from itertools import islice
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch.utils.data import Dataset

from mmlm.core.batch import Example
from mmlm.core.errors import UserError
from mmlm.data import workers
from mmlm.data.collate import Prepared
from mmlm.data.loader import TrainLoader
from mmlm.data.tokenizers.byte_pair import BytePair
from mmlm.data.transforms import Transform
from tests.data.pictures import Pictures, write_folder
from tests.waiting import until

TRAINING = """
import multiprocessing, sys, time
from pathlib import Path
from mmlm.data.loader import TrainLoader
from mmlm.data.image_folder import ImageFolder
from mmlm.data.tokenizers.byte_pair import BytePair
from mmlm.data.transforms import Transform

if __name__ == "__main__":
    source = ImageFolder(Path(sys.argv[1]))
    tokenizer = BytePair(vocab_size=280, languages=("en", "de"))
    tokenizer.fit(source.captions())
    batches = iter(TrainLoader(source, tokenizer, Transform(16, None), 4, 0, 1, 16, workers=2))
    next(batches)
    print(*(process.pid for process in multiprocessing.active_children()), flush=True)
    time.sleep(float(sys.argv[2]))
"""
"""A training process that has its two workers at work, prints their ids, and lives for some seconds more."""


@pytest.mark.skipif(sys.platform != "linux", reason="looks for processes in /proc")
@pytest.mark.slow
def test_the_workers_of_a_killed_training_end(tmp_path):
    """Killed, it can stop nobody: workers, their fork server and its tracker have to see it by themselves."""
    script = tmp_path / "training.py"
    script.write_text(TRAINING)
    write_folder(tmp_path, Pictures(8))
    command = [sys.executable, str(script), str(tmp_path), "600"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        pids = [int(word) for word in process.stdout.readline().split()]
        process.kill()
    assert len(pids) == 2
    assert until(lambda: not any(Path(f"/proc/{pid}").exists() for pid in pids), 240), "they were left"


@pytest.mark.slow
def test_a_process_ends_in_the_middle_of_an_iteration(tmp_path):
    """Its workers ignore the signal by which multiprocessing would end them."""
    script = tmp_path / "training.py"
    script.write_text(TRAINING)
    write_folder(tmp_path, Pictures(8))
    command = [sys.executable, str(script), str(tmp_path), "0"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=240)
    assert (done.returncode, done.stderr) == (0, "")
    assert len(done.stdout.split()) == 2


def alone_and_helped(folder: Path) -> list[TrainLoader]:
    """The same batches, prepared here and by two workers."""
    source, tokenizer = write_folder(folder, Pictures(8)), BytePair(vocab_size=280, languages=("en", "de"))
    tokenizer.fit(source.captions())
    return [TrainLoader(source, tokenizer, Transform(16, None), 4, 0, 1, 16, workers=number) for number in (0, 2)]


@pytest.mark.slow
def test_a_worker_that_is_killed_is_replaced(tmp_path, capfd):
    """Twice, and the batches are those that nothing happened to."""
    alone, helped = alone_and_helped(tmp_path)
    found = []
    for number, batch in enumerate(islice(helped, 12)):
        found.append(batch)
        if number in (1, 6):
            for process in helped._workers._iterator._workers:
                os.kill(process.pid, signal.SIGKILL)
    for batch, other in zip(found, islice(alone, 12), strict=True):
        assert batch.ids == other.ids
        assert torch.equal(batch.images, other.images)
    lines = [line for line in capfd.readouterr().err.splitlines() if line.startswith("mmlm: ")]
    assert len(lines) == 2
    assert all(line.endswith("; the data workers are started again (1 of 3)") for line in lines)


class SlowToArrive(Dataset):
    """Shares whose worker takes its time before it has taken them over, and says that it is there."""

    def __init__(self, sign: Path) -> None:
        self.sign = sign

    def __getitem__(self, index):
        raise AssertionError("no worker gets that far")

    def __reduce__(self):
        return arrive_slowly, (self.sign,)


def arrive_slowly(sign: Path) -> SlowToArrive:
    sign.write_text(str(os.getpid()))
    time.sleep(3600)  # until it is killed
    return SlowToArrive(sign)


@pytest.mark.slow
def test_workers_that_have_not_begun_end_with_their_loader(tmp_path, capfd):
    """As where a run is told to stop before its first batch: they would say in a traceback that the queues are gone."""
    sign = tmp_path / "there"
    loader = workers.start_workers(SlowToArrive(sign), range(4), 1)
    iterator = iter(loader)
    assert until(lambda: sign.exists() and sign.read_text() != "", 240)
    del iterator, loader
    gc.collect()
    assert until(lambda: not Path(f"/proc/{sign.read_text()}").exists(), 240), "it was left"
    assert "Traceback" not in capfd.readouterr().err


class Dying:
    """In place of a ``DataLoader``: its workers die at the third batch, always."""

    _iterator = None
    num_workers = 2
    multiprocessing_context = SimpleNamespace(Queue=list)

    def __iter__(self):
        yield from ("one", "two")
        raise RuntimeError("DataLoader worker (pid(s) 7) exited unexpectedly")


def test_workers_that_die_at_one_batch_again_and_again_end_the_run(capsys):
    """Progress counts, not restarts: those that get further may die as often as they like."""
    prepared = workers.from_workers(Dying())
    assert list(islice(prepared, 40)) == ["one", "two"] * 20

    class AtOnce(Dying):
        def __iter__(self):
            raise RuntimeError("DataLoader worker (pid(s) 7) exited unexpectedly")
            yield

    with pytest.raises(UserError, match=r"data.workers: they have ended 4 times at one batch \(DataLoader worker"):
        next(workers.from_workers(AtOnce()))


@pytest.mark.parametrize("error", [EOFError(), ConnectionResetError(), FileNotFoundError(2, "No such file")])
def test_pixels_that_cannot_be_fetched_from_a_worker_mean_that_it_is_gone(error):
    class Gone(Dying):
        def __iter__(self):
            yield "one"
            raise error

    assert list(islice(workers.from_workers(Gone()), 5)) == ["one"] * 5


@pytest.mark.parametrize("kind", [RuntimeError, EOFError, FileNotFoundError, ValueError])
def test_an_error_in_a_worker_is_a_bug(kind):
    class Broken(Dying):
        def __iter__(self):
            raise kind("Caught an error in DataLoader worker process 0.")
            yield

    with pytest.raises(kind, match="Caught"):
        next(workers.from_workers(Broken()))


def prepared_share() -> Prepared:
    images = torch.arange(2 * 3 * 4 * 4, dtype=torch.uint8).view(2, 3, 4, 4)
    return Prepared(images, (Example("a", None, ()), Example("b", None, ())), (0, 1), ("c: is empty",))


@pytest.mark.parametrize(
    ("error", "told"), [(ConnectionResetError(), False), (EOFError(), False), (ValueError("x"), True)]
)
def test_a_worker_is_silent_about_a_connection_that_the_training_process_lets_go_of(capsys, error, told):
    """multiprocessing's thread tells its errors to ``sys.excepthook``."""
    workers._tell(type(error), error, None)
    assert (capsys.readouterr().err != "") == told


def test_without_room_in_shared_memory_a_share_travels_as_bytes(monkeypatch, capsys):
    def no_room(self):
        raise RuntimeError("unable to allocate shared memory(shm) for file </torch_7>: No space left on device (28)")

    share = prepared_share()
    assert workers.hand_over(share) is share, "not in a worker"
    monkeypatch.setattr(workers, "get_worker_info", lambda: object())
    monkeypatch.setattr(torch.Tensor, "share_memory_", no_room)
    sent = pickle.loads(pickle.dumps(workers.hand_over(share)))
    assert isinstance(sent, workers.Unshared)

    class Full(Dying):
        def __iter__(self):
            yield from (sent, sent)

    for arrived in islice(workers.from_workers(Full()), 2):
        assert torch.equal(arrived.images, share.images)
        assert (arrived.examples, arrived.rows, arrived.corrupt) == (share.examples, share.rows, share.corrupt)
    assert capsys.readouterr().err.count("/dev/shm is full") == 1


def test_without_room_for_a_queue_it_says_what_to_do():
    def full():
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    class NoRoom(Dying):
        multiprocessing_context = SimpleNamespace(Queue=full)

        def __iter__(self):
            raise AssertionError("torch would print a traceback of its own")

    with pytest.raises(UserError, match=r"cannot be started \(No space left on device\); enlarge /dev/shm .* data.w"):
        next(workers.from_workers(NoRoom()))
