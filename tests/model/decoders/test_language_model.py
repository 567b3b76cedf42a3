"""Language models of transformers: loaded and fitted to a vocabulary, or refused with the reason."""

from collections.abc import Mapping

import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers, trainers
from transformers import (
    AutoModelForCausalLM,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
)

from mmlm.core.errors import UserError
from mmlm.data.tokenizers.hugging_face import HuggingFace
from mmlm.evaluation.generation.logit_rules import LogitRules
from mmlm.evaluation.generation.step_by_step import write_step_by_step
from mmlm.evaluation.generation.task import Task
from mmlm.model.decoders.hugging_face import HuggingFaceDecoder
from mmlm.model.decoders.language_model import check_language_model

LLAMA = {
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "max_position_embeddings": 32,
}
GPT2 = {"n_embd": 16, "n_layer": 2, "n_head": 2, "n_positions": 32}
FUSIONS = ("prefix", "gated_cross_attention")
V, T, M = 13, 8, 3

# Pretrained


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    """A folder with a tiny GPT-2 (untied, its head padded to 300 rows) and a tokenizer of fewer ids."""
    folder = tmp_path_factory.mktemp("checkpoint")
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel()
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(
        vocab_size=280, initial_alphabet=alphabet, special_tokens=["<|end|>"], show_progress=False
    )
    bpe.train_from_iterator(["a red cat sits on the mat", "two dogs run in the park"], trainer)
    PreTrainedTokenizerFast(tokenizer_object=bpe, bos_token="<|end|>", eos_token="<|end|>").save_pretrained(folder)
    torch.manual_seed(0)
    config = GPT2Config(
        **GPT2, vocab_size=300, tie_word_embeddings=False, bos_token_id=0, eos_token_id=0, initializer_range=0.3
    )
    GPT2LMHeadModel(config).save_pretrained(folder)
    return folder


def load(folder, vocab_size=300, **changes):
    return HuggingFaceDecoder(vocab_size, 6, M, T, name_or_path=str(folder), **changes)


@pytest.mark.parametrize("fusion", FUSIONS)
def test_a_checkpoint_is_loaded_with_its_weights(checkpoint, fusion):
    decoder = load(checkpoint, fusion=fusion).eval()
    assert decoder.vocabulary == str(checkpoint)
    reference = AutoModelForCausalLM.from_pretrained(checkpoint)
    tokens = torch.randint(0, 300, (2, T), generator=torch.Generator().manual_seed(0))
    logits = decoder.text(tokens, torch.tensor([T, T])).states @ decoder.head_weight.T
    torch.testing.assert_close(logits, reference(input_ids=tokens).logits)
    assert {p.dtype for p in decoder.parameters()} == {torch.float32}


def test_without_weights_the_architecture_alone_is_built(checkpoint):
    loaded, bare = load(checkpoint), load(checkpoint, load_weights=False)
    assert {k: v.shape for k, v in loaded.state_dict().items()} == {k: v.shape for k, v in bare.state_dict().items()}
    assert not torch.equal(loaded.head_weight, bare.head_weight)
    bare.load_state_dict(loaded.state_dict())


def test_settings_change_a_checkpoint_s_config(checkpoint):
    assert load(checkpoint).lm.transformer.h[0].attn.attn_dropout.p == 0.1
    assert load(checkpoint, settings={"attn_pdrop": 0.0}).lm.transformer.h[0].attn.attn_dropout.p == 0


