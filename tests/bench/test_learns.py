"""``python -m mmlm.bench learns``: its table and exit status, what it keeps, leaves out and refuses."""

import json

import pytest

from mmlm.bench import __main__ as bench
from mmlm.bench import learns
from mmlm.bench.learning import Captioned, Learned
from mmlm.bench.learns import COMPANIONS, LEARNING_SLOTS
from mmlm.bench.settings import LearnsSettings, PartsSettings
from mmlm.core.errors import INTERRUPTED
from mmlm.experiment.compatibility import check_compatible
from mmlm.model.protocols import MODEL_SLOTS
from mmlm.training.loop import Interrupted

YES = Learned(Captioned(1.5, 4.25, 0.5, 0.25, 0.75), 0.5, 4, 12.4, "CPU")
NO = Learned(Captioned(4.0, 4.25, 0.5, 0.25, 0.75), 1.5, 4, 12.4, "CPU")


@pytest.fixture
def check(command, tiny):
    """``check(*arguments)``: the command on the tiny model, two steps."""
    overrides = ",".join(token for token in tiny if not token.startswith(("experiment=", "train.steps=", "device=")))
    small = ("steps=2", "device=cpu", "split=validation", f"overrides=[{overrides}]")
    return lambda *arguments: command(bench, "learns", *small, *arguments)


@pytest.fixture
def trained_cells(monkeypatch):
    """The configs that are trained, each of them with the next of the ``results`` that a test appends."""
    configs, results = [], []

    def train(config, split, examples):
        configs.append(config)
        result = results.pop(0) if results else YES
        if isinstance(result, BaseException):
            raise result
        return result

    monkeypatch.setattr(learns, "train_cell", train)
    return configs, results


def test_two_cells_train(check, tmp_path):
    out = tmp_path / "table.md"
    outcome = check("slots=[bridge]", "options=[mlp,patches]", f"out={out}")
    assert outcome.status == 1, "nothing is learnt in two steps"
    assert [line for line in outcome.err.splitlines() if " of 2: " in line] == [
        "1 of 2: bridge=mlp",
        "2 of 2: bridge=patches",
    ]
    assert out.read_text(encoding="utf-8") == outcome.out
    rows = [line.split(" | ") for line in outcome.out.splitlines() if line.startswith("| ")]
    assert [row[0] for row in rows] == ["| bridge", "| mlp", "| **patches** (reference)"]
    for row in rows[1:]:
        loss, unigrams, below = map(float, row[1:4])
        assert below == pytest.approx(unigrams - loss, abs=2e-3)
        assert (row[6], row[7][:17]) == ("0.693", "no: held-out loss")
    assert "2 steps of 4 images, seed 0; held out: validation." in outcome.out

    kept = (tmp_path / "table.md.jsonl").read_text()
    again = check("slots=[bridge]", "options=[mlp,patches]", f"out={out}")
    assert "step" not in again.err, "nothing is trained a second time"
    assert (again.out, again.status) == (outcome.out, 1)
    assert (tmp_path / "table.md.jsonl").read_text() == kept


def test_the_table(check, trained_cells):
    configs, results = trained_cells
    results += [YES, NO]
    outcome = check("slots=[bridge,text_encoder]", "options=[mlp,perceiver,own]")
    assert outcome.status == 1
    lines = outcome.out.splitlines()
    assert "| mlp | 1.500 | 4.250 | 2.750 | 0.500 [0.250, 0.750] | 0.500 | 0.693 | yes | 12 |" in lines
    assert (
        "| perceiver | 4.000 | 4.250 | 0.250 | 0.500 [0.250, 0.750] | 1.500 | 0.693 "
        "| no: held-out loss, contrastive loss | 12 |"
    ) in lines
    assert any(line.startswith("| **own** (reference) | ") for line in lines)
    assert [config.train.steps for config in configs] == [2, 2, 2]


def test_every_cell_that_learns_is_status_0_and_equal_cells_are_trained_once(check, trained_cells):
    outcome = check("slots=[bridge,decoder]", "options=[patches,transformer]")
    assert outcome.status == 0
    assert len(trained_cells[0]) == 1, "both are the reference"


