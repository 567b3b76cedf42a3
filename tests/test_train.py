"""The real training command: what a run leaves behind, which weights count, and that a model learns."""

import json
import re
from pathlib import Path

import pytest
import torch

from mmlm import caption, evaluate
from mmlm.checkpoints.checkpoint import best_checkpoint, load_checkpoint
from mmlm.experiment.config import CONFIG_DIR
from mmlm.experiment.run_identity import run_folder
from mmlm.experiment.saved_run import load_run
from mmlm.record.metrics import read_metrics
from mmlm.training.reporter import OF_THE_CLOCK

CPU = torch.device("cpu")


def rows(folder: Path) -> list[dict[str, float]]:
    """The metrics but for those of the clock."""
    timed = ("seconds", *(f"train/{name}" for name in OF_THE_CLOCK))
    return [{k: v for k, v in row.items() if k not in timed} for row in read_metrics(folder / "metrics.jsonl")]


@pytest.mark.usefixtures("charts")
def test_a_run_folder(trained):
    folder = trained("train.eval_every=2")
    assert {path.name for path in folder.iterdir()} == {
        "config.yaml",
        "environment.json",
        "metrics.jsonl",
        "data.json",
        "overlap.json",
        "figures.json",
        "checkpoints",
        "lock",
        "manifest.jsonl",
        "tokenizer",
        "samples.json",
        "items.json",
        "per_item.parquet",
        "changes.json",
        "scores.json",
        "report.html",
    }
    found = rows(folder)
    assert [(row["step"], "train/loss" in row) for row in found] == [
        (1, True),
        (2, True),
        (2, False),
        (3, True),
        (3, False),
    ]
    assert [row["examples"] for row in found] == [4, 8, 8, 12, 12]
    terms = {"train/loss", "train/contrastive", "train/captioning", "train/lr", "train/gradient_norm"}
    assert terms <= found[0].keys()
    scores = json.loads((folder / "scores.json").read_text())
    assert scores["step"] == 3
    values = scores["splits"]["validation"]
    assert (values["images"], values["captions"]) == (8, 8)
    assert {f"validation/{name}" for name in values} - {"validation/images", "validation/captions"} == {
        name for name in found[-1] if name.startswith("validation/")
    }
    for name, value in values.items():
        assert found[-1].get(f"validation/{name}", value) == pytest.approx(value)
    samples = json.loads((folder / "samples.json").read_text())["splits"]["validation"]
    assert (len(samples["examples"]), len(samples["queries"])) == (3, 2)
    model = json.loads((folder / "environment.json").read_text())["model"]
    assert model["parameters"].keys() == model["flops"].keys() >= {"encoder", "bridge", "decoder"}
    assert all(model["flops"][part] > 0 for part in ("encoder", "bridge", "decoder", "image_projection"))
    assert "http-equiv" in (folder / "report.html").read_text() or "<html" in (folder / "report.html").read_text()


def test_the_console_tells_what_is_trained_and_where_results_go(train_tiny, tiny_config):
    outcome = train_tiny()
    words = " ".join(outcome.out.split())
    assert "caption_base (seed 0) on CPU" in words
    assert "8 images to train on, validation 8 to validate on" in words
    assert "3 steps of 4 examples, 1.5 epochs" in words
    assert "MFLOPs forward for one image and 24 tokens (a multiply-add is 2)" in words
    for part in ("encoder TimmVit", "bridge AttentionalPooler", "decoder TransformerDecoder"):
        assert re.search(rf"{part} 0\.0\dM parameters, \d+\.\d MFLOPs", words), part
    assert "step 3/3" in words
    assert "validation: image_to_text/R@1 " in words
    assert f"report: {run_folder(tiny_config()) / 'report.html'}" in outcome.out


@pytest.mark.usefixtures("charts")
@pytest.mark.parametrize(
    "overrides",
    [
        ("train.precision=bf16",),
        ("bridge=mlp", "decoder=prefix", "bridge.width=24"),
        ("decoder=prefix", "decoder.packed=false", "decoder.positions=rotary"),
        ("optim=muon", "schedule=wsd", "transform=plain", "train.clip_norm=null"),
        ("objective.weights.contrastive=0", "encoder.stem=patch", "encoder.class_token=true"),
        ("objective.weights.captioning=0", "data.captions_per_image=null", "decoder.tie_weights=false"),
        ("tokenizer.languages=[]", "data.max_tokens=8"),
    ],
    ids=lambda overrides: " ".join(overrides),
)
def test_other_experiments_run(trained, overrides):
    folder = trained(*overrides, "train.steps=2")
    assert (folder / "report.html").is_file()


# Models that have less


def samples_of(folder: Path) -> list[dict[str, object]]:
    return json.loads((folder / "samples.json").read_text())["splits"]["validation"]["examples"]


