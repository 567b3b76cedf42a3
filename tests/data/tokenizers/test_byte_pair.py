"""BytePair: exact round trips, and special ids that no text can spell."""

import itertools
import os
import pickle

import pytest

from mmlm.core.batch import Caption
from mmlm.core.errors import UserError
from mmlm.data.tokenizer import normalise_text
from mmlm.data.tokenizers.byte_pair import BytePair
from tests.data.captions import CAPTIONS, TEXTS


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


def test_byte_pair_shares_pieces_where_words_have_no_spaces_between_them():
    """In a script without spaces a caption is made of pieces that other captions have too."""
    parts = (
        ["一只猫", "一只狗", "两个孩子", "一匹马"],
        ["坐在", "站在", "走在"],
        ["红色的沙发上", "绿色的草地上"],
        ["", "在夜晚"],
    )
    captions = ["".join(words) for words in itertools.product(*parts)]
    seen, unseen = captions[::2] + captions[1::4], captions[3::4]
    tokenizer = BytePair(600, [])
    tokenizer.fit([Caption(text) for text in seen])
    ids = [tokenizer.encode(text, None, 99)[1:-1] for text in seen]
    assert min(map(len, ids)) >= 3
    assert {id for text in unseen for id in tokenizer.encode(text, None, 99)} <= {*itertools.chain(*ids), 1, 2}
    for text in (*unseen, "a 猫, two 孩子", "ภาพแมว", "カメラの写真"):
        assert tokenizer.decode(tokenizer.encode(text, None, 99)) == text
