"""``python -m mmlm.verify``: every file of a run by its name, and a change that was made on purpose."""

import pytest

from mmlm import evaluate, export, verify
from mmlm.core.errors import UserError
from mmlm.experiment.config_file import load_config


def test_a_run_and_its_export(trained, command, tmp_path):
    folder = trained()
    outcome = command(verify, f"run={folder}")
    assert (outcome.status, outcome.err) == (0, "")
    named = {line.partition(":")[0] for line in outcome.out.splitlines()}
    assert named == {
        "config.yaml",
        "data.json",
        "overlap.json",
        "environment.json",
        "figures.json",
        "metrics.jsonl",
        "tokenizer/byte_pair.json",
        "scores.json",
        "samples.json",
        "items.json",
        "per_item.parquet",
        "changes.json",
        "report.html",
        "checkpoints/step=000003",
    }

    # Damaged scores: the report refuses them, a model is exported without them, and they are taken again.
    scores = folder / "scores.json"
    scores.write_text("")
    outcome = command(verify, f"run={folder}")
    assert outcome.status == 2
    (line,) = [line for line in outcome.out.splitlines() if not line.endswith(": as it was written")]
    assert line.startswith(f"{scores}: is damaged (")
    assert "no training is lost: python -m mmlm.evaluate" in line
    assert command(export, f"run={folder}", f"to={tmp_path / 'out'}").status == 0
    outcome = command(evaluate, f"run={folder}")
    assert (outcome.status, outcome.err) == (0, "")
    assert f"{scores} was damaged and is now scores.json.damaged; it is written anew" in outcome.out
    assert command(verify, f"run={folder}").status == 0

    # A config that somebody has edited.
    file = folder / "config.yaml"
    file.write_text(file.read_text().replace("evaluation_batch_size: 256", "evaluation_batch_size: 2"))
    with pytest.raises(UserError, match=r"accept=\[config\.yaml\]"):
        load_config(file)
    assert command(verify, f"run={folder}", "accept=[config.yaml]").status == 0
    assert load_config(file).data.evaluation_batch_size == 2
    assert "accept: '../x' is no file on record in" in command(verify, f"run={folder}", "accept=[../x]").mistake

    exported = tmp_path / "out"
    assert command(verify, f"run={exported}").status == 0
    (exported / "config.json").write_text("{}")
    assert "config.json: is damaged (" in command(verify, f"run={exported}").out
