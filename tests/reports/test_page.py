import json
import re
from html.parser import HTMLParser

import pytest

from mmlm import report
from mmlm.core.errors import UserError
from mmlm.core.figure import Figure, FigureGroup, loss_term
from mmlm.record.figures import RunFigures, record_figures
from mmlm.reports.page import format_count, format_duration, format_flops, write_report
from mmlm.reports.samples_section import mark_words
from mmlm.reports.scores_section import format_value

HOSTILE = "\"><script>owned()</script>'&"


class Outline(HTMLParser):
    """Ids, links and open elements of a page, and whether every element is closed where it should be."""

    VOID = frozenset({"meta", "link", "img", "br"})

    def __init__(self, page: str) -> None:
        super().__init__()
        self.ids: list[str] = []
        self.links: list[str] = []
        self.scripts = 0
        self.open: list[str] = []
        self.feed(page)
        self.close()

    def handle_starttag(self, tag, attrs):
        self.ids += [value for name, value in attrs if name == "id"]
        self.links += [value for name, value in attrs if name in ("src", "href", "xlink:href", "action")]
        assert not [name for name, _ in attrs if name.startswith("on")]
        self.scripts += tag == "script"
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.handle_starttag(tag, attrs)
        if tag not in self.VOID:
            self.open.pop()

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


def written(folder) -> str:
    """The page of a run folder."""
    return write_report(folder).read_text(encoding="utf-8")


def text_of(page: str) -> str:
    """What a reader sees: no style, script or markup."""
    page = re.sub(r"<(style|script)>.*?</\1>", " ", page, flags=re.DOTALL)
    return re.sub(r"\s+", " ", re.sub(r"<[^>]*>", " ", page))


def test_page_shows_the_run(make_run):
    folder = make_run()
    page = written(folder)
    text = text_of(page)
    assert "<title>study, seed 3</title>" in page
    for said in (
        "On val_style , for 52% of 1,500 images a true caption is among the five nearest of 1,400",
        "1.50 M",
        "encoder 1.20 M",
        "52.3%",
        "0.400 to 0.600",
        "0123456789",
        "git checkout 0123456789abcdef pip install -e . python -m mmlm.train experiment=study",
        "python -m mmlm.report run=runs/study/0123abcd/seed=3",
        "packages.torch 2.15.0",
        "exactly right: 1 of these 3",
        "a green bird",
        "Image to text, R@5",
    ):
        assert said in text, said
    assert "uncommitted" not in text
    assert str(folder) not in page
    assert [p.name for p in folder.iterdir() if "report" in p.name] == ["report.html"]


def test_page_is_well_formed_and_needs_nothing_else(make_run):
    page = written(make_run())
    outline = Outline(page)
    assert outline.open == []
    assert len(outline.ids) == len(set(outline.ids))
    assert outline.scripts == 1
    assert all(link.startswith(("data:", "#")) for link in outline.links)
    assert not re.findall(r"url\((?!#|data:)", page)
    assert "default-src 'none'" in page


def test_everything_written_by_others_is_escaped(make_run, change_json):
    folder = make_run()

    def poison_samples(content):
        for split in content["splits"].values():
            for example in split["examples"]:
                example |= {"id": HOSTILE, "captions": [HOSTILE], "generated": HOSTILE}
                example["nearest_captions"][0]["text"] = HOSTILE
                example["attention"]["words"] = [HOSTILE, HOSTILE]
            split["queries"][0]["caption"] = HOSTILE
        content["splits"][HOSTILE] = content["splits"].pop("val_concepts")

    def poison_scores(content):
        content["splits"][HOSTILE] = content["splits"]["val_style"] | {"description": HOSTILE, f"other/{HOSTILE}": 1.0}

    def poison_environment(content):
        content |= {"command": HOSTILE, "git_commit": HOSTILE, "git_dirty": True, "device": HOSTILE, HOSTILE: HOSTILE}
        content["model"]["parameters"][HOSTILE] = 5

    change_json(folder / "samples.json", poison_samples)
    change_json(folder / "scores.json", poison_scores)
    change_json(folder / "environment.json", poison_environment)
    (folder / "config.yaml").write_text(HOSTILE, encoding="utf-8")
    with (folder / "metrics.jsonl").open("a", encoding="utf-8") as file:
        file.write(json.dumps({"step": 61, f"train/{HOSTILE}": 1.0, f"{HOSTILE}/captioning/exact": 0.5}) + "\n")
    page = written(folder)
    assert "<script>owned" not in page
    outline = Outline(page)
    assert outline.scripts == 1
    assert outline.open == []
    assert page.count("&lt;script&gt;owned()") > 20


