"""A small run folder as training and evaluation leave it behind, changed by each test as it needs."""

import base64
import io
import json
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image

from mmlm.core.figure import Figure
from mmlm.evaluation.evaluate import evaluation_figures
from mmlm.evaluation.evaluators import CaptionLoss, CaptionQuality, ImageUse, Retrieval
from mmlm.objectives.captioning import Captioning
from mmlm.objectives.contrastive import InfoNCE
from mmlm.objectives.objective import Objective
from mmlm.objectives.weighted_sum import WeightedSum
from mmlm.record.figures import RunFigures, record_figures
from mmlm.training.reporter import training_figures


def image_uri(shade: int) -> str:
    """A plain 8 x 8 picture as a data URI."""
    file = io.BytesIO()
    Image.new("RGB", (8, 8), (shade, 90, 255 - shade)).save(file, format="PNG")
    return "data:image/png;base64," + base64.b64encode(file.getvalue()).decode("ascii")


def training_rows(steps: int) -> list[dict[str, float]]:
    """``steps`` rows, one a step, with an evaluation row after each tenth."""
    rows: list[dict[str, float]] = []
    for step in range(1, steps + 1):
        counters = {"step": step, "examples": step * 8, "seconds": step * 0.5}
        rows.append(
            counters
            | {"train/loss": 9 / step, "train/contrastive": 4 / step, "train/captioning": 5 / step, "train/lr": 1e-3}
        )
        if step % 10 == 0:
            rows.append(counters | {f"val_style/{name}": value for name, value in split_values(step / 100).items()})
    return rows


def split_values(share: float) -> dict[str, float]:
    """One split's scores."""
    recalls = {f"{way}/R@{k}": share for way in ("image_to_text", "text_to_image") for k in (1, 5, 10)}
    captioning = {f"captioning/{name}": share for name in ("exact", "BLEU-4", "ROUGE-L", "CIDEr-D")}
    gap = {"image_use_gap/mean": 0.5, "image_use_gap/low": 0.4, "image_use_gap/high": 0.6}
    return recalls | captioning | gap | {"loss/contrastive": 2.0}


def sample_example(number: int, generated: str = "a red cat", exact: bool = False) -> dict[str, object]:
    """One example of samples.json; its true caption is ``a blue cat``."""
    return {
        "id": f"noto/{number}",
        "image": image_uri(number),
        "captions": ["a blue cat"],
        "generated": generated,
        "exact": exact,
        "nearest_captions": [
            {"text": "a dog", "similarity": 0.75, "match": False},
            {"text": "a blue cat", "similarity": 0.5, "match": True},
        ],
        "attention": {"words": ["a", "red"], "grid": [2, 2], "maps": [[0.25] * 4, [0.7, 0.1, 0.1, 0.1]]},
    }


def split_samples(count: int) -> dict[str, object]:
    """One split of samples.json with ``count`` examples, the first of them exact."""
    examples = [sample_example(i) for i in range(count)]
    examples[0] |= {"generated": "a blue cat", "exact": True}
    images = [{"image": image_uri(200 + i), "similarity": 0.9 - 0.1 * i, "match": i == 1} for i in range(5)]
    return {"examples": examples, "queries": [{"caption": "a green bird", "images": images}]}


def write_json(path: Path, content: object) -> None:
    """Writes one of the run's JSON files."""
    path.write_text(json.dumps(content), encoding="utf-8")


def write_items(run: Path) -> None:
    """The items.json of a run: two images of two artists, and two captions, of each split."""
    images = {
        "id": ["ann/1", "bob/2"],
        "shown": ["a blue cat", "a dog"],
        "words": [3, 2],
        "rank": [1, 8],
        "wrong": [None, "a blue cat"],
        "said": ["a blue cat", "a fox"],
        "exact": [True, False],
        "cider": [9.5, 0.0],
        "attributes": {"artist": ["ann", "bob"]},
    }
    texts = {"language": ["en", "de"], "words": [3, 2], "rank": [1, 2]}
    split = {"of": {"images": 2, "texts": 2}, "images": images, "texts": texts}
    write_json(run / "items.json", {"step": 60, "splits": {"val_style": split, "val_concepts": split}})


def standard_figures() -> RunFigures:
    """What a run of CoCa and another objective, ``parallel``, with the standard evaluators declares."""
    objectives = {"contrastive": InfoNCE(), "captioning": Captioning(), "parallel": Objective()}
    evaluators = {
        "loss": CaptionLoss(),
        "retrieval": Retrieval(),
        "captioning": CaptionQuality(),
        "image_use_gap": ImageUse(),
    }
    training = training_figures(WeightedSum(objectives, dict.fromkeys(objectives, 1.0)).figures)
    contrastive = Figure("contrastive loss", shown=("chart",), beside="contrastive")
    return RunFigures(training, evaluation_figures(evaluators) | {"loss/contrastive": contrastive})


@pytest.fixture
def make_run(tmp_path: Path) -> Callable[..., Path]:
    """``make_run(steps)``: a run folder with every file in it, after ``steps`` steps."""

    def make(steps: int = 60) -> Path:
        run = tmp_path / "runs" / "study" / "0123abcd" / "seed=3"
        run.mkdir(parents=True)
        rows = "".join(json.dumps(row) + "\n" for row in training_rows(steps))
        (run / "metrics.jsonl").write_text(rows, encoding="utf-8")
        (run / "config.yaml").write_text("train:\n  steps: 60\n", encoding="utf-8")
        splits = {
            name: {"images": 1500, "captions": 1400} | split_values(share)
            for name, share in (("val_style", 0.523), ("val_concepts", 0.25))
        }
        write_json(run / "scores.json", {"step": steps, "splits": splits})
        write_json(run / "samples.json", {"splits": {name: split_samples(3) for name in splits}})
        environment = {
            "command": "python -m mmlm.train experiment=study",
            "git_commit": "0123456789abcdef",
            "git_dirty": False,
            "device": "cpu",
            "packages": {"torch": "2.15.0"},
            "model": {"parameters": {"encoder": 1_200_000, "decoder": 300_000}},
        }
        write_json(run / "environment.json", environment)
        record_figures(run, standard_figures())
        return run

    return make


@pytest.fixture
def change_json() -> Callable[[Path, Callable[[dict], None]], None]:
    """``change_json(path, change)``: reads a JSON file, hands it to ``change`` and writes it back."""

    def change_file(path: Path, change: Callable[[dict], None]) -> None:
        content = json.loads(path.read_text(encoding="utf-8"))
        change(content)
        write_json(path, content)

    return change_file
