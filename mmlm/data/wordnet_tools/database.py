"""The files of Princeton WordNet's database: lines of synsets, each with its words, relations and gloss.

The format is documented in WordNet's manual page wndb(5). Only ``prepare_wordnet`` needs this file.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass

from mmlm.core.errors import UserError

FILES = {"data.noun": "n", "data.verb": "v", "data.adj": "a", "data.adv": "r"}
"""The files of synsets, and the letter of their part of speech."""
TOPICS = (
    *("adj.all", "adj.pert", "adv.all", "noun.Tops", "noun.act", "noun.animal", "noun.artifact", "noun.attribute"),
    *("noun.body", "noun.cognition", "noun.communication", "noun.event", "noun.feeling", "noun.food", "noun.group"),
    *("noun.location", "noun.motive", "noun.object", "noun.person", "noun.phenomenon", "noun.plant"),
    *("noun.possession", "noun.process", "noun.quantity", "noun.relation", "noun.shape", "noun.state"),
    *("noun.substance", "noun.time", "verb.body", "verb.change", "verb.cognition", "verb.communication"),
    *("verb.competition", "verb.consumption", "verb.contact", "verb.creation", "verb.emotion", "verb.motion"),
    *("verb.perception", "verb.possession", "verb.social", "verb.stative", "verb.weather", "adj.ppl"),
)
"""The lexicographers' files, in the order of their numbers: see lexnames(5)."""
_MARKER = re.compile(r"\((?:a|p|ip)\)$")
"""Where an adjective may stand, which WordNet writes behind it: ``galore(ip)``."""
_DERIVED = ("+", "\\")
"""Relations of words of which one is derived from the other; the second one: of an adverb and its adjective, and of an
adjective and the noun that it pertains to."""
_EXAMPLE = re.compile(r'[;:] (?=")')
"""What stands between a definition and its first example."""


@dataclass(frozen=True)
class Synset:
    """One meaning, with the words that have it."""

    id: str
    """``n02086723``: part of speech and offset in its file."""
    pos: str
    """n, v, a or r: noun, verb, adjective, adverb."""
    topic: str
    words: tuple[str, ...]
    """The most usual first."""
    definition: str
    examples: tuple[str, ...]
    derived: tuple[tuple[int, str, int], ...]
    """(word here, id of another synset, word there): pairs of which one is derived from the other, from 0."""


def synsets(file: str, text: str) -> Iterator[Synset]:
    """The synsets of one of ``FILES``. Raises UserError with the line's number if one does not fit the format."""
    for number, line in enumerate(text.splitlines(), start=1):
        if not line.startswith("  "):  # the licence's lines do
            try:
                yield _synset(FILES[file], line)
            except (ValueError, IndexError) as error:
                raise UserError(f"{file}:{number}: is no synset of WordNet ({error})") from None


def split_gloss(gloss: str) -> tuple[str, tuple[str, ...]]:
    """The definition and the examples of a gloss, such as ``a small thing; "it is a bit of paper"``.

    Examples are quoted behind the definition; a quotation inside of a definition belongs to it.
    """
    definition, *rest = _EXAMPLE.split(gloss, maxsplit=1)
    examples = re.findall(r'"([^"]*)"', "".join(rest))
    return _plain(definition), tuple(text for text in map(_plain, examples) if text)


def _synset(pos: str, line: str) -> Synset:
    """See ``synsets``. Raises ValueError, IndexError."""
    fields, gloss = line.split(" | ", 1)
    field = fields.split(" ")
    count = int(field[3], 16)
    words = tuple(_MARKER.sub("", field[4 + 2 * index]).replace("_", " ") for index in range(count))
    first = 5 + 2 * count
    pointers = [field[start : start + 4] for start in range(first, first + 4 * int(field[first - 1]), 4)]
    derived = tuple(
        (int(ends[:2], 16) - 1, f"{other}{offset}", int(ends[2:], 16) - 1)
        for relation, offset, other, ends in pointers
        if relation in _DERIVED
    )
    definition, examples = split_gloss(gloss)
    return Synset(f"{pos}{field[0]}", pos, TOPICS[int(field[1])], words, definition, examples, derived)


def _plain(text: str) -> str:
    return " ".join(text.split()).strip(";: ")
