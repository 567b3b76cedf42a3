"""What tokenizers share: normalised text, unknown pieces, and when two of them are the same."""

import tokenizers
from tokenizers import models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from mmlm.core.batch import Caption
from mmlm.data.tokenizer import normalise_text, same_tokens
from mmlm.data.tokenizers.byte_pair import BytePair
from mmlm.data.tokenizers.hugging_face import HuggingFace
from mmlm.data.tokenizers.open_clip import OpenClip
from tests.data.captions import CAPTIONS, TEXTS, hugging_face_folder


def test_normalise_text():
    assert normalise_text("  a\n\t b\u3000c ") == "a b c"
    assert normalise_text("o\u0308") == "ö"
    assert normalise_text("a\ud800b") == "a?b"
    assert all(normalise_text(normalise_text(text)) == normalise_text(text) for text in TEXTS)


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
