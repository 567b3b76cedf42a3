"""The commands of "Bring your own data" in configs/README.md train on the shipped data, packed into each format."""

import re
import shlex

import pytest

from mmlm import train
from mmlm.experiment.config import CONFIG_DIR
from tests.conftest import TINY
from tests.shipped import EXAMPLES, FORMATS

SECTION = re.search(
    r"## Bring your own data\n.*?```bash\n(.*?)```", (CONFIG_DIR / "README.md").read_text(encoding="utf-8"), re.DOTALL
)
COMMANDS = re.findall(r"^python -m mmlm\.train (.*)", SECTION[1], re.MULTILINE) if SECTION else []
BY_FORMAT = {name: line for name in FORMATS for line in COMMANDS if re.search(rf"\b{name}\b", line.partition("#")[0])}


def test_every_format_has_its_command():
    assert BY_FORMAT.keys() == FORMATS.keys()
    assert len(set(BY_FORMAT.values())) == len(FORMATS)


@pytest.mark.parametrize("name", FORMATS)
def test_a_command_trains_on_its_format(name, command, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    FORMATS[name](tmp_path / name)
    tokens = shlex.split(BY_FORMAT[name], comments=True)
    given = {token.partition("=")[0] for token in tokens}
    tiny = [token for token in TINY if token.partition("=")[0] not in given | {"data"}]
    outcome = command(train, *tokens, *tiny, f"runs={tmp_path / 'runs'}")
    said = f"mmlm: data: {name}/train is trained on, and {name}/validation validates\n"
    if name == "tabs":
        said = said.replace("/train ", "/train.tsv ").replace("/validation ", "/validation.tsv ")
    assert (outcome.status, outcome.err) == (0, said if f"data={name}" in tokens and len(tokens) == 3 else "")
    trained = 2 * EXAMPLES if name in ("shards", "rows") else EXAMPLES
    assert f"{trained} images to train on, validation {EXAMPLES} to validate on" in outcome.out
    (report,) = (tmp_path / "runs").rglob("report.html")
    assert report.stat().st_size
