"""A folder with a folder of images for each class, as classification data usually comes."""

import json
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path

from mmlm.core.batch import Caption, Example, ExampleTexts
from mmlm.core.errors import ArgumentError, UserError
from mmlm.core.wording import listed
from mmlm.data.images import read_encoded, read_image
from mmlm.data.text_files import read_text

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".gif", ".bmp", ".tif", ".tiff", ".ppm")
"""What the name of an image ends in, in lower case."""
PLACE = "{}"
"""The place of the class's words in a caption."""


class ClassFolder:
    """Images in folders that are named like their class: ``photos/tabby_cat/1.jpg``, ``photos/tabby_cat/2.jpg``, ....

    The caption of an image is ``caption`` with the class's words in the place of ``{}``. The words are the folder's
    name with blanks for underscores, or those that ``names`` has for the folder. The concept is the folder's name:
    images of one class are positives of each other's captions, and two data sets (training and validation, say) agree
    about a class by its name, never by its number. The example's id is the path inside of ``folder``.

    Folders inside a class's folder belong to the class. Names that begin with a dot, and files that are no images by
    their ending, are passed over.

    Args:
        folder: the folder with a folder for each class.
        caption: the caption of an image, with ``{}`` once: ``a photo of a {}``.
        names: a JSON file ``{"n02123045": "tabby cat", ...}`` of the words for each folder; null uses the folders' own
            names. Names of classes that the folder lacks are ignored: one file serves training and validation.
        language: the language of the captions.

    Raises:
        ArgumentError: a ``caption`` without the place of the class.
        UserError: a missing or empty folder, a folder of a class without an image, a class that ``names`` lacks, two
            classes of the same words.
    """

    def __init__(
        self,
        folder: str | Path,
        caption: str = "a photo of a {}",
        names: str | Path | None = None,
        language: str | None = None,
    ) -> None:
        if caption.count(PLACE) != 1:
            raise ArgumentError(f"caption: '{caption}' must have {PLACE} once, where the name of the class goes")
        self._folder, self._caption, self._language = Path(folder), caption, language
        if not self._folder.is_dir():
            raise UserError(f"{self._folder}: there is no such folder; give the one that holds a folder for each class")
        classes = sorted(path for path in self._folder.iterdir() if path.is_dir() and not path.name.startswith("."))
        if not classes:
            raise UserError(f"{self._folder}: holds no folder; make one for each class, with its images")
        self._words = _words([path.name for path in classes], None if names is None else Path(names))
        self._files = [file.relative_to(self._folder) for path in classes for file in _images(path)]

    def __len__(self) -> int:
        """Number of images."""
        return len(self._files)

    def __getitem__(self, index: int) -> Example:
        """See ``Source``."""
        return self.reduced(index, None)

    def reduced(self, index: int, at_least: int | None) -> Example:
        """See ``ReadsReduced`` in ``mmlm/data/sources.py``."""
        file = self._files[index]
        concept = file.parts[0]
        image = read_image(self._folder / file, at_least)
        return Example(file.as_posix(), image, (self._caption_of(concept),), concept)

    def encoded(self, index: int) -> bytes:
        """See ``GivesBytes`` in ``mmlm/data/sources.py``."""
        return read_encoded(self._folder / self._files[index])

    def captions(self) -> Iterator[Caption]:
        """See ``Source``."""
        return (self._caption_of(file.parts[0]) for file in self._files)

    def texts(self) -> Iterator[ExampleTexts]:
        """See ``ListsTexts``."""
        for file in self._files:
            concept = file.parts[0]
            yield ExampleTexts(file.as_posix(), (self._caption_of(concept),), concept, True)

    def _caption_of(self, concept: str) -> Caption:
        return Caption(self._caption.replace(PLACE, self._words[concept]), self._language)


def _images(folder: Path) -> list[Path]:
    """The images below the folder of a class, sorted. Raises UserError if there is none."""
    found = sorted(
        file
        for file in folder.rglob("*")
        if file.suffix.lower() in SUFFIXES
        and file.is_file()
        and not any(part.startswith(".") for part in file.relative_to(folder).parts)
    )
    if not found:
        raise UserError(f"{folder}: holds no image ({', '.join(SUFFIXES)}); add some, or remove the folder")
    return found


def _words(classes: list[str], names: Path | None) -> Mapping[str, str]:
    """The words of each class, by the name of its folder. Raises UserError."""
    if names is None:
        words = {name: name.replace("_", " ") for name in classes}
    else:
        given = read_names(names)
        missing = [name for name in classes if name not in given]
        if missing:
            raise UserError(f"{names}: has no words for the folder {listed(missing, 5)}; add them")
        words = {name: given[name] for name in classes}
    # Two classes of the same words could not be told apart by any caption.
    twice = [word for word, count in Counter(words.values()).items() if count > 1]
    if twice:
        both = [name for name, word in words.items() if word == twice[0]]
        raise UserError(f"'{twice[0]}': is the name of the folders {listed(both, 5)}; give each class words of its own")
    return words


def read_names(file: Path) -> Mapping[str, str]:
    """The words by folder of a JSON file. Raises UserError."""
    if not file.is_file():
        raise UserError(f'{file}: there is no such file; write {{"folder": "words of the class", ...}}')
    try:
        names = json.loads(read_text(file))
    except ValueError as error:
        raise UserError(f"{file}: is not JSON ({error})") from None
    if not isinstance(names, dict) or not all(isinstance(words, str) and words.strip() for words in names.values()):
        raise UserError(f'{file}: must be an object of texts, such as {{"n02123045": "tabby cat"}}')
    return names
