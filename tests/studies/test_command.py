"""What a study says to whoever asks for it wrongly, its plan and its tuning, in this process."""

import json

import pytest

from mmlm import study
from mmlm.cli.checked_config import compose_typed
from mmlm.commands import study as work
from mmlm.commands.study_costs import count
from mmlm.run.header import run_costs
from mmlm.studies.costs import Counted, Measured
from mmlm.studies.grid import compared_runs, tuning_runs
from mmlm.studies.place import Place
from mmlm.studies.processes import Outcome
from mmlm.studies.progress import Phase, State
from mmlm.studies.tuning import best_value, tuned_values
from tests.studies.conftest import TUNED


@pytest.mark.parametrize(
    ("words", "told"),
    [
        ([], "study: none is named; write python -m mmlm.study NAME"),
        (["bridges"], "study: there is no study 'bridges'; did you mean 'bridges_small'?"),
        (
            ["bridges_small", "plans"],
            "plans: a study can be asked for its plan, status or report; did you mean 'plan'?",
        ),
        (["FILE", "processes=0"], "processes: 0 must be at least 1"),
        (["FILE", "at_once=2"], "at_once: 2 has no effect without launcher=slurm; use processes"),
        (["FILE", "launcher=slurm", "at_once=0"], "at_once: 0 must be at least 1; null is no limit"),
        (["FILE", "launcher=slurm", "processes=2"], "processes: 2 has no effect with launcher=slurm; use at_once"),
        (["FILE", "slurm.partition=gpu"], "slurm: these settings have no effect without launcher=slurm; add it"),
        (["FILE", "launcher=slurm", "slurm.nodes=0"], "slurm.nodes: 0 must be above 0"),
        (["FILE", "launcher=slum"], "launcher: 'slum' is not one of none, slurm"),
        (["FILE", "report"], "small: no run is done yet; see python -m mmlm.study "),
    ],
    ids=str,
)
def test_a_mistake_is_one_line(command, write_study, runs, words, told):
    file = str(write_study())
    found = command(study, *(file if word == "FILE" else word for word in words), *([f"runs={runs}"] if words else []))
    assert found.mistake.startswith(told)


def test_a_metric_that_nobody_yields_is_refused(command, write_study, runs):
    file = write_study(metrics=["image_to_text/R@2"])
    told = command(study, str(file), "plan", f"runs={runs}").mistake
    assert told.startswith("metrics: no cell is scored by 'image_to_text/R@2'; did you mean 'image_to_text/R@")


def test_a_plan(command, write_study, runs, monkeypatch):
    costs = {"joint": 4e9, "captions": 2e9}
    monkeypatch.setattr(work, "count", lambda cell: Counted(1000, ((0, costs[cell.levels["loss"]]),)))
    monkeypatch.setattr(work, "measure", lambda cell: Measured(2.0, 10.0, 3e9, "8 steps"))
    file = str(write_study(matching={"equal": "flops"}, seeds=[0, 1, 2]))
    without = command(study, file, "plan", f"runs={runs}", "measure=false")
    assert (without.status, without.err) == (0, "")
    assert "hours: not measured (measure=true" in without.out
    lines = command(study, file, "plan", f"runs={runs}", "processes=2").out.splitlines()
    begin = lines.index("small: Does it help?")
    assert lines[begin + 1] == "4 cells x 3 seeds = 12 runs; baseline joint+low; equal flops"
    rows = {line.split()[0]: line.split() for line in lines[begin + 3 : begin + 8]}
    # 3 steps of the baseline are 12 GFLOPs, 6 of the others; a run takes 10 seconds besides its steps.
    assert rows["joint+low"] == ["joint+low", "3", "12", "1,000", "0.01", "3.00", "16", "s", "8", "steps"]
    assert rows["captions+high"] == ["captions+high", "6", "24", "1,000", "0.01", "3.00", "22", "s", "8", "steps"]
    assert lines[-1].startswith("all: 0.14 TFLOPs; 2 min here, 2 at a time")


def test_a_cell_is_counted_as_a_run_counts_itself(opened, build):
    """Over the captions of the first batches; the freeze plan's later steps cost more."""
    axes = {"plan": {"whole": [], "late": ["freeze=bridge_only", "+freeze.unfreeze.encoder=2"]}}
    _, cells = opened(axes=axes, baseline="whole")
    whole, late = count(cells["whole"]), count(cells["late"])
    experiment = build()
    costs = run_costs(cells["whole"].config, experiment)
    assert whole.parameters == late.parameters == sum(p.numel() for p in experiment.model.parameters())
    batches = []
    for number in range(4):
        experiment.state.loader.position = 4 * number
        batches.append(experiment.state.loader.peek())
    by_hand = [costs.flops(experiment.model, 4, 4, int(batch.lengths.sum())) for batch in batches]
    assert whole.phases == ((0, pytest.approx(sum(by_hand) / 4)),)
    assert [begin for begin, _ in late.phases] == [0, 2]
    assert late.phases[0][1] < late.phases[1][1] < whole.phases[0][1]


