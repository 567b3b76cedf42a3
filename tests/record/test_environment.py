"""What a run says it was made with."""

import json
import shlex
import subprocess
import sys
from importlib.metadata import version

import pytest
import torch

from mmlm.core.precision import Precision
from mmlm.record import environment
from mmlm.record.environment import describe_environment, device_name, precision_of_run, save_environment
from mmlm.record.manifest import DamagedFileError

CPU = torch.device("cpu")


@pytest.fixture
def argv(monkeypatch):
    monkeypatch.setattr(sys, "argv", ["train.py", "experiment=x", "data.train.folder=my pictures", "tags=[a,b]"])


def test_the_command_can_be_pasted_into_a_shell(argv):
    words = shlex.split(describe_environment(CPU, Precision.fp32, {}).command)
    assert words == ["python", "-m", "mmlm.train", *sys.argv[1:]]


def test_versions_are_the_installed_ones(argv):
    packages = describe_environment(CPU, Precision.fp32, {}).packages
    assert packages["torch"] == version("torch")
    assert packages["mmlm"] == version("mmlm")
    assert set(packages) <= set(environment.PACKAGES)


def test_a_package_that_is_not_installed_is_left_out(argv, monkeypatch):
    monkeypatch.setattr(environment, "PACKAGES", ("torch", "surely-not-installed"))
    assert list(describe_environment(CPU, Precision.fp32, {}).packages) == ["torch"]


def repository(folder, *commands):
    for command in commands:
        settings = ("-c", "user.name=a", "-c", "user.email=a@b.c", "-c", "init.defaultBranch=main")
        subprocess.run(["git", *settings, *shlex.split(command)], cwd=folder, check=True, capture_output=True)


def test_commit_and_changes(argv, monkeypatch, tmp_path):
    (tmp_path / "code.py").write_text("a = 1\n")
    monkeypatch.setattr(environment, "__file__", str(tmp_path / "code.py"))
    repository(tmp_path, "init", "add code.py", "commit -m first")
    clean = describe_environment(CPU, Precision.fp32, {})
    assert len(clean.git_commit) == 40
    assert clean.git_dirty is False
    (tmp_path / "untracked.txt").write_text("not code")
    assert describe_environment(CPU, Precision.fp32, {}).git_dirty is False
    (tmp_path / "code.py").write_text("a = 2\n")
    dirty = describe_environment(CPU, Precision.fp32, {})
    assert (dirty.git_commit, dirty.git_dirty) == (clean.git_commit, True)


@pytest.mark.parametrize("without", ["git", "a repository", "a place in the repository"])
def test_no_commit_without_git_or_repository(argv, monkeypatch, tmp_path, without):
    """Nor where it is installed into an environment inside of somebody's own repository."""
    monkeypatch.setattr(environment, "__file__", str(tmp_path / "environment.py"))
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    if without == "a place in the repository":
        repository(tmp_path, "init", "commit --allow-empty -m first")
        (tmp_path / "environment.py").touch()
    if without == "git":
        monkeypatch.setenv("PATH", "")
    found = describe_environment(CPU, Precision.fp32, {})
    assert (found.git_commit, found.git_dirty) == (None, None)


def test_devices_by_name(monkeypatch):
    monkeypatch.setattr(torch, "get_num_threads", lambda: 8)
    assert device_name(CPU) == "CPU, 8 threads"
    monkeypatch.setattr(torch, "get_num_threads", lambda: 1)
    assert device_name(CPU) == "CPU, 1 thread"


def test_the_file_holds_all_fields(argv, tmp_path):
    model = {"parameters": {"encoder": 12, "decoder": 3}, "flops": {"encoder": 50, "decoder": 7}}
    described = describe_environment(CPU, Precision.fp32, model)
    save_environment(described, tmp_path)
    written = json.loads((tmp_path / "environment.json").read_text(encoding="utf-8"))
    assert written["model"] == model
    assert written["device"] == device_name(CPU)
    assert list(written) == [
        "command",
        "working_folder",
        "git_commit",
        "git_dirty",
        "code",
        "device",
        "precision",
        "python",
        "platform",
        "packages",
        "model",
    ]


def test_auto_is_what_the_run_began_with(tmp_path, monkeypatch):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"amx_bf16": True})
    assert precision_of_run(Precision.auto, tmp_path, CPU) is Precision.bf16
    save_environment(describe_environment(CPU, Precision.auto, {}), tmp_path)
    monkeypatch.setattr(torch.cpu, "get_capabilities", dict)
    assert precision_of_run(Precision.auto, tmp_path, CPU) is Precision.bf16
    assert precision_of_run(Precision.fp16, tmp_path, CPU) is Precision.fp16
    (tmp_path / "environment.json").write_text("{}")
    with pytest.raises(DamagedFileError, match="remove it: all works without it but precision=auto"):
        precision_of_run(Precision.auto, tmp_path, CPU)
    assert precision_of_run(Precision.bf16, tmp_path, CPU) is Precision.bf16, "what is not asked does no harm"
    (tmp_path / "manifest.jsonl").unlink()  # of a run from before there was auto
    assert precision_of_run(Precision.auto, tmp_path, CPU) is Precision.fp32
