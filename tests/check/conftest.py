"""Simulated ranks for all tests of a file, and data that options read."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from mmlm.check.ranks import Ranks
from tests.conftest import COLOURS, SHAPES, draw
from tests.data.pictures import Pictures
from tests.data.tables import pictures_table, write_parquet, write_saved
from tests.data.tars import write_shards

NAMES = [f"{colour} {shape}" for colour in COLOURS for shape in SHAPES]
"""What the images show, and their names."""


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
    images = [{"id": 9 + i, "file_name": f"{name}.png"} for i, name in enumerate(NAMES)]
    texts = [{"id": i, "image_id": 9 + i % len(NAMES), "caption": f"a {name}"} for i, name in enumerate(2 * NAMES)]
    (tmp_path / "coco" / "annotations").mkdir(parents=True)
    for split in ("train2017", "val2017"):
        (tmp_path / "coco" / split).mkdir()
        for name in NAMES:
            draw(*name.split()).save(tmp_path / "coco" / split / f"{name}.png")
        file = tmp_path / "coco" / "annotations" / f"captions_{split}.json"
        file.write_text(json.dumps({"images": images, "annotations": texts}))
    return tmp_path / "coco"


@pytest.fixture
def table(tmp_path: Path) -> Path:
    """A folder of images with a table for each split."""
    (tmp_path / "table").mkdir()
    for name in NAMES:
        draw(*name.split()).save(tmp_path / "table" / f"{name}.png")
    for file in ("train.csv", "validation.csv"):
        rows = "".join(f'{name}.png,"a {name}, on white"\n' for name in NAMES)
        (tmp_path / "table" / file).write_text(f"image,caption\n{rows}")
    return tmp_path / "table"


@pytest.fixture
def tar(tmp_path: Path) -> Path:
    """A folder with two tar shards for each split."""
    pictures = Pictures(8)
    for split in ("train", "validation"):
        write_shards(tmp_path / "tar" / split, pictures, [5, 3])
    return tmp_path / "tar"


@pytest.fixture
def parquet(tmp_path: Path) -> Path:
    """A folder with a Parquet file of two row groups for each split."""
    for split in ("train", "validation"):
        write_parquet(tmp_path / "parquet" / split / "0.parquet", pictures_table(range(8)), 5)
    return tmp_path / "parquet"


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    """A folder of two splits as the datasets library saves it."""
    for split in ("train", "validation"):
        write_saved(tmp_path / "saved" / split, [pictures_table(range(8))], 5)
    (tmp_path / "saved" / "dataset_dict.json").write_text(json.dumps({"splits": ["train", "validation"]}))
    return tmp_path / "saved"


@pytest.fixture
def karpathy(tmp_path: Path) -> Path:
    """A folder with Karpathy's splits and the images in it."""
    folder, images = tmp_path / "karpathy", []
    folder.mkdir()
    for split in ("train", "restval", "val", "test"):
        for name in NAMES:
            file = f"{split} {name}.png"
            draw(*name.split()).save(folder / file)
            images.append({"filename": file, "split": split, "sentences": [{"raw": f"a {name}"}]})
    (folder / "dataset_coco.json").write_text(json.dumps({"images": images}))
    return folder


@pytest.fixture
def pairs(tmp_path: Path) -> Path:
    """A folder of images with a text beside each."""
    folder = tmp_path / "pairs"
    folder.mkdir()
    for name in NAMES:
        draw(*name.split()).save(folder / f"{name}.png")
        (folder / f"{name}.txt").write_text(f"a {name}")
    return folder
