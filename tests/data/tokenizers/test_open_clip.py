"""OpenClip: the ids of open_clip, and padding of its own."""

import pytest
from open_clip.tokenizer import SimpleTokenizer

from mmlm.data.tokenizers.open_clip import OpenClip
from tests.data.captions import CAPTIONS


def test_open_clip_gives_its_own_ids():
    reference = SimpleTokenizer()
    tokenizer = OpenClip()
    tokenizer.fit(CAPTIONS)
    for text in ("a photo of a cat!", "Grinning  Face", "ein Ökosystem"):
        ids = tokenizer.encode(text, "en", 77)
        expected = reference([text])[0].tolist()
        assert ids == expected[: len(ids)]
        assert set(expected[len(ids) :]) <= {0}
    assert tokenizer.decode([*tokenizer.encode("a photo of a cat", None, 77), 5, 6]) == "a photo of a cat"


def test_open_clip_padding_is_no_token():
    tokenizer = OpenClip()
    assert tokenizer.encode("!", None, 9)[1] in range(49_406)
    assert tokenizer.pad_id == 49_408
    assert tokenizer.vocab_size == 49_409
    assert tokenizer.decode([tokenizer.start_id("de"), tokenizer.pad_id, *tokenizer.encode("!", None, 9)[1:]]) == "!"


def test_open_clip_may_share_padding_with_a_token_as_its_weights_do():
    """What is padding is known by a caption's length: the exclamation mark (inside a word) comes back all the same."""
    tokenizer, own = OpenClip(own_padding=False), OpenClip()
    assert (tokenizer.pad_id, tokenizer.vocab_size) == (0, 49_408)
    ids = tokenizer.encode("stop !§ now", None, 9)
    assert ids == own.encode("stop !§ now", None, 9) == SimpleTokenizer()(["stop !§ now"])[0, : len(ids)].tolist()
    assert 0 in ids
    assert tokenizer.decode([*ids, 0, 0]) == own.decode([*ids, own.pad_id]) == "stop !§ now"


@pytest.mark.parametrize("text", ["a <end_of_text> b", "<START_OF_TEXT>", "&lt;end_of_text&gt; b"])
def test_open_clip_special_strings_stay_text(text):
    tokenizer = OpenClip()
    ids = tokenizer.encode(text, None, 77)
    assert not {tokenizer.start_id(None), tokenizer.end_id, tokenizer.pad_id} & set(ids[1:-1])
