"""Language models of transformers as decoders: what they read of image and text, with and without a cache."""

import itertools

import pytest
import torch
from torch import Tensor

from mmlm.core.batch import TEXT_ONLY
from mmlm.core.views import CAPTION, EMBED
from mmlm.experiment.build import build_model
from mmlm.experiment.config_checks import check_config
from mmlm.model.attention import AttentionRecord
from mmlm.model.decoders.gated_cross_attention import Memory
from mmlm.model.decoders.hugging_face import HuggingFaceDecoder
from mmlm.model.decoders.language_model import layers_of
from mmlm.model.packing import Layout
from mmlm.optim.optimizers import hidden_matrices

LLAMA = {
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "max_position_embeddings": 32,
}
GPT2 = {"n_embd": 16, "n_layer": 2, "n_head": 2, "n_positions": 32}
FAMILIES = {
    "gpt2": GPT2,
    "llama": LLAMA,
    "qwen2": LLAMA,
    "qwen3": LLAMA | {"head_dim": 6, "tie_word_embeddings": True},
    "smollm3": LLAMA | {"no_rope_layer_interval": 2},
    # Embedding and head narrower than the layers.
    "opt": {
        "hidden_size": 16,
        "word_embed_proj_dim": 10,
        "ffn_dim": 24,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "max_position_embeddings": 32,
    },
}
FUSIONS = ("prefix", "gated_cross_attention")
KINDS = list(itertools.product(FAMILIES, FUSIONS))

V, T, M, MEMORY_WIDTH = 13, 8, 3, 6
LENGTHS = torch.tensor([8, 3, 5, 2, 6])
IMAGE_INDEX = torch.tensor([0, 1, 1, 2, 0])
C = len(LENGTHS)


def make_decoder(architecture="gpt2", fusion="prefix", memory_width=MEMORY_WIDTH, settings=None, **changes):
    """A tiny random LM in eval mode and float64 (in which some LMs norm in float32), gates open, biases not 0."""
    torch.manual_seed(0)
    settings = FAMILIES[architecture] | (settings or {})
    decoder = HuggingFaceDecoder(
        V, memory_width, M, T, architecture=architecture, settings=settings, fusion=fusion, **changes
    )
    with torch.no_grad():
        for name, parameter in decoder.named_parameters():
            if "gate_" in name:
                parameter.fill_(0.5)
            elif parameter.ndim == 1:
                parameter += 0.1 * torch.randn_like(parameter)
            elif "lm." in name:
                parameter.copy_(0.3 * torch.randn_like(parameter))
    return decoder.double().eval()


def make_tokens(seed: int = 0) -> Tensor:
    return torch.randint(1, V, (C, T), generator=torch.Generator().manual_seed(seed))