@pytest.mark.parametrize("tied", [False, True])
def test_a_larger_vocabulary_gets_rows_that_are_the_mean_of_the_old(checkpoint, tmp_path, tied):
    if tied:
        GPT2LMHeadModel(GPT2Config(**GPT2, vocab_size=300)).save_pretrained(tmp_path)
    folder = tmp_path if tied else checkpoint
    old, new = load(folder), load(folder, vocab_size=303)
    for part in ("get_input_embeddings", "get_output_embeddings"):
        before, after = getattr(old.lm, part)().weight, getattr(new.lm, part)().weight
        assert after.shape == (303, 16)
        assert torch.equal(after[:300], before)
        torch.testing.assert_close(after[300:], before.mean(0).expand(3, -1))
    embedding, head = new.lm.get_input_embeddings().weight, new.lm.get_output_embeddings().weight
    assert (embedding is head) == tied
    assert new.head_weight.shape == (303, 16)
    bare = load(folder, vocab_size=303, load_weights=False)
    bare.load_state_dict(new.state_dict())
    assert torch.equal(bare.head_weight, new.head_weight)


def test_the_row_of_the_lm_s_padding_id_trains(tmp_path):
    """To the run it may be a token: many LMs pad with their end."""
    LlamaForCausalLM(LlamaConfig(**LLAMA, vocab_size=V, pad_token_id=2)).save_pretrained(tmp_path)
    decoder = load(tmp_path, vocab_size=V)
    decoder.text(torch.tensor([[1, 2]]), torch.tensor([2])).pooled.sum().backward()
    assert decoder.lm.get_input_embeddings().weight.grad[2].abs().max() > 0


def test_a_padded_head_never_makes_an_id_without_a_token(checkpoint):
    tokenizer = HuggingFace(str(checkpoint))
    assert tokenizer.vocab_size < 300
    decoder = load(checkpoint, vocab_size=tokenizer.vocab_size).eval()
    with torch.no_grad():
        decoder.lm.lm_head.weight[tokenizer.vocab_size :] *= 1000
    memory = torch.randn(3, M, 6)
    starts = torch.full((3,), tokenizer.start_id(None))
    task = Task(torch.arange(3), (tokenizer.start_id(None),), tokenizer.end_id, T, LogitRules(tokenizer.end_id))
    written = [of_image[0].tokens for of_image in write_step_by_step(decoder, memory, task)]
    assert max(map(max, written)) < tokenizer.vocab_size
    assert all(isinstance(tokenizer.decode(ids), str) for ids in written)
    assert decoder.decode(starts[:, None], decoder.start_decoding(memory)).shape == (3, 1, tokenizer.vocab_size)


def test_pickles_are_never_opened(checkpoint, tmp_path):
    lm = AutoModelForCausalLM.from_pretrained(checkpoint)
    lm.config.save_pretrained(tmp_path)
    torch.save(lm.state_dict(), tmp_path / "pytorch_model.bin")
    with pytest.raises(UserError, match=r"^name_or_path: .* cannot be loaded: .*safetensors"):
        load(tmp_path)


def test_a_checkpoint_without_all_weights_is_refused(checkpoint, tmp_path):
    lm = AutoModelForCausalLM.from_pretrained(checkpoint)
    state = {k: v for k, v in lm.state_dict().items() if "h.1.mlp.c_fc" not in k}
    lm.save_pretrained(tmp_path, state_dict=state)
    with pytest.raises(UserError, match=r"has no weights for transformer.h.1.mlp.c_fc.bias and 1 more"):
        load(tmp_path)


def test_a_name_that_leads_nowhere_is_refused(tmp_path):
    with pytest.raises(UserError, match=r"^name_or_path: there is no folder '.*nothing'; give one"):
        load(tmp_path / "nothing")
    with pytest.raises(UserError, match=r"^name_or_path: '.*' cannot be loaded"):
        load(tmp_path)
    (tmp_path / "config.json").write_text('{"model_type": "vit"}')
    with pytest.raises(UserError, match="is a vit, which is no causal language model"):
        load(tmp_path)


# Refused


def refused(
    match: str,
    architecture: str | None = "llama",
    settings: Mapping[str, object] = LLAMA,
    max_tokens: int = T,
    **changes: object,
) -> None:
    with pytest.raises(UserError, match=match):
        HuggingFaceDecoder(V, 6, M, max_tokens, architecture=architecture, settings=settings, **changes)


