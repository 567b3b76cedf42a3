"""What compared runs differ in besides their experiments, in one line."""

from dataclasses import replace
from pathlib import Path

import pytest

from mmlm.reports.differences import differences
from mmlm.reports.run_folder import Metrics, RunFolder, Scores

COMMITS = ("0123456789abcdef0123", "fedcba98765432100123")
DATA = "data: {path: one, train: {folder: '${data.path}/train'}, workers: 0}\n"


def run(environment: dict[str, object], config: str = DATA) -> RunFolder:
    """A run that has left no more than its environment and its config."""
    return RunFolder(Path("run"), Metrics({}), None, {}, config, environment)


HERE = {"precision": "bf16", "git_commit": COMMITS[0], "device": "CPU, 2 threads", "platform": "Linux"}


def test_runs_of_one_environment_and_of_one_data():
    other = run({**HERE, "platform": "Darwin"}, DATA.replace("workers: 0", "workers: 2"))
    assert differences({"a": run(HERE), "b": other}) is None


@pytest.mark.parametrize(
    ("other", "told"),
    [
        (run({**HERE, "precision": "fp32"}), "precision (a: bf16, b: fp32)"),
        (run({**HERE, "git_commit": COMMITS[1]}), "commit (a: 0123456789ab, b: fedcba987654)"),
        (run({**HERE, "device": "CPU, 8 threads"}), "device (a: CPU, 2 threads, b: CPU, 8 threads)"),
        (run(HERE, DATA.replace("one", "two")), "data (data.path)"),
        (run(HERE, DATA.replace("/train", "/all")), "data (data.train)"),
        (
            run({**HERE, "precision": "fp32"}, DATA.replace("one", "two")),
            "precision (a: bf16, b: fp32); data (data.path)",
        ),
    ],
)
def test_what_differs_is_named_with_its_values(other, told):
    assert differences({"a": run(HERE), "b": other}) == f"the runs also differ in {told}"


def test_runs_that_found_other_examples_or_were_scored_otherwise():
    """The same settings may lead to other data, where a relative path is read in another folder."""
    one, other = (replace(run(HERE), data={"data.train": {"digest": digest}}) for digest in "ab")
    assert differences({"a": one, "b": other}) == "the runs also differ in data (other examples in data.train)"
    assert differences({"a": one, "b": run(HERE)}) is None, "what a run does not tell is taken for equal"
    fp32, bf16 = (replace(one, scores=Scores(3, {}, precision)) for precision in ("fp32", "bf16"))
    assert differences({"a": fp32, "b": bf16}) == "the runs also differ in precision of the scores (a: fp32, b: bf16)"


def test_what_a_run_does_not_tell_is_taken_for_equal():
    silent = run({"git_commit": None}, "")
    for config in ("model: {width: 2}", "data: 3", "[", "- data"):
        assert differences({"a": run(HERE), "b": silent, "c": run({}, config)}) is None
    assert "precision" in str(differences({"a": run(HERE), "b": silent, "c": run({"precision": "fp32"})}))
