"""Data workers end with the process that trains, however it ends."""

import subprocess
import sys
from pathlib import Path

import pytest

from tests.data.pictures import Pictures, write_folder
from tests.waiting import until

TRAINING = """
import multiprocessing, sys, time
from pathlib import Path
from mmlm.data.loader import TrainLoader
from mmlm.data.sources import ImageFolder
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
