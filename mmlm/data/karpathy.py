"""The splits of Karpathy and Fei-Fei: one JSON file of a data set's images, their captions, and their splits."""

from collections.abc import Iterator, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

from mmlm.core.errors import ArgumentError, UserError
from mmlm.core.wording import did_you_mean, listed
from mmlm.data.caption_table import CaptionTable
from mmlm.data.captioned_images import CaptionedImages
from mmlm.data.inside import check_inside
from mmlm.data.json_file import read_json, shown, text_at


class KarpathyCaptions(CaptionedImages):
    """The images of some splits of a file such as ``dataset_coco.json``, with all their captions.

    The file is one JSON object whose ``"images"`` lists ``{"filename": "9.jpg", "filepath": "val2014", "split":
    "test", "sentences": [{"raw": "A plate of food."}, ...], ...}``, with any further keys. ``"filepath"``, the folder
    of the image, may be missing, as it is for Flickr30k. Captions are the sentences as they were written (``"raw"``),
    not the words in lower case that the file has too. COCO's ``restval`` are images of its validation that these splits
    train on: ``splits=[train,restval]`` is the usual training set.

    Examples come in the order of the file, and an image without sentences is left out. The example's id is the image's
    path from ``images`` on. There is no concept. Blanks around a caption are dropped, and any blanks or line breaks
    inside become single blanks.

    Args:
        folder: the folder of the data set. Null, which ``${data.path}`` is until it is given, is refused.
        file: the JSON file, from ``folder`` on, or with its whole path.
        images: the folder of the images (that holds ``train2014/`` and ``val2014/`` of COCO), from ``folder`` on.
        splits: the splits to take, one or several.
        language: the language of the captions.

    Raises:
        ArgumentError: no ``folder``, no split, or one that the file lacks (told with those that it has).
        UserError: a missing file, a file that is not JSON or not of this form, an image that is listed twice or lies
            outside of the folder, or a folder that lacks the first image. A later image that is missing is a
            ``CorruptImage`` when it is read.

    Source: Karpathy, Fei-Fei, "Deep Visual-Semantic Alignments for Generating Image Descriptions", 2015 (1412.2306).
    """

    def __init__(
        self,
        folder: str | Path | None,
        file: str | Path = "dataset_coco.json",
        images: str | Path = ".",
        splits: str | Sequence[str] = ("train", "restval"),
        language: str | None = None,
    ) -> None:
        if folder is None:
            raise ArgumentError("folder: null must be the folder of the data set; give data.path=FOLDER")
        path, root = Path(folder) / file, Path(folder) / images
        if not path.is_file():
            raise UserError(f"{path}: there is no such file; unpack Karpathy's splits there, or name the file it is")
        wanted = [splits] if isinstance(splits, str) else list(splits)
        found = _read(path)
        names_of_splits = sorted({split for split, _, _ in found})
        for split in wanted:
            if split not in names_of_splits:
                close = did_you_mean(split, names_of_splits)
                raise ArgumentError(f"splits: {path} has no '{split}'{close}; it has {listed(names_of_splits, 8)}")
        kept = [(name, captions) for split, name, captions in found if split in wanted and captions]
        if not kept:
            raise ArgumentError(f"splits: {wanted} has no image with a caption in {path}; name another split")
        first = root / kept[0][0]
        if not first.is_file():
            raise UserError(f"{first}: there is no such image, but {path} lists it; name the folder of its images")
        names, texts = zip(*kept, strict=True)
        super().__init__(root, CaptionTable.of_lists(names, texts, language))


def _read(file: Path) -> list[tuple[str, str, list[str]]]:
    """The split, path and captions of each image, in order. Raises UserError."""
    content = read_json(file)
    if not isinstance(content, dict) or not isinstance(content.get("images"), list):
        raise UserError(f"{file}: has no list 'images'; give a file of Karpathy's splits, such as dataset_coco.json")
    found, places = [], dict[str, int]()
    for position, item in enumerate(content["images"]):
        where = f"{file}: images[{position}]"
        try:
            if not isinstance(item, dict):
                raise ValueError(f"{shown(item)} must be an object with filename, split and sentences; correct it")
            name = text_at(item, "filename")
            if item.get("filepath"):
                name = str(PurePosixPath(text_at(item, "filepath")) / name)
            if name in places:
                raise ValueError(f"'{name}' is images[{places[name]}] too; list each image once")
            found.append((text_at(item, "split"), name, list(_sentences(item))))
        except ValueError as error:
            raise UserError(f"{where}: {error}") from None
        check_inside(name, where, outside=False)
        places[name] = position
    return found


def _sentences(item: dict[str, Any]) -> Iterator[str]:
    """The captions of an image. Raises ValueError."""
    sentences = item.get("sentences")
    if not isinstance(sentences, list) or not all(isinstance(sentence, dict) for sentence in sentences):
        raise ValueError(f'sentences {shown(sentences)} must be a list of {{"raw": "a caption"}}; correct it')
    for sentence in sentences:
        yield " ".join(text_at(sentence, "raw").split())
