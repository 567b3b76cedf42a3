"""Captions by kind: how often each comes, what each is for, which sources name kinds, and that nothing else matters."""

import json
import re
from collections import Counter
from io import BytesIO
from itertools import islice
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from mmlm.core.batch import Caption, Example
from mmlm.core.errors import ArgumentError, UserError
from mmlm.data.caption_choice import CaptionSettings
from mmlm.data.emoji import Emoji
from mmlm.data.image_folder import ImageFolder
from mmlm.data.parquet_table import ParquetTable
from mmlm.data.saved_dataset import SavedDataset
from mmlm.data.sources import Source, texts_of
from mmlm.data.tar_texts import TextRules
from mmlm.data.text_table import TextTable
from tests.conftest import draw
from tests.data.pictures import Pictures
from tests.data.tables import IMAGE, write_saved
from tests.data.test_loader import make_loader
from tests.data.test_resume_positions import tokenizer as tokenizer

KINDS = {"title": 0.5, "alt": 0.25, "synthetic": 1.0}
CHOICE = CaptionSettings(kinds=KINDS, contrastive=["title", "alt"], captioning=["synthetic"])


class Kinds(Pictures):
    """Each picture has a caption of each kind."""

    def captions_of(self, index: int) -> tuple[Caption, ...]:
        return tuple(Caption(f"{kind} of {index}", "en", kind) for kind in KINDS)


def kinds_of(captions: tuple[Caption, ...]) -> Counter:
    return Counter(caption.kind for caption in captions)


def test_a_kind_comes_as_often_as_it_was_asked_for_and_its_own_losses_get_it(tokenizer):
    loader = make_loader(tokenizer, Kinds(20), 20, captions_per_image=None, choice=CHOICE)
    batches = list(islice(loader, 40))
    came = sum((kinds_of(batch.captions) for batch in batches), Counter())
    for kind, share in KINDS.items():
        assert came[kind] == pytest.approx(800 * share, abs=4 * (800 * share * (1 - share)) ** 0.5), kind
    for batch in batches:
        assert [caption.kind != "synthetic" for caption in batch.captions] == batch.compared.tolist()
        assert [caption.kind == "synthetic" for caption in batch.captions] == batch.predicted.tolist()
    # Drawn anew in each epoch, and each example by itself.
    assert len({tuple(caption.kind for caption in batch.captions) for batch in batches}) == len(batches)


@pytest.mark.parametrize(("ranks", "workers"), [(2, 0), (4, 0), (2, 1)])
def test_ranks_workers_and_resuming_change_nothing(tokenizer, ranks, workers):
    settings = {"captions_per_image": 2, "choice": CHOICE}
    straight = make_loader(tokenizer, Kinds(10), 4, **settings)
    expected = [batch.captions for batch in islice(straight, 7)]
    begin = 3
    loaders = [
        make_loader(tokenizer, Kinds(10), 4, rank=r, world_size=ranks, workers=workers, **settings)
        for r in range(ranks)
    ]
    for loader in loaders:
        loader.position = 4 * begin
    found = [sum((batch.captions for batch in shares), ()) for shares in islice(zip(*loaders, strict=True), 4)]
    assert [[(one.text, one.kind) for one in captions] for captions in found] == [
        [(one.text, one.kind) for one in captions] for captions in expected[begin:]
    ]


def test_an_image_keeps_one_caption_where_none_would_come():
    captions = [Caption("a", "en", "title"), Caption("b", "de", "title"), Caption("c", None, "alt"), Caption("d")]
    choice = CaptionSettings({"title": 0.4, "de": 0.5, "alt": 0.0})
    draws = [0.5, 0.3, 0.0, 0.9]
    assert choice.kept(captions, draws) == [3]
    assert choice.kept(captions[:3], draws[:3]) == [0]  # 0.5 / 0.4 is nearer than 0.3 / (0.4 * 0.5)
    assert choice.kept(captions[:3], [0.39, 0.19, 0.0]) == [0, 1]
    assert choice.kept(captions[2:3], draws[:1]) == []