@pytest.mark.parametrize("missing", ["samples.json", "scores.json", "environment.json", "config.yaml", "metrics.jsonl"])
def test_a_run_with_a_missing_piece_has_a_page(make_run, missing):
    folder = make_run()
    (folder / missing).unlink()
    page = written(folder)
    assert Outline(page).open == []
    text = text_of(page)
    assert ("No samples yet" in text) == (missing == "samples.json")
    assert ("Nothing logged yet" in text) == (missing == "metrics.jsonl")
    # Without scores.json the newest evaluation of the metrics stands in.
    assert "Not evaluated yet" not in text
    assert "at step 60" in text
    assert ("52.3%" in text) == (missing != "scores.json")


def test_a_run_of_two_steps(make_run):
    folder = make_run(steps=2)
    for name in ("samples.json", "scores.json"):
        (folder / name).unlink()
    page = written(folder)
    text = text_of(page)
    assert "Not evaluated yet" in text
    assert "No samples yet" in text
    assert page.count('<svg class="chart"') == 4


def test_a_run_that_has_only_a_config(tmp_path):
    (tmp_path / "config.yaml").write_text("a: 1\n", encoding="utf-8")
    assert "Nothing logged yet" in text_of(written(tmp_path))


def silence(content):
    """Takes the decoder's part out of samples.json."""
    for split in content["splits"].values():
        for number, example in enumerate(split["examples"]):
            example |= {"generated": None, "exact": False, "attention": None}
            if number == 0:
                example["nearest_captions"].reverse()


def test_without_a_decoder_images_stand_with_their_nearest_captions(make_run, change_json):
    folder = make_run()
    change_json(folder / "samples.json", silence)
    for name in ("captioning/exact", "captioning/CIDEr-D"):
        change_json(folder / "scores.json", lambda c, name=name: [s.pop(name) for s in c["splits"].values()])
    page = written(folder)
    assert Outline(page).open == []
    text = text_of(page)
    for said in ("What it finds", "Images and their nearest caption", "a true one: 1 of these 3", "Nearest captions"):
        assert said in text, said
    for unsaid in ("sees and says", "Generated captions", "Where the decoder looked", "exactly the right", "None"):
        assert unsaid not in text, unsaid
    cards = re.findall(r'<figure class="(exact|wrong)".*?<p class="generated" dir="auto">(.*?)</p>', page)
    right = ("exact", '<span class="tick" title="right">✓</span> a blue cat')
    wrong = ("wrong", '<span class="hit">a</span> <span class="miss">dog</span>')
    assert cards == [right, wrong, wrong] * 2
    assert re.findall(r'data-filter="(\w+)"[^>]*>([^<]*)<', page)[:3] == [
        ("all", "all 3"),
        ("exact", "found 1"),
        ("wrong", "missed 2"),
    ]


def test_an_image_without_any_caption_near_it(make_run, change_json):
    folder = make_run()

    def lonely(content):
        silence(content)
        for split in content["splits"].values():
            for example in split["examples"]:
                example["nearest_captions"] = []

    change_json(folder / "samples.json", lonely)
    text = text_of(written(folder))
    assert "a true one: 0 of these 3" in text
    assert "Nearest captions" not in text


