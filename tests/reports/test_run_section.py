"""What stands on a page beside the run's own numbers: another run's, other seeds, and what is changed of the base."""

import json
import re
import shutil

import pytest

from mmlm.cli.arguments import ReportArguments
from mmlm.commands.report import rewrite_report
from mmlm.core.errors import UserError
from mmlm.record.changes import Change, Changes, read_changes, record_changes
from mmlm.record.manifest import DamagedFileError
from mmlm.reports.run_folder import read_run_folder
from mmlm.reports.run_section import name_beside
from tests.reports.conftest import write_items
from tests.reports.test_page import Outline, text_of, written


@pytest.fixture
def two_runs(make_run, change_json):
    """A run, and another seed of it with lower scores, in another precision."""
    folder = make_run()
    other = folder.with_name("seed=10")
    shutil.copytree(folder, other)
    change_json(other / "scores.json", lambda c: c["splits"]["val_style"].update({"image_to_text/R@5": 0.5}))
    change_json(other / "environment.json", lambda c: c.update(precision="bf16", device="CPU, 8 threads"))
    change_json(folder / "environment.json", lambda c: c.update(precision="fp32", device="CPU, 2 threads"))
    for one in (folder, other):
        (one / "manifest.jsonl").unlink()
    return folder, other


def test_another_runs_values_stand_beside_with_a_warning(two_runs, capsys):
    folder, other = two_runs
    assert rewrite_report(ReportArguments(run=str(folder), against=str(other))) == 0
    told = capsys.readouterr()
    page = (folder / "report.html").read_text()
    text = text_of(page)
    assert "52.3% seed 10 50.0% +2.3" in text
    assert '<span class="difference better">+2.3</span>' in page
    assert "seed 10 25.0% +0.0" in text, "equal scores are neither better nor worse"
    assert '<span class="difference">+0.0</span>' in page
    line = (
        "the runs also differ in precision (this run: fp32, seed 10: bf16); "
        "device (this run: CPU, 2 threads, seed 10: CPU, 8 threads)"
    )
    assert line in text
    assert told.err == f"mmlm: {line}\n"
    assert Outline(page).open == []
    assert "seed 10" not in text_of(written(folder)).split("Scores", 1)[1], "only where it is asked for"


def test_what_cannot_stand_beside_is_one_line(two_runs):
    folder, other = two_runs
    (other / "scores.json").unlink()
    for against, message in ((folder, r"^against: .* is the run itself"), (other, r"^against: .* has no scores.json")):
        with pytest.raises(UserError, match=message):
            rewrite_report(ReportArguments(run=str(folder), against=str(against)))


def test_other_runs_are_called_by_the_first_thing_that_differs(two_runs, tmp_path):
    folder, other = map(read_run_folder, two_runs)
    assert name_beside(folder, other) == "seed 10"
    for name, place in (("4567cdef", "study/4567cdef/seed=3"), ("wide", "wide/0123abcd/seed=3")):
        shutil.copytree(two_runs[0], tmp_path / "runs" / place)
        assert name_beside(folder, read_run_folder(tmp_path / "runs" / place)) == name


def test_links_to_the_reports_of_other_seeds(make_run):
    folder = make_run()
    assert "Other seeds" not in written(folder)
    for name in ("seed=10", "seed=2", "seed=5", "seed=x", 'seed=1"><script>', "other"):
        (folder.parent / name).mkdir()
        if name != "seed=5":
            (folder.parent / name / "report.html").write_text("")
    page = written(folder)
    assert [link for link in Outline(page).links if link.endswith("report.html")] == [
        "../seed=2/report.html",
        "../seed=10/report.html",
    ]
    assert "Other seeds: seed 2 , seed 10" in text_of(page)


def test_the_contents_lead_to_every_section(make_run):
    folder = make_run()
    links = re.findall(r'<a href="#(\w+)"', written(folder))
    assert links == ["scores", "curves", "samples", "reproduce"], "what a run of an older kind has"
    write_items(folder)
    record_changes(folder, Changes("caption_base", []))
    page = written(folder)
    links = re.findall(r'<a href="#(\w+)"', page)
    assert links == ["scores", "breakdown", "curves", "samples", "changes", "reproduce"]
    assert set(links) <= set(Outline(page).ids)
    assert "ann 1 100.0% 20.7 to 100.0% 100.0%" in text_of(page)
    assert "1 a blue cat a dog" in text_of(page)


def test_what_the_run_changes(make_run):
    folder = make_run()
    changes = Changes(
        "caption_base",
        [
            Change("bridge._target_", "mmlm.model.bridges.patches.Patches", "own.Bridge"),
            Change("bridge.depth", None, "2"),
            Change("train.ema_decay", "0.99", "None"),
        ],
    )
    record_changes(folder, changes)
    assert read_changes(folder) == changes
    text = text_of(written(folder))
    assert "setting base this run bridge Patches Bridge bridge.depth – 2 train.ema_decay 0.99 null" in text
    record_changes(folder, Changes("caption_base", []))
    assert "Nothing: it is experiment=caption_base as it is." in text_of(written(folder))
    for damage in ("{", '{"base": "a", "changes": [3]}', "[]"):
        (folder / "changes.json").write_text(damage)
        (folder / "manifest.jsonl").unlink(missing_ok=True)
        with pytest.raises(DamagedFileError, match=r"changes.json: is damaged \(it holds no list of changes\)"):
            read_changes(folder)
        told: list[str] = []
        assert read_run_folder(folder, told.append).changes is None
        assert len(told) == 1
    record_changes(folder, changes)  # a run that goes on writes it anew
    assert read_changes(folder) == changes


def test_the_rank_of_the_true_answer_and_the_extreme_examples(make_run, change_json):
    folder = make_run()

    def ranked(content):
        split = content["splits"]["val_style"]
        split["examples"][1]["rank"] = 1234
        split["queries"][0]["rank"] = 17
        split["extremes"] = {kind: [split["examples"][1]] for kind in ("worst", "typical", "best")}

    change_json(folder / "samples.json", ranked)
    page = written(folder)
    text = text_of(page)
    assert "a green bird rank 17" in text
    assert text.count("rank 1,234") == 5, "the card, its nearest captions, and the three extremes"
    assert text.index("Worst: ") < text.index("Typical: ") < text.index("Best: ") < text.index("Where the decoder")
    assert Outline(page).open == []


def test_the_headline_counts_the_images_that_were_scored(make_run, change_json):
    folder = make_run()
    counts = {"image_to_text/queries": 1400, "text_to_image/queries": 1300, "captioning/captioned": 900}
    change_json(folder / "scores.json", lambda c: c["splits"]["val_style"].update(counts))
    text = text_of(written(folder))
    assert (
        "for 52% of 1,400 images a true caption is among the five nearest of 1,300, and 52% of 900 images are" in text
    )


def test_the_values_of_a_curve_are_in_the_page(make_run):
    page = written(make_run(steps=10))
    data = [json.loads(found.replace("&quot;", '"')) for found in re.findall(r'data-curves="([^"]*)"', page)]
    total = next(one for one in data if one["lines"][0]["name"] == "train" and one["lines"][0]["values"][0] == 9)
    assert total["lines"][0]["steps"] == list(range(1, 11))
    assert total["lines"][0]["values"][3] == 2.25
    assert total["from"] == 0
    assert total["until"] == pytest.approx(10.2)
