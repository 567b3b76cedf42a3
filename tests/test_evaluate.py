"""``python -m mmlm.evaluate``: the table it prints, the files it brings up to date, and what it refuses."""

import json
import math
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from mmlm import caption, evaluate, pack, report, train
from mmlm.commands.evaluate import WIDTH, score_table
from mmlm.core.figure import Figure
from tests.conftest import TINY, draw


def test_evaluate_prints_a_table_and_brings_the_report_up_to_date(trained, command, shapes):
    source = f"{{_target_: mmlm.data.image_folder.ImageFolder, folder: {shapes}}}"
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
    assert max(map(len, outcome.out.splitlines()[1:-1])) <= WIDTH
    both = command(evaluate, f"run={folder.parent}", "splits=[validation,held_out]", "precision=bf16", "device=cpu")
    assert ["validation", "held_out"] in [line.split() for line in both.out.splitlines()]


def class_folder(folder: Path) -> Path:
    """Two classes, an image of each."""
    for colour in ("red", "blue"):
        (folder / f"{colour}_square").mkdir(parents=True)
        draw(colour, "square").save(folder / f"{colour}_square" / "1.png")
    return folder


def test_other_images_are_scored_under_their_own_names(trained, command, shapes, tmp_path):
    shutil.copytree(shapes, tmp_path / "same")
    tagged = (shapes / "captions.jsonl").read_text().replace("}", ', "language": "en"}')
    (shapes / "captions.jsonl").write_text(tagged)
    folder = trained("tokenizer.languages=[en]", "data.language=en", "evaluators=standard")
    classes = class_folder(tmp_path / "classes")
    outcome = command(evaluate, f"run={folder}", f"data=[mine:{tmp_path / 'same'},{classes}]")
    assert (outcome.status, outcome.err) == (0, ""), "captions that name no language are in the run's own"
    assert f"mine: {tmp_path / 'same'}, taken as a folder with captions.jsonl: 8 examples" in outcome.out
    assert f"classes: {classes}, taken as a folder of images for each class: 2 examples" in outcome.out
    assert ["mine", "classes"] in [line.split() for line in outcome.out.splitlines()]
    first = json.loads((folder / "scores.json").read_text())["splits"]
    assert list(first) == ["validation", "mine", "classes"], "beside the run's own"
    assert first["mine"].pop("description") == "not of this run: same, a folder with captions.jsonl"
    assert first["mine"]["images"] == 8
    page = (folder / "report.html").read_text()
    assert "not of this run: classes, a folder of images for each class" in page
    assert str(tmp_path) not in page.partition("Do it again")[0], "the page names no folder of the machine"
    # Other images under a name that was used before: nothing of the former ones stays.
    again = command(evaluate, f"run={folder}", f"data=mine:{classes}", "evaluators=retrieval", "splits=[validation]")
    assert ["validation", "mine"] in [line.split() for line in again.out.splitlines()]
    second = json.loads((folder / "scores.json").read_text())["splits"]
    assert second["mine"]["images"] == 2
    assert not any(name.startswith("captioning/") for name in second["mine"])
    assert second["classes"] == first["classes"]


def test_other_images_are_scored_in_another_language_that_the_run_knows(trained, command, shapes, tmp_path):
    folder = trained("tokenizer.languages=[de]", "evaluators=captioning")
    shutil.copytree(shapes, tmp_path / "german")
    outcome = command(evaluate, f"run={folder}", f"data={tmp_path / 'german'}", "language=de")
    assert (outcome.status, outcome.err) == (0, "")
    scores = json.loads((folder / "scores.json").read_text())["splits"]
    assert "captioning/CIDEr-D" in scores["german"]
    assert (
        "language: a caption's language is 'xx'"
        in command(evaluate, f"run={folder}", f"data={shapes}", "language=xx").mistake
    )
    assert "language: is for the images of data=" in command(evaluate, f"run={folder}", "language=de").mistake


def test_classes_are_captioned_as_in_training(trained, command, shapes, tmp_path):
    classes = class_folder(tmp_path / "classes")
    settings = ("data=class_folder", "data.train.caption='my {}'", "train.batch_size=2", "evaluators=retrieval")
    places = (f"data.train.folder={classes}", f"data.validation.validation.folder={classes}")
    folder = trained(*settings, *places)
    command(evaluate, f"run={folder}", f"data=[again:{classes}]")
    samples = json.loads((folder / "samples.json").read_text())["splits"]["again"]
    assert samples["examples"][0]["captions"] == ["my blue square"]


def test_of_several_runs_the_newest_is_taken_and_named(trained, command, shapes):
    first, second = trained("name=first"), trained("name=second", "seed=1")
    os.utime(first / "metrics.jsonl", (1, 1))
    above = first.parents[1]
    line = f"mmlm: run: {above} holds 2 runs; taking the one that was trained last, {second}\n"
    for module, rest in ((evaluate, ()), (report, ()), (caption, (str(shapes / "red_square.png"),))):
        outcome = command(module, f"run={above}", *rest)
        assert (outcome.status, outcome.err) == (0, line)
    assert str(second) in command(evaluate, f"run={above}").out


