"""A saved model comes back as it was, in a process of its own and without Hydra, and says what is wrong otherwise."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from transformers import AutoConfig, AutoModel, BertConfig, BertModel, PreTrainedTokenizerFast

import mmlm
from mmlm.checkpoints.checkpoint import latest_checkpoint, load_weights
from mmlm.checkpoints.weights import read_weights
from mmlm.core.batch import Caption
from mmlm.core.errors import UserError
from mmlm.data.tokenizers.byte_pair import BytePair
from mmlm.data.tokenizers.hugging_face import HuggingFace
from mmlm.experiment.build import build_model
from mmlm.experiment.saved_run import TrainedRun, load_run
from mmlm.pretrained.files import FORMAT, MmlmConfig
from mmlm.pretrained.model import MmlmModel, from_pretrained
from mmlm.record.manifest import accept
from tests.pretrained.conftest import TEXTS


@pytest.fixture
def saved(make, tmp_path):
    folder = tmp_path / "saved"
    make().save_pretrained(folder)
    return folder


def same(first: MmlmModel, second: MmlmModel, pictures) -> bool:
    """Whether two models have equal tensors, buffers that are in no file included, and equal outputs."""
    tensors = [dict([*model.named_parameters(), *model.named_buffers()]) for model in (first, second)]
    assert tensors[0].keys() == tensors[1].keys()
    return (
        all(torch.equal(value, tensors[1][name]) for name, value in tensors[0].items())
        and torch.equal(first.encode_image(pictures), second.encode_image(pictures))
        and torch.equal(first.encode_text(TEXTS), second.encode_text(TEXTS))
    )


CELLS = [
    (),
    ("decoder=prefix", "bridge=mlp"),
    ("decoder.positions=rotary", "bridge=attentional_pooler", "bridge.num_queries=3"),
    ("decoder.positions=sinusoidal", "transform=drawings"),
]


@pytest.mark.parametrize("overrides", CELLS, ids=lambda overrides: " ".join(overrides) or "default")
def test_a_model_comes_back_bit_for_bit(make, tmp_path, pictures, overrides):
    before = make(*overrides)
    before.save_pretrained(tmp_path / "saved")
    after = from_pretrained(tmp_path / "saved")
    assert same(before, after, pictures)
    assert before.caption(pictures) == after.caption(pictures)
    assert not after.training
    assert after.card == "# a card\n"
    again = tmp_path / "again"
    after.save_pretrained(again)
    files = sorted(file.name for file in again.iterdir())
    names = ["README.md", "byte_pair.json", "config.json", "manifest.jsonl", "model.safetensors"]
    assert files == [*names, "preprocessor_config.json"]
    for name in files:
        assert (again / name).read_bytes() == (tmp_path / "saved" / name).read_bytes(), name


def test_the_auto_classes_of_transformers_give_the_same_model(make, saved, pictures):
    assert isinstance(AutoConfig.from_pretrained(saved), MmlmConfig)
    model = AutoModel.from_pretrained(saved)
    assert isinstance(model, MmlmModel)
    assert same(make(), model, pictures)


def test_tied_weights_are_stored_once_and_stay_tied(make, tmp_path, pictures):
    before = make()
    before.model.decoder.head.weight = before.model.decoder.token_embedding.weight
    before.save_pretrained(tmp_path / "saved")
    weights = read_weights(tmp_path / "saved" / "model.safetensors")
    names = ("model.decoder.head.weight", "model.decoder.token_embedding.weight")
    assert weights[names[0]].data_ptr() == weights[names[1]].data_ptr()
    assert same(before, from_pretrained(tmp_path / "saved"), pictures)


@pytest.mark.slow
def test_a_new_process_needs_no_hydra_no_wandb_and_not_our_configs(make, saved, shapes, tmp_path):
    file = sorted(shapes.glob("*.png"))[0]
    script = f"""
