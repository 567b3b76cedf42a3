"""``python -m mmlm.lint run=DIR``: wrong captions among a run's training data are found, shown, and can be left out."""

import random
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image

from mmlm import lint
from mmlm.data.image_folder import ImageFolder
from mmlm.data.without import Without
from tests.conftest import COLOURS, SHAPES, draw, write_lines

EXAMPLES = 240
WRONG = EXAMPLES // 20
"""5% of the captions."""


def noisy_shapes(folder: Path) -> set[str]:
    """Drawn shapes with noise in their pixels, 5% of which have a caption of another colour; returns their ids.

    The last one is a copy of the first.
    """
    folder.mkdir()
    draws, noise = random.Random(0), np.random.default_rng(0)
    kinds = [(draws.choice(list(COLOURS)), draws.choice(SHAPES)) for _ in range(EXAMPLES - 1)]
    for number, (colour, shape) in enumerate(kinds):
        pixels = np.asarray(draw(colour, shape)).astype(np.int64) + noise.integers(-20, 21, (16, 16, 3))
        Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(folder / f"{number}.png")
    (folder / "copy.png").write_bytes((folder / "0.png").read_bytes())
    wrong = set(draws.sample(range(1, EXAMPLES - 1), WRONG))
    said = [
        (draws.choice([other for other in COLOURS if other != colour]) if number in wrong else colour, shape)
        for number, (colour, shape) in enumerate(kinds)
    ]
    names = [(f"{number}.png", words) for number, words in enumerate(said)] + [("copy.png", said[0])]
    write_lines(folder, [{"image": name, "caption": f"a {colour} {shape}"} for name, (colour, shape) in names])
    return {f"{number}.png" for number in wrong}


def test_shuffled_captions_are_found_shown_and_left_out(tmp_path: Path, trained: Callable[..., Path], command) -> None:
    wrong = noisy_shapes(tmp_path / "noisy")
    own = (f"data.train.folder={tmp_path / 'noisy'}", "train.batch_size=24", "optim.lr=0.005")
    run = trained(*own, "train.steps=80", "train.save_every=20", "train.keep_last=4")
    out = tmp_path / "out"
    done = command(lint, f"run={run}", f"out={out}", "device=cpu")
    assert (done.status, done.err) == (0, ""), done
    found = set((out / "mislabelled.txt").read_text().split())
    precision, recall = len(found & wrong) / len(found), len(found & wrong) / len(wrong)
    print(f"precision {precision:.2f}, recall {recall:.2f} of {len(wrong)} wrong captions of {EXAMPLES}")
    assert precision >= 0.9
    assert recall >= 0.9

    rows = pq.read_table(out / "doubts.parquet").to_pylist()
    assert len(rows) == 4 * EXAMPLES
    assert sorted({row["step"] for row in rows}) == [20, 40, 60, 80]
    last = sorted((row for row in rows if row["step"] == 80), key=lambda row: -row["doubt"])
    assert {row["id"] for row in last} == {f"{number}.png" for number in range(EXAMPLES - 1)} | {"copy.png"}
    assert {row["id"] for row in last[: len(found)]} == found

    # Of two examples with equal pixels and captions, the one that is read later can be left out.
    (again,) = (out / "repeated.txt").read_text().split()
    assert again in ("0.png", "copy.png")
    page = (out / "doubts.html").read_text()
    assert "equal pixels and captions" in page
    assert page.count("data:image/webp;base64,") >= len(found)
    HTMLParser().feed(page)
    assert f"{len(found):,} likely mislabelled" in done.out

    left = Without(ImageFolder(tmp_path / "noisy"), out / "mislabelled.txt")
    assert len(left) == EXAMPLES - len(found)


def test_one_checkpoint_says_that_forgetting_needs_several(
    tmp_path: Path, trained: Callable[..., Path], command
) -> None:
    run = trained("objective=captioning", "train.steps=2")
    done = command(lint, f"run={run}", f"out={tmp_path / 'out'}", "device=cpu")
    assert (done.status, done.err) == (0, ""), done
    assert "forgotten: needs several checkpoints" in done.out
    # A run that has learned no similarities is asked how much likelier a caption is with its own image.
    table = pq.read_table(tmp_path / "out" / "doubts.parquet")
    assert len(table) == 8
    assert table["loss"].null_count == table["margin"].null_count == 0
    for argument, said in (
        ("data=x", "data: does nothing with run="),
        ("threads=3", "threads: does nothing with run="),
    ):
        assert said in command(lint, f"run={run}", argument).mistake


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ((), "data: give data=PATH"),
        (("data=x", "device=cpu"), "device: is for run="),
        (("data=x", "plugins=[x]"), "plugins: is for run="),
    ],
)
def test_what_is_missing_or_does_nothing_is_told(command, arguments: tuple[str, ...], said: str) -> None:
    assert said in command(lint, *arguments).mistake
