"""Perplexity and bits per byte against one caption at a time, whatever the batches and ranks."""

import math

import pytest
import torch

from mmlm.core.batch import Caption, Example, Turn
from mmlm.core.errors import UserError
from mmlm.evaluation.likelihood import log_likelihoods
from mmlm.evaluation.perplexity import Perplexity, caption_nats, numbered
from tests.evaluation.hand_made import MOST_TOKENS

TEXTS = [("a cat",), ("a very long caption of a dog in the rain",), ("zwei Vögel 鳥", "birds"), ("a fish", "a fish")]


def examples(texts=TEXTS) -> list[Example]:
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (len(texts), 3, 16, 16), generator=generator, dtype=torch.uint8)
    return [
        Example(f"image{row}", image, tuple(map(Caption, own)), f"concept{row}")
        for row, (image, own) in enumerate(zip(images, texts, strict=True))
    ]


def test_it_is_the_sum_over_tokens_over_their_number_for_any_batch_size(make_split):
    for batch_size in (1, 3, 4):
        split = make_split(examples(), batch_size)
        texts = [caption.text for caption in split.captions]
        # The other way through the model: every text paired with its image by itself.
        nats = -log_likelihoods(split, split.image_index, texts, torch.arange(len(texts)), None)
        tokens = sum(len(split.tokenizer.encode(text, None, 1000)) - 1 for text in texts)
        size = sum(len(text.encode()) for text in texts)
        values = dict(Perplexity()(split))
        assert values["predicted"] == 6
        assert values["perplexity"] == pytest.approx(math.exp(nats.sum().item() / tokens), rel=1e-5)
        assert values["bits_per_byte"] == pytest.approx(nats.sum().item() / size / math.log(2), rel=1e-5)
        assert values["nats_per_caption"] == pytest.approx(nats.mean().item(), rel=1e-5)
        assert values["perplexity/chance"] == pytest.approx(split.tokenizer.vocab_size)
        for name in Perplexity.figures:
            assert values[f"{name}/low"] < values[name] < values[f"{name}/high"]


def test_what_is_read_before_an_answer_does_not_count(make_split):
    dialogue = Caption("a dog", source="and now?", turns=(Turn("what is it?", "a cat"),))
    longer = Caption("a bird", source="what?", turns=(Turn("long " * 100, "no"),))
    image = torch.zeros(3, 16, 16, dtype=torch.uint8)
    split = make_split([Example("a", image, (dialogue, Caption("a fish"), longer))])
    values, tokens = dict(Perplexity()(split)), int(split.batches[0].batch.target_counts[:2].sum())
    assert values["predicted"] == 2, "the last has lost its earlier turn"
    assert tokens == sum(len(split.tokenizer.encode(text, None, 99)) - 1 for text in ("a cat", "a dog", "a fish"))
    nats = caption_nats(split)[:2].sum().item()
    assert values["perplexity"] == pytest.approx(math.exp(nats / tokens), rel=1e-5)
    assert values["bits_per_byte"] == pytest.approx(nats / len("a cata doga fish") / math.log(2), rel=1e-5)


def test_a_decoder_that_knows_nothing_is_at_chance(make_split):
    split = make_split(examples())
    with torch.no_grad():
        split.model.decoder.head_weight.zero_()
    values = dict(Perplexity()(split))
    for name in Perplexity.figures:
        assert values[name] == pytest.approx(values[f"{name}/chance"], rel=1e-5)


def test_a_caption_that_is_cut_does_not_count(make_split):
    whole = "cat " * 200
    values = dict(Perplexity()(make_split(examples([("a cat",), (whole,)]))))
    assert values["predicted"] == 1
    with pytest.raises(UserError, match=rf"is read whole in data\.max_tokens={MOST_TOKENS}"):
        dict(Perplexity()(make_split(examples([(whole,)]))))


def test_items_have_names_of_their_own(make_split):
    split = make_split(examples())
    (items,) = Perplexity().per_item(split)
    assert items.values.mean().item() == pytest.approx(dict(Perplexity()(split))["nats_per_caption"])
    assert list(items.items)[-2:] == ["image3: a fish", "image3: a fish (2)"]
    assert len(set(items.items)) == len(items.values) == len(items.concept) == 6
    assert numbered(["", ""], ["a", "b"]) == [": a", ": b"]


def test_every_value_is_declared(make_split):
    declared = {*Perplexity.figures, *(name for one in Perplexity.figures.values() for name in one.helpers())}
    assert {name for name, _ in Perplexity()(make_split(examples()))} == declared
