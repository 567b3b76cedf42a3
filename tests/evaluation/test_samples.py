"""What a report shows of a split: which rows, and what is said about them."""

import base64
import io
import json
from collections.abc import Sequence

import numpy as np
import pytest
import torch
from PIL import Image

from mmlm.core.batch import Caption, Example
from mmlm.evaluation.evaluators import generate_captions
from mmlm.evaluation.items import spaced, split_ranks
from mmlm.evaluation.sample_settings import SampleSettings
from mmlm.evaluation.samples import collect_samples, data_uri

TEXTS = ("a red square", "a green circle", "un café très grand", "日本 の 旗")


def examples(texts: Sequence[str] = TEXTS) -> list[Example]:
    generator = torch.Generator().manual_seed(0)
    return [
        Example(f"image{i}", torch.randint(0, 256, (3, 16, 16), generator=generator, dtype=torch.uint8), (Caption(t),))
        for i, t in enumerate(texts)
    ]


@pytest.mark.parametrize(
    ("count", "total", "rows"),
    [
        (1, 5, [2]),
        (2, 4, [1, 3]),
        (4, 4, [0, 1, 2, 3]),
        (9, 3, [0, 1, 2]),
        (0, 3, []),
        (3, 0, []),
        (3, 30, [5, 15, 25]),
    ],
)
def test_rows_are_spread_evenly(count, total, rows):
    assert spaced(count, total) == rows


def test_an_image_survives_its_data_address():
    image = examples()[0].image
    kind, _, text = data_uri(image).partition(",")
    assert kind == "data:image/webp;base64"
    decoded = np.array(Image.open(io.BytesIO(base64.b64decode(text))).convert("RGB"))
    assert (torch.from_numpy(decoded).permute(2, 0, 1) == image).all()


def test_what_is_collected_of_a_split(make_split):
    split = make_split(examples(), batch_size=3)
    samples = collect_samples(split, SampleSettings(examples=4, queries=2, attention=1), None, split_ranks(split))
    assert json.loads(json.dumps(samples)) == samples
    assert [example["id"] for example in samples["examples"]] == ["image0", "image1", "image2", "image3"]
    generated = generate_captions(split, None)
    similarity = split.gallery.image_embedding @ split.gallery.text_embedding.T
    uris = [data_uri(example.image) for example in examples()]
    for row, example in enumerate(samples["examples"]):
        assert example["captions"] == [TEXTS[row]]
        assert example["generated"] == generated[row]
        assert example["exact"] is (generated[row] == TEXTS[row])
        assert example["image"] == uris[row]
        best = similarity[row].argsort(descending=True).tolist()
        assert [near["text"] for near in example["nearest_captions"]] == [split.gallery.texts[text] for text in best]
        assert [near["match"] for near in example["nearest_captions"]] == [text == row for text in best]
        assert (example["attention"] is None) == (row > 0 or not generated[row].split())
    for place, query in zip(spaced(2, 4), samples["queries"], strict=True):
        assert query["caption"] == TEXTS[place]
        best = similarity[:, place].argsort(descending=True).tolist()
        assert [found["image"] for found in query["images"]] == [uris[row] for row in best]
        assert [found["match"] for found in query["images"]] == [row == place for row in best]


def test_an_exact_caption_and_the_language_of_the_truths(make_split, monkeypatch):
    both = (Caption("a cat", "en"), Caption("eine Katze", "de"))
    split = make_split([Example("a", examples()[0].image, both)], languages=("en", "de"))
    monkeypatch.setattr("mmlm.evaluation.samples.generate_captions", lambda split, language, decoding: ["eine Katze"])
    for language, truths, exact in (("de", ["eine Katze"], True), ("en", ["a cat"], False)):
        (example,) = collect_samples(split, SampleSettings(), language, split_ranks(split))["examples"]
        assert (example["captions"], example["exact"]) == (truths, exact)


@pytest.mark.parametrize("said", ["", " ", "\n \t"])
def test_a_caption_of_nothing_has_no_attention(make_split, monkeypatch, said):
    split = make_split(examples())
    monkeypatch.setattr("mmlm.evaluation.samples.generate_captions", lambda split, language, decoding: [said] * 4)
    samples = collect_samples(split, SampleSettings(attention=4), None, split_ranks(split))
    assert [example["attention"] for example in samples["examples"]] == [None] * 4
