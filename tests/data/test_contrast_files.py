"""Winoground's, SugarCrepe's and ARO's files, small ones of our own in their forms; and what people get wrong."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from mmlm.check.report import passed
from mmlm.check.sources import CHECKS, SourceUnderTest
from mmlm.core.errors import CorruptImage, UserError
from mmlm.data.contrast_files import ContrastFiles
from mmlm.data.contrasts import Contrast, HasContrasts
from tests.conftest import draw

WINOGROUND = {
    "id": 7,
    "image_0": "ex_7_img_0",
    "image_1": "ex_7_img_1",
    "caption_0": "a red square left of a blue circle",
    "caption_1": "a blue circle left of a red square",
    "tag": "Adjective-Size",
    "secondary_tag": "",
    "num_main_preds": 1,
    "collapsed_tag": "Object",
}
SUGARCREPE = {
    "0": {"filename": "one.jpg", "caption": "a red square", "negative_caption": "a blue square"},
    "5": {"filename": "one.jpg", "caption": "a square", "negative_caption": "a circle"},
}
ARO = {
    "image_path": "two.png",
    "bbox_x": 8,
    "bbox_y": 0,
    "bbox_w": 8,
    "bbox_h": 16,
    "relation_name": "on",
    "true_caption": "the square is on the circle",
    "false_caption": "the circle is on the square",
}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name, (colour, shape) in {
        "ex_7_img_0.png": ("red", "square"),
        "ex_7_img_1.png": ("blue", "circle"),
        "one.jpg": ("red", "square"),
        "two.png": ("blue", "square"),
    }.items():
        draw(colour, shape).save(tmp_path / name)
    return tmp_path


def write(file: Path, content: object) -> str:
    file.write_text(json.dumps(content), encoding="utf-8")
    return str(file)


def test_winoground(folder):
    source = ContrastFiles("winoground", [write(folder / "examples.jsonl", WINOGROUND)], folder, "en")
    assert isinstance(source, HasContrasts)
    assert [example.id for example in (source[0], source[1])] == ["examples/7/0", "examples/7/1"]
    one, other = WINOGROUND["caption_0"], WINOGROUND["caption_1"]
    assert source.contrasts() == {
        "examples/7/0": (Contrast("object", one, other, "examples/7"),),
        "examples/7/1": (Contrast("object", other, one, "examples/7"),),
    }
    assert [caption.text for caption in source.captions()] == [one, other]
    assert source[1].image[:, 8, 8].tolist() == [40, 60, 220]


def test_sugarcrepe_has_a_kind_for_each_file(folder):
    files = [write(folder / f"{name}.json", SUGARCREPE) for name in ("swap_att", "replace_obj")]
    source = ContrastFiles("sugarcrepe", files, folder)
    assert len(source) == 4
    assert source.contrasts()["replace_obj/5"] == (Contrast("replace_obj", "a square", "a circle"),)
    assert set(source.attributes()["kind"].values()) == {"swap_att", "replace_obj"}


def test_aro_shows_a_part_of_the_image(folder):
    file = write(folder / "visual_genome_relation.json", [ARO, {**ARO, "bbox_x": 40}])
    source = ContrastFiles("aro", [file], folder)
    whole = torch.from_numpy(np.array(Image.open(folder / "two.png"))).permute(2, 0, 1)
    assert torch.equal(source[0].image, whole[:, :, 8:])
    assert source.contrasts()["visual_genome_relation/0"][0].false == "the circle is on the square"
    with pytest.raises(CorruptImage, match="holds no pixel"):
        source[1]


@pytest.mark.parametrize("form", ["winoground", "sugarcrepe", "aro"])
def test_each_keeps_the_rules_of_a_source(form, folder):
    content = {"winoground": WINOGROUND, "sugarcrepe": SUGARCREPE, "aro": [ARO]}[form]
    file = write(folder / "examples.json", content)
    subject = SourceUnderTest(lambda: ContrastFiles(form, [file], folder))
    assert all(line.startswith("ok  ") for line in passed("source", CHECKS, subject))


@pytest.mark.parametrize(
    ("form", "content", "told"),
    [
        ("sugarcrepe", {"0": {"filename": "a.jpg", "caption": "a"}}, "entry 0: 'negative_caption' must be a text"),
        ("sugarcrepe", {"0": 3}, "entry 0: must be an object"),
        ("sugarcrepe", 3, "must be an object or a list"),
        ("sugarcrepe", {}, "has no row"),
        ("sugarcrepe", {"0": {**SUGARCREPE["0"], "filename": "../a.jpg"}}, "lies outside of"),
        ("aro", [{**ARO, "bbox_w": None}], "entry 0: bbox_x, bbox_y, bbox_w and bbox_h must be four numbers"),
        ("aro", [{**ARO, "true_caption": " "}], "entry 0: 'true_caption' must be a text"),
        ("winoground", [1], "line 1: 'caption_0' must be a text"),
        ("winoground", {**WINOGROUND, "image_1": None}, "line 1: 'image_1' must be a text"),
    ],
)
def test_what_is_wrong_is_named(form, content, told, folder):
    file = write(folder / "examples.json", content)
    with pytest.raises(UserError) as error:
        ContrastFiles(form, [file], folder)
    assert told in str(error.value)
    assert "\n" not in str(error.value)


def test_what_is_missing_is_named(folder):
    (folder / "broken.json").write_text("{", encoding="utf-8")
    for file, images, told in (
        ("none.json", folder, "none.json: there is no such file"),
        ("broken.json", folder, "broken.json: is not JSON"),
        ("broken.json", folder / "none", "none: there is no such folder"),
    ):
        with pytest.raises(UserError, match=told):
            ContrastFiles("aro", [str(folder / file)], images)
    source = ContrastFiles("winoground", [write(folder / "a.jsonl", {**WINOGROUND, "image_0": "absent"})], folder)
    with pytest.raises(CorruptImage, match=r"absent\.png.*there is no such file"):
        source[0]