def test_captions_of_no_kind_are_for_everything():
    captions = [Caption("a", None, "title"), Caption("b", "de", "alt"), Caption("c")]
    choice = CaptionSettings(contrastive=["title"], captioning=["de"])
    assert choice.compared(captions) == [True, False, True]
    assert choice.predicted(captions) == [False, True, True]
    assert CaptionSettings().compared(captions) is None


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"kinds": {"title": 1.5}}, "kinds.title: 1.5 is no probability; it must lie in [0, 1]"),
        ({"contrastive": []}, "contrastive: names no kind"),
    ],
)
def test_settings_that_cannot_be_are_refused(settings, message):
    with pytest.raises(ArgumentError, match=re.escape(message)):
        CaptionSettings(**settings)


def test_a_kind_that_no_caption_has_is_refused_with_those_that_there_are():
    captions = [Caption("a", "en", "title"), Caption("b", "en", "alt")]
    CaptionSettings({"title": 0.5, "en": 0.5}, captioning=["alt"]).check(captions)
    message = "data.captions.captioning: 'synthetik' is the kind or language of no caption; there are alt, en, title"
    with pytest.raises(UserError, match=re.escape(message)):
        CaptionSettings({"title": 0.5}, captioning=["synthetik"]).check(captions)
    CaptionSettings().check(iter(()))


def said(source: Source) -> list[list[tuple[str, str | None]]]:
    listed = [[(caption.text, caption.kind) for caption in one.captions] for one in texts_of(source)]
    read = [source[index] for index in range(len(source))]
    assert [[(c.text, c.kind) for c in one.captions] for one in read if isinstance(one, Example)] == listed
    return listed


EXPECTED = [[("A cat", "title"), ("cat", "alt"), ("a grey cat", "alt")], [("dog", "alt")]]


def test_lines_of_json_name_kinds(tmp_path):
    lines = (
        {"image": "a.png", "captions": {"title": "A cat", "alt": ["cat", "a grey cat"]}},
        {"image": "b.png", "captions": {"alt": "dog"}},
    )
    for line in lines:
        draw("red", "square").save(tmp_path / line["image"])
    (tmp_path / "captions.jsonl").write_text("\n".join(map(json.dumps, lines)))
    assert said(ImageFolder(tmp_path)) == EXPECTED


def test_columns_of_a_table_name_kinds(tmp_path):
    for name in "ab":
        draw("red", "square").save(tmp_path / f"{name}.png")
    (tmp_path / "train.csv").write_text("image,title,alt\na.png,A cat,cat\nb.png,,dog\na.png,,a grey cat\n")
    assert said(TextTable(tmp_path, caption_columns=["title", "alt"])) == EXPECTED
    alone = TextTable(tmp_path, caption_columns="alt")
    assert {kind for captions in said(alone) for _, kind in captions} == {None}


def test_columns_of_parquet_name_kinds(tmp_path):
    draw("red", "square").save(tmp_path / "a.png")
    table = {"image": [{"bytes": None, "path": "a.png"}] * 2, "title": ["A cat", None]}
    pq.write_table(pa.table(table | {"alt": [["cat", "a grey cat"], ["dog"]]}), tmp_path / "a.parquet")
    assert said(ParquetTable(tmp_path / "a.parquet", caption_column=["title", "alt"])) == EXPECTED
    assert said(ParquetTable(tmp_path / "a.parquet", caption_column="alt"))[1] == [("dog", None)]
    for columns in ([], ["alt", "alt"]):
        with pytest.raises(ArgumentError, match=r"caption_column: .* must name"):
            ParquetTable(tmp_path / "a.parquet", caption_column=columns)


def test_columns_of_a_saved_data_set_name_kinds_also_of_rows_that_are_one_example(tmp_path):
    buffer = BytesIO()
    draw("red", "square").save(buffer, "PNG")
    table = pa.table(
        {
            "image": pa.array([{"bytes": buffer.getvalue(), "path": None}] * 3, IMAGE),
            "id": ["a", "b", "a"],
            "title": ["A cat", None, None],
            "alt": [["cat"], ["dog"], ["a grey cat"]],
        }
    )
    folder = write_saved(tmp_path / "saved", [table], 2)
    assert said(SavedDataset(folder, caption_column=["title", "alt"], id_column="id")) == EXPECTED


def test_json_of_tar_shards_names_kinds():
    texts = TextRules(("captions",), "language", "kind", "concept", "a {}", None, None)
    captions, _ = texts.read({"json": json.dumps({"captions": {"title": "A cat", "alt": ["cat", "a grey cat"]}})})
    assert [(caption.text, caption.kind) for caption in captions] == EXPECTED[0]


