"""Families of words, by which WordNet's meanings are split: no word of one split is derived from one of another."""

from collections.abc import Mapping, Sequence

from mmlm.core.keyed_random import stable_hash
from mmlm.data.wordnet_tools.database import Synset

_PERCENT = {"validation": 5, "test": 5}
"""Of the families; the rest is ``train``."""


def families(synsets: Sequence[Synset]) -> list[str]:
    """The family of each synset: that of its first word, named by the first of its words in the alphabet.

    Words belong together if WordNet says that one is derived from the other, and the first words of two synsets do if
    these share a definition or an example, to the letter. (By all words of a synset, a third of WordNet would be one
    family.)
    """
    parent: dict[str, str] = {}

    def top(word: str) -> str:
        while (above := parent.setdefault(word, word)) != word:
            parent[word] = parent.setdefault(above, above)
            word = parent[word]
        return word

    def join(one: str, other: str) -> None:
        first, second = sorted((top(one), top(other)))
        parent[second] = first

    by_id: Mapping[str, Synset] = {synset.id: synset for synset in synsets}
    first_with: dict[str, str] = {}
    for synset in synsets:
        head = synset.words[0].lower()
        for text in (synset.definition, *synset.examples):
            join(head, first_with.setdefault(text.lower(), head))
        for own, other, theirs in synset.derived:
            # A satellite adjective (s) stands in the file of adjectives.
            there = by_id["a" + other[1:] if other[0] == "s" else other]
            join(synset.words[own].lower(), there.words[theirs].lower())
    return [top(synset.words[0].lower()) for synset in synsets]


def split_of(family: str) -> str:
    """``train``, ``validation`` or ``test``, by a hash of the family's name."""
    place, end = stable_hash(f"wordnet family: {family}") % 100, 0
    for name, percent in _PERCENT.items():
        end += percent
        if place < end:
            return name
    return "train"
