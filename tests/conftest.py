"""Tiny things that many tests share: a drawn data set, a composed experiment that trains in a second, commands."""

import gc
import json
import os
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import fsspec
import numpy as np
import pytest
import torch
from hydra._internal.hydra import Hydra
from omegaconf import DictConfig
from PIL import Image, ImageDraw

import mmlm
from mmlm import train
from mmlm.cli import hydra_config
from mmlm.cli.exits import report_user_errors
from mmlm.cli.hydra_command import hydra_override, run_hydra
from mmlm.core.batch import Example
from mmlm.core.stop import SIGNALS
from mmlm.evaluation.split import EncodedSplit, encode_split
from mmlm.experiment.config import CONFIG_DIR, CONFIG_NAME, Config
from mmlm.experiment.config_checks import check_config
from mmlm.experiment.device import seed_everything
from mmlm.experiment.experiment import Experiment, build_experiment
from mmlm.experiment.run_identity import run_folder
from tests.built_once import build_once
from tests.composed_once import compose_once
from tests.evaluation.hand_made import MOST_TOKENS, ExampleList, evaluation_batches, fitted_tokenizer, small_model

COLOURS = {"red": (220, 30, 30), "green": (20, 160, 60), "blue": (40, 60, 220), "yellow": (240, 210, 20)}
SHAPES = ("square", "circle")
IMAGE_SIZE = 16
MAX_TOKENS = 24

TINY = (
    "experiment=caption_base",
    "encoder=vit_small_images",
    "bridge=patches",
    "decoder=transformer",
    "objective=coca",
    "tokenizer=byte_pair",
    "transform=augment",
    "optim=adamw",
    "schedule=cosine",
    "data=folder",
    f"data.image_size={IMAGE_SIZE}",
    "data.workers=0",
    f"data.max_tokens={MAX_TOKENS}",
    "encoder.width=32",
    "encoder.depth=1",
    "encoder.patch_size=8",
    "encoder.num_heads=2",
    "model.width=32",
    "model.embedding_width=16",
    "tokenizer.vocab_size=280",
    "optim.lr=0.002",
    "schedule.warmup_steps=2",
    "samples.examples=3",
    "samples.queries=2",
    "samples.attention=1",
    "train.steps=3",
    "train.batch_size=4",
    "train.precision=fp32",
    "train.clip_norm=1.0",
    "train.log_every=1",
    "train.eval_every=null",
    "train.save_every=null",
    "train.ema_decay=null",
    "train.best_metric=null",
    "device=cpu",
)
"""Overrides that make ``caption_base`` tiny, whatever it is tuned to; the folders of data and runs are to be added."""


OTHER_TOKENIZER = ("~tokenizer.languages", "~tokenizer.lowercase")
"""Overrides that take away what other tokenizers than ``byte_pair`` do not have."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Files with the most slow tests first: one process runs all tests of a file, and must not begin with them last."""
    slow = Counter(item.path for item in items if item.get_closest_marker("slow"))
    items.sort(key=lambda item: -slow[item.path])


def pytest_collection_finish() -> None:
    """What has been imported lives on: the garbage collector need not go through it each time (5% of all time)."""
    gc.collect()
    gc.freeze()


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup() -> None:
    """Every test draws the same numbers, whichever ran before it in its process."""
    seed_everything(0)


