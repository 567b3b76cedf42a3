"""``python -m mmlm.evaluate``: the table it prints, the files it brings up to date, and what it refuses."""

import json
import subprocess
import sys

import pytest

from mmlm import evaluate


def test_evaluate_prints_a_table_and_brings_the_report_up_to_date(trained, command, shapes):
    source = f"{{_target_: mmlm.data.sources.ImageFolder, folder: {shapes}}}"
    folder = trained(f"+data.test.held_out={source}")
    first = json.loads((folder / "scores.json").read_text())
    assert list(first["splits"]) == ["validation"]
    outcome = command(evaluate, f"run={folder}", "splits=[test]")
    assert (outcome.status, outcome.err) == (0, "")
    table = [line.split() for line in outcome.out.splitlines()]
    assert ["held_out"] in table
    assert any(line[0] == "captioning/CIDEr-D" for line in table if line)
    scores = json.loads((folder / "scores.json").read_text())
    assert scores["splits"].keys() == {"validation", "held_out"}
    assert scores["splits"]["held_out"] == pytest.approx(first["splits"]["validation"]), "the same images"
    assert "held_out" in (folder / "report.html").read_text()
    both = command(evaluate, f"run={folder.parent}", "splits=[validation,held_out]", "precision=bf16", "device=cpu")
    assert ["validation", "held_out"] in [line.split() for line in both.out.splitlines()]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("splits=[vall]",), "splits: 'vall' is no split of this run; there are: validation"),
        (("splits=[test]",), "splits: test holds no split of this run; there are: validation"),
        (("splits=[]",), "splits: [] holds no split of this run"),
        (("precision=fp64",), "precision: 'fp64' is not one of"),
        (("device=gpu",), "device: 'gpu' is not one of auto, cpu, cuda"),
        (("stray",), "'stray' is not a setting"),
    ],
)
def test_mistakes_of_evaluate(trained, command, arguments, message):
    assert message in command(evaluate, f"run={trained()}", *arguments).mistake


@pytest.mark.slow
def test_hydra_is_left_alone_until_an_option_is_asked_for():
    code = "import sys, mmlm.commands.evaluate; print('hydra' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout == "False\n"
