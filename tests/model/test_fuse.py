"""``ImageTextModel.fuse`` with every kind of decoder: the state at the end of a text while an image is read."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from mmlm.core.batch import Batch
from mmlm.core.model_output import ModelOutput, Pairs
from mmlm.core.views import CAPTION, EMBED
from mmlm.model.bridges.attentional_pooler import AttentionalPooler
from mmlm.model.decoders.hugging_face import HuggingFaceDecoder
from mmlm.model.decoders.recurrent import RecurrentDecoder
from mmlm.model.decoders.transformer import TransformerDecoder
from mmlm.model.encoders.timm_vit import TimmVit
from mmlm.model.model import ImageTextModel
from mmlm.model.protocols import Decoder

V, T, WIDTH = 13, 8, 8
GPT2 = {"n_embd": WIDTH, "n_layer": 1, "n_head": 2, "n_positions": T + 3}
LLAMA = {
    "hidden_size": WIDTH,
    "intermediate_size": 12,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "max_position_embeddings": T + 3,
}


def transformer(**settings: object) -> Decoder:
    return TransformerDecoder(V, WIDTH, T, WIDTH, num_heads=2, **settings)


def language_model(architecture: str, settings: dict[str, int], fusion: str) -> Decoder:
    return HuggingFaceDecoder(V, WIDTH, 3, T, architecture=architecture, settings=settings, fusion=fusion)


DECODERS: dict[str, Callable[[], Decoder]] = {
    "cross_attention": transformer,
    "prefix": lambda: transformer(fusion="prefix"),
    "unpacked": lambda: transformer(packed=False),
    "class token": lambda: transformer(text_pooling="cls"),
    "sinusoidal": lambda: transformer(positions="sinusoidal"),
    "rotary prefix": lambda: transformer(positions="rotary", fusion="prefix"),
    "open_clip": lambda: transformer(alternating=True, memory_norm=True, text_pooling="cls_shifted_mask"),
    "lstm": lambda: RecurrentDecoder(V, WIDTH, WIDTH),
    "gru of two layers": lambda: RecurrentDecoder(V, WIDTH, WIDTH, "gru", num_layers=2),
    "gpt2": lambda: language_model("gpt2", GPT2, "prefix"),
    "gpt2 gated": lambda: language_model("gpt2", GPT2, "gated_cross_attention"),
    "llama": lambda: language_model("llama", LLAMA, "prefix"),
    "llama gated": lambda: language_model("llama", LLAMA, "gated_cross_attention"),
}


def make_model(decoder: str) -> ImageTextModel:
    """In float64 and eval mode, no parameter at 0."""
    torch.manual_seed(0)
    encoder = TimmVit(16, patch_size=8, width=WIDTH, depth=1, num_heads=2, class_token=False)
    bridge = AttentionalPooler(WIDTH, (2, 2), WIDTH, num_heads=2, num_queries=3)
    model = ImageTextModel(encoder, bridge, DECODERS[decoder](), embedding_width=6).double().eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.2 * torch.randn_like(parameter)
    return model


def make_pairs(batch: Batch, image_index: list[int], captions: list[int]) -> Pairs:
    chosen, index = torch.tensor(captions, dtype=torch.int64), torch.tensor(image_index, dtype=torch.int64)
    tokens, lengths = batch.tokens[chosen], batch.lengths[chosen]
    return Pairs(index, tokens, lengths, index == batch.image_index[chosen], torch.tensor(len(index)))


def plain_state(model: ImageTextModel, memory: Tensor, tokens: Tensor) -> Tensor:
    """float[M, Dm], int64[t] -> float[D]: what predicts a token that would follow the text, by the captioning pass."""
    longer = torch.cat([tokens, tokens.new_zeros(1)])[None]
    index = torch.zeros(1, dtype=torch.int64)
    return model.decoder.hidden(longer, torch.tensor([longer.shape[1]]), memory[None], index)[-1]


def reached(model: nn.Module, total: Tensor) -> set[str]:
    model.zero_grad()
    total.backward()
    return {name for name, parameter in model.named_parameters() if parameter.grad is not None}


@pytest.mark.parametrize("decoder", DECODERS)
def test_the_state_is_that_at_the_end_of_each_text(make_batch, decoder):
    """Also of texts that fill ``max_tokens``, of images with several texts, and of texts that another image owns."""
    model, batch = make_model(decoder), make_batch(lengths=(5, 3, 8, 2, 3))
    output = model(batch, {EMBED})
    pairs = make_pairs(batch, [0, 2, 2, 1, 0, 1], [0, 0, 2, 3, 4, 2])
    fused = model.fuse(output, pairs)
    assert fused.shape == (6, model.decoder.width)
    for q, state in enumerate(fused):
        tokens = pairs.tokens[q, : pairs.lengths[q]]
        expected = plain_state(model, output.memory[pairs.image_index[q]], tokens)
        torch.testing.assert_close(state, expected, rtol=1e-5, atol=1e-6)  # some LMs norm in float32


@pytest.mark.parametrize("decoder", DECODERS)
def test_logits_of_the_state_are_those_of_decoding(make_batch, decoder):
    """Against the way with a cache: what would be said after the end token."""
    model, batch = make_model(decoder), make_batch(lengths=(6, 6), image_index=(0, 1), num_images=2)
    output = model(batch, {EMBED})
    fused = model.fuse(output, make_pairs(batch, [0, 1], [1, 0]))
    cache = model.decoder.start_decoding(output.memory)
    logits = model.decoder.decode(batch.tokens[[1, 0], :6], cache)[:, -1]
    torch.testing.assert_close(fused @ model.decoder.head_weight.T, logits, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("decoder", DECODERS)
def test_a_pair_reads_its_image_and_its_whole_text_and_nothing_else(make_batch, decoder):
    model, batch = make_model(decoder), make_batch(lengths=(5, 3, 7, 4, 3))
    output = model(batch, {EMBED})
    pairs = make_pairs(batch, [0, 2], [0, 3])
    fused = model.fuse(output, pairs)
    others = output.memory + torch.tensor([0.0, 1.0, 1.0])[:, None, None] * torch.randn_like(output.memory)
    changed = model.fuse(ModelOutput(memory=others), pairs)
    torch.testing.assert_close(changed[0], fused[0], rtol=1e-9, atol=1e-9)
    assert not torch.allclose(changed[1], fused[1], rtol=1e-4)
    for place, same in ((4, False), (5, True)):  # the end token, and padding behind it
        tokens = pairs.tokens.clone()
        tokens[0, place] = 7
        states = model.fuse(output, Pairs(pairs.image_index, tokens, pairs.lengths, pairs.matched, pairs.global_count))
        assert torch.allclose(states[0], fused[0], rtol=1e-9) is same
        torch.testing.assert_close(states[1], fused[1], rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("decoder", DECODERS)
def test_no_pairs_reach_the_same_parameters(make_batch, decoder):
    """With gradients of 0: data parallelism waits for each of them. No images and no captions are no exception."""
    model, batch = make_model(decoder), make_batch()
    some = model.fuse(model(batch, {EMBED}), make_pairs(batch, [0, 1], [0, 3]))
    expected = reached(model, some.square().sum())
    assert expected >= {name for name, _ in model.encoder.named_parameters(prefix="encoder")}
    nothing = make_batch(lengths=(), image_index=(), num_images=0)
    for batch in (make_batch(lengths=(), image_index=()), nothing):
        output = model(batch, {EMBED, CAPTION})
        none = model.fuse(output, make_pairs(batch, [], []))
        assert none.shape == (0, model.decoder.width)
        assert reached(model, none.sum()) == expected
        assert all(p.grad.count_nonzero() == 0 for p in model.parameters() if p.grad is not None)