@pytest.mark.usefixtures("charts")
def test_two_towers_from_training_to_the_page(trained, two_towers, command):
    folder = trained(*two_towers, "train.eval_every=2")
    scores = json.loads((folder / "scores.json").read_text())["splits"]["validation"]
    ways = ("image_to_text", "text_to_image")
    recalls = {f"{way}/R@{k}" for way in ways for k in (1, 5, 10)}
    spread = {f"{way}/{name}" for way in ways for name in ("mAP", "median_rank")}
    spread |= {f"{name}/{end}" for name in spread for end in ("low", "high")}
    beside = {f"{recall}/{end}" for recall in recalls for end in ("low", "high", "chance")}
    queries = {"image_to_text/queries", "text_to_image/queries"}
    assert scores.keys() == {"images", "captions"} | recalls | spread | beside | queries
    for example in samples_of(folder):
        assert (example["generated"], example["exact"], example["attention"]) == (None, False, None)
        assert len(example["captions"]) == 1
        assert len(example["nearest_captions"]) == 5
    environment = json.loads((folder / "environment.json").read_text())
    assert environment["model"]["flops"].keys() == environment["model"]["parameters"].keys()
    assert "text_encoder" in environment["model"]["flops"]
    page = (folder / "report.html").read_text()
    assert "Images and their nearest caption" in page
    assert "Generated captions" not in page
    outcome = command(evaluate, f"run={folder}", "plugins=[own_parts]", "precision=bf16")
    assert (outcome.status, outcome.err) == (0, "")
    assert "image_to_text/R@1" in outcome.out
    assert "captioning" not in outcome.out.replace(str(folder), "")
    assert samples_of(folder)[0]["generated"] is None


REAL_TOWERS = ("bridge=none", "decoder=none", "encoder.pool=mean", "text_encoder=transformer", "evaluators=retrieval")


@pytest.mark.skipif(
    not (CONFIG_DIR / "text_encoder/transformer.yaml").exists(), reason="no option text_encoder=transformer"
)
def test_two_towers_of_the_options_that_ship(trained):
    folder = trained(*REAL_TOWERS, "objective.weights.captioning=0")
    assert samples_of(folder)[0]["generated"] is None


def test_a_decoder_that_cannot_say_where_it_looks(trained, own_parts):
    shown, hidden = trained(), trained(*own_parts, "decoder=own_shy")
    assert samples_of(hidden)[0]["generated"] is not None
    assert all(example["attention"] is None for example in samples_of(hidden))
    scores = [json.loads((folder / "scores.json").read_text())["splits"]["validation"] for folder in (shown, hidden)]
    assert scores[0].keys() == scores[1].keys()
    page = (hidden / "report.html").read_text()
    assert "Generated captions" in page
    assert "Where the decoder looked" not in page


# Which weights count


def test_the_best_checkpoint_is_what_is_reported_and_used(trained, command, monkeypatch):
    """The value is made to be largest at step 2 of 4."""
    worth = iter([0.1, 0.3, 0.9, 0.2, 0.5, 0.0, 0.0])
    monkeypatch.setattr("mmlm.evaluation.evaluators.Retrieval.__call__", lambda self, split: [("R", next(worth))])
    folder = trained("train.steps=4", "train.eval_every=1", "train.best_metric=validation/R", "train.keep_last=1")
    best = best_checkpoint(folder / "checkpoints")
    assert (best.step, best.metric, best.score) == (2, "validation/R", 0.9)
    assert sorted(path.name for path in (folder / "checkpoints").glob("step=*")) == ["step=000002", "step=000004"]
    assert [row["step"] for row in rows(folder) if "validation/R" in row] == [0, 1, 2, 3, 4]
    assert json.loads((folder / "scores.json").read_text())["step"] == 2
    assert load_run(str(folder), CPU).step == 2
    outcome = command(evaluate, f"run={folder}")
    assert f"{folder} at step 2" in outcome.out


def test_the_average_is_what_is_reported(trained, command):
    settings = ("train.steps=6", "optim.lr=0.02", "train.eval_every=3")
    plain, averaged = trained(*settings), trained(*settings, "train.ema_decay=0.9")
    last = [load_checkpoint(folder / "checkpoints/step=000006").weights["model"] for folder in (plain, averaged)]
    assert all(torch.equal(last[0][name], last[1][name]) for name in last[0]), "training itself does not change"
    values = [json.loads((folder / "scores.json").read_text())["splits"]["validation"] for folder in (plain, averaged)]
    assert values[0]["loss/captioning"] != pytest.approx(values[1]["loss/captioning"], rel=1e-4)
    assert rows(averaged)[-1]["validation/loss/captioning"] == pytest.approx(values[1]["loss/captioning"])
    # What is evaluated from the folder alone is the same.
    (averaged / "scores.json").unlink()
    assert command(evaluate, f"run={averaged}").status == 0
    again = json.loads((averaged / "scores.json").read_text())["splits"]["validation"]
    assert again == pytest.approx(values[1])


