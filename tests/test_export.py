"""``python -m mmlm.export``: the folder, its model card, and what is refused."""

import json
from importlib.metadata import version

import pytest
import torch
import yaml
from PIL import Image

from mmlm import export
from mmlm.checkpoints.weights import read_weights
from mmlm.experiment.saved_run import load_run
from mmlm.pretrained.model import from_pretrained


@pytest.fixture
def exported(trained, command, tmp_path):
    """``exported(*overrides)``: the run, the folder that it was exported to, and what was printed."""

    def run(*overrides: str, licence: str | None = None):
        folder, to = trained(*overrides), tmp_path / "out" / "model"
        to.parent.mkdir()
        given = [] if licence is None else [f"license={licence}"]
        outcome = command(export, f"run={folder}", f"to={to}", *given)
        assert (outcome.status, outcome.err) == (0, ""), outcome
        return folder, to, outcome.out

    return run


def test_the_folder_holds_the_weights_that_the_run_exports(exported, shapes):
    folder, to, printed = exported("train.ema_decay=0.9")
    names = ["README.md", "byte_pair.json", "config.json", "manifest.jsonl", "model.safetensors"]
    names += ["preprocessor_config.json"]
    assert sorted(file.name for file in to.iterdir()) == names
    assert sorted(file.name for file in to.parent.iterdir()) == ["model"]
    run = load_run(str(folder), torch.device("cpu"))
    weights = read_weights(to / "model.safetensors")
    state = run.model.state_dict()
    assert {f"model.{name}" for name in state} == set(weights)
    assert all(torch.equal(value, weights[f"model.{name}"]) for name, value in state.items())
    model = from_pretrained(to)
    with Image.open(next(shapes.glob("*.png"))) as picture:
        assert len(model.caption([picture])) == 1
    assert printed.splitlines()[0].startswith(f"{folder} at step 3 -> {to} (")
    assert f"model = from_pretrained('{to}')" in printed


def test_the_last_scores_of_a_run_are_those_of_its_export(exported, shapes):
    """Also of a run that trains in bfloat16: both compute in float32."""
    folder, to, _ = exported("train.precision=bf16", "train.ema_decay=0.9", "samples.examples=8")
    model = from_pretrained(to)
    examples = json.loads((folder / "samples.json").read_text())["splits"]["validation"]["examples"]
    pictures = [Image.open(shapes / example["id"]).convert("RGB") for example in examples]
    similarity = model.encode_image(pictures) @ model.encode_text([example["captions"][0] for example in examples]).T
    place = (similarity > similarity.diagonal()[:, None]).sum(1)
    scores = json.loads((folder / "scores.json").read_text())
    values = scores["splits"]["validation"]
    assert (scores["precision"], values["images"]) == ("fp32", 8)
    for most in (1, 5):
        assert values[f"image_to_text/R@{most}"] == (place < most).double().mean().item()
    assert [example["generated"] for example in examples] == list(map(str, model.caption(pictures)))
    for example, near in zip(examples, similarity.topk(5).values, strict=True):
        assert [found["similarity"] for found in example["nearest_captions"]] == pytest.approx(near.tolist(), abs=1e-5)


def test_the_config_names_parts_and_sizes_and_no_folder_of_the_machine(exported, tmp_path):
    _, to, _ = exported()
    config = json.loads((to / "config.json").read_text())
    assert (config["model_type"], config["architectures"]) == ("mmlm", ["MmlmModel"])
    assert config["parts"]["encoder"]["_target_"] == "mmlm.model.encoders.timm_vit.TimmVit"
    assert config["parts"]["text_encoder"] is None
    assert (config["image_size"], config["max_tokens"], config["vocab_size"]) == (16, 24, 280)
    for file in to.iterdir():
        assert str(tmp_path).encode() not in file.read_bytes(), file


