"""Simulated ranks for all tests of a file, and data that options read."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from mmlm.check.ranks import Ranks
from tests.conftest import COLOURS, SHAPES, draw
from tests.data.pictures import Pictures
from tests.data.tars import write_shards


@pytest.fixture(scope="module")
def ranks() -> Iterator[Ranks]:
    """Three processes, started at their first use."""
    with Ranks() as started:
        yield started


@pytest.fixture
def classes(tmp_path: Path) -> Path:
    """A folder with a folder of images for each colour."""
    for colour in COLOURS:
        (tmp_path / "classes" / colour).mkdir(parents=True)
        for shape in SHAPES:
            draw(colour, shape).save(tmp_path / "classes" / colour / f"{shape}.png")
    return tmp_path / "classes"


@pytest.fixture
def coco(tmp_path: Path) -> Path:
    """A folder like COCO's, with two captions for each image."""
    names = [f"{colour} {shape}" for colour in COLOURS for shape in SHAPES]
    images = [{"id": 9 + i, "file_name": f"{name}.png"} for i, name in enumerate(names)]
    texts = [{"id": i, "image_id": 9 + i % len(names), "caption": f"a {name}"} for i, name in enumerate(2 * names)]
    (tmp_path / "coco" / "annotations").mkdir(parents=True)
    for split in ("train2017", "val2017"):
        (tmp_path / "coco" / split).mkdir()
        for name in names:
            draw(*name.split()).save(tmp_path / "coco" / split / f"{name}.png")
        file = tmp_path / "coco" / "annotations" / f"captions_{split}.json"
        file.write_text(json.dumps({"images": images, "annotations": texts}))
    return tmp_path / "coco"


@pytest.fixture
def table(tmp_path: Path) -> Path:
    """A folder of images with a table for each split."""
    names = [f"{colour} {shape}" for colour in COLOURS for shape in SHAPES]
    (tmp_path / "table").mkdir()
    for name in names:
        draw(*name.split()).save(tmp_path / "table" / f"{name}.png")
    for file in ("train.csv", "validation.csv"):
        rows = "".join(f'{name}.png,"a {name}, on white"\n' for name in names)
        (tmp_path / "table" / file).write_text(f"image,caption\n{rows}")
    return tmp_path / "table"


@pytest.fixture
def tar(tmp_path: Path) -> Path:
    """A folder with two tar shards for each split."""
    pictures = Pictures(8)
    for split in ("train", "validation"):
        write_shards(tmp_path / "tar" / split, pictures, [5, 3])
    return tmp_path / "tar"
