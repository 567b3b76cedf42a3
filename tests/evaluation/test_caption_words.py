"""The words of a caption, against the PTB tokenizer with COCO's list of punctuation."""

import json
from pathlib import Path

import pytest

from mmlm.evaluation.caption_words import caption_words

REFERENCE = Path(__file__).with_name("coco_scores.json")
"""Captions, their words and their scores, made once with ``pycocoevalcap`` and its Java program."""


@pytest.mark.parametrize(
    ("text", "words"),
    [
        # These are what the PTB tokenizer and COCO's list of punctuation make of the text.
        ("A Cat, sitting; on: the 'mat'?", ["a", "cat", "sitting", "on", "the", "mat"]),
        ("T-shirt & jeans", ["t-shirt", "&", "jeans"]),
        ("at 10:30, 1,000 men; 3.5 m!", ["at", "10:30", "1,000", "men", "3.5", "m"]),
        ("a,b c;d", ["a", "b", "c", "d"]),
        ("R&B #1 keycap: * 50%", ["r&b", "#", "1", "keycap", "*", "50", "%"]),
        ("“ok” «oui» x—y p–q -- ...", ["ok", "oui", "x", "y", "p", "q"]),
        ("cats\n\tand dogs", ["cats", "and", "dogs"]),
        ("Woman’s hat", ["woman", "'s", "hat"]),
        ("A button (blood type)", ["a", "button", "-lrb-", "blood", "type", "-rrb-"]),
        ("``quoted'' rock-'n'-roll", ["quoted", "rock", "'n'", "roll"]),
        ("drapeau : Côte d’Ivoire", ["drapeau", "côte", "d’ivoire"]),
        # And these are ours: it knows no such script.
        ("旗：中国", ["旗", "中", "国"]),
        ("人々のABCﾃﾞﾊﾟｰﾄ・100円", ["人", "々", "の", "abc", "デ", "パ", "ー", "ト", "100", "円"]),
        ("น้ำแข็ง", ["น้\u0e4d", "า", "แ", "ข็", "ง"]),
        ("열린 원형 화살표(시계 방향)", ["열린", "원형", "화살표", "-lrb-", "시계", "방향", "-rrb-"]),
        ("हिन्दी चिह्न।", ["हिन्दी", "चिह्न"]),
        ("أسرة: بالغ، طفل", ["أسرة", "بالغ", "طفل"]),
        ("zero\u200bwidth a\u200cb \u200eleft", ["zero", "width", "ab", "left"]),
        ("", []),
        (" ., : ", []),
    ],
)
def test_words_of_a_caption(text, words):
    assert caption_words(text) == words


def test_composed_and_decomposed_text_have_the_same_words():
    assert caption_words("cafe\u0301") == caption_words("caf\u00e9") == ["café"]


def test_words_are_those_of_the_java_program():
    rows = json.loads(REFERENCE.read_text(encoding="utf-8"))["examples"]
    assert len(rows) > 400
    for row in rows:
        for text, words in ((row["said"], row["said_words"]), *zip(row["true"], row["true_words"], strict=True)):
            assert caption_words(text) == words.split()
