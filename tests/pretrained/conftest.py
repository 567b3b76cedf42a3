"""A tiny model of random weights, as a run would leave it, and pictures for it."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from PIL import Image

from mmlm.core.batch import Caption
from mmlm.data.tokenizers.byte_pair import BytePair
from mmlm.experiment.build import build_model, build_transform
from mmlm.experiment.config import Config
from mmlm.pretrained.files import MmlmConfig
from mmlm.pretrained.model import MmlmModel

TEXTS = ["a red square", "a blue circle and more"]


@pytest.fixture
def make(tiny_config: Callable[..., Config]) -> Callable[..., MmlmModel]:
    """``make(*overrides)``: a model of random weights that was not trained, as a run would leave it."""

    def made(*overrides: str) -> MmlmModel:
        torch.manual_seed(3)
        config = tiny_config(*overrides)
        tokenizer = BytePair(280, ["en"])
        tokenizer.fit([Caption(text, None) for text in TEXTS])
        model = build_model(config, tokenizer.vocab_size)
        described = MmlmConfig.of_run(config, tokenizer.vocab_size)
        return MmlmModel(described, model, tokenizer, build_transform(config), card="# a card\n").eval()

    return made


@pytest.fixture
def files(shapes: Path) -> list[Path]:
    """The files of 8 pictures."""
    return sorted(shapes.glob("*.png"))


@pytest.fixture
def pictures(files: list[Path]) -> list[Image.Image]:
    """These pictures; their files are closed again."""
    found = []
    for file in files:
        with Image.open(file) as image:
            found.append(image.copy())
    return found
