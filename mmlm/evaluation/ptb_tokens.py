"""The tokens of a caption as the Penn Treebank splits English: ``man's`` is ``man 's``, ``don't`` is ``do n't``.

They are those that Stanford's PTBTokenizer 3.4.1 gives for captions, which COCO's caption evaluation (arXiv:1504.00325)
runs in Java. Written from what it gives, not from its rules: each kind of token is a regular expression, and of those
that match at a place the longest is the token. Telephone numbers, dates in words and the like, which captions do not
hold, are split as any other text is.
"""

import re
import unicodedata

_LETTER = r"[^\W\d_²³¹¼½¾]"
_MARK = (
    r"[\u0300-\u036f\u0483-\u0487\u0591-\u05c7\u0610-\u061a\u064b-\u065f\u0670"
    r"\u0900-\u0963\u0966-\u0dff\u0e31\u0e34-\u0e4e]"
)
_PART = rf"(?:{_LETTER}|\d)(?:{_LETTER}|\d|{_MARK})*"
_APOSTROPHE = r"['\u2019]"
_CLITIC = rf"{_APOSTROPHE}(?i:s|m|d|re|ve|ll)(?!\w)"
_WITH_FULL_STOP = (
    "jan|feb|mar|apr|jun|jul|aug|sep|sept|oct|nov|dec|mon|tues?|wed|thurs?|fri|"
    "mr|mrs|ms|drs?|profs?|sens?|reps?|lt|col|gen|messrs|govs?|adm|rev|maj|sgt|cpl|pvt|mt|capt|ste?|ave|pres|lieut|hon|"
    "brig|jr|sr|bros|ph\\.d|blvd|rd|esq|inc|cos?|corp|ltd|dept|assn|univ|etc|al|vs|v|ft"
)

_KINDS = (
    rf"{_PART}(?:[-_]{_PART})*",
    # Elided articles and names (l'eau, O'Neill), and words with an apostrophe of their own.
    rf"[dolDOL]{_APOSTROPHE}{_LETTER}{_PART}(?:-{_PART})*",
    rf"(?i:ol|y|j|l|d){_APOSTROPHE}(?!\s*$|[.,!?])(?=\s*{_LETTER})",
    rf"(?i:[cn]{_APOSTROPHE}est|ma{_APOSTROPHE}am|qu{_APOSTROPHE}il|o{_APOSTROPHE}clock)(?!\w)",
    # What is split off the end of a word, and short forms that begin with an apostrophe.
    _CLITIC,
    rf"(?i:n{_APOSTROPHE}t)(?!\w)",
    rf"{_APOSTROPHE}[nN](?:{_APOSTROPHE}|(?!\w))",
    rf"(?i:{_APOSTROPHE}(?:tis|twas|cause|em|til))(?!\w)",
    rf"{_APOSTROPHE}[2-9]0s(?!\w)",
    # Alternatives, and words that run into the next sentence.
    rf"{_PART}(?:-{_PART}){{0,2}}(?:/{_PART}(?:-{_PART}){{0,2}}){{1,2}}",
    rf"{_LETTER}+[.?!]{_LETTER}+",
    # Abbreviations, with their full stop.
    r"(?:non-)?[A-Za-z](?:\.[A-Za-z])+\.?(?:-[A-Za-z]+)?(?!\w)",
    r"[A-Za-z]\.",
    rf"(?i:{_WITH_FULL_STOP})\.(?!\w)",
    r"(?i:nos?|figs?)\.(?=\s*\d)",
    r"[A-Z]+(?:[+&][A-Z]+)+",
    r"C\+\+|[A-Z]#(?!\w)",
    # Numbers.
    r"[-+]?\d*(?:[.:,]\d+)+",
    r"[-+]\d+",
    r"\d+/\d+/\d+",
    # Names and places in a network.
    r"https?://[^\s\"<>|()]*[^\s\"<>|.!?(){},;:'-]",
    r"(?:www\.)?(?:[A-Za-z0-9-]+\.)+(?:com|net|org|edu)(?:/[^\s\"<>|()]*[^\s\"<>|.!?(){},-])?(?!\w)",
    r"[A-Za-z0-9][\w.+-]*@[A-Za-z][\w-]*(?:\.[\w-]+)*",
    r"[@#][A-Za-z_]\w*",
    r"</?[A-Za-z][A-Za-z0-9]*>",
    # Marks.
    r"&(?:amp|lt|gt|quot|apos);",
    r"(?:US|HK|NZ|A|C|S)\$",
    r"[:;]-?[()]",
    r"[!?]+",
    r"\.{2,}",
    r"-{2,}",
    r"\*+",
    r"_+",
    r"``|''",
)
_COMPILED = tuple(re.compile(kind) for kind in _KINDS)
_PLAIN = re.compile(r"[A-Za-z]+(?!\S)")
"""Most words of captions: nothing else can be longer."""
_BEFORE_NOT = re.compile(rf"{_LETTER}+?(?=(?i:n{_APOSTROPHE}t)(?!\w))")
_SPACE = re.compile(r"\s+")

