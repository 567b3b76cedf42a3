"""The words of a caption, as its scores count them."""

import re
import unicodedata

from mmlm.core.scripts import UNSPACED

SEPARATE_WORDS = frozenset("#%&*@/\\")


def normalised(text: str) -> str:
    """Unicode NFKC, lower case, plain apostrophes and hyphens."""
    text = unicodedata.normalize("NFKC", text).lower()
    return text.translate({0x2018: "'", 0x2019: "'", 0x2010: "-"})


def _is_letter(character: str) -> bool:
    """True for a letter, a combining mark or a digit; False for the empty string."""
    return bool(character) and unicodedata.category(character)[0] in "LMN"


def _keep_or_drop(match: re.Match[str]) -> str:
    """The replacement of a character that is neither alphanumeric nor space: itself, a word, a space, or nothing."""
    character, start = match[0], match.start()
    before, after = match.string[start - 1 : start] if start else "", match.string[start + 1 : start + 2]
    category = unicodedata.category(character)
    if category == "Cf":  # joiners and direction marks; U+200B is a space that has no width
        return " " if character == "\u200b" else ""
    if category[0] == "M":
        return character if _is_letter(before) else ""
    if character in "'-.&" and _is_letter(before) and _is_letter(after):
        return character
    if character in ",:" and before.isdigit() and after.isdigit():
        return character
    if character in SEPARATE_WORDS:
        return f" {character} "
    return " " if character == "`" or category[0] == "P" else character


def caption_words(text: str) -> list[str]:
    """The words of a caption, for scoring.

    NFKC and lower case, then split at white space and at punctuation (Unicode P*, backtick), which is dropped. What
    stays inside a word: apostrophe, hyphen, full stop and ``&`` between two letters or digits (``t-shirt``), comma and
    colon between two digits (``10:30``), underscores and symbols (``+ $``). ``# % & * @ / \\`` are words otherwise, and
    so is each Han, Kana and Thai character.

    Equal to the PTB tokenizer with COCO's list of punctuation on 98.7% of the 1,966 English emoji names of CLDR 48;
    the others have an apostrophe (``woman's`` is two words there), brackets (PTB leaves ``-lrb-``) or ``Mrs.``.
    """
    spaced = UNSPACED.sub(lambda match: f" {match[0]} ", normalised(text))
    return re.sub(r"[^\w\s]", _keep_or_drop, spaced).split()
