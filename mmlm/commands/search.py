"""Finds the images of a folder that are nearest to a text or to an image, by an index that is kept."""

from pathlib import Path

from mmlm.cli.arguments import SearchArguments
from mmlm.commands.indexed import chosen_folder, image_folder, indexed, open_to_compare
from mmlm.core.errors import UserError
from mmlm.core.wording import printable
from mmlm.data.class_folder import SUFFIXES
from mmlm.data.images import read_image
from mmlm.experiment.device import choose_device
from mmlm.pretrained.image_index import default_folder
from mmlm.pretrained.results import thumbnail
from mmlm.record.folder import write_whole
from mmlm.reports.contact_sheet import FoundImage, contact_sheet, thumbnail_uri

PAGE = "search.html"


def search_images(arguments: SearchArguments) -> int:
    """Prints a table of the nearest images and writes their page; returns the exit status. Raises UserError."""
    if arguments.top < 1:
        raise UserError(f"top: {arguments.top} must be at least 1")
    if not arguments.query.strip():
        raise UserError("query: is blank; give a text, or the path of an image")
    images, device = image_folder(arguments.images), choose_device(arguments.device)
    folder = chosen_folder(arguments.run)
    query = _query_image(arguments.query)
    picture = None if query is None else read_image(query)
    model = open_to_compare(folder, device, arguments.plugins)
    out = default_folder(images) if arguments.out is None else Path(arguments.out)
    index = indexed(model, images, out)
    asked_for = arguments.query if picture is None else picture
    found = model.search(asked_for, index, arguments.top, arguments.language)
    for rank, hit in enumerate(found, start=1):
        print(f"{rank:>4}  {hit.similarity:6.3f}  {printable(hit.name)}")
    among = f"{len(index.names):,} images in {printable(images.resolve().name)}"
    about = f"among {among}, by the model in {_of_model(folder)}"
    cards = [FoundImage(printable(hit.name), hit.similarity, thumbnail(hit.image)) for hit in found]
    asked = printable(arguments.query if query is None else query.name)
    page = out / PAGE
    _write(page, contact_sheet(asked, None if picture is None else thumbnail_uri(picture), cards, about))
    print(f"page: {page}")
    return 0


def _query_image(query: str) -> Path | None:
    """The image that a query names; None for a text, which may also be the name of a file by accident.

    Raises UserError for what looks like the path of an image and is not there.
    """
    path = Path(query)
    looks = path.suffix.lower() in SUFFIXES
    try:
        there = path.is_file()
    except (OSError, ValueError):  # too long for a path, as a text may be
        there = False
    if looks and not there:
        raise UserError(f"query: {query} looks like the path of an image, and there is no such file")
    return path if looks or (there and "/" in query) else None


def _of_model(folder: Path) -> str:
    """The end of the model's path: a page is passed around, and should not name the folders of a machine."""
    parts = folder.resolve().parts
    return "/".join(parts[-3:] if parts[-1].startswith("seed=") else parts[-1:])


def _write(page: Path, text: str) -> None:
    try:
        page.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"out: {page.parent} cannot be written ({error.strerror}); give another folder") from error
    write_whole(page, text)