_IN_TWO = {
    "cannot": ("can", "not"),
    "gonna": ("gon", "na"),
    "gotta": ("got", "ta"),
    "wanna": ("wan", "na"),
    "lemme": ("lem", "me"),
    "gimme": ("gim", "me"),
    "'tis": ("'t", "is"),
    "'twas": ("'t", "was"),
}
_WRITTEN = {
    "(": "-lrb-",
    ")": "-rrb-",
    "[": "-lsb-",
    "]": "-rsb-",
    "{": "-lcb-",
    "}": "-rcb-",
    "€": "$",
    "£": "#",
    "¢": "cents",
    "½": "1/2",
    "¼": "1/4",
    "¾": "3/4",
    "&amp;": "&",
    "&lt;": "<",
    "&gt;": ">",
    "&quot;": '"',
    "&apos;": "'",
}
"""Tokens that are written otherwise. COCO means to drop brackets, but looks for them in capitals, and so keeps them."""
_CURLY = {token.replace("'", "\u2019"): token for token in ("'s", "'m", "'d", "'re", "'ve", "'ll", "n't")}
_DROPPED = frozenset(
    [
        *("''", "'", "``", "`", '"', ".", "?", "!", ",", ":", "-", "--", "...", ";"),
        *("\u2018", "\u2019", "\u201c", "\u201d", "«", "»", "‹", "›", "\u2013", "—", "…", "\u200b", "\ufeff"),
    ]
)
"""COCO's list of punctuation, and what the tokenizer writes as one of it."""
_BEYOND = "\uffff"
"""Characters above are passed over, as the tokenizer does: emoji."""


def ptb_words(text: str) -> list[str]:
    """The words of a text in lower case, without COCO's punctuation."""
    words: list[str] = []
    place = 0
    while place < len(text):
        space = _SPACE.match(text, place)
        if space:
            place = space.end()
            continue
        token = _token_at(text, place)
        place += len(token)
        words += _as_written(token)
    return words


def _token_at(text: str, place: int) -> str:
    """The token that begins at ``place``, which is no space: at least one character."""
    for first in (_PLAIN, _BEFORE_NOT):
        found = first.match(text, place)
        if found:
            return found[0]
    matches = (kind.match(text, place) for kind in _COMPILED)
    return max((match[0] for match in matches if match), key=len, default=text[place])


def _as_written(token: str) -> tuple[str, ...]:
    """The words of one token: two for some, none for punctuation."""
    lowered = token.lower()
    if lowered in _IN_TWO:
        return _IN_TWO[lowered]
    lowered = _CURLY.get(lowered, lowered)
    if lowered in _DROPPED or lowered.startswith(("--", "..")) or lowered > _BEYOND or _is_foreign_mark(lowered):
        return ()
    if lowered[0] in ":;" and len(lowered) > 1 and lowered[-1] in "()":
        return (lowered[:-1] + _WRITTEN[lowered[-1]],)
    return (_WRITTEN.get(lowered, lowered),)


def _is_foreign_mark(token: str) -> bool:
    """Whether a token is a punctuation mark of another script than Latin, which COCO's list does not know."""
    latin = token < "\u0370" or "\u2000" <= token[0] <= "\u206f"
    return len(token) == 1 and not latin and unicodedata.category(token)[0] in "PM"
