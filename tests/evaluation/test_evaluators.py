"""Evaluators on hand-made splits: what they average over, which references count, and what a blind model shows."""

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from mmlm.core.batch import TEXT_ONLY, Caption, Example
from mmlm.core.errors import ArgumentError, UserError
from mmlm.evaluation import evaluators as module
from mmlm.evaluation.evaluators import (
    CaptionLoss,
    CaptionQuality,
    ImageUse,
    Retrieval,
    caption_losses,
    per_caption_mean,
)
from mmlm.evaluation.gallery import Gallery
from mmlm.evaluation.generation.captions import write_captions
from mmlm.evaluation.generation.settings import GenerationSettings
from mmlm.evaluation.split import EncodedSplit
from mmlm.evaluation.written_captions import generate_captions, shown_decoding
from mmlm.evaluation.zero_shot import ZeroShot

TEXTS = [("a cat",), ("a very long caption of a dog in the rain",), ("two birds", "birds"), ("a fish",)]


def pictures(count: int) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [torch.randint(0, 256, (3, 16, 16), generator=generator, dtype=torch.uint8) for _ in range(count)]


def examples(texts=TEXTS, language=None) -> list[Example]:
    return [
        Example(f"image{i}", image, tuple(Caption(text, language) for text in of_image), f"concept{i}")
        for i, (image, of_image) in enumerate(zip(pictures(len(texts)), texts, strict=True))
    ]


def plain_loss(split: EncodedSplit, text: str, row: int | None, language: str | None = None) -> torch.Tensor:
    """float32[t]: the token losses of one caption given one image (None: no image), by the model's other path."""
    ids = torch.tensor([split.tokenizer.encode(text, language, split.max_tokens)])
    item = next(item for item in split.batches if row in item.rows)
    features = item.features[torch.tensor([row - item.first])]
    cache = split.model.start_decoding(features)
    with torch.no_grad():
        logits = split.model.decode(ids[:, :-1], cache)[0]
    return F.cross_entropy(logits, ids[0, 1:], reduction="none")


def test_the_mean_of_each_caption():
    batch = type("Counts", (), {"target_counts": torch.tensor([2, 1, 4])})()
    losses = torch.tensor([1.0, 3.0, 7.0, 1.0, 2.0, 3.0, 6.0])
    assert per_caption_mean(losses, batch).tolist() == [2.0, 7.0, 3.0]


@pytest.mark.parametrize("fusion", ["cross_attention", "prefix"])
@pytest.mark.parametrize("batch_size", [1, 3])
def test_caption_losses_are_those_of_decoding_one_caption_at_a_time(make_split, fusion, batch_size):
    split = make_split(examples(), batch_size, fusion=fusion)
    rows = split.image_index.tolist()
    expected = [plain_loss(split, c.text, row).mean() for c, row in zip(split.captions, rows, strict=True)]
    torch.testing.assert_close(caption_losses(split, None), torch.stack(expected), rtol=1e-4, atol=1e-5)


def test_swapped_images_are_those_that_were_asked_for(make_split):
    split = make_split(examples(), batch_size=3)
    swap = torch.tensor([2, 3, 1, 0])
    rows = split.image_index.tolist()
    expected = [plain_loss(split, c.text, int(swap[row])).mean() for c, row in zip(split.captions, rows, strict=True)]
    torch.testing.assert_close(caption_losses(split, swap), torch.stack(expected), rtol=1e-4, atol=1e-5)


def test_caption_loss_weighs_every_token_the_same(make_split):
    split = make_split(examples(), batch_size=3)
    rows = split.image_index.tolist()
    tokens = torch.cat([plain_loss(split, c.text, row) for c, row in zip(split.captions, rows, strict=True)])
    assert dict(CaptionLoss()(split)) == {"captioning": pytest.approx(tokens.mean().item(), rel=1e-4)}
    assert tokens.mean().item() != pytest.approx(caption_losses(split, None).mean().item(), rel=1e-4)


