"""The study command in a process of its own, and its runs in theirs, forked from one that has imported everything."""

import multiprocessing
import os
import signal
import sys
import traceback
import warnings
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import IO

import pytest
import torch
from hydra._internal.hydra import Hydra

from mmlm import study, train
from mmlm.cli.exits import report_user_errors
from mmlm.cli.hydra_command import run_hydra
from mmlm.core.stop import SIGNALS
from mmlm.experiment.config import CONFIG_DIR, CONFIG_NAME
from mmlm.studies import processes
from tests.composed_once import compose_once
from tests.conftest import PLUGIN

_IMPORTED = ["timm", "mmlm.run.ranks", "pytest"]
"""Those of tests/ranks.py: both share one server."""


@dataclass
class Forked:
    """Stands for ``subprocess.Popen`` of ``python -m mmlm.train``."""

    pid: int
    returncode: int | None = None

    @classmethod
    def start(cls, runner: processes.Runner, words: Sequence[str], output: IO[bytes], slot: int) -> "Forked":
        """In place of ``Runner._popen``."""
        assert words[:3] == [sys.executable, "-m", "mmlm.train"]
        sys.stdout.flush()
        pid = os.fork()
        if pid:
            return cls(pid)
        os.setsid()
        # A fork leaves PyTorch's thread pool broken, and the first one to ask for it makes another. Threads that ask at
        # the same time, as those that look at images, would be told "Invalid thread pool!".
        torch.set_num_threads(1)
        for one in SIGNALS:
            signal.signal(one, signal.SIG_DFL)
        for stream in (sys.stdout, sys.stderr):
            os.dup2(output.fileno(), stream.fileno())
        sys.argv[1:] = words[3:]
        status = 1
        try:
            run_hydra(train.main, CONFIG_DIR, CONFIG_NAME)
        except SystemExit as end:
            status = end.code if isinstance(end.code, int) else int(bool(end.code))
        except BaseException:
            traceback.print_exc()
        finally:
            with suppress(OSError):
                sys.stdout.flush()
            os._exit(status)

    def poll(self) -> int | None:
        """As that of ``Popen``."""
        if self.returncode is None:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            self.returncode = os.waitstatus_to_exitcode(status) if pid else None
        return self.returncode

    def send_signal(self, number: int) -> None:
        """As that of ``Popen``."""
        os.kill(self.pid, number)


def start_study(words: Sequence[str], out: Path) -> BaseProcess:
    """``python -m mmlm.study <words>`` in a process of its own, which prints to the file ``out``."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(_IMPORTED)
    process = context.Process(target=_be_a_study, args=(list(words), out))
    process.start()
    return process


def _be_a_study(words: list[str], out: Path) -> None:
    with out.open("wb") as file:
        os.dup2(file.fileno(), sys.stdout.fileno())
        os.dup2(file.fileno(), sys.stderr.fileno())
    signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)
    for one in SIGNALS:  # the server ignores Ctrl-C, and a process inherits that
        signal.signal(one, signal.default_int_handler if one == signal.SIGINT else signal.SIG_DFL)
    warnings.simplefilter("error")
    torch.set_num_threads(1)
    sys.path.insert(0, str(PLUGIN))
    patch = pytest.MonkeyPatch()
    compose_once(patch)
    patch.setattr(Hydra, "get_mode", lambda hydra, config_name, overrides: None)
    patch.setattr("mmlm.reports.curves_section.draw_chart", lambda *lines, **how: "<svg></svg>")
    patch.setattr(processes.Runner, "_popen", lambda runner, *given: Forked.start(runner, *given))
    sys.argv[1:] = words
    report_user_errors(study.main)
