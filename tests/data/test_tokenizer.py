"""tokenizer: exact round trips, special ids that no text can spell, and one protocol for three kinds."""

import json
import os
import pickle

import pytest
import tokenizers
from open_clip.tokenizer import SimpleTokenizer
from tokenizers import models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from mmlm.core.errors import UserError
from mmlm.core.flow import Caption
from mmlm.data.tokenizer import BytePair, HuggingFace, OpenClip, normalise_text, same_tokens

CAPTIONS = [
    Caption("grinning face", "en"),
    Caption("grinning face with big eyes", "en"),
    Caption("Flagge: Österreich", "de"),
]

TEXTS = [
    "",
    "grinning face",
    "Flagge: Österreich",
    "笑脸 والد हिन्दी 한국어 日本語",
    "👨‍👩‍👧‍👦 🏴󠁧󠁢󠁥󠁮󠁧󠁿",
    "a\u200db \ufeffc \x00 \x7f",
    "it's 3.50 -- ok?!",
    "<pad> <s> </s> <en> <|endoftext|> [SEP]",
    "Ġ Ċ �",
]


@pytest.fixture(scope="module")
def byte_pair() -> BytePair:
    tokenizer = BytePair(vocab_size=300, languages=("en", "de"))
    tokenizer.fit(CAPTIONS)
    return tokenizer


def hugging_face_folder(path, **special: str) -> str:
    model = tokenizers.Tokenizer(models.BPE())
    model.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    model.decoder = tokenizers.decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=290, initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()), show_progress=False
    )
    model.train_from_iterator([caption.text for caption in CAPTIONS], trainer)
    PreTrainedTokenizerFast(tokenizer_object=model, **special).save_pretrained(path)
    return str(path)


def test_normalise_text():
    assert normalise_text("  a\n\t b\u3000c ") == "a b c"
    assert normalise_text("o\u0308") == "ö"
    assert normalise_text("a\ud800b") == "a?b"
    assert all(normalise_text(normalise_text(text)) == normalise_text(text) for text in TEXTS)


@pytest.mark.parametrize("text", TEXTS)
@pytest.mark.parametrize("language", [None, "en", "de"])
def test_byte_pair_round_trip(byte_pair, text, language):
    ids = byte_pair.encode(text, language, max_tokens=500)
    assert ids[0] == byte_pair.start_id(language)
    assert ids[-1] == byte_pair.end_id
    assert all(5 <= i < byte_pair.vocab_size for i in ids[1:-1])
    assert byte_pair.decode(ids) == normalise_text(text)


def test_byte_pair_special_ids_come_first_and_differ(byte_pair):
    ids = [byte_pair.pad_id, byte_pair.end_id, *(byte_pair.start_id(language) for language in (None, "en", "de"))]
    assert ids == [0, 1, 2, 3, 4]
    assert byte_pair.decode([4, *byte_pair.encode("face", None, 9)[1:], 0, 0]) == "face"
    assert byte_pair.decode([3, 0, 2]) == ""


def test_byte_pair_learns_words_and_shares_them_between_places(byte_pair):
    start = byte_pair.encode("face", None, 9)
    inside = byte_pair.encode("grinning face", None, 9)
    assert len(inside) < 2 + len("grinning face")
    assert inside[-len(start) + 1 :] == start[1:]


def test_byte_pair_vocabulary_size_is_the_real_one():
    small = BytePair(vocab_size=10_000)
    small.fit(CAPTIONS[:1])
    assert 4 + 256 < small.vocab_size < 400
    full = BytePair(vocab_size=270)
    full.fit(CAPTIONS[:2])
    assert full.vocab_size == 270


def test_byte_pair_fit_is_deterministic_and_leaves_the_environment(byte_pair):
    other = BytePair(vocab_size=300, languages=("en", "de"))
    before = dict(os.environ)
    other.fit(iter(CAPTIONS))
    assert dict(os.environ) == before
    assert [other.encode(text, "de", 99) for text in TEXTS] == [byte_pair.encode(text, "de", 99) for text in TEXTS]


def test_byte_pair_truncation_keeps_the_end(byte_pair):
    whole = byte_pair.encode("grinning face with big eyes", "en", 99)
    for most in range(2, len(whole) + 2):
        ids = byte_pair.encode("grinning face with big eyes", "en", most)
        assert ids == [*whole[:-1][: most - 1], byte_pair.end_id]
    with pytest.raises(UserError, match="max_tokens=1 must be at least 2"):
        byte_pair.encode("x", "en", 1)


