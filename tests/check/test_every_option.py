"""Every option of every slot keeps all rules of its slot: the kit, on the folder of configs."""

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest

from mmlm.check.ranks import Ranks
from mmlm.check.slots import SLOTS, check_slot
from mmlm.check.tiny import tiny_config
from mmlm.experiment.config import CONFIG_DIR
from tests.conftest import COLOURS, SHAPES, draw

NOT_SLOTS = {
    "experiment": "is made of options, which are checked",
    "freeze": "says what trains: tests/model/grid and tests/optim/test_freeze.py",
    "parallel": "does not change the numbers: tests/exactness/test_shared.py",
    "launcher": "starts processes: tests/launch and tests/slurm",
}
"""Folders of configs whose options the kit does not check, and why, or where they are tested."""
LEFT_OUT = {
    ("bridge", "none"): "has no part",
    ("decoder", "none"): "has no part",
    ("text_encoder", "own"): "has no part",
    ("encoder", "efficientnet_lite0"): "has batch norms, and is for freeze=lit",
    ("encoder", "hugging_face"): "needs a name, and its weights are downloaded",
    ("decoder", "hugging_face"): "needs a name, and its weights are downloaded",
    ("decoder", "hugging_face_gated"): "needs a name, and its weights are downloaded",
    ("text_encoder", "hugging_face"): "needs a name, and its weights are downloaded",
    ("text_encoder", "clip"): "is downloaded",
    ("text_encoder", "minilm"): "is the class and the architecture of bert_tiny, of a size that takes minutes",
    ("tokenizer", "hugging_face"): "needs a name, and is downloaded",
}
"""Options that are not checked, and why."""
COMPANIONS: Mapping[tuple[str, str], Sequence[str]] = {
    ("data", "class_folder"): ("data.train.folder={classes}", "data.validation.validation.folder={classes}"),
    ("data", "coco"): ("data.path={coco}",),
    ("data", "folder"): ("data.train.folder={shapes}", "data.validation.validation.folder={shapes}"),
    ("data", "mixture"): ("data.train.sources.own.folder={shapes}", "data.validation.own.folder={shapes}"),
    ("data", "table"): ("data.path={table}",),
    ("tokenizer", "byte_pair_keywords"): ("data=emoji_keywords",),
}
"""What an option needs beside it; ``{classes}`` is what the fixture of that name makes."""


def options() -> list[tuple[str, str]]:
    """Every option of the folder of configs, by slot."""
    return sorted((file.parent.name, file.stem) for file in CONFIG_DIR.glob("*/*.yaml"))


TWO_TOWERS = (
    "bridge=none",
    "decoder=none",
    "text_encoder=transformer",
    "encoder.pool=mean",
    "objective.weights.captioning=0",
    "evaluators=retrieval",
)
SETTINGS: Mapping[str, tuple[str, Sequence[str]]] = {
    "dropout": ("decoder", ("decoder.dropout=0.1",)),
    "patch dropout": ("encoder", ("encoder.patch_dropout=0.5",)),
    "kept class token": ("encoder", ("encoder.class_token=true", "encoder.keep_prefix_tokens=true")),
    "affinity distillation": (
        "objective",
        ("objective=coca_distillation", "objective.weights.affinity_distillation=1"),
    ),
    "the encoder of two towers": ("encoder", TWO_TOWERS),
    "the objective of two towers": ("objective", TWO_TOWERS),
}
"""Settings that take other ways through the kit than the options as they are: the slot, and what is set."""

CHECKED = [option for option in options() if option[0] in SLOTS and option not in LEFT_OUT]


def test_every_option_is_checked_or_left_out_for_a_reason():
    slots = {slot for slot, _ in options()}
    assert slots == set(SLOTS) | set(NOT_SLOTS)
    assert set(LEFT_OUT) <= set(options())
    assert len(CHECKED) > 50


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


@pytest.mark.slow  # starts ranks
@pytest.mark.parametrize(("slot", "option"), CHECKED, ids=map("=".join, CHECKED))
def test_an_option_keeps_the_rules(slot: str, option: str, ranks: Ranks, request: pytest.FixtureRequest):
    tokens = COMPANIONS.get((slot, option), ())
    fixtures = {name: request.getfixturevalue(name) for name in re.findall(r"{(\w+)}", " ".join(tokens))}
    companions = [token.format(**fixtures) for token in tokens]
    lines = list(check_slot(slot, tiny_config([f"{slot}={option}", *companions]), ranks))
    assert len(lines) > 1
    assert all(line.startswith("ok  ") for line in lines), lines


@pytest.mark.slow  # starts ranks
@pytest.mark.parametrize("name", SETTINGS)
def test_settings_keep_the_rules(name: str, ranks: Ranks):
    slot, overrides = SETTINGS[name]
    lines = list(check_slot(slot, tiny_config(overrides), ranks))
    assert len(lines) > 8
    assert all(line.startswith("ok  ") for line in lines), lines