def test_flops_of_the_parts_are_shown_where_they_are_known(make_run, change_json):
    folder = make_run()
    assert "FLOPs" not in text_of(written(folder))
    flops = {"encoder": 39_600_000, "decoder": 40_700_000, "image_projection": 0}
    change_json(folder / "environment.json", lambda c: c["model"].update(flops=flops))
    text = text_of(written(folder))
    assert "One example 80.3 MFLOPs" in text
    assert "encoder 1.20 M , 39.6 MFLOPs" in text


def test_a_torn_last_line_does_not_hinder(make_run):
    folder = make_run(steps=5)
    with (folder / "metrics.jsonl").open("a", encoding="utf-8") as file:
        file.write('{"step": 6, "tr')
    assert "Steps 5" in text_of(written(folder))


def test_figures_of_objectives_have_their_own_charts(make_run):
    folder = make_run(steps=5)
    names = ("train/contrastive/temperature", "train/captioning/accuracy", "train/matching/odd_thing")
    with (folder / "metrics.jsonl").open("a", encoding="utf-8") as file:
        file.write(json.dumps({"step": 6} | dict.fromkeys(names, 0.5)) + "\n")
    text = text_of(written(folder))
    loss, training = text.split(" Training ", 1)
    assert "contrastive train" in loss
    assert "temperature" not in loss
    assert "temperature now 0.500" in training
    assert "captioning accuracy now 50.0%" in training
    assert "matching odd thing now 0.500" in training


def test_diagnoses_have_a_chart_for_each_family(make_run):
    folder = make_run(steps=5)
    values = {
        "train/gradient_at_bridge/contrastive": 0.02,
        "train/gradient_at_bridge/captioning": 0.0,
        "train/gradient_cosine/contrastive-captioning": -0.25,
        "train/modality_gap": 1.1,
        "train/effective_rank/image": 30.0,
        "train/update_ratio/text_encoder": 0.001,
    }
    with (folder / "metrics.jsonl").open("a", encoding="utf-8") as file:
        file.write(json.dumps({"step": 6} | values) + "\n")
    page = written(folder)
    before, after = text_of(page).split(" Diagnoses ", 1)
    assert "contrastive-captioning" not in before
    assert before.count("contrastive train") == 1, "a gradient is no loss"
    diagnoses, training = after.split(" Training ", 1)
    for said in (
        "gradient at the bridge contrastive 0.020 captioning 0",
        "cosine of gradients contrastive-captioning -0.250",
        "modality gap now 1.10",
        "effective rank of embeddings image 30.00",
        "update to weight ratio text encoder 0.001",
    ):
        assert said in diagnoses, said
    assert "ratio" not in training
    assert Outline(page).open == []


def test_weighted_losses_share_a_chart_with_those_of_weight_one(make_run):
    folder = make_run(steps=5)
    assert "adds to the total" not in text_of(written(folder))
    with (folder / "metrics.jsonl").open("a", encoding="utf-8") as file:
        file.write(json.dumps({"step": 6, "train/captioning/weighted": 1.5, "train/captioning/perplexity": 2.0}) + "\n")
    loss, training = text_of(written(folder)).split(" Training ", 1)
    assert "what each adds to the total contrastive 0.800 captioning 1.50" in loss
    assert "weighted" not in training
    assert "captioning perplexity now 2.00" in training


def test_any_objective_is_among_the_losses_by_its_plain_name(make_run):
    folder = make_run(steps=5)
    with (folder / "metrics.jsonl").open("a", encoding="utf-8") as file:
        file.write(json.dumps({"step": 6, "train/parallel": 1.5, "train/gradient_norm": 2.0}) + "\n")
    loss, training = text_of(written(folder)).split(" Training ", 1)
    assert "parallel train 1.50" in loss
    assert "gradient norm now 2.00" in training


def add_values(folder, change_json, **values):
    """Adds scores to every split, and to a row of the newest step."""
    change_json(folder / "scores.json", lambda c: [split.update(values) for split in c["splits"].values()])
    with (folder / "metrics.jsonl").open("a", encoding="utf-8") as file:
        file.write(json.dumps({"step": 60} | {f"val_style/{name}": value for name, value in values.items()}) + "\n")