def test_retrieval_of_matching_and_of_swapped_embeddings(make_split):
    split = make_split(examples([("a cat",), ("a dog",), ("a bird",)]))
    for order, expected in (([0, 1, 2], 1.0), ([1, 2, 0], 0.0)):
        gallery = Gallery(torch.eye(3), torch.eye(3)[order], split.gallery.pairs, split.gallery.texts)
        chosen = replace(split)
        chosen.__dict__["gallery"] = gallery
        values = dict(Retrieval()(chosen))
        assert values["image_to_text/R@1"] == values["text_to_image/R@1"] == expected
        assert values["image_to_text/R@5"] == 1.0
        assert values["image_to_text/R@1/chance"] == pytest.approx(1 / 3)
        assert values["image_to_text/R@5/chance"] == values["image_to_text/R@5/high"] == 1.0
        assert values["image_to_text/queries"] == values["text_to_image/queries"] == 3
        of_way = ("R@1", "R@5", "R@10", "mAP", "median_rank")
        names = {f"{way}/{name}" for way in ("image_to_text", "text_to_image") for name in of_way}
        assert {name for name in values if name.count("/") == 1 and "queries" not in name} == names


# Declarations


def test_every_value_is_declared_and_what_is_declared_is_made(make_split):
    shipped = [CaptionLoss, CaptionQuality, ImageUse, Retrieval]
    own = {one for one in vars(module).values() if isinstance(one, type) and one.__module__ == module.__name__}
    assert own - {module.Evaluator} == set(shipped), "every evaluator of the package is tried"
    split = make_split(examples())
    for evaluator in (kind() for kind in shipped):
        declared = {*evaluator.figures, *(name for one in evaluator.figures.values() for name in one.helpers())}
        assert {name for name, _ in evaluator(split)} == declared, evaluator


def test_scores_are_the_means_of_their_items(make_split):
    split = make_split(examples())
    for evaluator, least in ((Retrieval(), 3), (Retrieval("coco"), 3), (CaptionQuality(), 3), (ZeroShot(), 2)):
        values = dict(evaluator(split))
        found = list(evaluator.per_item(split))
        assert len(found) >= least
        for one in found:
            assert one.values.double().mean().item() == pytest.approx(values[one.figure])
            assert len(set(one.items)) == len(one.items) == len(one.values) == len(one.concept)


# Image use


def blind(split: EncodedSplit) -> EncodedSplit:
    """The split as a model sees it whose memory of every image is zero."""
    for item in split.batches:
        item.features.memory.zero_()
    return split


@pytest.mark.parametrize("fusion", ["cross_attention", "prefix"])
def test_a_model_that_gets_no_memory_uses_no_image(make_split, fusion):
    seeing, unseeing = make_split(examples(), fusion=fusion), blind(make_split(examples(), fusion=fusion))
    assert dict(ImageUse()(unseeing)) == pytest.approx({"mean": 0, "low": 0, "high": 0}, abs=1e-6)
    assert abs(dict(ImageUse()(seeing))["mean"]) > 1e-5


def test_image_use_leaves_texts_without_an_image_out(make_split):
    texts = Example("text", None, (Caption("no picture at all"),))
    with_text, without = make_split([*examples(), texts], 2), make_split(examples(), 2)
    assert TEXT_ONLY in with_text.image_index
    # The tokenizers differ by one caption, so only the number of captions that count can be compared.
    values = dict(ImageUse(seed=3)(with_text))
    assert values["low"] <= values["mean"] <= values["high"]
    assert dict(ImageUse(seed=3)(without)).keys() == values.keys() == {"mean", "low", "high"}


def test_image_use_depends_on_its_seed_only(make_split):
    split = make_split(examples())
    assert dict(ImageUse(1)(split)) == dict(ImageUse(1)(split))
    assert dict(ImageUse(1)(split)) != dict(ImageUse(2)(split))


def test_image_use_of_one_concept_says_what_is_missing(make_split):
    alone = [Example(f"image{i}", image, (Caption("a cat"),), "cat") for i, image in enumerate(pictures(3))]
    with pytest.raises(UserError, match="no concept may have more than half"):
        dict(ImageUse()(make_split(alone)))


# Captions


class Parrot(nn.Module):
    """Says for each image the text its memory holds, in place of a decoder."""

    def __init__(self, sentences: list[list[int]]) -> None:
        super().__init__()
        self.sentences, self.started = sentences, []

    def start_decoding(self, features, room: int | None = None) -> "Recited":
        return Recited(features.memory[:, 0, 0].long().tolist())

    def decode(self, tokens: torch.Tensor, cache: "Recited") -> torch.Tensor:
        if cache.place == 0:
            self.started += tokens[:, 0].tolist()
        said = [self.sentences[row][cache.place] for row in cache.rows]
        cache.place += 1
        return F.one_hot(torch.tensor(said), 400).float()[:, None]


