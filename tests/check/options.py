"""The options of every slot, what they need beside them, and the kit on one of them.

Two files of tests go through them, because all tests of a file are run by one process.
"""

import re
from collections.abc import Mapping, Sequence

import pytest

from mmlm.check.ranks import Ranks
from mmlm.check.slots import SLOTS, check_slot
from mmlm.check.tiny import tiny_config
from mmlm.experiment.config import CONFIG_DIR

NOT_SLOTS = {
    "experiment": "is made of options, which are checked",
    "freeze": "says what trains: tests/model/grid and tests/optim/test_freeze.py",
    "parallel": "does not change the numbers: tests/exactness/test_shared.py",
    "logger": "copies what a run writes: tests/record/loggers and tests/run/test_logged_samples.py",
    "launcher": "starts processes: tests/launch and tests/slurm",
    "study": "is made of experiments: tests/studies",
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
    ("evaluators", "by_language"): "is the standard ones and tests/evaluation/test_by_language.py: half a minute",
    ("evaluators", "chair"): "needs COCO's instances of its images: tests/evaluation/test_chair.py",
    ("evaluators", "dense_alignment"): "needs data with masks: tests/evaluation/test_dense_alignment.py",
    ("evaluators", "scenes"): "is options that are checked",
    ("tokenizer", "siglip"): "is downloaded; tests/pretrained/test_towers.py has one of its kind",
}
"""Options that are not checked, and why."""
COMPANIONS: Mapping[tuple[str, str], Sequence[str]] = {
    ("data", "class_folder"): ("data.train.folder={classes}", "data.validation.validation.folder={classes}"),
    ("data", "coco"): ("data.path={coco}",),
    ("data", "folder"): ("data.train.folder={shapes}", "data.validation.validation.folder={shapes}"),
    ("data", "karpathy"): ("data.path={karpathy}",),
    ("data", "paired_files"): ("data.train.folder={pairs}", "data.validation.validation.folder={pairs}"),
    ("data", "mixture"): ("data.train.sources.own.folder={shapes}", "data.validation.own.folder={shapes}"),
    ("data", "own"): ("data.path={shapes}",),
    ("data", "parquet"): ("data.path={parquet}",),
    ("data", "saved_dataset"): ("data.path={saved}",),
    ("data", "table"): ("data.path={table}",),
    ("data", "tar"): ("data.path={tar}",),
    ("tokenizer", "byte_pair_multilingual"): ("data=emoji_multilingual",),
    ("tokenizer", "byte_pair_keywords"): ("data=emoji_keywords",),
}
"""What an option needs beside it; ``{classes}`` is what the fixture of that name makes."""


def options() -> list[tuple[str, str]]:
    """Every option of the folder of configs, by slot."""
    return sorted((file.parent.name, file.stem) for file in CONFIG_DIR.glob("*/*.yaml"))


CHECKED = [option for option in options() if option[0] in SLOTS and option not in LEFT_OUT]
MODEL_SLOTS = ("encoder", "bridge", "text_encoder", "decoder")


def check_option(slot: str, option: str, ranks: Ranks, request: pytest.FixtureRequest) -> None:
    """Asserts that an option keeps all rules of its slot."""
    tokens = COMPANIONS.get((slot, option), ())
    fixtures = {name: request.getfixturevalue(name) for name in re.findall(r"{(\w+)}", " ".join(tokens))}
    companions = [token.format(**fixtures) for token in tokens]
    lines = list(check_slot(slot, tiny_config([f"{slot}={option}", *companions]), ranks))
    assert len(lines) > 1
    assert all(line.startswith("ok  ") for line in lines), lines