def test_a_score_that_somebody_declares_is_shown_for_what_it_is(make_run, change_json):
    folder = make_run()
    naming = FigureGroup("Naming", "Does it know names?")
    figure = Figure(
        "Zero-shot",
        "the nearest name is right",
        naming,
        title="Naming, zero-shot",
        share=True,
        higher_is_better=True,
        chance="z/guess",
        low="z/low",
        high="z/high",
        headline="{value} of {images} are named <right>",
    )
    record_figures(folder, RunFigures(evaluation={"z/a": figure}))
    add_values(folder, change_json, **{"z/a": 0.25, "z/guess": 0.125, "z/low": 0.1, "z/high": 0.4})
    page = written(folder)
    text = text_of(page)
    assert "among the five nearest of 1,400, 52% are captioned in exactly the right words, and 25% of" in text
    assert "25% of 1,500 images are named &lt;right&gt;." in text
    assert "Naming Does it know names? Zero-shot the nearest name is right 25.0% chance 12.5%" in text
    assert "25.0% chance 12.5% 10.0 to 40.0% not above 12.5%" in text
    assert "Naming, zero-shot val_style 25.0%" in text, "its chart"
    assert "Other" not in text, "the ends of an interval and the level of chance have no row of their own"
    assert Outline(page).open == []


def test_a_figure_of_which_less_is_better_is_to_lie_below_chance(make_run, change_json):
    folder = make_run()
    figure = Figure("Error", higher_is_better=False, chance=0.5, low="e/low", high="e/high")
    record_figures(folder, RunFigures(evaluation={"e/mean": figure}))
    add_values(folder, change_json, **{"e/mean": 0.4, "e/low": 0.3, "e/high": 0.49})
    assert "not below" not in text_of(written(folder))
    add_values(folder, change_json, **{"e/high": 0.5})
    assert "Error 0.400 chance 0.500 0.300 to 0.500 not below 0.500" in text_of(written(folder))


def test_what_nobody_declares_is_shown_under_its_own_name(make_run, change_json):
    folder = make_run()
    add_values(folder, change_json, **{"probe/odd_thing": 0.25})
    text = text_of(written(folder))
    assert "Other What else was measured. probe/odd_thing 0.250" in text
    validation = text.split(" Validation ", 1)[1].split(" Training ", 1)[0]
    assert "probe odd thing val_style 0.250" in validation


@pytest.mark.parametrize("content", [None, "{", '{"training": {"loss": 3}, "evaluation": {}}'])
def test_without_sound_declarations_everything_is_shown_under_its_own_name(make_run, content):
    folder = make_run()
    (folder / "figures.json").unlink()
    if content is not None:
        (folder / "figures.json").write_text(content)
    page = written(folder)
    text = text_of(page)
    assert ("figures.json is damaged" in text) == (content is not None)
    assert "Other What else was measured. image_to_text/R@1 0.523 0.250" in text
    assert "image to text R@10 val_style 0.600" in text
    training = text.split(" Training ", 1)[1]
    assert "contrastive now" in training
    assert Outline(page).open == []


def test_training_figures_stand_where_they_are_declared_to(make_run):
    folder = make_run(steps=5)
    probes = FigureGroup("Probes", "At times.")
    training = {
        "pull": loss_term("nats"),
        "pull/near": Figure("near", group=probes, share=True),
        "pull/by_class": Figure("by class", group=probes, family=True),
        "pull/silent": Figure("silent", shown=()),
    }
    record_figures(folder, RunFigures(training))
    names = ("pull", "pull/near", "pull/by_class/cat", "pull/by_class/big_dog", "pull/silent")
    with (folder / "metrics.jsonl").open("a", encoding="utf-8") as file:
        file.write(json.dumps({"step": 6} | {f"train/{name}": 0.25 for name in names}) + "\n")
    text = text_of(written(folder))
    loss, probed = text.split(" Probes At times. ", 1)
    assert "loss train 0.250" in loss
    probed, rest = probed.split(" Training ", 1)
    assert "near now 25.0%" in probed
    assert "by class cat 0.250 big dog 0.250" in probed
    assert "silent" not in text
    assert "learning rate" in rest