def test_a_model_learns_eight_images_by_heart(trained, command, shapes):
    """Captions exactly right, both retrievals perfect, and captions that need their images."""
    settings = ("train.steps=240", "train.batch_size=8", "optim.lr=0.005", "optim.weight_decay=0", "transform=plain")
    folder = trained(*settings, "schedule.warmup_steps=5", "train.log_every=20", "tokenizer.vocab_size=320")
    values = json.loads((folder / "scores.json").read_text())["splits"]["validation"]
    assert values["captioning/exact"] == 1.0
    assert values["image_to_text/R@1"] == values["text_to_image/R@1"] == 1.0
    assert values["captioning/BLEU-1"] == pytest.approx(1.0)
    assert values["image_use_gap/mean"] > values["image_use_gap/low"] > 0
    images = sorted(shapes.glob("*.png"))
    outcome = command(caption, f"run={folder}", *map(str, images))
    expected = [f"{image}\ta {image.stem.replace('_', ' ')}" for image in images]
    assert (outcome.status, outcome.out.splitlines()) == (0, expected)
    attention = json.loads((folder / "samples.json").read_text())["splits"]["validation"]["examples"][0]["attention"]
    assert attention["words"][0] == "a"
    assert (len(attention["words"]), attention["grid"]) == (3, [2, 2])


# Corrupt images


def test_corrupt_images_are_named_at_the_end_of_the_epoch_and_of_the_evaluation(train_tiny, shapes, command):
    file = shapes / "red_circle.png"
    file.write_bytes(file.read_bytes()[:60])
    outcome = train_tiny()
    assert outcome.status == 0
    lines = [line for line in outcome.out.splitlines() if "could not be decoded" in line]
    assert [line.split(f"{file}: ")[0] for line in lines] == [
        "epoch 0: 1 image could not be decoded: ",
        *(["epoch 1: 1 image could not be decoded: "] if len(lines) == 3 else []),
        "validation: 1 image could not be decoded: ",
    ]
    assert all("damaged" in line for line in lines)
    folder = Path(re.search(r"report: (.*)/report\.html", outcome.out).group(1))
    assert json.loads((folder / "scores.json").read_text())["splits"]["validation"]["images"] == 7
    assert "validation: 1 image could not be decoded: " in command(evaluate, f"run={folder}").out


def test_too_many_unreadable_images_end_the_run_in_one_line(train_tiny, shapes):
    """Six steps of half of the data each: both bad images have been met by the end of the first epoch."""
    for file in (shapes / "red_circle.png", shapes / "blue_square.png"):
        assert file.is_file()
        file.write_bytes(b"")
    settings = ("train.steps=6", "train.batch_size=4", "train.log_every=20")
    outcome = train_tiny(*settings)
    assert outcome.status == 2
    (line,) = outcome.err.splitlines()
    assert re.match(
        r"mmlm: 2 of the first \d examples of epoch 0 cannot be read, more than 1% of 8 \(data\.max_bad", line
    )
    assert "2 the file is empty; first: " in line
    assert f"{shapes / 'blue_square.png'}: the file is empty; {shapes / 'red_circle.png'}: the file is empty;" in line
    assert train_tiny(*settings, "data.max_bad_share=0.5").status == 0  # goes on where it has been stopped


# Real processes


@pytest.mark.slow
def test_two_steps_of_the_real_command(tmp_path, pictures, start_process, finish_process):
    """On the data that ships with the package, from another folder than the repository."""

    def real(*arguments):
        return finish_process(start_process(*arguments, cwd=tmp_path))

    small = ("train.steps=2", "~data.validation.val_style", "samples.examples=2", "samples.attention=1", "device=cpu")
    done = real("mmlm.train", "experiment=caption_base", "evaluators=retrieval", *small, "name=two")
    assert (done.status, done.err) == (0, "")
    assert "step 2/2" in done.out
    folder = tmp_path / "runs/caption_base/two/seed=0"
    assert f"report: {folder.relative_to(tmp_path)}/report.html" in done.out
    environment = json.loads((folder / "environment.json").read_text())
    assert environment["command"].startswith("python -m mmlm.train experiment=caption_base evaluators=retrieval train")

    done = real("mmlm.evaluate", "run=runs", "splits=[val_concepts]", "evaluators=standard")
    assert (done.status, done.err) == (0, "")
    assert "image_use_gap/mean" in done.out

    done = real("mmlm.caption", f"run={folder}", *pictures.good, *pictures.bad)
    assert done.status == 2
    assert [line.split("\t")[0] for line in done.out.splitlines()] == list(pictures.good)
    assert [line.split(": ")[1] for line in done.err.splitlines()] == list(pictures.bad)


@pytest.mark.slow
def test_a_mistake_in_a_real_process(tmp_path, start_process, finish_process):
    done = finish_process(start_process("mmlm.train", "experiment=caption_base", "train.stpes=2", cwd=tmp_path))
    assert done.out == ""
    assert done.mistake == "train.stpes: no such setting; did you mean train.steps?"
    assert list(tmp_path.iterdir()) == []


def test_micro_batches_train_the_same_run(trained):
    """Every option that costs memory has its micro-batches: the same losses, but for the last digits."""
    whole = rows(trained("train.precision=fp32"))
    split = rows(trained("train.precision=fp32", "train.micro_batch_size=3", "name=split"))
    assert [row["step"] for row in whole] == [row["step"] for row in split]
    for one, other in zip(whole, split, strict=True):
        for key in ("train/loss", "train/contrastive", "train/captioning", "train/gradient_norm"):
            if key in one:
                assert other[key] == pytest.approx(one[key], rel=1e-4)