class Recited:
    """The cache of a parrot."""

    def __init__(self, rows: list[int]) -> None:
        self.rows, self.place = rows, 0

    def keep_images(self, images: torch.Tensor) -> None:
        self.rows = [self.rows[image] for image in images.tolist()]


def parroting(split: EncodedSplit, sentences: list[str]) -> EncodedSplit:
    """The split with a model that says ``sentences``, one an image."""
    ids = [split.tokenizer.encode(text, None, split.max_tokens)[1:] for text in sentences]
    row = 0
    for item in split.batches:
        for memory in item.features.memory:
            memory[0, 0] = row
            row += 1
    longest = max(len(sentence) for sentence in ids)
    padded = [sentence + [split.tokenizer.pad_id] * (longest - len(sentence)) for sentence in ids]
    return replace(split, model=Parrot(padded))


def test_captions_are_decoded_for_every_image_in_order(make_split):
    sentences = ["a cat", "a dog in the rain", "birds", "a"]
    split = parroting(make_split(examples(), batch_size=3), sentences)
    assert generate_captions(split, None) == sentences
    assert split.model.started == [split.tokenizer.start_id(None)] * 4


def test_caption_quality_of_known_captions(make_split):
    right = parroting(make_split(examples()), [texts[-1] for texts in TEXTS])
    values = dict(CaptionQuality()(right))
    assert values["exact"] == 1.0
    assert values["BLEU-1"] == pytest.approx(1.0)
    half = parroting(make_split(examples()), ["a cat", "nothing", "birds", "nothing"])
    assert dict(CaptionQuality()(half))["exact"] == 0.5
    assert set(values) >= {"exact", "BLEU-1", "BLEU-4", "ROUGE-L", "CIDEr-D"}


def test_only_references_of_the_language_count(make_split):
    mixed = [
        Example("a", pictures(2)[0], (Caption("a cat", "en"), Caption("eine Katze", "de")), "cat"),
        Example("b", pictures(2)[1], (Caption("ein Hund", "de"),), "dog"),
    ]
    split = parroting(make_split(mixed, languages=("en", "de")), ["a cat", "ein Hund"])
    assert dict(CaptionQuality("en")(split))["exact"] == 1.0  # the dog has no English reference
    assert split.model.started == [split.tokenizer.start_id("en")] * 2
    assert dict(CaptionQuality("de")(split))["exact"] == 0.5
    assert dict(CaptionQuality(None)(split))["exact"] == 1.0


# Decoding


def test_captions_are_scored_as_they_are_decoded(make_split):
    split = make_split(examples())
    beam = GenerationSettings(beams=3, length_penalty=0.0, min_tokens=6)
    written = {}

    def of_batch(item):
        found = write_captions(split.model, split.tokenizer, item.features, beam, item.batch.image_key, 24)
        return [one[0].text for one in found]

    for part in split.over_batches(of_batch):
        written |= {len(written) + row: text for row, text in enumerate(part)}
    greedy, own = CaptionQuality(), CaptionQuality(decoding=beam)
    said = next(own.per_item(split)).outputs
    assert said == list(written.values()) == generate_captions(split, None, beam)
    assert said != next(greedy.per_item(split)).outputs == generate_captions(split, None)
    assert shown_decoding({"retrieval": Retrieval(), "captioning": own}) == beam
    assert own.rules["decoding"] == "beams=3, length_penalty=0.0, min_tokens=6"
    assert greedy.rules["decoding"] == "greedy"


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        (GenerationSettings(language="de", seed=3), "greedy"),
        (GenerationSettings(min_tokens=4, forbidden=["é, x"]), 'greedy, min_tokens=4, forbidden=["é, x"]'),
        (GenerationSettings(temperature=0.5, seed=3), "temperature=0.5, seed=3"),
        (GenerationSettings(beams=2, rerank=2), "beams=2, rerank=2"),
    ],
)
def test_decoding_in_words_names_what_changes_a_caption(settings, words):
    assert settings.in_words == words


def test_a_decoding_that_cannot_be_scored_is_refused():
    with pytest.raises(ArgumentError, match=r"decoding\.n: 2 must be 1: one caption of each image"):
        CaptionQuality(decoding=GenerationSettings(beams=2, n=2))
    with pytest.raises(ArgumentError, match=r"decoding\.language: 'de' is not the language"):
        CaptionQuality("en", GenerationSettings(language="de"))
