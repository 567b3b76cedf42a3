"""Which objects an image shows, as COCO's instances file tells."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from mmlm.core.errors import UserError
from mmlm.data.json_file import read_json, shown, text_at

GIVE_INSTANCES = "give a file of instances, such as instances_val2017.json"
"""What to do about a file that is none."""


@dataclass(frozen=True)
class CocoObjects:
    """The objects of the images of an instances file."""

    categories: tuple[str, ...]
    """The names of the kinds of objects, in the file's order."""
    of_image: Mapping[str, frozenset[str]]
    """The categories that each image shows, by its ``file_name``; none for an image without an instance."""

    def find(self, image_id: str) -> frozenset[str] | None:
        """What the image of an id shows, a ``file_name`` or a path that ends in one; None if it is not listed."""
        found = self.of_image.get(image_id)
        return self.of_image.get(PurePosixPath(image_id).name) if found is None else found


def read_objects(file: Path) -> CocoObjects:
    """Reads a file of COCO's form: ``images`` (id, file_name), ``categories`` (id, name) and ``annotations``.

    Of an annotation, only ``image_id`` and ``category_id`` count: neither boxes nor masks. The file is read whole,
    which takes several times its size of memory for a while. Raises UserError for a file that is missing or no such.
    """
    if not file.is_file():
        raise UserError(f"{file}: there is no such file; {GIVE_INSTANCES}")
    content = read_json(file)
    for key in ("images", "categories", "annotations"):
        if not isinstance(content, dict) or not isinstance(content.get(key), list):
            raise UserError(f"{file}: has no list '{key}'; {GIVE_INSTANCES}")
    names = _by_id(file, "images", content["images"], "file_name")
    categories = _by_id(file, "categories", content["categories"], "name")
    found: dict[int, set[str]] = {id: set() for id in names}
    for position, annotation in enumerate(content["annotations"]):
        where = f"{file}: annotations[{position}]"
        if not isinstance(annotation, dict) or "category_id" not in annotation:
            raise UserError(f"{where}: has no category_id; {GIVE_INSTANCES}")
        image, category = annotation.get("image_id"), annotation["category_id"]
        if image not in found:
            raise UserError(f"{where}: image_id {shown(image)} is not among 'images'; add the image, or remove this")
        if category not in categories:
            raise UserError(f"{where}: category_id {shown(category)} is not among 'categories'; correct or remove it")
        found[image].add(categories[category])
    of_image = {names[id]: frozenset(objects) for id, objects in found.items()}
    return CocoObjects(tuple(categories.values()), of_image)


def _by_id(file: Path, key: str, items: list[object], name: str) -> dict[int, str]:
    """The text ``name`` of each of ``items`` by its id. Raises UserError."""
    found: dict[int, str] = {}
    for position, item in enumerate(items):
        try:
            if not isinstance(item, dict) or type(item.get("id")) is not int:
                raise ValueError(f'{shown(item)} must be an object with a whole number as its "id"; correct it')
            if item["id"] in found:
                raise ValueError(f"id {item['id']} is that of '{found[item['id']]}' too; give each an id of its own")
            found[item["id"]] = text_at(item, name)
        except ValueError as error:
            raise UserError(f"{file}: {key}[{position}]: {error}") from None
    return found