def test_byte_pair_lowercase():
    tokenizer = BytePair(vocab_size=300, lowercase=True)
    tokenizer.fit(CAPTIONS[:2])
    assert tokenizer.decode(tokenizer.encode("GRINNING Façe", "en", 99)) == "grinning façe"


def test_byte_pair_decodes_ids_that_are_no_text(byte_pair):
    half = byte_pair.encode("é", None, 9)[1:2]
    assert "�" in byte_pair.decode([half[0] + 1, 5 + 0x80])


def test_byte_pair_save_and_restore(byte_pair, tmp_path):
    byte_pair.save(tmp_path / "new" / "folder")
    again = BytePair(vocab_size=300, languages=("en", "de"))
    again.restore(tmp_path / "new" / "folder")
    assert again.vocab_size == byte_pair.vocab_size
    assert [again.encode(text, "en", 99) for text in TEXTS] == [byte_pair.encode(text, "en", 99) for text in TEXTS]
    assert pickle.loads(pickle.dumps(again)).encode("face", "de", 9) == byte_pair.encode("face", "de", 9)
    with pytest.raises(UserError, match=r"saved with languages=\['en', 'de'\], but tokenizer.languages=\['en'\]"):
        BytePair(vocab_size=300).restore(tmp_path / "new" / "folder")
    with pytest.raises(UserError, match="there is no saved BytePair tokenizer"):
        BytePair(vocab_size=300).restore(tmp_path)
    (tmp_path / BytePair.FILE).write_text("{")
    with pytest.raises(UserError, match="is damaged"):
        BytePair(vocab_size=300).restore(tmp_path)


def test_the_same_tokens_are_the_same_ids_words_and_encodings(byte_pair, tmp_path):
    def fitted(captions=CAPTIONS, vocab_size=300, languages=("en", "de"), lowercase=False) -> BytePair:
        tokenizer = BytePair(vocab_size, languages, lowercase)
        tokenizer.fit(captions)
        return tokenizer

    assert same_tokens(byte_pair, fitted(), CAPTIONS)
    for other in (
        fitted(vocab_size=290),
        fitted(languages=("en", "fr"), captions=CAPTIONS[:2] * 2),
        fitted(languages=("de", "en")),
        fitted([Caption("quite another text, in which nothing is grinning", "en")]),
        fitted(lowercase=True),
    ):
        assert not same_tokens(byte_pair, other, CAPTIONS)
    restored = HuggingFace(hugging_face_folder(tmp_path, eos_token="Ċ"))
    assert same_tokens(restored, HuggingFace(str(tmp_path)), CAPTIONS)
    assert not same_tokens(restored, byte_pair, CAPTIONS)


def test_byte_pair_before_fit():
    tokenizer = BytePair(vocab_size=300)
    for use in (
        lambda: tokenizer.encode("x", None, 9),
        lambda: tokenizer.decode([5]),
        lambda: tokenizer.vocab_size,
        lambda: tokenizer.save("unused"),
    ):
        with pytest.raises(RuntimeError, match="call fit"):
            use()


def test_byte_pair_bad_input(byte_pair):
    with pytest.raises(UserError, match=r"^vocab_size: 259 must be at least 260"):
        BytePair(vocab_size=259)
    with pytest.raises(UserError, match=r"^languages: .* names a language twice"):
        BytePair(vocab_size=300, languages=("en", "en"))
    with pytest.raises(UserError, match=r"'fr', but tokenizer.languages=\['en', 'de'\]"):
        byte_pair.encode("x", "fr", 9)
    with pytest.raises(UserError, match="'fr'"):
        BytePair(vocab_size=300).fit([Caption("x", "fr")])


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


def test_hugging_face_keeps_its_special_ids(tmp_path):
    folder = hugging_face_folder(tmp_path, bos_token="<s>", eos_token="</s>", pad_token="<pad>")
    own = PreTrainedTokenizerFast.from_pretrained(folder)
    tokenizer = HuggingFace(folder)
    assert tokenizer.start_id("de") == own.bos_token_id
    assert (tokenizer.end_id, tokenizer.pad_id) == (own.eos_token_id, own.pad_token_id)
    assert tokenizer.vocab_size == len(own)