def test_a_table_fits_the_terminal_and_cuts_names_and_no_numbers():
    scores = {f"a split with quite a long name, number {i}": {"images": 123456789.0, "loss": i} for i in range(7)}
    figures = {"loss": Figure("loss"), "images": Figure("images")}
    lines = score_table(scores, figures, WIDTH)
    assert max(map(len, lines)) <= WIDTH
    assert [line.split()[1:] for line in lines if line.startswith("loss")] == [
        ["0"],
        ["1"],
        ["2"],
        ["3"],
        ["4"],
        ["5"],
        ["6"],
    ]
    short = score_table({str(i): {"images": i} for i in range(9)}, figures, WIDTH)
    assert [line.split() for line in short if line.startswith("images")] == [
        ["images", *"012345"],
        ["images", *"678"],
    ]


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        (4.7e-13, "0.000"),
        (-4.7e-13, "0.000"),
        (0.0, "0.000"),
        (0.00042, "0.00042"),
        (0.12345678, "0.1235"),
        (3.14159, "3.142"),
        (12345.0, "12345"),
        (0, "0"),
        (math.nan, "nan"),
    ],
)
def test_a_value_of_the_table(value, shown):
    """Nothing is 0.000, as BLEU of captions without a match, and a count is whole, however large."""
    (_, line) = score_table({"val": {"score": value}}, {"score": Figure("score")}, WIDTH)
    assert line.split() == ["score", shown]


def test_captions_are_decoded_as_the_command_says(trained, command):
    folder = trained()
    outcome = command(evaluate, f"run={folder}", "evaluators=captioning", "decoding.beams=2")
    assert (outcome.status, outcome.err) == (0, "")
    rules = json.loads((folder / "scores.json").read_text())["protocols"]["validation"]["evaluators"]
    assert rules["captioning"]["decoding"] == "beams=2"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("splits=[vall]",), "splits: 'vall' is no split of this run; there are: validation"),
        (("splits=[test]",), "splits: test holds no split of this run; there are: validation"),
        (("splits=[]",), "splits: [] holds no split of this run"),
        (("precision=fp64",), "precision: 'fp64' is not one of"),
        (("device=gpu",), "device: 'gpu' is not one of auto, cpu, cuda"),
        (("stray",), "'stray' is not a setting"),
        (("decoding.beams=0",), "beams: 0 must be at least 1"),
        (("decoding.beams=2", "decoding.n=2"), "decoding.n: 2 must be 1"),
        (("evaluators=retrieval", "decoding.beams=2"), "decoding: none of the evaluators scores written captions"),
    ],
)
def test_mistakes_of_evaluate(trained, command, arguments, message):
    assert message in command(evaluate, f"run={trained()}", *arguments).mistake


def test_mistakes_about_other_images(trained, command):
    folder = trained()
    for argument, message in (
        ("data=nowhere", "nowhere: there is no such file or folder; give one that holds captions.jsonl, "),
        ("data=[validation:nowhere]", "data: 'validation' is a split of this run; give the images another name"),
        ("data=[a:x,a:y]", "data: two are called 'a'; name them apart"),
        ("data=[a", "data: cannot read '[a'; write data=PATH or data=[NAME:PATH,NAME:PATH]"),
        ("data=:x", "data: '' is no name"),
    ):
        assert message in command(evaluate, f"run={folder}", argument).mistake


@pytest.mark.slow
def test_hydra_is_left_alone_until_an_option_is_asked_for():
    code = "import sys, mmlm.commands.evaluate; print('hydra' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout == "False\n"


def test_a_run_that_named_its_data_by_relative_paths_is_evaluated_from_anywhere(
    tmp_path, shapes, tiny, command, monkeypatch
):
    """The folder of the same name where the command is given is other data."""
    project, elsewhere = tmp_path / "project", tmp_path / "elsewhere"
    shutil.copytree(shapes, project / "photos")
    (elsewhere / "photos").mkdir(parents=True)
    monkeypatch.chdir(project)
    relative = ("data.train.folder=photos", "data.validation.validation.folder=photos", "name=here")
    assert command(train, *tiny, *relative).status == 0
    run = tmp_path / "runs" / "caption_base" / "here" / "seed=0"
    before = json.loads((run / "scores.json").read_text())["splits"]
    monkeypatch.chdir(elsewhere)
    done = command(evaluate, "run=../runs/caption_base/here", "data=[more:../project/photos]", "splits=[validation]")
    assert done.status == 0, done
    assert f"the run's own data are read from {project}, where it was trained" in done.out
    after = json.loads((run / "scores.json").read_text())["splits"]
    assert after["validation"] == before["validation"]
    assert after["more"]["image_to_text/R@1"] == before["validation"]["image_to_text/R@1"]
    assert str(project) not in (run / "report.html").read_text()
    assert Path.cwd() == elsewhere


def test_a_run_trains_on_shards_in_an_object_store_and_scores_others_there(command, shapes, tmp_path, store):
    assert command(pack, f"data={shapes}", f"out={tmp_path / 'data'}", "shard_size=4").status == 0
    url = store("memory")
    options = [option for option in TINY if option != "data=folder"]
    runs = tmp_path / "runs"
    trained = command(train, *options, f"data={url}", "train.steps=1", f"runs={runs}", "train.batch_size=2")
    assert trained.status == 0, trained
    assert f"data: a tenth of the images of {url} validates" in trained.err
    outcome = command(evaluate, f"run={runs}", f"data=mine:{url}/00001.tar")
    assert f"mine: {url}/00001.tar, taken as the tar shard 00001.tar: 4 examples" in outcome.out, outcome
