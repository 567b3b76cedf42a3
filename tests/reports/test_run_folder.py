import math

import pytest

from mmlm.core.errors import UserError
from mmlm.reports.run_folder import read_run_folder


def test_reads_every_file(make_run):
    run = read_run_folder(make_run(steps=60))
    assert (run.experiment, run.name, run.seed) == ("study", "0123abcd", 3)
    assert run.display_path == "runs/study/0123abcd/seed=3"
    assert (run.metrics.steps, run.metrics.examples, run.metrics.seconds) == (60, 480, 30.0)
    assert run.metrics.splits == ("val_style",)
    assert run.metrics.series["train/contrastive"].steps == tuple(range(1, 61))
    assert run.metrics.series["val_style/captioning/exact"].steps == (10, 20, 30, 40, 50, 60)
    assert run.scores.step == 60
    assert run.scores.splits["val_style"].images == 1500
    assert "images" not in run.scores.splits["val_style"].values
    assert run.parameters == {"encoder": 1_200_000, "decoder": 300_000}
    example = run.samples["val_style"].examples[0]
    assert example.exact
    assert example.attention.grid == (2, 2)
    assert example.nearest_captions[1].match


def test_experiment_name_may_be_nested(tmp_path):
    folder = tmp_path / "runs" / "bridges" / "prefix" / "small" / "seed=12"
    folder.mkdir(parents=True)
    (folder / "config.yaml").touch()
    run = read_run_folder(folder)
    assert (run.experiment, run.name, run.seed) == ("bridges/prefix", "small", 12)


def test_another_layout_is_named_after_its_folder(tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "config.yaml").touch()
    run = read_run_folder(tmp_path / "mine")
    assert (run.experiment, run.name, run.seed) == ("mine", None, None)
    assert run.display_path == "mine"


def test_only_a_config_is_enough(tmp_path):
    (tmp_path / "config.yaml").write_text("a: 1\n", encoding="utf-8")
    run = read_run_folder(tmp_path)
    assert run.metrics.series == {}
    assert run.scores is None
    assert run.samples == {}
    assert run.environment == {}
    assert run.parameters == {}


def test_a_torn_last_line_is_left_out(make_run):
    folder = make_run(steps=5)
    with (folder / "metrics.jsonl").open("a", encoding="utf-8") as file:
        file.write('{"step": 6, "examples": 48, "train/lo')
    metrics = read_run_folder(folder).metrics
    assert metrics.steps == 5
    assert metrics.series["train/loss"].steps == (1, 2, 3, 4, 5)


@pytest.mark.parametrize(("line", "said"), [("[1, 2]", "not a row"), ('{"train/loss": 1}', "has no step")])
def test_any_other_bad_line_is_refused_by_its_number(make_run, line, said):
    folder = make_run(steps=5)
    with (folder / "metrics.jsonl").open("a", encoding="utf-8") as file:
        file.write(line + '\n{"step": 6}\n')
    with pytest.raises(UserError, match=f"line 6: {said}"):
        read_run_folder(folder)


def test_a_resumed_run_overwrites_the_steps_it_takes_again(tmp_path):
    (tmp_path / "metrics.jsonl").write_text(
        '{"step": 1, "examples": 8, "seconds": 1.0, "train/loss": 3.0}\n'
        '{"step": 2, "examples": 16, "seconds": 2.0, "train/loss": 9.0}\n'
        '{"step": 3, "examples": 24, "seconds": 3.0, "train/loss": 9.5}\n'
        '{"step": 2, "examples": 16, "seconds": 2.5, "train/loss": 2.0}\n',
        encoding="utf-8",
    )
    metrics = read_run_folder(tmp_path).metrics
    assert metrics.series["train/loss"].steps == (1, 2, 3)
    assert metrics.series["train/loss"].values == (3.0, 2.0, 9.5)
    assert metrics.seconds == 2.5


def test_values_that_are_not_finite_are_kept(tmp_path):
    # JSON has no NaN: the log spells it as text.
    (tmp_path / "metrics.jsonl").write_text('{"step": 1, "train/loss": "NaN"}\n', encoding="utf-8")
    metrics = read_run_folder(tmp_path).metrics
    assert math.isnan(metrics.series["train/loss"].last)


def test_refuses_what_is_no_run_folder(tmp_path):
    with pytest.raises(UserError, match="nowhere: no such folder; give a run folder"):
        read_run_folder(tmp_path / "nowhere")
    with pytest.raises(UserError, match=r"neither config\.yaml nor metrics\.jsonl"):
        read_run_folder(tmp_path)


@pytest.mark.parametrize(("text", "said"), [("{", "not JSON"), ("[]", "holds a list, not an object")])
def test_refuses_a_broken_file_by_name(make_run, text, said):
    folder = make_run()
    (folder / "scores.json").write_text(text, encoding="utf-8")
    with pytest.raises(UserError, match=f"scores.json: {said}"):
        read_run_folder(folder)


@pytest.mark.parametrize(
    ("key", "value", "said"),
    [
        ("generated", 3, r"examples\[0\]: generated: should be a str, is 3"),
        ("captions", ["a", 3], r"captions\[1\]: should be a str, is 3"),
        ("image", "https://example.org/a.png", "image: should be a data:image/...;base64 URI"),
        ("image", 'data:image/png;base64,AA") no-repeat', "image: should be a data:image"),
        ("attention", {"words": ["a"], "grid": [2, 2], "maps": [[1.0]]}, "one map of rows x columns weights a word"),
        ("nearest_captions", [{"text": "a", "match": True}], "has no 'similarity'"),
    ],
)
def test_refuses_a_wrong_sample_by_its_place(make_run, change_json, key, value, said):
    folder = make_run()
    change_json(folder / "samples.json", lambda c: c["splits"]["val_style"]["examples"][0].update({key: value}))
    with pytest.raises(UserError, match=said) as caught:
        read_run_folder(folder)
    assert str(caught.value).startswith("samples.json: splits: val_style: examples")
    assert "\n" not in str(caught.value)


def test_an_example_without_attention_or_neighbours(make_run, change_json):
    folder = make_run()

    def strip(content):
        example = content["splits"]["val_style"]["examples"][0]
        example["attention"] = None
        del example["nearest_captions"]

    change_json(folder / "samples.json", strip)
    example = read_run_folder(folder).samples["val_style"].examples[0]
    assert example.attention is None
    assert example.nearest_captions == ()
