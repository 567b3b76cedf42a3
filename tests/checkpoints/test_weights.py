"""Files of weights: tied tensors, damage, and that nothing anywhere in the package unpickles."""

import ast
from pathlib import Path

import pytest
import torch

import mmlm
from mmlm.checkpoints.weights import match_weights, read_weights, save_weights
from mmlm.core.errors import UserError

SOURCES = sorted(Path(mmlm.__file__).parent.rglob("*.py"))


class Bomb:
    """Unpickling it writes a file."""

    def __init__(self, file: Path) -> None:
        self.file = file

    def __reduce__(self):
        return Path.touch, (self.file,)


def test_tied_and_shared_tensors_come_back(tmp_path):
    base = torch.arange(6.0).view(2, 3)
    tensors = {
        "a": base,
        "tied": base,
        "row": base[0],
        "transposed": base.T,
        "empty": torch.empty(0),
        "n": torch.tensor(3),
    }
    save_weights(tensors, tmp_path / "x.safetensors")
    read = read_weights(tmp_path / "x.safetensors")
    assert read.keys() == tensors.keys()
    assert all(torch.equal(read[name], value) for name, value in tensors.items())
    assert read["a"].data_ptr() == read["tied"].data_ptr()
    assert (tmp_path / "x.safetensors").stat().st_size < 1000


def test_a_file_of_torch_is_read(tmp_path):
    torch.save({"a": torch.ones(2)}, tmp_path / "x.pt")
    assert torch.equal(read_weights(tmp_path / "x.pt")["a"], torch.ones(2))


@pytest.mark.parametrize("suffix", ["pt", "safetensors"])
def test_a_file_that_would_run_code_is_refused_and_runs_none(tmp_path, suffix):
    torch.save({"a": Bomb(tmp_path / "ran")}, tmp_path / f"x.{suffix}")
    with pytest.raises(UserError, match=r"holds more than tensors, or is damaged|no safetensors file") as refused:
        read_weights(tmp_path / f"x.{suffix}")
    assert "\n" not in str(refused.value)
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ([torch.ones(1)], "holds a list; save a mapping of names to tensors"),
        ({"state_dict": {"a": torch.ones(1)}}, "'state_dict' is a dict, not a tensor"),
    ],
)
def test_other_content_is_refused(tmp_path, content, message):
    torch.save(content, tmp_path / "x.pt")
    with pytest.raises(UserError, match=message):
        read_weights(tmp_path / "x.pt")


@pytest.mark.parametrize("name", ["x.pt", "x.safetensors"])
@pytest.mark.parametrize("keep", [0, 7, 60, -1])
def test_a_truncated_file_is_refused(tmp_path, name, keep):
    file = tmp_path / name
    torch.save({"a": torch.ones(20)}, file) if name == "x.pt" else save_weights({"a": torch.ones(20)}, file)
    file.write_bytes(file.read_bytes()[:keep])
    with pytest.raises(UserError, match="damaged") as refused:
        read_weights(file)
    assert "\n" not in str(refused.value)


def test_a_missing_file_is_refused(tmp_path):
    with pytest.raises(UserError, match="there is no such file of weights"):
        read_weights(tmp_path / "x.safetensors")


# Names

MODEL = {"encoder.a": torch.zeros(2), "encoder.b": torch.zeros(3), "decoder.c": torch.zeros(4)}
FILE = {"encoder.a": torch.ones(2), "encoder.b": torch.ones(9), "head": torch.ones(1)}


def test_everything_that_does_not_fit_is_listed():
    with pytest.raises(UserError) as refused:
        match_weights(MODEL, FILE, "the file", advice="; do this")
    assert str(refused.value) == (
        "the file does not fit this model: 1 missing there ('decoder.c'); 1 unexpected there ('head'); "
        "1 of another shape ('encoder.b' is [9] there and [3] here); do this"
    )


def test_a_long_list_is_cut_and_counted():
    with pytest.raises(UserError, match=r"20 missing there \('0', '1', .*'7', and 12 more\)"):
        match_weights({str(i): torch.zeros(1) for i in range(20)}, {}, "x")


def test_what_is_expected_is_let_pass():
    assert match_weights(MODEL, FILE, "x", missing=["decoder.*", "encoder.b"], unexpected=["head"]) == ["encoder.a"]


@pytest.mark.parametrize(
    ("expected", "message"),
    [
        (
            {"missing": ["decoder.*", "encoder.b", "encoder.a"]},
            "init_from.missing: 'encoder.a' matches no name that is",
        ),
        ({"unexpected": ["head", "tail.*"]}, "init_from.unexpected: 'tail.*' matches no name that is unexpected"),
        ({"missing": ["decoder.*", "encoder.b"]}, "1 unexpected there ('head')"),
        ({"missing": ["decoder.*"], "unexpected": ["head"]}, "'encoder.b' is [9] there and [3] here"),
    ],
)
def test_a_pattern_that_does_nothing_or_too_little_is_refused(expected, message):
    with pytest.raises(UserError) as refused:
        match_weights(MODEL, FILE, "x", **expected)
    assert message in str(refused.value)


# Nothing is unpickled


@pytest.mark.parametrize("file", SOURCES, ids=lambda file: file.name)
def test_no_file_of_the_package_unpickles(file):
    """``torch.load`` stands there only with ``weights_only=True``; no pickle, NumPy's included, is read at all.

    The kit may read what it has pickled itself, in memory: a task for its ranks, a source as a data worker gets it. So
    may the benchmark that measures such a source, in a folder of its own.
    """
    in_memory = file.parent.name == "check" or file.name == "source_memory.py"
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names = {alias.name.split(".")[0] for alias in node.names}
            forbidden = {"pickle", "dill", "cloudpickle", "joblib", "shelve", "marshal"}
            assert not names & (forbidden - {"pickle"} if in_memory else forbidden), node.lineno
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] in ("pickle", "dill", "joblib"):
            assert [alias.name for alias in node.names] == ["UnpicklingError"], node.lineno
        if isinstance(node, ast.Call):
            called, given = ast.unparse(node.func), {word.arg: ast.unparse(word.value) for word in node.keywords}
            if called == "torch.load":
                assert in_memory or given.get("weights_only") == "True", node.lineno
            assert not called.startswith("torch.hub.load"), node.lineno
            assert given.get("allow_pickle") != "True", node.lineno
            assert given.get("trust_remote_code", "False") == "False", node.lineno


def test_others_may_read_weights_as_they_may_read_other_files(tmp_path):
    (tmp_path / "text.txt").write_text("as the umask has it")
    save_weights({"a": torch.ones(2)}, tmp_path / "a.safetensors")
    assert (tmp_path / "a.safetensors").stat().st_mode == (tmp_path / "text.txt").stat().st_mode
