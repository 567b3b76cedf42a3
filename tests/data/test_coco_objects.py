"""COCO's instances file: which objects each image shows, and what is wrong with a file that is none."""

import json

import pytest

from mmlm.core.errors import UserError
from mmlm.data.coco_objects import read_objects

CONTENT = {
    "images": [{"id": 7, "file_name": "a.jpg"}, {"id": 9, "file_name": "b.jpg"}],
    "categories": [{"id": 1, "name": "person"}, {"id": 3, "name": "dog"}],
    "annotations": [{"image_id": 9, "category_id": 3}, {"image_id": 9, "category_id": 3}],
}


def test_the_objects_of_each_image(tmp_path):
    file = tmp_path / "instances.json"
    file.write_text(json.dumps(CONTENT))
    found = read_objects(file)
    assert found.categories == ("person", "dog")
    assert found.of_image == {"a.jpg": frozenset(), "b.jpg": frozenset({"dog"})}
    assert found.find("b.jpg") == found.find("val2017/b.jpg") == {"dog"}
    assert (found.find("a.jpg"), found.find("c.jpg")) == (frozenset(), None)


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"categories": None}, "has no list 'categories'; give a file of instances"),
        ({"annotations": [{"image_id": 9, "caption": "a dog"}]}, r"annotations\[0\]: has no category_id"),
        ({"annotations": [{"image_id": 8, "category_id": 3}]}, r"annotations\[0\]: image_id 8 is not among 'images'"),
        ({"annotations": [{"image_id": 9, "category_id": 2}]}, "category_id 2 is not among 'categories'"),
        ({"images": [{"id": "7", "file_name": "a.jpg"}]}, r'images\[0\]: .* a whole number as its "id"'),
        ({"images": CONTENT["images"] * 2}, r"images\[2\]: id 7 is that of 'a.jpg' too"),
        ({"categories": [{"id": 1, "name": " "}]}, r"categories\[0\]: name \" \" must be a text"),
    ],
)
def test_a_file_that_is_none(tmp_path, changed, said):
    file = tmp_path / "instances.json"
    file.write_text(json.dumps(CONTENT | changed))
    with pytest.raises(UserError, match=said):
        read_objects(file)
    with pytest.raises(UserError, match="there is no such file"):
        read_objects(tmp_path / "none.json")
