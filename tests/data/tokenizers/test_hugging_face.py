"""HuggingFace: special ids that are kept or added, and round trips."""

import json

import pytest
from transformers import PreTrainedTokenizerFast

from mmlm.core.errors import UserError
from mmlm.data.tokenizer import normalise_text
from mmlm.data.tokenizers.hugging_face import HuggingFace
from tests.data.captions import TEXTS, hugging_face_folder


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
