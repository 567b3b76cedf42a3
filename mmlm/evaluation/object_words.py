"""The objects that a caption names, by a file of synonyms."""

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from mmlm.core.errors import UserError
from mmlm.evaluation.caption_words import caption_words

Phrase = tuple[str, ...]
"""Words that run on, as ``caption_words`` splits them."""

_IRREGULAR: Mapping[str, str] = {
    "man": "men",
    "woman": "women",
    "child": "children",
    "person": "people",
    "mouse": "mice",
    "goose": "geese",
    "foot": "feet",
    "tooth": "teeth",
    "ox": "oxen",
    "calf": "calves",
    "half": "halves",
    "knife": "knives",
    "leaf": "leaves",
    "life": "lives",
    "loaf": "loaves",
    "shelf": "shelves",
    "thief": "thieves",
    "wife": "wives",
    "wolf": "wolves",
}
_NO_MEN = ("human", "german", "roman", "shaman")
"""Words in -man that take an s."""


def plurals(word: str) -> set[str]:
    """The plurals that an English noun may have, right or common; words in -o have two."""
    if word in _IRREGULAR:
        return {_IRREGULAR[word]}
    if word.endswith("man") and not word.endswith(_NO_MEN):
        return {word[:-3] + "men"}
    if word.endswith(("s", "x", "z", "ch", "sh")):
        return {word + "es"}
    if len(word) > 1 and word.endswith("y") and word[-2] not in "aeiou":
        return {word[:-1] + "ies"}
    return {word + "s", word + "es"} if word.endswith("o") else {word + "s"}


@dataclass(frozen=True)
class ObjectWords:
    """What objects are called."""

    objects: Mapping[Phrase, str]
    """The object that each phrase names, plurals included."""
    longest: int
    """Words of the longest phrase."""
    digest: str
    """SHA-256 of the file."""

    def mentions(self, caption: str) -> list[str]:
        """The objects that a caption names, in its order, each as often as it is named.

        At every word the longest phrase counts, and the words of a phrase count once: a ``hot dog`` is no dog.
        """
        words, found, start = caption_words(caption), list[str](), 0
        while start < len(words):
            for size in range(min(self.longest, len(words) - start), 0, -1):
                name = self.objects.get(tuple(words[start : start + size]))
                if name is not None:
                    found.append(name)
                    start += size - 1
                    break
            start += 1
        return found


def read_object_words(file: Path, categories: Sequence[str]) -> ObjectWords:
    """Reads a file with one line an object: its words and phrases, separated by commas: ``dog, puppy, hot dog bun``.

    A line is about the one of ``categories`` that it holds. The last word of a phrase may stand in the plural as well;
    where that reads like a phrase of the file, it is that phrase. Capitals and punctuation do not count. Empty lines
    are skipped. Raises UserError for a file that is missing or not UTF-8, a line of no category or of two, a phrase of
    two objects, and a category without a line.
    """
    if not file.is_file():
        raise UserError(f"{file}: there is no such file; give a text file with one line of synonyms an object")
    content = file.read_bytes()
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError:
        raise UserError(f"{file}: is not UTF-8; save it as UTF-8") from None
    names = {tuple(caption_words(name)): name for name in categories}
    objects: dict[Phrase, str] = {}
    line_of: dict[Phrase, int] = {}
    for number, phrases in _lines(text):
        own = [names[phrase] for phrase in phrases if phrase in names]
        if len(own) != 1:
            about = "none" if not own else "several: " + ", ".join(own)
            raise UserError(
                f"{file}, line {number}: '{' '.join(phrases[0])}, ...' must hold the name of one category of the "
                f"instances, and holds {about}"
            )
        for phrase in phrases:
            if objects.get(phrase, own[0]) != own[0]:
                raise UserError(
                    f"{file}, line {number}: '{' '.join(phrase)}' is an object of line {line_of[phrase]} too; "
                    "remove one of them"
                )
            objects[phrase], line_of[phrase] = own[0], number
    missing = [name for name in categories if name not in objects.values()]
    if missing:
        raise UserError(f"{file}: has no line with '{missing[0]}', a category of the instances; add one")
    every = {form: name for phrase, name in objects.items() for form in _in_plural(phrase)} | objects
    return ObjectWords(every, max(map(len, every)), hashlib.sha256(content).hexdigest())


def _lines(text: str) -> Iterator[tuple[int, list[Phrase]]]:
    """Yields the number of each line that has phrases, and the phrases."""
    for number, line in enumerate(text.splitlines(), start=1):
        phrases = list(dict.fromkeys(tuple(caption_words(part)) for part in line.split(",")))
        if any(phrases):
            yield number, [phrase for phrase in phrases if phrase]


def _in_plural(phrase: Phrase) -> Iterator[Phrase]:
    for last in plurals(phrase[-1]):
        yield (*phrase[:-1], last)