@pytest.fixture(autouse=True)
def mark_is_right(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """A test without the mark ``slow`` starts no Python: ``make test-fast`` stays fast."""
    if request.node.get_closest_marker("slow"):
        return
    start = subprocess.Popen.__init__

    def checked(process, args, *rest, **options):
        words = [args] if isinstance(args, str | os.PathLike) else list(args)
        assert str(words[0]) != sys.executable, f"this test needs the mark slow, since it starts {words}"
        start(process, args, *rest, **options)

    monkeypatch.setattr(subprocess.Popen, "__init__", checked)


@pytest.fixture(autouse=True)
def terminal() -> Iterator[None]:
    """A command under test has a terminal that may be closed, also where the tests themselves run under nohup."""
    before = signal.getsignal(signal.SIGHUP)
    if before is signal.SIG_IGN:
        signal.signal(signal.SIGHUP, signal.SIG_DFL)
    yield
    signal.signal(signal.SIGHUP, before)


@pytest.fixture(autouse=True, scope="session")
def composed_once() -> Iterator[None]:
    """Configs are composed faster; see ``compose_once``."""
    with pytest.MonkeyPatch.context() as patch:
        compose_once(patch)
        yield


# Data


def draw(colour: str, shape: str, size: int = IMAGE_SIZE) -> Image.Image:
    """A coloured square or circle on white."""
    image = Image.new("RGB", (size, size), "white")
    pen = ImageDraw.Draw(image)
    corners = (size // 5, size // 5, size - size // 5, size - size // 5)
    (pen.rectangle if shape == "square" else pen.ellipse)(corners, fill=COLOURS[colour])
    return image


def write_lines(folder: Path, lines: Sequence[dict[str, object]]) -> None:
    """The captions.jsonl of an ``ImageFolder``."""
    folder.mkdir(parents=True, exist_ok=True)
    text = "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines)
    (folder / "captions.jsonl").write_text(text, encoding="utf-8")


def write_shapes(folder: Path) -> Path:
    """Makes an ``ImageFolder`` of 8 drawn images with one caption each, such as "a red square"; returns it."""
    pairs = [(colour, shape) for colour in COLOURS for shape in SHAPES]
    write_lines(folder, [{"image": f"{c}_{s}.png", "caption": f"a {c} {s}"} for c, s in pairs])
    for colour, shape in pairs:
        draw(colour, shape).save(folder / f"{colour}_{shape}.png")
    return folder


@pytest.fixture
def write_captions() -> Callable[[Path, Sequence[dict[str, object]]], None]:
    """``write_captions(folder, lines)``: the captions.jsonl of an ``ImageFolder``."""
    return write_lines


@pytest.fixture
def shapes(tmp_path: Path) -> Path:
    """An ``ImageFolder`` of 8 drawn images with one caption each, such as "a red square"."""
    return write_shapes(tmp_path / "shapes")


# Configs


@pytest.fixture
def compose() -> Callable[..., DictConfig]:
    """``compose(*overrides)``: the config of a command line, unchecked."""

    return lambda *overrides: hydra_config.compose([hydra_override(token) for token in overrides])


@pytest.fixture
def tiny(tmp_path: Path, shapes: Path) -> tuple[str, ...]:
    """The command line of a tiny run on ``shapes`` that stays in ``tmp_path / "runs"``."""
    folders = (f"data.train.folder={shapes}", f"data.validation.validation.folder={shapes}")
    return (*TINY, *folders, f"runs={tmp_path / 'runs'}")


@pytest.fixture
def tiny_config(tiny: tuple[str, ...], compose: Callable[..., DictConfig]) -> Callable[..., Config]:
    """``tiny_config(*overrides)``: the checked config of a tiny run."""
    return lambda *overrides: check_config(compose(*tiny, *overrides))


@pytest.fixture
def build(tiny_config: Callable[..., Config], tmp_path: Path) -> Callable[..., Experiment]:
    """``build(*overrides)``: a tiny experiment, in a folder without a run."""
    return lambda *overrides: build_experiment(tiny_config(*overrides), tmp_path / "new")


@pytest.fixture
def built_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """What the configs of a test have in common is built once, on the meta device, where they are only checked."""
    build_once(monkeypatch)


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of an importable package, ``some_weights``, that must not be imported."""
    folder = tmp_path / "packages" / "some_weights"
    folder.mkdir(parents=True)
    (folder / "__init__.py").write_text("raise RuntimeError('imported')")
    monkeypatch.syspath_prepend(str(folder.parent))
    return folder


# Parts of one's own

PLUGIN = Path(__file__).parent / "plugin"


@pytest.fixture
def own_parts(monkeypatch: pytest.MonkeyPatch) -> tuple[str, ...]:
    """Overrides that make the options of ``tests/plugin`` available."""
    monkeypatch.syspath_prepend(str(PLUGIN))
    return ("plugins=[own_parts]", f"hydra.searchpath=[file://{PLUGIN / 'configs'}]")


@pytest.fixture
def two_towers(own_parts: tuple[str, ...]) -> tuple[str, ...]:
    """Overrides of ``TINY`` for a model without a bridge and a decoder."""
    towers = ("encoder=own_pooled", "bridge=none", "text_encoder=own_tokens", "decoder=none")
    return (*own_parts, *towers, "objective.weights.captioning=0", "evaluators=retrieval")


# Commands

PACKAGE = Path(mmlm.__file__).parent
"""The folder of the package under test."""


def package_frames(text: str) -> list[str]:
    """The lines of the tracebacks in ``text`` that name a file of the package mmlm.

    The package is found by its own folder, because any other path may hold the word "mmlm" too: a clone lies in a
    folder of that name, with the virtual environment, and so with torch's files, inside.
    """
    return [line for line in text.splitlines() if f'File "{PACKAGE}{os.sep}' in line]


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
def charts() -> None:
    """Asks for charts in the reports that commands in this process write."""


@pytest.fixture
def plain_hydra(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """What commands in this process leave out, half of the time of a tiny run.

    Reports have no charts unless the test asks for ``charts``, and Hydra does not compose every config a first time to
    see whether it sets ``hydra.mode``.
    """
    monkeypatch.setenv("HYDRA_FULL_ERROR", "0")  # run_hydra sets it; restored after the test
    monkeypatch.setattr(Hydra, "get_mode", lambda hydra, config_name, overrides: None)
    if "charts" not in request.fixturenames:
        monkeypatch.setattr("mmlm.reports.curves_section.draw_chart", lambda *lines, **how: "<svg></svg>")


@contextmanager
def handlers_kept() -> Iterator[None]:
    """A command that has stopped ignores signals until its process ends, which here goes on."""
    before = {one: signal.getsignal(one) for one in SIGNALS}
    try:
        yield
    finally:
        for one, own in before.items():
            signal.signal(one, own)


def run_here(
    module: object, arguments: Sequence[str], monkeypatch: pytest.MonkeyPatch, captured: pytest.CaptureFixture[str]
) -> Outcome:
    """``python -m <module> <arguments>``, in this process."""
    monkeypatch.setattr(sys, "argv", ["mmlm", *arguments])
    captured.readouterr()
    with handlers_kept(), pytest.raises(SystemExit) as exited:
        run_hydra(train.main, CONFIG_DIR, CONFIG_NAME) if module is train else report_user_errors(module.main)
    return Outcome(exited.value.code or 0, *captured.readouterr())


@pytest.fixture
def command(
    plain_hydra: None, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Callable[..., Outcome]:
    """``command(module, *arguments)``: ``python -m <module> <arguments>``, in this process."""
    return lambda module, *arguments: run_here(module, arguments, monkeypatch, capsys)


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


# An object store


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[str], str]]:
    """``store(protocol)``: what lies in ``tmp_path / "data"``, by the URL of its folder."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    memory = fsspec.filesystem("memory")

    def by(protocol: str) -> str:
        if protocol == "file":
            return f"file://{tmp_path / 'data'}"
        for file in (tmp_path / "data").rglob("*"):
            if file.is_file() and file.suffix in (".tar", ".parquet", ".png"):
                memory.pipe_file(f"/bucket/{file.relative_to(tmp_path / 'data')}", file.read_bytes())
        return "memory://bucket"

    yield by
    if memory.exists("/bucket"):  # it is the process's, not the test's
        memory.rm("/bucket", recursive=True)


# Real processes


@pytest.fixture
def start_process() -> Callable[..., "subprocess.Popen[str]"]:
    """``start_process(module, *arguments, cwd=None, start_new_session=False)``: a command in a process of its own."""

    def start(module: str, *arguments: str, cwd: Path | None = None, start_new_session: bool = False):
        environment = {key: value for key, value in os.environ.items() if not key.startswith("HYDRA")}
        return subprocess.Popen(
            [sys.executable, "-m", module, *arguments],
            env=environment | {"OMP_NUM_THREADS": "1"},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            cwd=cwd,
            start_new_session=start_new_session,
        )

    return start


@pytest.fixture
def finish_process() -> Callable[["subprocess.Popen[str]"], Outcome]:
    """``finish_process(process)``: waits for its end."""

    def finish(process: "subprocess.Popen[str]") -> Outcome:
        out, err = process.communicate(timeout=300)
        return Outcome(process.returncode, out, err)

    return finish


@dataclass(frozen=True)
class Pictures:
    """Files to caption."""

    good: tuple[str, ...]
    """Paths of images: the same red circle in many formats."""
    bad: dict[str, str]
    """Paths that are no images, and why."""


@pytest.fixture
def pictures(tmp_path: Path) -> Pictures:
    """A drawing as RGBA, palette and 16-bit PNG, JPEG and WebP, and files that are no images."""
    folder = tmp_path / "pictures"
    folder.mkdir()
    size = 40
    row, column = np.mgrid[:size, :size]
    inside = (row - size / 2) ** 2 + (column - size / 2) ** 2 < (size / 3) ** 2
    pixels = np.zeros((size, size, 4), dtype=np.uint8)
    pixels[inside] = (*COLOURS["red"], 255)
    rgba = Image.fromarray(pixels)
    white = Image.alpha_composite(Image.new("RGBA", rgba.size, "white"), rgba).convert("RGB")
    rgba.save(folder / "alpha.png")
    rgba.quantize(16).save(folder / "palette.png")
    rgba.save(folder / "alpha.webp", lossless=True)
    Image.fromarray((inside * 40000).astype(np.uint16)).save(folder / "sixteen_bit.png")
    white.save(folder / "photo.jpg", quality=95)
    white.resize((90, 30)).save(folder / "a space=and equals.png")
    good = tuple(str(path) for path in sorted(folder.iterdir()))
    (folder / "half.png").write_bytes((folder / "alpha.png").read_bytes()[:90])
    (folder / "notes.txt").write_text("this is no picture")
    reasons = {"half.png": "is damaged", "missing.png": "there is no such file", "notes.txt": "is not an image"}
    return Pictures(good, {str(folder / name): reason for name, reason in reasons.items()})


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
        tokenizer = fitted_tokenizer(examples, vocab_size, languages)
        model = small_model(tokenizer, fusion)
        batches = evaluation_batches(ExampleList(examples), tokenizer, batch_size)
        return encode_split("hand_made", model, tokenizer, batches, torch.device("cpu"), MOST_TOKENS)

    return make
