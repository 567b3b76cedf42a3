"""``experiment=caption_multilingual``: it trains on captions of several languages, and scores each by itself."""

import json

from mmlm import evaluate, train
from mmlm.data.emoji import LANGUAGES
from mmlm.experiment.config_checks import check_config
from mmlm.record.folder import SCORES
from tests.conftest import draw, write_lines

NAMES = {"en": ("square", "circle"), "zh": ("正方形", "圆圈"), "ar": ("مربع", "دائرة")}


def test_it_trains_on_every_language_and_says_so_everywhere(compose):
    config = check_config(compose("experiment=caption_multilingual"))
    assert config.tokenizer["languages"] == list(LANGUAGES) == config.evaluators["by_language"]["languages"]
    for node in (config.data.train, *config.data.validation.values(), *config.data.test.values()):
        assert node["languages"] == list(LANGUAGES)


def test_some_steps_train_and_each_language_is_scored(command, tmp_path):
    folder = tmp_path / "named"
    lines = []
    for row, (colour, shape) in enumerate((c, s) for c in ("red", "green", "blue") for s in (0, 1)):
        folder.mkdir(exist_ok=True)
        draw(colour, ("square", "circle")[shape]).save(folder / f"{row}.png")
        lines += [{"image": f"{row}.png", "caption": f"{colour} {n[shape]}", "language": k} for k, n in NAMES.items()]
    write_lines(folder, lines)
    size = ("data.image_size=16", "data.workers=0", "encoder.width=32", "encoder.depth=1", "encoder.num_heads=2")
    small = (*size, "model.width=32", "model.embedding_width=16", "tokenizer.vocab_size=300", "device=cpu")
    steps = ("train.steps=2", "train.batch_size=4", "train.precision=fp32", "samples.examples=2", "samples.attention=1")
    data = (f"data.train.folder={folder}", f"data.validation.validation.folder={folder}", "data.language=en")
    few = (*small, *steps, "data=folder", *data, f"runs={tmp_path / 'runs'}", "train.save_every=null")
    outcome = command(train, "experiment=caption_multilingual", *few)
    assert (outcome.status, outcome.err) == (0, ""), outcome
    run = next((tmp_path / "runs").glob("*/*/seed=0"))
    scores = json.loads((run / SCORES).read_text())
    named = json.dumps(scores)
    for language in NAMES:
        assert f"by_language/{language}/image_to_text/R@1" in named
        assert f"by_language/{language}/exact" in named
    assert "by_language/sw/" not in named
    assert "Captions in zh" in (run / "report.html").read_text()
    again = command(evaluate, f"run={run}", f"data=[other:{folder}]", "device=cpu")
    assert again.status == 0, again
    assert "by_language/ar/exact" in again.out