def test_the_best_value_of_each_cell(opened, runs, place: Place):
    content, cells = opened(**TUNED)
    found = tuning_runs(content, cells, runs, compose_typed)
    states = {run.label: State(Phase.done, 2) for run in found}
    scores = {
        "joint+low": (1.0, 2.0),
        "joint+high": (2.0, 1.0),
        "captions+low": (1.0, 1.0),
        "captions+high": (3.0, 4.0),
    }
    place.folder.mkdir(parents=True)
    for run in found:
        run.folder.mkdir(parents=True)
        value = scores[run.cell][content.tuning.values.index(run.tuned)]
        (run.folder / "config.yaml").write_text("a: 1\n")
        (run.folder / "scores.json").write_text(
            json.dumps({"step": 2, "splits": {"validation": {"captioning/CIDEr-D": value}}})
        )
    states[found[-1].label] = State(Phase.running, 1)
    assert tuned_values(content, found, states, place) == {"joint+low": 0.02, "joint+high": 0.01, "captions+low": 0.01}
    record = json.loads((place.folder / "tuned.json").read_text())
    assert record["joint+low"] == {"taken": 0.02, "0.01": 1.0, "0.02": 2.0}
    assert best_value({3.0: 1.0, 1.0: 1.0, 2.0: 0.5}) == 1.0


def test_a_study_that_tunes_trains_each_cell_with_its_best_value(command, write_study, runs, monkeypatch):
    """What tunes comes first. A cell of which a run that tunes has failed waits, and the others go on."""
    asked: list[list[tuple[str, int, float]]] = []

    def train(opened, due):
        asked.append([(run.cell, run.seed, compose_typed(run.overrides).optim["lr"]) for run in due])
        for run in due:
            if run.tuned is not None and run.cell == "captions+high":
                continue
            run.folder.mkdir(parents=True)
            (run.folder / "config.yaml").write_text("a: 1\n")
            (run.folder / "report.html").touch()
            (run.folder / "metrics.jsonl").write_text(json.dumps({"step": run.steps, "seconds": 1.0}) + "\n")
            score = (run.tuned or 0.0) * (-1 if run.cell == "joint+high" else 1)
            content = {"step": run.steps, "splits": {"validation": {"captioning/CIDEr-D": score}}}
            (run.folder / "scores.json").write_text(json.dumps(content))
        return Outcome(None, {})

    monkeypatch.setattr(work.Opened, "_train", train)
    words = (str(write_study(**TUNED)), f"runs={runs}")
    assert command(study, *words).status == 0
    cells = ["joint+low", "joint+high", "captions+low", "captions+high"]
    best = {"joint+low": 0.02, "joint+high": 0.01, "captions+low": 0.02}
    assert asked[0] == [(cell, 9, value) for value in (0.01, 0.02) for cell in cells]
    assert asked[1] == [(cell, seed, value) for seed in (0, 1) for cell, value in best.items()]
    shown = command(study, *words, "status").out
    assert "2 more wait for the value of optim.lr that is best for their cell" in shown
    assert "12 done, 0 running, 2 waiting, 0 failed" in shown


def test_a_study_that_is_only_looked_at_counts_nothing(command, write_study, runs):
    words = (str(write_study(matching={"equal": "time"})), f"runs={runs}")
    told = command(study, *words, "status").mistake
    assert told.startswith("cell joint+low: the study has not begun, and the steps of its cells follow from costs")


def test_runs_of_other_code_are_refused_until_told(command, write_study, opened, runs, monkeypatch):
    content, cells = opened()
    (first, *_) = compared_runs(content, cells, runs, {}, {}, compose_typed)
    first.folder.mkdir(parents=True)
    (first.folder / "environment.json").write_text(json.dumps({"git_commit": None, "code": "other"}))
    monkeypatch.setattr(work.Opened, "_train", lambda opened, due: Outcome(None, {}))
    words = (str(write_study()), f"runs={runs}")
    told = command(study, *words).mistake
    assert told.startswith("1 of 1 runs that have begun were made by other code (other (unknown); this is ")
    assert told.endswith("or go on by code=changed, which the table marks")
    assert command(study, *words, "code=changed").status == 0
