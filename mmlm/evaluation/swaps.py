"""False captions made of true ones by exchanging words, without a parser: the words stay, and their order changes.

ARO (arXiv:2210.01936) makes its false captions so; "a shuffled sentence" and "two words exchanged" are its simpler
kinds. Words of a list (colours, say) are exchanged with each other only, which leaves a sentence that is well formed.
"""

import re
from collections.abc import Mapping, Sequence
from itertools import pairwise

import torch

from mmlm.core.keyed_random import keyed_order, keyed_uniform, stable_hash, stream

COLOURS = (
    *("red", "yellow", "green", "blue", "purple", "black", "white", "orange", "pink", "brown", "grey", "gray"),
    *("golden", "silver", "beige", "violet"),
)
SIZES = ("small", "large", "big", "little", "tiny", "huge", "tall", "short", "long", "wide", "narrow")
LISTS: Mapping[str, Sequence[str]] = {"colour": COLOURS, "size": SIZES}
"""Words that can stand in each other's place, by the name of what they say."""
ORDERS = ("neighbours", "words", "all_words")
"""Two words that stand side by side; any two words; all of them."""
_WORD = re.compile(r"[^\W_]+(?:['’-][^\W_]+)*")
_STREAM = stream("mmlm.evaluation.swaps")
_ALL = stream("mmlm.evaluation.swaps.all_words")


def swaps(text: str, seed: int, lists: Mapping[str, Sequence[str]] = LISTS) -> dict[str, str]:
    """A false caption for each kind of exchange that changes ``text``, by the kind's name.

    The kinds are ``swap_NAME`` for each of ``lists``, ``swap_neighbours``, ``swap_words`` and ``shuffle``. Which words
    are exchanged is drawn by (``seed``, text). What stands between words stays where it is, and upper and lower case
    stay with the place for the first word of the text. A kind that would leave the text as it is, or give one that an
    earlier kind has given, is not there.
    """
    spans = [match.span() for match in _WORD.finditer(text)]
    words = [text[start:end] for start, end in spans]
    key = torch.tensor([stable_hash(text)])
    draws = keyed_uniform(seed, 0, key, len(lists) + 2, _STREAM)[0].tolist()
    everything = range(len(words))
    pairs: dict[str, list[tuple[int, int]]] = {}
    for name, listed in lists.items():
        places = [place for place in everything if words[place].lower() in listed]
        pairs[f"swap_{name}"] = _pairs(places)
    pairs["swap_neighbours"] = list(pairwise(everything))
    pairs["swap_words"] = _pairs(list(everything))
    found: dict[str, str] = {}
    for (kind, of_kind), draw in zip(pairs.items(), draws, strict=True):
        different = [(one, other) for one, other in of_kind if words[one].lower() != words[other].lower()]
        if different:
            one, other = different[int(draw * len(different))]
            order = list(everything)
            order[one], order[other] = other, one
            _add(found, kind, text, spans, [words[place] for place in order])
    if len(words) > 1:
        order = keyed_order(seed, int(key), len(words), torch.arange(len(words)), _ALL).tolist()
        _add(found, "shuffle", text, spans, [words[place] for place in order])
    return found


def _pairs(places: Sequence[int]) -> list[tuple[int, int]]:
    return [(one, other) for number, one in enumerate(places) for other in places[number + 1 :]]


def _add(found: dict[str, str], kind: str, text: str, spans: Sequence[tuple[int, int]], words: Sequence[str]) -> None:
    """Adds ``text`` with ``words`` in the places of its own."""
    made, end = [], 0
    for (start, stop), word in zip(spans, words, strict=True):
        made += [text[end:start], word]
        end = stop
    result = "".join([*made, text[end:]])
    if result != text and result not in found.values():
        found[kind] = result