def test_names_and_keywords_of_emoji_are_kinds():
    captions = Emoji("val_style", keywords=True)[0].captions
    assert [caption.kind for caption in captions] == ["name", "keywords"]


def test_a_run_trains_on_the_kinds_of_its_config(build, shapes):
    lines = [json.loads(line) for line in (shapes / "captions.jsonl").read_text().splitlines()]
    for line in lines:
        line["captions"] = {"title": line.pop("caption"), "synthetic": "a drawing"}
    (shapes / "captions.jsonl").write_text("\n".join(map(json.dumps, lines)))
    kinds = ("data.captions.contrastive=[title]", "data.captions.captioning=[synthetic]")
    batch = build(*kinds, "data.captions_per_image=null", "+data.captions.kinds={synthetic: 0.5}").state.loader.peek()
    assert batch.compared.tolist() == [caption.kind == "title" for caption in batch.captions]
    assert (batch.predicted != batch.compared).all()
    with pytest.raises(UserError, match=r"data\.captions\.kinds: 'titel' is the kind or language of no caption"):
        build("+data.captions.kinds={titel: 0.5}")
    with pytest.raises(UserError, match=r"data\.captions\.captioning: no objective of this run reads such captions"):
        build(*kinds, "objective=contrastive", "evaluators=retrieval")


def write_negatives(shapes: Path) -> None:
    lines = [json.loads(line) for line in (shapes / "captions.jsonl").read_text().splitlines()]
    for number, line in enumerate(lines):
        caption = line.pop("caption")
        line["captions"] = {"title": [caption, f"{caption} there"], "wrong": [f"no {caption}", "nothing"][: number % 3]}
    (shapes / "captions.jsonl").write_text("\n".join(map(json.dumps, lines)))


def test_texts_that_are_false_of_their_image_come_beside_its_captions(build, shapes):
    write_negatives(shapes)
    experiment = build("data.captions.negatives=[wrong]", "train.batch_size=8")
    batch = experiment.state.loader.peek()
    assert batch.negative.tolist() == [caption.kind == "wrong" for caption in batch.captions]
    assert torch.equal(batch.compared, ~batch.negative)
    assert torch.equal(batch.predicted, ~batch.negative)
    true = batch.image_index[~batch.negative]
    assert sorted(true.tolist()) == list(range(8)), "one caption an image, data.captions_per_image=1, whatever is false"
    assert int(batch.negative.sum()) == sum(number % 3 for number in range(8)), "and all that is false"
    for part in batch.split(3):
        assert part.negative.tolist() == [caption.kind == "wrong" for caption in part.captions]
    validation = experiment.validation["validation"]
    for captions in ([texts.captions for texts in validation.texts()], [one.captions for one in validation]):
        assert {caption.kind for some in captions for caption in some} == {"title"}, (
            "and none where captions are scored"
        )
    assert {caption.kind for caption in validation.sample()[0].captions} == {"title"}


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (
            ("data.captions.negatives=[typo]",),
            "data.captions.negatives: 'typo' is the kind or language of no caption",
        ),
        (("data.captions.negatives=[]",), "negatives: names no kind"),
        (
            ("data.captions.negatives=[wrong]", "data.captions.captioning=[wrong]"),
            "negatives: 'wrong' is in captioning too",
        ),
        (
            ("data.captions.negatives=[wrong]", "objective=captioning", "evaluators=captioning"),
            "data.captions.negatives: no objective of this run reads them",
        ),
    ],
)
def test_what_is_wrong_about_false_texts_is_refused(build, shapes, options, said):
    write_negatives(shapes)
    with pytest.raises(UserError) as error:
        build(*options)
    assert said in str(error.value)


def test_a_caption_comes_beside_false_texts_whatever_the_probabilities():
    settings = CaptionSettings(kinds={"title": 0.5, "wrong": 0.5}, negatives=["wrong"])
    captions = [Caption("a", None, "title"), Caption("b", None, "wrong"), Caption("c", None, "title")]
    assert settings.kept(captions, [0.9, 0.1, 0.8]) == [1, 2], "the nearest title, beside what is false"
    assert settings.kept(captions, [0.9, 0.6, 0.1]) == [2]
    assert settings.kept(captions[1:2], [0.9]) == [], "what is false may stay away"