def test_the_card_tells_where_the_model_comes_from(exported):
    folder, to, _ = exported(licence="mit")
    card = (to / "README.md").read_text()
    header = yaml.safe_load(card.split("---")[1])
    assert (header["license"], header["language"]) == ("mit", ["en"])
    (listed,) = header["model-index"]
    scores = json.loads((folder / "scores.json").read_text())["splits"]["validation"]
    results = {one["type"]: one["value"] for result in listed["results"] for one in result["metrics"]}
    assert listed["name"] == "caption_base"
    assert {"image_to_text/R@1", "captioning/CIDEr-D"} <= results.keys()
    assert results == {name: scores[name] for name in results}
    assert {result["dataset"]["name"] for result in listed["results"]} == {"validation"}
    assert {result["dataset"]["type"] for result in listed["results"]} == {"ImageFolder"}
    assert "- Images are seen at 16 x 16 pixels" in card
    assert "- Its texts were in en only." in card
    assert (header["library_name"], header["pipeline_tag"]) == ("mmlm", "image-to-text")
    environment = json.loads((folder / "environment.json").read_text())
    assert f"git commit `{environment['git_commit']}`" in card or environment["git_commit"] is None
    assert f"torch {version('torch')}" in card
    assert "3 optimizer steps of 4 examples, seed 0, fp32" in card
    assert "- trained on: `ImageFolder` (" in card
    assert "- validation `validation`: `ImageFolder`" in card
    assert "from mmlm.pretrained import from_pretrained" in card
    assert 'caption = model.caption("1.png").text' in card
    config = yaml.safe_load(card.split("```yaml\n")[1].split("```")[0])
    assert config["train"]["steps"] == 3
    assert config["data"]["train"]["folder"] == "shapes"
    scores = json.loads((folder / "scores.json").read_text())["splits"]["validation"]
    assert "Taken in fp32.\n\n| | `validation` |\n|---|---|\n| images | 8 |\n" in card
    assert f"| image_to_text/R@1 | {scores['image_to_text/R@1']:.4g} |" in card


def test_scores_of_other_weights_are_left_out(exported, trained, tmp_path, command):
    folder, _, _ = exported()
    content = json.loads((folder / "scores.json").read_text())
    (folder / "scores.json").write_text(json.dumps(content | {"step": 2}))
    outcome = command(export, f"run={folder}", f"to={tmp_path / 'other'}")
    assert outcome.status == 0
    assert outcome.err.startswith(f"mmlm: left out: {folder / 'scores.json'}: is damaged (")
    assert outcome.err.count("\n") == 1
    card = (tmp_path / "other" / "README.md").read_text()
    assert "These weights have not been scored." in card
    assert "The weights: not stated by whoever exported it" in card
    assert "license" not in yaml.safe_load(card.split("---")[1])


def test_mistakes_of_export(exported, command, tmp_path):
    folder, to, _ = exported()
    (tmp_path / "file").write_text("x")
    for arguments, message in [
        ((f"run={folder}", f"to={to}"), f"to: {to} is there already and not an empty folder; give a new one"),
        ((f"run={folder}", f"to={tmp_path / 'file'}"), "is there already and not an empty folder"),
        ((f"run={folder}", f"to={tmp_path / 'file' / 'x'}"), "cannot be written (Not a directory)"),
        (("run=nowhere", "to=x"), "run: nowhere is no run folder (it has no config.yaml)"),
        ((f"run={folder}",), "to: required, and not set"),
        ((f"run={folder}", "tp=x"), "tp: no such setting; there are: license, plugins, run, to"),
    ]:
        assert message in command(export, *arguments).mistake
    checkpoint = next(folder.glob("checkpoints/step=*/model.safetensors"))
    checkpoint.write_bytes(checkpoint.read_bytes()[:-1])
    assert "damaged" in command(export, f"run={folder}", f"to={tmp_path / 'new'}").mistake
    assert not (tmp_path / "new").exists()
