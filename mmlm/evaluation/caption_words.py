"""The words of a caption, as its scores count them."""

import re
import unicodedata

from mmlm.core.scripts import UNSPACED
from mmlm.evaluation.ptb_tokens import ptb_words

TOKENISATION = "PTB words as COCO's caption evaluation splits them; Han, Kana and Thai by character"
"""What a word is, for the protocol that scores go with."""
_INVISIBLE = re.compile("[\u00ad\u200c-\u200f\u202a-\u202e\u2060-\u2064\ufe00-\ufe0f]")
"""Joiners, direction marks and variation selectors."""


def normalised(text: str) -> str:
    """Unicode NFKC, lower case, plain apostrophes and hyphens."""
    text = unicodedata.normalize("NFKC", text).lower()
    return text.translate({0x2018: "'", 0x2019: "'", 0x2010: "-"})


def caption_words(text: str) -> list[str]:
    """The words of a caption, for scoring: in lower case and without punctuation.

    They are those of COCO's caption evaluation, whose Java program (``ptb_tokens``) splits ``man's`` and ``don't`` in
    two and writes ``(`` as ``-lrb-``. It knows English. Texts in other scripts are split at white space, and each Han,
    Kana and Thai character is a word, in either of its widths. Composed and decomposed letters are the same.
    """
    text = _INVISIBLE.sub("", unicodedata.normalize("NFC", text))
    if UNSPACED.search(text) or any("\uff00" <= character <= "\uffef" for character in text):
        spaced = UNSPACED.sub(lambda match: f" {match[0]} ", unicodedata.normalize("NFKC", text))
        return ptb_words(spaced)
    return ptb_words(text)