@pytest.mark.parametrize(
    ("special", "added"),
    [
        ({}, 3),
        ({"eos_token": "<|endoftext|>"}, 2),
        ({"bos_token": "<|x|>", "eos_token": "<|x|>", "pad_token": "<|x|>"}, 2),
        ({"cls_token": "[CLS]", "sep_token": "[SEP]", "pad_token": "[PAD]"}, 0),
    ],
)
def test_hugging_face_gets_the_ids_it_lacks(tmp_path, special, added):
    folder = hugging_face_folder(tmp_path, **special)
    own = PreTrainedTokenizerFast.from_pretrained(folder)
    tokenizer = HuggingFace(folder)
    ids = {tokenizer.pad_id, tokenizer.end_id, tokenizer.start_id(None)}
    assert len(ids) == 3
    assert tokenizer.vocab_size == len(own) + added
    assert max(ids) < tokenizer.vocab_size


def test_hugging_face_round_trip_and_special_strings(tmp_path):
    tokenizer = HuggingFace(hugging_face_folder(tmp_path, bos_token="<s>", eos_token="</s>", pad_token="<pad>"))
    for text in [*TEXTS, "a </s> b <s><pad>"]:
        ids = tokenizer.encode(text, "en", 500)
        assert ids[0] == tokenizer.start_id("en")
        assert ids[-1] == tokenizer.end_id
        assert not {tokenizer.pad_id, tokenizer.end_id, tokenizer.start_id(None)} & set(ids[1:-1])
        assert tokenizer.decode([*ids, tokenizer.pad_id, 5]) == normalise_text(text)
    assert len(tokenizer.encode("grinning face with big eyes", None, 5)) == 5


def test_hugging_face_save_and_restore(tmp_path):
    tokenizer = HuggingFace(hugging_face_folder(tmp_path / "a", eos_token="</s>"))
    tokenizer.save(tmp_path / "b")
    other = HuggingFace(hugging_face_folder(tmp_path / "c", bos_token="<s>"))
    other.restore(tmp_path / "b")
    assert (other.pad_id, other.end_id, other.vocab_size) == (tokenizer.pad_id, tokenizer.end_id, tokenizer.vocab_size)
    assert other.encode("a </s> face", None, 50) == tokenizer.encode("a </s> face", None, 50)


def test_hugging_face_in_a_package(package):
    folder = hugging_face_folder(package / "tokenizer", eos_token="</s>")
    found, expected = HuggingFace("package:some_weights/tokenizer"), HuggingFace(folder)
    assert found.encode("a face", None, 50) == expected.encode("a face", None, 50)
    with pytest.raises(UserError, match=r"^name_or_path: the package some_weights holds no 'other'"):
        HuggingFace("package:some_weights/other")


def test_hugging_face_that_is_not_there(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({}))
    with pytest.raises(UserError, match=r"^name_or_path: '.*' cannot be loaded") as error:
        HuggingFace(str(tmp_path))
    assert "\n" not in str(error.value)


def test_a_saved_hugging_face_that_is_damaged_is_named_by_its_folder(tmp_path):
    tokenizer = HuggingFace(hugging_face_folder(tmp_path / "hub", eos_token="</s>"))
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "config.json").write_text("{}")
    with pytest.raises(UserError, match=r"^.*/run: the tokenizer cannot be loaded: ") as error:
        tokenizer.restore(tmp_path / "run")
    assert "\n" not in str(error.value)


def test_unknown_pieces_are_counted_where_there_can_be_any(tmp_path, byte_pair):
    assert byte_pair.count_unknown("zebra 🦓") == OpenClip().count_unknown("zebra 🦓") == 0
    assert HuggingFace(hugging_face_folder(tmp_path / "bytes", eos_token="</s>")).count_unknown("zebra") == 0
    model = tokenizers.Tokenizer(models.WordLevel({"[UNK]": 0, "cat": 1, "[END]": 2}, unk_token="[UNK]"))
    model.pre_tokenizer = pre_tokenizers.Whitespace()
    own = PreTrainedTokenizerFast(tokenizer_object=model, unk_token="[UNK]", eos_token="[END]")
    own.save_pretrained(tmp_path / "words")
    words = HuggingFace(str(tmp_path / "words"))
    assert words.count_unknown("a cat and a dog") == 4
    assert len(words.encode("a cat and a dog", None, 9)) == 3
