"""Runs side by side, from what real tiny runs left behind."""

import re

import pytest
from PIL import Image

from mmlm.compare import main
from mmlm.core.errors import UserError


@pytest.fixture
def two_runs(trained):
    return trained("name=one", "train.eval_every=1"), trained("name=two", "seed=1", "objective.weights.captioning=2")


def test_a_table_and_a_figure(two_runs, tmp_path, capsys):
    first, second = two_runs
    out = tmp_path / "out"
    assert main([f"runs=[joint:{first},heavy:{second}]", f"out={out}"]) == 0
    table = (out / "scores.md").read_text()
    told = capsys.readouterr()
    assert table.strip() in told.out
    assert told.err == ""
    differences = (out / "differences.md").read_text()
    assert differences.strip() in told.out
    assert "heavy - joint | image_to_text/R@1" in differences
    assert "another seed of training" in differences
    lines = table.splitlines()
    assert lines[0].startswith("| `validation` | image to text/R@1 | image to text/R@5 |")
    assert [line.split("|")[1].strip() for line in lines[2:]] == ["joint", "heavy"]
    cells = [cell.strip() for cell in lines[2].split("|")[2:-1]]
    assert cells[-2] == "3"
    assert all(re.fullmatch(r"\d+\.\d+", cell) for cell in cells[:-2])
    with Image.open(out / "curves.png") as picture:
        assert picture.width > 600
        assert len(picture.convert("RGB").getcolors(maxcolors=1 << 24)) > 20


@pytest.mark.parametrize(
    ("runs", "message"),
    [
        ("[]", r"^runs: 0 given, and a comparison needs at least two"),
        ("[{0},{1}]", r"^runs: two are called 'caption_base'; name them apart"),
        ("[{0},nowhere]", r"nowhere"),
    ],
)
def test_what_cannot_be_compared_is_refused_in_one_line(two_runs, tmp_path, runs, message):
    with pytest.raises(UserError, match=message) as caught:
        main([f"runs={runs.format(*two_runs)}", f"out={tmp_path / 'out'}"])
    assert "\n" not in str(caught.value)


def test_a_run_without_scores_is_named(two_runs, tmp_path):
    first, second = two_runs
    (second / "scores.json").unlink()
    with pytest.raises(UserError, match=r"^runs: heavy .* has no scores\.json yet"):
        main([f"runs=[joint:{first},heavy:{second}]", f"out={tmp_path}"])


def test_runs_of_other_data_are_compared_with_a_warning(trained, tmp_path, capsys):
    first, second = trained("name=one"), trained("name=two", "data.max_tokens=8")
    arguments = [f"runs=[joint:{first},short:{second}]", f"out={tmp_path / 'out'}"]
    with pytest.raises(
        UserError, match=r"^runs: scored under unlike protocols.*the longest caption, in tokens, \(joint: "
    ):
        main(arguments)
    assert main([*arguments, "unlike=true"]) == 0
    assert capsys.readouterr().err == "mmlm: the runs also differ in data (data.max_tokens)\n"
