"""Where the decoder looks: which tokens make a word, and the map of each."""

import pytest
import torch

from mmlm.core.batch import Caption
from mmlm.evaluation.attention import attention_of_words
from tests.evaluation.test_samples import TEXTS, examples


def word_maps(split, text):
    image = split.batches[0].batch.images[:1]
    return attention_of_words(split.model, split.tokenizer, image, Caption(text), split.max_tokens)


@pytest.mark.parametrize("fusion", ["cross_attention", "prefix"])
@pytest.mark.parametrize("vocab_size", [260, 300, 400])
@pytest.mark.parametrize(
    "text", [*TEXTS, "x", "naïve façade — “déjà vu” 👩‍🚀!", "grün und weiß, наш дом", "हिन्दी में नाम"]
)
def test_tokens_are_grouped_into_the_words_of_the_text(make_split, fusion, vocab_size, text):
    """From one token a byte (260) to one a word: the words are the text's own, and each map sums to 1."""
    split = make_split(examples([*TEXTS, "x"]), vocab_size=vocab_size, fusion=fusion)
    words, maps = word_maps(split, text)
    assert words == text.split()
    assert maps.shape == (len(words), 4, 4)
    torch.testing.assert_close(maps.sum(dim=(1, 2)), torch.ones(len(words)))


def test_a_map_is_the_mean_over_the_word_s_tokens(make_split, monkeypatch):
    """With one token a byte: a space belongs to the word it leads to, the bytes of a character stay together."""
    split = make_split(examples(), vocab_size=260)
    text = "un café 日"
    ids = split.tokenizer.encode(text, None, 48)
    pieces = [" un", " café", " 日"]
    places = [len(piece.encode()) for piece in pieces]
    assert len(ids) == 2 + sum(places)
    given = torch.rand(1, len(ids) - 1, 2, 2)
    monkeypatch.setattr(split.model, "attention_maps", lambda batch: given)
    words, maps = word_maps(split, text)
    assert words == ["un", "café", "日"]
    for found, rows in zip(maps, given[0, : len(ids) - 2].split(places), strict=True):
        mean = rows.mean(dim=0)
        torch.testing.assert_close(found, mean / mean.sum())


def test_the_map_of_a_token_is_where_the_decoder_looked_when_it_predicted_it(make_split, monkeypatch):
    split = make_split(examples(), vocab_size=400)
    ids = split.tokenizer.encode("a red square", None, 48)
    assert len(ids) == 5, "one token a word"
    given = torch.zeros(1, 4, 2, 2)
    for place, (row, column) in enumerate([(0, 0), (0, 1), (1, 0), (1, 1)]):
        given[0, place, row, column] = 1
    monkeypatch.setattr(split.model, "attention_maps", lambda batch: given)
    words, maps = word_maps(split, "a red square")
    assert dict(zip(words, maps.flatten(1).argmax(dim=1).tolist(), strict=True)) == {"a": 0, "red": 1, "square": 2}


def test_a_map_without_any_attention_stays_zero(make_split, monkeypatch):
    split = make_split(examples())
    monkeypatch.setattr(split.model, "attention_maps", lambda batch: torch.zeros(1, batch.tokens.shape[1] - 1, 2, 2))
    assert not word_maps(split, "a red square")[1].any()