import sys
sys.modules["hydra"] = None
import json
from PIL import Image
from mmlm.record.manifest import accept
from mmlm.pretrained.model import from_pretrained
model = from_pretrained({str(saved)!r})
pictures = [Image.open({str(file)!r})]
texts = model.encode_text({TEXTS!r})
print(json.dumps([model.encode_image(pictures).tolist(), texts.tolist(), list(map(str, model.caption(pictures)))]))
assert "timm" in sys.modules and "wandb" not in sys.modules
"""
    root = str(next(iter(mmlm.__path__)))
    done = subprocess.run(
        [sys.executable, "-c", script],
        cwd=tmp_path,
        env={"PYTHONPATH": root.removesuffix("/mmlm"), "PATH": "", "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    model, pictures = make(), [file]
    images, texts, captions = json.loads(done.stdout)
    torch.testing.assert_close(torch.tensor(images), model.encode_image(pictures))
    torch.testing.assert_close(torch.tensor(texts), model.encode_text(TEXTS))
    assert captions == [caption.text for caption in model.caption(pictures)]


def test_loading_draws_no_random_numbers_of_the_users(saved):
    torch.manual_seed(1)
    before = torch.get_rng_state()
    from_pretrained(saved)
    assert torch.equal(before, torch.get_rng_state())


# Files


def edit(folder, **changes) -> None:
    """Changes config.json."""
    file = folder / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))
    accept(folder, file.name)


def other_part(folder, slot: str, **changes) -> None:
    parts = json.loads((folder / "config.json").read_text())["parts"]
    edit(folder, parts=parts | {slot: parts[slot] | changes})


def older(folder) -> Path:
    """The folder, without a manifest: as an older version saved it."""
    (folder / "manifest.jsonl").unlink()
    return folder


def shorten(file) -> None:
    file.write_bytes(file.read_bytes()[:-100])


DAMAGE = [
    (lambda f: shutil.rmtree(f), "there is no such folder; give the one that python -m mmlm.export wrote"),
    (lambda f: (f / "config.json").unlink(), "config.json: is damaged (it is missing)"),
    (lambda f: older(f).joinpath("config.json").unlink(), "is no saved model (it has no config.json)"),
    (lambda f: older(f).joinpath("config.json").write_text("{"), "config.json: cannot be read"),
    (lambda f: older(f).joinpath("config.json").write_text("[]"), "config.json: holds no JSON object"),
    (lambda f: edit(f, model_type="bert"), "holds a model of type 'bert', not 'mmlm'"),
    (
        lambda f: edit(f, mmlm_format=FORMAT + 1, mmlm_version="9.1"),
        f"was saved by mmlm 9.1 in format 2; mmlm {mmlm.__version__} reads format 1: install the version",
    ),
    (lambda f: edit(f, parts={}), "config.json: parts.encoder is missing"),
    (lambda f: edit(f, vocab_size=281), "its tokenizer has 280 ids and its model 281"),
    (lambda f: edit(f, image_size=24), "preprocessor_config.json: size={'shortest_edge': 16} does not belong to this"),
    (lambda f: edit(f, max_tokens=9), "'model.decoder.position_embedding' is [24, 32] there and [9, 32] here"),
    (lambda f: other_part(f, "encoder", depth=2), "missing there ('model.encoder.vit.blocks.1."),
    (lambda f: other_part(f, "encoder", depht=2), "encoder.depht: TimmVit takes no 'depht'; did you mean 'depth'?"),
    (lambda f: shorten(f / "model.safetensors"), "model.safetensors: is damaged (it does not have the checksum it was"),
    (lambda f: older(f).joinpath("model.safetensors").unlink(), "model.safetensors: there is no such file of weights"),
    (lambda f: shorten(older(f) / "model.safetensors"), "model.safetensors: is damaged or no safetensors file"),
    (
        lambda f: older(f).joinpath("model.safetensors").write_bytes(b""),
        "model.safetensors: is damaged or no safetensors file",
    ),
    (lambda f: older(f).joinpath("byte_pair.json").unlink(), "there is no saved BytePair tokenizer"),
    (
        lambda f: older(f).joinpath("preprocessor_config.json").unlink(),
        "is no saved model (it has no preprocessor_config.json)",
    ),
    (
        lambda f: older(f).joinpath("preprocessor_config.json").write_text('{"trim": 0.5}'),
        "preprocessor_config.json: image_processor_type=None does not belong to this model",
    ),
]


@pytest.mark.parametrize(("damage", "message"), DAMAGE, ids=[message for _, message in DAMAGE])
def test_a_folder_that_is_none_or_damaged_is_one_line(saved, damage, message):
    damage(saved)
    with pytest.raises(UserError) as refused:
        from_pretrained(saved)
    assert message in str(refused.value)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    ("slot", "target", "message"),
    [
        (
            "encoder",
            "mmlm.checkpoints.checkpoint.prune",
            "config.json: parts.encoder: _target_ 'mmlm.checkpoints.checkpoint.prune' is not allowed; it may only name "
            "mmlm.model.encoders.*",
        ),
        ("tokenizer", "mmlm.model.model.ImageTextModel", "is not allowed; it may only name mmlm.data.tokenizers.*"),
        ("tokenizer", "mmlm.data.prepare_emoji.write", "is not allowed; it may only name mmlm.data.tokenizers.*"),
        ("transform", "mmlm.data.npm_packages.fetch", "is not allowed; it may only name mmlm.data.transforms.*"),
        ("decoder", "os.system", "allow it: from_pretrained(..., plugins=['os'])"),
        ("decoder", "my_parts.Decoder", "if you trust the package 'my_parts' to run code, allow it"),
    ],
)
def test_a_folder_from_elsewhere_cannot_call_what_it_likes(saved, slot, target, message):
    other_part(saved, slot, _target_=target)
    with pytest.raises(UserError) as refused:
        from_pretrained(saved)
    assert message in str(refused.value)


def test_what_is_nested_in_a_part_is_looked_at_too(saved):
    other_part(saved, "bridge", inner=[{"_target_": "os.system"}])
    with pytest.raises(UserError, match="if you trust the package 'os'"):
        from_pretrained(saved)


def test_an_unknown_argument_is_refused(saved):
    with pytest.raises(TypeError, match="unexpected keyword argument 'dtypee'"):
        MmlmModel.from_pretrained(saved, dtypee="x")


def test_a_name_that_the_hub_does_not_give(monkeypatch):
    def offline(name, **arguments):
        raise OSError("no connection\nand more")

    monkeypatch.setattr("mmlm.pretrained.files.snapshot_download", offline)
    with pytest.raises(
        UserError, match=r"^nobody/nothing: is no folder, and the hub does not give it \(no connection\)$"
    ):
        from_pretrained("nobody/nothing")


def test_a_name_on_the_hub_is_fetched(monkeypatch, make, saved, pictures):
    asked = []
    monkeypatch.setattr("mmlm.pretrained.files.snapshot_download", lambda name, **a: asked.append((name, a)) or saved)
    assert same(make(), MmlmModel.from_pretrained("someone/model", revision="v1"), pictures)
    ((name, arguments),) = asked
    assert (name, arguments["revision"]) == ("someone/model", "v1")


def test_pushing_uploads_all_files(monkeypatch, make):
    uploaded = []

    class Api:
        def __init__(self, token):
            self.token = token

        def create_repo(self, name, private, exist_ok):
            return type("Url", (str,), {"repo_id": name})(f"https://hub/{name}")

        def upload_folder(self, repo_id, folder_path, revision, commit_message):
            uploaded.append((repo_id, sorted(file.name for file in Path(folder_path).iterdir())))

    monkeypatch.setattr("mmlm.pretrained.model.HfApi", Api)
    assert make().push_to_hub("someone/model") == "https://hub/someone/model"
    files = ["README.md", "byte_pair.json", "config.json", "manifest.jsonl", "model.safetensors"]
    files += ["preprocessor_config.json"]
    assert uploaded == [("someone/model", files)]


def test_the_preprocessor_config_says_what_is_done_to_an_image(make, tmp_path):
    make("transform=drawings").save_pretrained(tmp_path)
    described = json.loads((tmp_path / "preprocessor_config.json").read_text())
    assert described["size"] == {"shortest_edge": 16}
    assert described["crop_size"] == {"height": 16, "width": 16}
    assert described["trim"] is not None
    assert described["do_normalize"] is False


PLUGIN = """
from torch import nn
from transformers import BertConfig, BertModel