def test_missing_cells_only_are_run(check, trained_cells, tmp_path):
    configs, _ = trained_cells
    chosen = ("slots=[bridge]", "options=[mlp,patches]", f"out={tmp_path / 'table.md'}")
    check(*chosen)
    file = tmp_path / "table.md.jsonl"
    first, second = file.read_text().splitlines(keepends=True)
    assert json.loads(first)["captioned"]["loss"] == 1.5
    file.write_text(first + second[:20])  # killed while writing
    check(*chosen)
    assert len(configs) == 3
    assert file.read_text() == first + second
    check(*chosen, "seed=1")
    check(*chosen, "examples=6")
    check(*chosen, "batch_size=3")
    assert len(configs) == 9, "another seed, other examples and another batch are other cells"
    file.write_text("{}\n" + first)
    assert "line 1: not a result; delete that line" in check(*chosen).mistake


def test_an_interruption_keeps_what_is_done(check, trained_cells, tmp_path):
    trained_cells[1].extend([YES, Interrupted(1, "SIGINT")])
    outcome = check("slots=[bridge]", "options=[mlp,patches]", f"out={tmp_path / 'table.md'}")
    assert (outcome.status, outcome.out) == (INTERRUPTED, "")
    assert len((tmp_path / "table.md.jsonl").read_text().splitlines()) == 1


def test_what_cannot_be_run_is_left_out(check, trained_cells):
    trained_cells[1].append(OSError("gpt9 is not\nhere"))
    outcome = check("slots=[decoder,freeze]", "options=[hugging_face,gru,lit]")
    assert outcome.status == 0
    assert [line for line in outcome.out.splitlines() if line.startswith("- ")] == [
        "- gru: needs a file that is not here (gpt9 is not here)",
        "- hugging_face: needs decoder.name_or_path=VALUE",
        "- lit: freezes random weights; give pretrained ones: overrides=[init_from.run=DIR]",
    ]
    assert "nothing was trained" in outcome.out


def test_frozen_parts_are_trained_from_given_weights(check, trained_cells):
    overrides = "overrides=[data=emoji,init_from.run=runs/a]"
    outcome = check("slots=[freeze]", "options=[lit,lm_frozen]", overrides, "split=val_style")
    assert outcome.status == 0
    assert [config.freeze["frozen"] for config in trained_cells[0]] == [["encoder"], ["decoder.lm"]]
    assert trained_cells[0][1].decoder["architecture"] == "gpt2"


@pytest.mark.parametrize("choice", sorted(COMPANIONS))
def test_options_get_what_they_cannot_do_without(check, trained_cells, choice):
    slot, option = choice.split("=")
    check(f"slots=[{slot}]", f"options=[{option}]", "overrides=[init_from.run=runs/a]", "split=val_style")
    (config,) = trained_cells[0]
    check_compatible(config)
    assert (config.decoder is None) == (option == "none")


def test_the_experiment_is_trained_on_names(check, trained_cells):
    check("slots=[bridge]", "options=[patches]", "overrides=[]", "split=val_style")
    (config,) = trained_cells[0]
    assert config.data.train["keywords"] is False
    assert config.tokenizer["languages"] == ["en"]
    assert (config.train.batch_size, config.seed) == (128, 0)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("slots=[bridges]",), "slots: 'bridges' is no slot; did you mean 'bridge'?"),
        (("slots=[bridge]", "options=[mpl]"), "options: 'mpl' is no option of bridge; did you mean 'mlp'?"),
        (("steps=0",), "steps: 0 must be at least 1"),
        (("batch_size=1",), "batch_size: 1 must be at least 2"),
        (("examples=1",), "examples: 1 must be at least 2"),
        (("out=not/there/table.md",), "out: not/there/table.md must be a file in a folder that is there"),
        (("overrides=[model.widht=3]",), "model.widht: no such setting; did you mean model.width?"),
        (("split=val_stile",), "split: 'val_stile' is no validation split; did you mean 'val_style'?"),
        (("device=gpu",), "device: 'gpu' is not one of auto, cpu, cuda"),
    ],
)
def test_mistakes(command, arguments, message):
    assert message in command(bench, "learns", *arguments).mistake


def test_help(command):
    assert "\n  learns " in command(bench, "--help").out
    assert "split=val_style" in command(bench, "learns", "--help").out
    assert tuple(LearnsSettings().slots) == LEARNING_SLOTS
    assert tuple(PartsSettings().slots) == MODEL_SLOTS
