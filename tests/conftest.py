"""Tiny things that many tests share: a drawn data set, a composed experiment that trains in a second, commands."""

import json
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import hydra
import pytest
import torch
from omegaconf import DictConfig
from PIL import Image, ImageDraw

from mmlm import train
from mmlm.cli import report_user_errors, run_hydra
from mmlm.config import CONFIG_DIR, CONFIG_NAME, Config, check_config, run_folder
from mmlm.data.loader import EvaluationBatches
from mmlm.data.tokenizer import BytePair
from mmlm.data.transforms import Transform
from mmlm.evaluation.split import EncodedSplit, encode_split
from mmlm.flow import Caption, Example
from mmlm.model.bridge import AttentionalPooler
from mmlm.model.decoder import TransformerDecoder
from mmlm.model.encoder import TimmVit
from mmlm.model.model import ImageTextModel

COLOURS = {"red": (220, 30, 30), "green": (20, 160, 60), "blue": (40, 60, 220), "yellow": (240, 210, 20)}
SHAPES = ("square", "circle")
IMAGE_SIZE = 16
MAX_TOKENS = 24

TINY = (
    "experiment=caption_base",
    "data=folder",
    f"data.image_size={IMAGE_SIZE}",
    f"data.max_tokens={MAX_TOKENS}",
    "encoder.width=32",
    "encoder.depth=1",
    "encoder.num_heads=2",
    "bridge.width=32",
    "bridge.num_heads=2",
    "decoder.width=32",
    "decoder.num_heads=2",
    "model.embedding_width=16",
    "tokenizer.vocab_size=280",
    "schedule.warmup_steps=2",
    "samples.examples=3",
    "samples.queries=2",
    "samples.attention=1",
    "train.steps=3",
    "train.batch_size=4",
    "train.precision=fp32",
    "train.log_every=1",
    "train.eval_every=null",
    "train.save_every=null",
    "train.ema_decay=null",
    "train.best_metric=null",
    "device=cpu",
)
"""Overrides that make ``caption_base`` tiny; the folders of data and runs are still to be given."""


# Data