class Bert(nn.Module):
    vocabulary = None

    def __init__(self, vocab_size: int, name_or_path: str, load_weights: bool = True) -> None:
        super().__init__()
        config = BertConfig.from_pretrained(name_or_path)
        self.bert = BertModel.from_pretrained(name_or_path) if load_weights else BertModel(config)
        self.width = config.hidden_size

    def forward(self, tokens, lengths):
        mask = (lengths.new_tensor(range(tokens.shape[1])) < lengths[:, None]).long()
        return self.bert(tokens, attention_mask=mask).last_hidden_state[:, 0]
"""


def test_pretrained_parts_and_tokenizers_are_loaded_without_where_they_came_from(
    tiny_config, tmp_path, monkeypatch, pictures
):
    (tmp_path / "own_text_parts.py").write_text(PLUGIN)
    monkeypatch.syspath_prepend(tmp_path)
    hub = tmp_path / "hub"
    size = dict.fromkeys(("num_hidden_layers", "num_attention_heads"), 1) | {"hidden_size": 8, "intermediate_size": 8}
    BertModel(BertConfig(vocab_size=300, **size)).save_pretrained(hub)
    bpe = BytePair(280)
    bpe.fit([Caption(text, None) for text in TEXTS])
    PreTrainedTokenizerFast(tokenizer_object=bpe._model, eos_token="!", bos_token="#").save_pretrained(hub)
    config = tiny_config("plugins=[own_text_parts]")
    config.text_encoder = {"_target_": "own_text_parts.Bert", "name_or_path": str(hub)}
    config.tokenizer = {"_target_": "mmlm.data.tokenizers.hugging_face.HuggingFace", "name_or_path": str(hub)}
    tokenizer = HuggingFace(str(hub))
    run = TrainedRun(hub, config, 1, build_model(config, tokenizer.vocab_size), tokenizer)
    before = MmlmModel.from_run(run)
    before.save_pretrained(tmp_path / "saved")
    shutil.rmtree(hub)
    with pytest.raises(UserError, match=r"plugins=\['own_text_parts'\]"):
        from_pretrained(tmp_path / "saved")
    after = from_pretrained(tmp_path / "saved", plugins=["own_text_parts"])
    assert same(before, after, pictures)
    assert same(before, AutoModel.from_pretrained(tmp_path / "saved", plugins=["own_text_parts"]), pictures)
    for file in tmp_path.joinpath("saved").rglob("*.json"):
        assert str(tmp_path) not in file.read_text(), file
    after.save_pretrained(tmp_path / "again")
    assert same(before, from_pretrained(tmp_path / "again", plugins=["own_text_parts"]), pictures)


def test_a_file_of_the_one_who_trained_is_not_named(tiny_config):
    config = tiny_config()
    config.encoder["weights"] = "/home/someone/vit.safetensors"
    assert MmlmConfig.of_run(config, 280).parts["encoder"]["weights"] is None
    assert config.encoder["weights"] == "/home/someone/vit.safetensors"


def test_a_run_becomes_a_pretrained_model(trained, tmp_path, pictures):
    run = load_run(str(trained()), torch.device("cpu"))
    model = MmlmModel.from_run(run)
    model.save_pretrained(tmp_path / "saved")
    assert same(model, from_pretrained(tmp_path / "saved"), pictures)


def test_a_run_folder_is_loaded_as_what_is_exported_from_it(trained, tmp_path, pictures):
    folder = trained()
    model = from_pretrained(folder)
    model.save_pretrained(tmp_path / "saved")
    exported = from_pretrained(tmp_path / "saved")
    assert same(model, exported, pictures)
    assert same(model, from_pretrained(folder.parents[2]), pictures), "a folder with one run below it"
    (folder.parents[1] / "older" / "seed=0").mkdir(parents=True)
    shutil.copy(folder / "config.yaml", folder.parents[1] / "older" / "seed=0")
    os.utime(folder.parents[1] / "older" / "seed=0" / "config.yaml", (1, 1))
    with pytest.warns(UserWarning, match=f"holds 2 runs; taking the one that was trained last, {folder}"):
        assert same(model, from_pretrained(folder.parents[1]), pictures)
    assert model.scale == exported.scale
    assert model.scale.source == "of the run's objective contrastive"
    assert model.digest() == exported.digest()
    checkpoint, _ = latest_checkpoint(folder / "checkpoints")
    learned = load_weights(checkpoint, "model")["objective.objectives.contrastive.logit_scale"]
    assert model.scale.value == pytest.approx(learned.exp().item())


@pytest.mark.parametrize("scale", [0, -1, "7", True, "NaN"])
def test_a_scale_that_is_none_is_refused(saved, scale):
    edit(saved, similarity_scale=float("nan") if scale == "NaN" else scale)
    with pytest.raises(UserError, match=r"config.json: similarity_scale: .* must be above 0 and finite, or null"):
        from_pretrained(saved)


def test_adapters_of_a_run_are_merged(trained, tmp_path, pictures):
    pytest.importorskip("peft")
    model = from_pretrained(trained("freeze=lora"))
    model.save_pretrained(tmp_path / "saved")
    assert same(model, from_pretrained(tmp_path / "saved"), pictures)


def test_precision_and_device_are_chosen_when_a_model_is_loaded(make, saved, pictures):
    exact = make()
    assert (from_pretrained(saved, device="auto").dtype, exact.dtype) == (torch.float32, torch.float32)
    for load in (from_pretrained, AutoModel.from_pretrained):
        half = load(saved, dtype=torch.bfloat16)
        assert {value.dtype for value in half.parameters()} == {torch.float32}, "the weights stay as they are"
        embedded = half.encode_image(pictures)
        assert embedded.dtype == torch.float32
        assert not torch.equal(embedded, exact.encode_image(pictures))
        torch.testing.assert_close(embedded, exact.encode_image(pictures), atol=2e-2, rtol=0)
        assert half.digest() != exact.digest(), "an index of images knows the precision"
        assert len(half.caption(pictures, alternatives=2)) == len(pictures)
    with pytest.raises(UserError, match=r"^dtype: torch.float64 is not one of torch.float32, torch.bfloat16, torch"):
        from_pretrained(saved, dtype=torch.float64)
    with pytest.raises(UserError, match="device: 'gpu' is not one of auto, cpu, cuda"):
        from_pretrained(saved, device="gpu")