def make_memory(images: int = 3, width: int = MEMORY_WIDTH, seed: int = 1) -> Tensor:
    return torch.randn(images, M, width, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def hidden_of(decoder, tokens=None, lengths=LENGTHS, memory=None, image_index=IMAGE_INDEX, record=None) -> Tensor:
    tokens = make_tokens() if tokens is None else tokens
    return decoder.hidden(tokens, lengths, make_memory() if memory is None else memory, image_index, record=record)


def per_caption(hidden: Tensor, lengths: Tensor = LENGTHS) -> list[Tensor]:
    return list(hidden.split((lengths - 1).tolist()))


def alone(decoder, tokens: Tensor) -> Tensor:
    """int64[t] -> logits float[t, V] of the language model itself, from token ids, without an image."""
    return decoder.lm(input_ids=tokens[None]).logits[0]


# Prefix


@pytest.mark.parametrize("architecture", FAMILIES)
def test_a_prefix_is_read_as_the_embeddings_of_tokens_before_the_text(architecture):
    decoder, tokens, memory = make_decoder(architecture), make_tokens(), make_memory()
    prefix = decoder.prefix_projection(memory)
    embedding = decoder.lm.get_input_embeddings()
    hidden = hidden_of(decoder, tokens, memory=memory)
    assert hidden.shape == (sum(LENGTHS - 1), decoder.width)
    for c, states in enumerate(per_caption(hidden)):
        text = embedding(tokens[c, : LENGTHS[c] - 1])
        together = torch.cat([prefix[IMAGE_INDEX[c]], text])[None]
        expected = decoder.lm(inputs_embeds=together).logits[0, M:]
        torch.testing.assert_close(states @ decoder.head_weight.T, expected, rtol=1e-6, atol=1e-6)


def test_a_prefix_of_the_lm_s_own_width_enters_as_it_is():
    assert make_decoder(memory_width=16).prefix_projection is None
    assert make_decoder("opt").prefix_projection.weight.shape == (10, MEMORY_WIDTH)


# Gated cross-attention


@pytest.mark.parametrize("architecture", FAMILIES)
def test_the_lm_is_untouched_while_the_gates_are_closed(architecture):
    decoder = make_decoder(architecture, "gated_cross_attention")
    with torch.no_grad():
        for block in decoder.gated_blocks:
            block.gate_attention.zero_()
            block.gate_feed_forward.zero_()
    tokens = make_tokens()
    states = per_caption(hidden_of(decoder, tokens))
    bare = decoder.lm.base_model(inputs_embeds=decoder.lm.get_input_embeddings()(tokens[:, :-1])).last_hidden_state
    for c in range(C):
        assert torch.equal(states[c], bare[c, : LENGTHS[c] - 1])
        expected = alone(decoder, tokens[c, : LENGTHS[c] - 1])
        torch.testing.assert_close(states[c] @ decoder.head_weight.T, expected, rtol=1e-6, atol=1e-6)


def test_new_gates_are_closed_and_the_only_ones_with_a_gradient_that_is_not_0():
    torch.manual_seed(0)
    decoder = HuggingFaceDecoder(
        V, MEMORY_WIDTH, M, T, architecture="llama", settings=LLAMA, fusion="gated_cross_attention"
    )
    hidden_of(decoder, memory=make_memory().float()).square().sum().backward()
    for name, parameter in decoder.gated_blocks.named_parameters():
        assert parameter.grad is not None
        assert (parameter.grad.abs().max() > 0) == ("gate_" in name), name


@pytest.mark.parametrize(("cross_every", "places"), [(None, (0, 1, 2)), (2, (1,)), (3, (2,))])
def test_blocks_run_before_every_so_many_layers(cross_every, places):
    decoder = make_decoder(fusion="gated_cross_attention", settings={"n_layer": 3}, cross_every=cross_every)
    assert len(decoder.gated_blocks) == len(places)
    tokens, memory, lm = make_tokens()[:1], make_memory(1), decoder.lm.transformer
    x = lm.wte(tokens[:, :-1]) + lm.wpe.weight[: T - 1]
    blocks = iter(decoder.gated_blocks)
    for number, layer in enumerate(lm.h):
        if number in places:
            block = next(blocks)
            x = block(x, Memory(block.keys_values(memory)))
        # Without a memory at hand the layer is the language model's own.
        x = layer(x)
    hidden = decoder.hidden(tokens, torch.tensor([T]), memory, torch.tensor([0]))
    torch.testing.assert_close(hidden, lm.ln_f(x)[0], rtol=1e-10, atol=1e-10)


def test_blocks_have_names_of_their_own_and_the_lm_keeps_its():
    prefix, gated = make_decoder("llama"), make_decoder("llama", "gated_cross_attention")
    own = {name for name in prefix.state_dict() if name.startswith("lm.")}
    assert {name for name in gated.state_dict() if name.startswith("lm.")} == own
    assert {name.split(".")[0] for name in gated.state_dict()} == {"lm", "gated_blocks"}


# Both


@pytest.mark.parametrize(("architecture", "fusion"), KINDS)
def test_text_only_captions_are_the_lm_alone_and_disturb_no_other(architecture, fusion):
    decoder, tokens = make_decoder(architecture, fusion), make_tokens()
    text_only = torch.tensor([False, True, False, True, False])
    index = IMAGE_INDEX.masked_fill(text_only, TEXT_ONLY)
    memory = make_memory().requires_grad_()
    hidden = per_caption(hidden_of(decoder, tokens, memory=memory, image_index=index))
    with_image = per_caption(hidden_of(decoder, tokens))
    for c in range(C):
        if text_only[c]:
            expected = alone(decoder, tokens[c, : LENGTHS[c] - 1])
            torch.testing.assert_close(hidden[c] @ decoder.head_weight.T, expected, rtol=1e-6, atol=1e-6)
            assert (hidden[c] - with_image[c]).abs().max() > 1e-3
        else:
            torch.testing.assert_close(hidden[c], with_image[c], rtol=1e-6, atol=1e-6)
    (hidden[1].square().sum() + hidden[3].square().sum()).backward(retain_graph=True)
    assert memory.grad.count_nonzero() == 0


@pytest.mark.parametrize(("architecture", "fusion"), KINDS)
def test_text_is_the_lm_alone_and_pooled_at_the_end_token(architecture, fusion):
    decoder, tokens = make_decoder(architecture, fusion), make_tokens()
    hidden_of(decoder, tokens)
    text = decoder.text(tokens, LENGTHS)
    assert text.pooled.shape == (C, decoder.text_width)
    for c, length in enumerate(LENGTHS.tolist()):
        logits = text.states[c, :length] @ decoder.head_weight.T
        torch.testing.assert_close(logits, alone(decoder, tokens[c, :length]), rtol=1e-6, atol=1e-6)
        assert torch.equal(text.pooled[c], text.states[c, length - 1])


@pytest.mark.parametrize(("architecture", "fusion"), KINDS)
def test_padding_and_the_rest_of_the_batch_never_matter(architecture, fusion):
    decoder, tokens, memory = make_decoder(architecture, fusion), make_tokens(), make_memory()
    hidden = hidden_of(decoder, tokens, memory=memory)
    other = torch.where(Layout.mask(LENGTHS, T), tokens, make_tokens(seed=9))
    assert torch.equal(hidden_of(decoder, other, memory=memory), hidden)
    for c, states in enumerate(per_caption(hidden)):
        length, image = LENGTHS[c : c + 1], memory[IMAGE_INDEX[c]][None]
        own = decoder.hidden(tokens[c : c + 1, : length[0]], length, image, torch.tensor([0]))
        torch.testing.assert_close(own, states, rtol=1e-6, atol=1e-6)
    order = torch.tensor([2, 0, 1])
    permuted = hidden_of(decoder, tokens, memory=memory[order], image_index=order.argsort()[IMAGE_INDEX])
    torch.testing.assert_close(permuted, hidden, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("chunks", [[1] * (T - 1), [T - 1], [1, 4, 2]], ids=["one by one", "at once", "in chunks"])
@pytest.mark.parametrize(("architecture", "fusion"), KINDS)
def test_decoding_with_a_cache_equals_the_full_forward(architecture, fusion, chunks):
    decoder, memory, tokens = make_decoder(architecture, fusion), make_memory(), make_tokens()[:3]
    hidden = decoder.hidden(tokens, torch.full((3,), T), memory, torch.arange(3))
    expected = (hidden @ decoder.head_weight.T).view(3, T - 1, V)
    cache = decoder.start_decoding(memory)
    logits = torch.cat([decoder.decode(part, cache) for part in tokens[:, :-1].split(chunks, dim=1)], dim=1)
    assert cache.num_tokens == T - 1
    torch.testing.assert_close(logits, expected, rtol=1e-6, atol=1e-6)


def test_decoding_reads_the_image_once():
    memory, tokens = make_memory(), make_tokens()[:3]
    gated, calls = make_decoder(fusion="gated_cross_attention"), []
    for block in gated.gated_blocks:
        block.attention.key_value.register_forward_hook(lambda _part, _args, out: calls.append(out.shape))
    cache = gated.start_decoding(memory)
    for t in range(3):
        gated.decode(tokens[:, t : t + 1], cache)
    assert calls == [(3, M, 32)] * 2
    prefix, read = make_decoder(), []
    prefix.lm.transformer.h[0].register_forward_hook(lambda _part, _args, out: read.append(out.shape[1]))
    cache = prefix.start_decoding(memory)
    for t in range(3):
        prefix.decode(tokens[:, t : t + 1], cache)
    assert read == [M, 1, 1, 1]


@pytest.mark.parametrize(("architecture", "fusion"), KINDS)
def test_captioning_reaches_every_parameter(architecture, fusion):
    decoder = make_decoder(architecture, fusion)
    memory = make_memory().requires_grad_()
    (hidden_of(decoder, memory=memory) @ decoder.head_weight.T).square().sum().backward()
    gradients = {"memory": memory.grad} | {name: p.grad for name, p in decoder.named_parameters()}
    for name, gradient in gradients.items():
        assert gradient is not None, name
        # A key's bias adds the same to all scores of a query where no rotation comes between.
        assert gradient.abs().max() > 0 or name.endswith("k_proj.bias"), name


@pytest.mark.parametrize(("architecture", "fusion"), KINDS)
def test_recorded_weights_are_those_of_the_attention(architecture, fusion):
    decoder, tokens = make_decoder(architecture, fusion), make_tokens()
    index = torch.tensor([0, 1, TEXT_ONLY, 2, 0])
    record = AttentionRecord()
    assert decoder.records_attention
    hidden = hidden_of(decoder, tokens, image_index=index, record=record)
    torch.testing.assert_close(hidden, hidden_of(decoder, tokens, image_index=index), rtol=1e-5, atol=1e-5)
    assert [w.shape for w in record.weights] == [(C, 2, T - 1, M)] * 2
    assert all(w.dtype == torch.float32 for w in record.weights)
    real = Layout.mask(LENGTHS - 1, T - 1) & (index != TEXT_ONLY)[:, None]
    shares = torch.stack([w.sum(-1).transpose(1, 2)[real] for w in record.weights])
    if fusion == "gated_cross_attention":
        torch.testing.assert_close(shares, torch.ones_like(shares))
    else:
        assert ((shares > 0) & (shares < 1)).all()
        assert all(w[2].count_nonzero() == 0 for w in record.weights)


def test_recorded_weights_of_a_prefix_equal_the_formula():
    decoder, tokens, memory = make_decoder(), make_tokens(), make_memory()
    record = AttentionRecord()
    hidden_of(decoder, tokens, memory=memory, record=record)
    lm, c = decoder.lm.transformer, 2
    text = lm.wte(tokens[c, : T - 1])
    x = torch.cat([decoder.prefix_projection(memory[IMAGE_INDEX[c]]), text]) + lm.wpe.weight[: M + T - 1]
    queries, keys, _ = lm.h[0].attn.c_attn(lm.h[0].ln_1(x)).split(16, dim=-1)
    for head, part in enumerate((slice(0, 8), slice(8, 16))):
        scores = queries[:, part] @ keys[:, part].T / 8**0.5
        weights = scores.masked_fill(torch.ones_like(scores).triu(1).bool(), float("-inf")).softmax(-1)
        torch.testing.assert_close(record.weights[0][c, head], weights[M:, :M].float())


def test_an_lm_whose_attention_stays_hidden_says_so():
    falcon = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    decoder = HuggingFaceDecoder(V, 6, M, T, architecture="falcon", settings=falcon)
    assert not decoder.records_attention
    with pytest.raises(ValueError, match="FalconForCausalLM cannot return"):
        hidden_of(decoder, memory=make_memory().float(), record=AttentionRecord())


def test_a_caption_longer_than_promised_is_refused():
    decoder = make_decoder()
    with pytest.raises(ValueError, match="9 tokens are more than the decoder's max_tokens 8"):
        decoder.text(torch.ones(1, 9, dtype=torch.int64), torch.tensor([9]))


# In the whole


@pytest.mark.parametrize(("architecture", "fusion"), KINDS)
def test_a_decoder_is_built_on_the_meta_device(architecture, fusion):
    with torch.device("meta"):
        settings = FAMILIES[architecture]
        decoder = HuggingFaceDecoder(
            V, 6, M, T, architecture=architecture, settings=settings, fusion=fusion, load_weights=False
        )
    assert all(p.is_meta for p in decoder.parameters())


@pytest.mark.parametrize("architecture", ["gpt2", "llama", "gpt_neox"])
def test_the_matrices_of_the_layers_are_hidden_matrices_and_the_head_is_none(architecture):
    settings = FAMILIES.get(architecture) or {k: v for k, v in LLAMA.items() if k != "num_key_value_heads"}
    decoder = HuggingFaceDecoder(
        V, 6, M, T, architecture=architecture, settings=settings | {"tie_word_embeddings": False}
    )
    names, layers = dict(decoder.named_parameters()), layers_of(decoder.lm)
    hidden = {id(names[name]) for name in hidden_matrices(decoder) if name.startswith("lm.")}
    assert hidden == {id(p) for p in layers.parameters() if p.ndim == 2}
    assert id(decoder.lm.get_output_embeddings().weight) not in hidden


OPTIONS = [f"{name}_tiny{end}" for name in ("gpt2", "llama", "qwen", "smollm") for end in ("", "_gated")]


@pytest.mark.parametrize("option", OPTIONS)
def test_the_options_make_models_that_train(compose, make_batch, option):
    config = check_config(compose("experiment=caption_base", f"decoder={option}"))
    model = build_model(config, 300)
    assert model.decoder.fusion == ("cross_attention" if option.endswith("gated") else "prefix")
    output = model(make_batch(image_size=32), {EMBED, CAPTION})
    logits = output.hidden[CAPTION] @ output.head_weight.T
    (logits.square().mean() + (output.image_embedding[0] * output.text_embedding[0]).sum()).backward()
    assert [name for name, p in model.named_parameters() if p.grad is None] == []