def draw(colour: str, shape: str, size: int = IMAGE_SIZE) -> Image.Image:
    """A coloured square or circle on white."""
    image = Image.new("RGB", (size, size), "white")
    pen = ImageDraw.Draw(image)
    corners = (size // 5, size // 5, size - size // 5, size - size // 5)
    (pen.rectangle if shape == "square" else pen.ellipse)(corners, fill=COLOURS[colour])
    return image


@pytest.fixture
def write_captions() -> Callable[[Path, Sequence[dict[str, object]]], None]:
    """``write_captions(folder, lines)``: the captions.jsonl of an ``ImageFolder``."""

    def write(folder: Path, lines: Sequence[dict[str, object]]) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        text = "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines)
        (folder / "captions.jsonl").write_text(text, encoding="utf-8")

    return write


@pytest.fixture
def shapes(tmp_path: Path, write_captions: Callable[..., None]) -> Path:
    """An ``ImageFolder`` of 8 drawn images with one caption each, such as "a red square"."""
    folder = tmp_path / "shapes"
    pairs = [(colour, shape) for colour in COLOURS for shape in SHAPES]
    write_captions(folder, [{"image": f"{c}_{s}.png", "caption": f"a {c} {s}"} for c, s in pairs])
    for colour, shape in pairs:
        draw(colour, shape).save(folder / f"{colour}_{shape}.png")
    return folder


# Configs


@pytest.fixture
def compose() -> Callable[..., DictConfig]:
    """``compose(*overrides)``: the config of a command line, unchecked."""

    def composed(*overrides: str) -> DictConfig:
        with hydra.initialize_config_dir(str(CONFIG_DIR), version_base="1.3"):
            return hydra.compose(CONFIG_NAME, list(overrides))

    return composed


@pytest.fixture
def tiny(tmp_path: Path, shapes: Path) -> tuple[str, ...]:
    """The command line of a tiny run on ``shapes`` that stays in ``tmp_path / "runs"``."""
    folders = (f"data.train.folder={shapes}", f"data.validation.validation.folder={shapes}")
    return (*TINY, *folders, f"runs={tmp_path / 'runs'}")


@pytest.fixture
def tiny_config(tiny: tuple[str, ...], compose: Callable[..., DictConfig]) -> Callable[..., Config]:
    """``tiny_config(*overrides)``: the checked config of a tiny run."""
    return lambda *overrides: check_config(compose(*tiny, *overrides))


# Commands


@dataclass(frozen=True)
class Outcome:
    """What a command left in the terminal."""

    status: int
    out: str
    err: str

    @property
    def mistake(self) -> str:
        """The one line about a user's mistake, after checking that it is one line, without a traceback."""
        assert self.status == 2, self
        assert self.err.startswith("mmlm: "), self
        assert self.err.count("\n") == 1, self
        assert "Traceback" not in self.out + self.err, self
        return self.err.removeprefix("mmlm: ").rstrip("\n")


@pytest.fixture
def command(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., Outcome]:
    """``command(module, *arguments)``: ``python -m <module> <arguments>``, in this process."""
    monkeypatch.setenv("HYDRA_FULL_ERROR", "0")  # run_hydra sets it; restored after the test

    def run(module: object, *arguments: str) -> Outcome:
        monkeypatch.setattr(sys, "argv", ["mmlm", *arguments])
        capsys.readouterr()
        with pytest.raises(SystemExit) as exited:
            if module is train:
                run_hydra(train.main, CONFIG_DIR, CONFIG_NAME)
            else:
                report_user_errors(module.main)
        captured = capsys.readouterr()
        return Outcome(exited.value.code or 0, captured.out, captured.err)

    return run


@pytest.fixture
def train_tiny(command: Callable[..., Outcome], tiny: tuple[str, ...]) -> Callable[..., Outcome]:
    """``train_tiny(*overrides)``: ``python -m mmlm.train`` of a tiny run, in this process."""
    return lambda *overrides: command(train, *tiny, *overrides)


@pytest.fixture
def trained(train_tiny: Callable[..., Outcome], tiny_config: Callable[..., Config]) -> Callable[..., Path]:
    """``trained(*overrides)``: the folder of a tiny run that has been trained to its end."""

    def run(*overrides: str) -> Path:
        outcome = train_tiny(*overrides)
        assert (outcome.status, outcome.err) == (0, ""), outcome
        return run_folder(tiny_config(*overrides))

    return run


# Models and splits


@pytest.fixture
def make_split() -> Callable[..., EncodedSplit]:
    """``make_split(examples, ...)``: a split of hand-made examples, encoded by a small random model in eval mode."""

    def make(
        examples: Sequence[Example],
        batch_size: int = 3,
        languages: Sequence[str] = (),
        vocab_size: int = 300,
        fusion: str = "cross_attention",
    ) -> EncodedSplit:
        torch.manual_seed(0)
        tokenizer = BytePair(vocab_size, languages)
        tokenizer.fit([caption for example in examples for caption in example.captions])
        encoder = TimmVit(IMAGE_SIZE, width=32, depth=1, num_heads=2, patch_size=4)
        bridge = AttentionalPooler(encoder.width, 32, num_heads=2, num_queries=3)
        decoder = TransformerDecoder(tokenizer.vocab_size, 32, width=32, num_heads=2, max_tokens=48, fusion=fusion)
        model = ImageTextModel(encoder, bridge, decoder, embedding_width=16).eval()
        batches = EvaluationBatches(examples_source(examples), tokenizer, Transform(IMAGE_SIZE, None), batch_size, 48)
        return encode_split("hand_made", model, tokenizer, batches, torch.device("cpu"), 48)

    return make


class examples_source(list[Example]):  # noqa: N801 - used as a function
    """Examples as a ``Source``."""

    def captions(self) -> list[Caption]:
        """Every caption."""
        return [caption for example in self for caption in example.captions]
