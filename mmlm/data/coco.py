"""COCO's captions as they are published: one JSON file of images and their captions, and a folder of the images."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mmlm.core.errors import ArgumentError, UserError
from mmlm.data.caption_table import CaptionTable
from mmlm.data.captioned_images import CaptionedImages
from mmlm.data.json_file import read_json, shown, text_at

GIVE_CAPTIONS = "give a file of captions, such as captions_train2017.json"
"""What to do about a file that is none."""


class CocoCaptions(CaptionedImages):
    """The images of a COCO captions file with all their captions.

    The file is one JSON object: ``"images"`` lists ``{"id": 9, "file_name": "000000000009.jpg", ...}``, and
    ``"annotations"`` lists ``{"id": 661611, "image_id": 9, "caption": "a plate of food", ...}``, in any order, with any
    further keys.

    An image without captions is left out. Examples come in the order of ``"images"``, and the captions of an image in
    the order of ``"annotations"``. The example's id is ``file_name``. There is no concept: COCO's captions name no
    class. Blanks around a caption are dropped, and any blanks or line breaks inside become single blanks.

    The file is read once, here, which takes 0.7 GB for a million captions until it is done. What stays, and what each
    data worker is sent, are Arrow arrays of the file names and captions: 70 MB for a million captions.

    Args:
        folder: the folder of the data set. Null, which ``${data.path}`` is until it is given, is refused.
        annotations: the JSON file of captions, from ``folder`` on, or with its whole path.
        images: the folder that ``file_name`` is looked up in, from ``folder`` on, or with its whole path.
        language: the language of the captions.

    Raises:
        ArgumentError: no ``folder``.
        UserError: a missing file or folder, a file that is not JSON or no file of captions, an image or a caption that
            is not as above, two images of one id or of one ``file_name``, a caption of an image that is not listed, no
            captions at all, or a folder that lacks the first image. A later image that is missing is a ``CorruptImage``
            when it is read: to look for all of them here would take long on a network's disk.

    Source: Lin et al., "Microsoft COCO: Common Objects in Context", 2014 (1405.0312); the captions and their format:
    Chen et al., "Microsoft COCO Captions: Data Collection and Evaluation Server", 2015 (1504.00325).
    """

    def __init__(
        self,
        folder: str | Path | None,
        annotations: str | Path = "annotations/captions_train2017.json",
        images: str | Path = "train2017",
        language: str | None = None,
    ) -> None:
        if folder is None:
            raise ArgumentError("folder: null must be the folder of the data set; give data.path=FOLDER")
        file, images = Path(folder) / annotations, Path(folder) / images
        if not file.is_file():
            raise UserError(f"{file}: there is no such file; unpack COCO's annotations there, or name the file it is")
        if not images.is_dir():
            raise UserError(f"{images}: there is no such folder; unpack COCO's images there, or name the folder")
        names, captions = _read(file)
        first = images / names[0]
        if not first.is_file():
            raise UserError(f"{first}: there is no such image, but {file} lists it; name the folder of its images")
        super().__init__(images, CaptionTable.of_lists(names, captions, language))


def _read(file: Path) -> tuple[list[str], list[list[str]]]:
    """The file name of each image that has captions, and its captions. Raises UserError."""
    content = read_json(file)
    for key in ("images", "annotations"):
        if not isinstance(content, dict) or not isinstance(content.get(key), list):
            raise UserError(f"{file}: has no list '{key}'; {GIVE_CAPTIONS} (there is none for COCO's test images)")
    names = _names(file, content["images"])
    captions = _captions(file, content["annotations"], names)
    if not captions:
        raise UserError(f"{file}: has no captions; {GIVE_CAPTIONS}")
    return [names[id] for id in captions], list(captions.values())


def _names(file: Path, images: list[Any]) -> dict[int | str, str]:
    """The file name of each image by its id, in the file's order. Raises UserError."""
    names: dict[int | str, str] = {}
    ids: dict[str, int | str] = {}
    for position, image in enumerate(images):
        try:
            id, name = _id(image, "id"), text_at(image, "file_name")
            if id in names:
                raise ValueError(f"id {id} is that of '{names[id]}' too; give each image an id of its own")
            if name in ids:
                raise ValueError(f"file_name '{name}' is that of image {ids[name]} too; list each image once")
        except ValueError as error:
            raise UserError(f"{file}: images[{position}]: {error}") from None
        names[id], ids[name] = name, id
    return names


def _captions(file: Path, annotations: list[Any], names: Mapping[int | str, str]) -> dict[int | str, list[str]]:
    """The captions of each image that has some, by its id, in the order of ``names``. Raises UserError."""
    captions: dict[int | str, list[str]] = {id: [] for id in names}
    for position, annotation in enumerate(annotations):
        try:
            if isinstance(annotation, dict) and "caption" not in annotation:
                raise ValueError(f"has no caption; {GIVE_CAPTIONS}")
            image, text = _id(annotation, "image_id"), text_at(annotation, "caption")
            if image not in captions:
                raise ValueError(f"image_id {shown(image)} is not among 'images'; add the image, or remove this")
        except ValueError as error:
            # The number is found by counting, the id by searching the file.
            id = f" (id {shown(annotation['id'])})" if isinstance(annotation, dict) and "id" in annotation else ""
            raise UserError(f"{file}: annotations[{position}]{id}: {error}") from None
        captions[image].append(" ".join(text.split()))
    return {id: texts for id, texts in captions.items() if texts}


def _id(item: Any, key: str) -> int | str:
    """The id of an image: a whole number in COCO, a text in some files of its form. Raises ValueError."""
    if not isinstance(item, dict):
        raise ValueError(f'{shown(item)} must be an object, such as {{"{key}": 9, ...}}; correct or remove it')
    id = item.get(key)
    if isinstance(id, bool) or not isinstance(id, int | str):
        raise ValueError(f"{key} {shown(id)} must be a whole number or a text, the id of an image; correct it")
    return id