def test_bad_settings_are_refused(checkpoint):
    refused("set exactly one", architecture=None)
    refused("set exactly one", name_or_path="gpt2")
    refused("no causal LM 'lama'; did you mean 'llama'", architecture="lama")
    refused("no causal LM '7'; there are for example gpt2", architecture="7")
    refused("^settings.hiden_size: llama has no such setting; did you mean 'hidden_size'", settings={"hiden_size": 8})
    refused("^settings.vocab_size: is decided by the run", settings={"vocab_size": 8})
    refused("^settings: llama does not take them", settings={"hidden_size": "wide"})
    refused("^settings: gpt2 cannot be built with them", architecture="gpt2", settings=GPT2 | {"n_head": 3})
    refused("^cross_every: 2 does nothing with fusion=prefix", cross_every=2)
    refused("^cross_heads: 2 does nothing", cross_heads=2)
    refused("^cross_mlp_ratio: 2.0 does nothing", cross_mlp_ratio=2.0)
    for every in (0, 3):
        refused(f"^cross_every: {every} must lie between 1 and", fusion="gated_cross_attention", cross_every=every)
    refused("^cross_heads: 3 does not divide", fusion="gated_cross_attention", cross_heads=3)
    refused("^cross_mlp_ratio: 0.0 must be", fusion="gated_cross_attention", cross_mlp_ratio=0.0)
    with pytest.raises(UserError, match="n_embed: gpt2 has no such setting"):
        load(checkpoint, settings={"n_embed": 8})


def test_memory_and_caption_must_fit_the_lm_s_positions():
    refused("^data.max_tokens: 30 and a prefix of 3 are more than the LM's 32 positions", max_tokens=30)
    gated = {"architecture": "llama", "settings": LLAMA, "fusion": "gated_cross_attention"}
    HuggingFaceDecoder(V, 6, M, 30, **gated)
    refused("^data.max_tokens: 33 is more than", max_tokens=33, fusion="gated_cross_attention")


@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_lms_with_other_logits_are_refused(device):
    with torch.device(device):
        refused("CohereForCausalLM changes its logits by logit_scale=0.0625", "cohere")
        refused("changes its logits by logits_scaling=4.0", "granite", settings=LLAMA | {"logits_scaling": 4.0})
        capped = LLAMA | {"head_dim": 8, "final_logit_softcapping": 30.0}
        refused("changes its logits by final_logit_softcapping=30.0", "gemma3_text", settings=capped)
        phi = {k: v for k, v in LLAMA.items() if k != "num_key_value_heads"}
        refused("the head of PhiForCausalLM has a bias", "phi", settings=phi)


class Scaled(LlamaForCausalLM):
    def forward(self, *args, **kwargs):
        output = super().forward(*args, **kwargs)
        output.logits = output.logits * 1.1
        return output


class Capped(LlamaForCausalLM):
    def forward(self, *args, **kwargs):
        output = super().forward(*args, **kwargs)
        output.logits = 30 * (output.logits / 30).tanh()
        return output


def test_lms_that_change_logits_without_telling_are_found_by_running_them():
    config = LlamaConfig(**LLAMA, vocab_size=V)
    model = LlamaForCausalLM(config).train()
    check_language_model(model, "architecture")
    assert model.training
    assert not model.lm_head._forward_pre_hooks
    for kind in (Scaled, Capped):
        with pytest.raises(UserError, match=f"^architecture: {kind.__name__} changes its logits"):
            check_language_model(kind(config), "architecture")


def test_an_lm_that_sees_later_tokens_is_refused():
    config = LlamaConfig(**LLAMA, vocab_size=V)
    config.is_causal = False
    with pytest.raises(UserError, match="looks at later tokens"):
        check_language_model(LlamaForCausalLM(config), "architecture")


def test_a_checkpoint_is_built_on_the_meta_device_with_a_larger_vocabulary(checkpoint):
    with torch.device("meta"):
        assert load(checkpoint, vocab_size=1000, load_weights=False).head_weight.shape == (1000, 16)