def test_an_interval_that_holds_zero_and_a_dirty_tree_are_said(make_run, change_json):
    folder = make_run()
    assert "not above 0" not in text_of(written(folder))
    change_json(folder / "scores.json", lambda c: c["splits"]["val_style"].update({"image_use_gap/low": -0.01}))
    change_json(folder / "environment.json", lambda c: c.update(git_dirty=True))
    text = text_of(written(folder))
    assert "not above 0" in text
    assert "There were uncommitted changes" in text


def test_a_score_that_is_not_finite_is_a_dash(make_run, change_json):
    folder = make_run()
    change_json(folder / "scores.json", lambda c: c["splits"]["val_style"].update({"image_to_text/R@5": float("nan")}))
    page = written(folder)
    assert "–" in text_of(page)
    assert "nan%" not in page


def test_page_stays_small_with_48_samples_a_split(make_run, change_json):
    folder = make_run()
    picture = "data:image/webp;base64," + "A" * 1600

    def grow(content):
        for split in content["splits"].values():
            split["examples"] = [split["examples"][1] | {"image": picture}] * 48
            split["queries"] *= 16

    change_json(folder / "samples.json", grow)
    page = written(folder)
    assert len(page.encode()) < 1_500_000
    assert "36 more" in text_of(page)


def test_marked_words():
    assert mark_words("A red, cat!", ["a blue cat"]) == (
        '<span class="hit">A</span> <span class="miss">red,</span> <span class="hit">cat!</span>'
    )
    assert mark_words("", ["a"]) == ""
    assert mark_words("<b>", ["b"]) == '<span class="hit">&lt;b&gt;</span>'
    assert mark_words("! x", ["?"]) == '<span class="miss">!</span> <span class="miss">x</span>'


@pytest.mark.parametrize(
    ("value", "share", "text"),
    [
        (0.5234, True, "52.3%"),
        (0.5234, False, "0.523"),
        (2.345, False, "2.35"),
        (1234.4, False, "1,234"),
        (0.00012, False, "0.00012"),
        (0.0, False, "0"),
        (-0.25, False, "-0.250"),
        (float("inf"), False, "–"),
        (None, True, "–"),
    ],
)
def test_format_value(value, share, text):
    assert format_value(value, share) == text


def test_format_flops():
    counts = (950, 1_500, 39_640_000, 17_580_000_000, 2.5e12)
    said = ["950 FLOPs", "1.5 kFLOPs", "39.6 MFLOPs", "17.6 GFLOPs", "2.5 TFLOPs"]
    assert [format_flops(count) for count in counts] == said


def test_format_duration_and_count():
    assert [format_duration(s) for s in (0, 41.6, 432, 11_100)] == ["0 s", "42 s", "7 min 12 s", "3 h 05 min"]
    assert [format_count(n) for n in (950, 167_616, 2_131_344, 7_240_000_000)] == ["950", "167.6 k", "2.13 M", "7.24 B"]


def test_command_writes_the_page_again(make_run, command):
    folder = make_run()
    for given in (folder, folder.parent):  # a folder with one run below it will do
        (folder / "report.html").unlink(missing_ok=True)
        outcome = command(report, f"run={given}")
        assert (outcome.status, outcome.out.strip(), outcome.err) == (0, str(folder / "report.html"), "")
        assert (folder / "report.html").is_file()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((), "run: required, and not set; write run=VALUE"),
        (("folder",), "'folder' is not a setting; write key=value"),
        (("rum=a",), "rum: no such setting; did you mean run?"),
        (("run=not/there",), "run: not/there is no run folder (it has no config.yaml)"),
    ],
)
def test_mistakes_of_the_command(command, arguments, message):
    assert message in command(report, *arguments).mistake


def test_refuses_a_folder_that_is_no_run(tmp_path):
    with pytest.raises(UserError, match="not a run folder"):
        write_report(tmp_path)
    assert list(tmp_path.iterdir()) == []
