"""A folder in which the captions of an image lie beside it: ``a.jpg`` and ``a.txt``."""

from collections import Counter
from pathlib import Path

from mmlm.core.errors import UserError
from mmlm.core.wording import listed
from mmlm.data.caption_table import CaptionTable
from mmlm.data.captioned_images import CaptionedImages
from mmlm.data.class_folder import SUFFIXES
from mmlm.data.text_files import numbered_lines


class PairedFiles(CaptionedImages):
    """Images that each have a text file of their own name beside them, in a folder and the folders inside of it.

    Each line of the text file that is not blank is a caption. The name is what stands before the last dot: the captions
    of ``22.05.png`` are in ``22.05.txt``. Examples come in the order of their names, and the example's id is the
    image's path from ``folder`` on. There is no concept. Blanks around a caption are dropped, and any blanks inside
    become single blanks. Names that begin with a dot are passed over.

    Args:
        folder: the folder of images and texts.
        language: the language of the captions.

    Raises:
        UserError: a missing folder, one without an image, an image without a text or without a line in it (told with
            how many there are), a text without an image, two images for one text, a text that is not UTF-8.
    """

    def __init__(self, folder: str | Path, language: str | None = None) -> None:
        root = Path(folder)
        if not root.is_dir():
            raise UserError(f"{root}: there is no such folder; give the one that holds images and their .txt files")
        files = sorted(file for file in root.rglob("*") if not any(p.startswith(".") for p in _inside(file, root)))
        images = [file for file in files if file.suffix.lower() in SUFFIXES and file.is_file()]
        texts = {file for file in files if file.suffix.lower() == ".txt"}
        if not images:
            raise UserError(f"{root}: holds no image ({', '.join(SUFFIXES)}); give the folder that does")
        _check_pairs(root, images, texts)
        names = [file.relative_to(root).as_posix() for file in images]
        captions = [_lines(file.with_suffix(".txt")) for file in images]
        super().__init__(root, CaptionTable.of_lists(names, captions, language))


def _inside(file: Path, root: Path) -> tuple[str, ...]:
    return file.relative_to(root).parts


def _check_pairs(root: Path, images: list[Path], texts: set[Path]) -> None:
    """UserError unless every image has a text of its own, and every text its image."""
    wanted = Counter(image.with_suffix(".txt") for image in images)
    alone = [image for image in images if image.with_suffix(".txt") not in texts]
    if alone:
        count = f"{len(alone)} of {len(images)} images have none"
        raise UserError(f"{alone[0]}: has no {alone[0].stem}.txt beside it ({count}); write its captions, one a line")
    twice = [text for text, count in wanted.items() if count > 1]
    if twice:
        both = listed([image.name for image in images if image.with_suffix(".txt") == twice[0]], 5)
        raise UserError(f"{twice[0]}: belongs to {both}; give each image a name and a text of its own")
    lost = sorted(texts - wanted.keys())
    if lost:
        names = listed([str(text.relative_to(root)) for text in lost], 5)
        raise UserError(f"{root}: {names} has no image beside it; add the image, or remove the text")


def _lines(text: Path) -> list[str]:
    """The captions of a text file. Raises UserError."""
    captions = [" ".join(line.split()) for _, line in numbered_lines(text)]
    captions = [caption for caption in captions if caption]
    if not captions:
        raise UserError(f"{text}: has no line; write a caption, or remove it and its image")
    return captions
