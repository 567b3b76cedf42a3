"""The text decoder in float64: packing, padding, causality, captions and images, and decoding with a cache."""

import itertools
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor, nn

from mmlm.core.batch import TEXT_ONLY
from mmlm.core.errors import UserError
from mmlm.model.attention import AttentionRecord
from mmlm.model.blocks import sinusoidal_positions
from mmlm.model.decoders.transformer import TransformerDecoder
from mmlm.model.packing import Layout

FUSIONS = ("cross_attention", "prefix")
POSITIONS = ("sinusoidal", "learned", "rotary")
KINDS = list(itertools.product(FUSIONS, POSITIONS))
VARIANTS = {
    "swiglu": {"feed_forward": "swiglu"},
    "rms_norm": {"norm": "rms_norm"},
    "one key-value head": {"num_key_value_heads": 1},
    "all": {"feed_forward": "swiglu", "norm": "rms_norm", "num_key_value_heads": 1, "positions": "rotary"},
}
"""Options that change the layers, by name."""
CROSS_VARIANTS = {"alternating": {"alternating": True}, "memory_norm": {"memory_norm": True}}
"""Options of cross-attention."""
VARIANT_KINDS = [
    *itertools.product(FUSIONS, VARIANTS.values()),
    *itertools.product(["cross_attention"], CROSS_VARIANTS.values()),
]
variants = pytest.mark.parametrize(("fusion", "variant"), VARIANT_KINDS)

V, T, M, MEMORY_WIDTH, WIDTH = 13, 8, 3, 6, 8
# 13 captions of 8 places, of which 50 are real: packing fills these up to 64 of 104 places.
LENGTHS = torch.tensor([5, 3, 8, 4, 2, 3, 3, 7, 2, 2, 4, 3, 4])
IMAGE_INDEX = torch.tensor([0, 1, 1, 2, 0, 2, 1, 0, 2, 1, 0, 2, 1])
C = len(LENGTHS)


def make_decoder(fusion="cross_attention", positions="learned", memory_width=MEMORY_WIDTH, **changes):
    """Two layers of each kind, float64, every parameter random and none small."""
    sizes = {"width": WIDTH, "num_heads": 2, "unimodal_layers": 2, "multimodal_layers": 2}
    decoder = TransformerDecoder(
        V, memory_width, max_tokens=T, fusion=fusion, positions=positions, **(sizes | changes)
    ).double()
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in decoder.parameters():
            parameter.copy_(0.4 * torch.randn(parameter.shape, generator=generator, dtype=torch.float64))
    return decoder


def make_tokens(seed: int = 0) -> Tensor:
    return torch.randint(1, V, (C, T), generator=torch.Generator().manual_seed(seed))


def make_memory(images: int = 3, width: int = MEMORY_WIDTH, seed: int = 1) -> Tensor:
    return torch.randn(images, M, width, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def hidden_of(decoder, tokens, lengths=LENGTHS, memory=None, image_index=IMAGE_INDEX, record=None):
    """float[P, D] at every real position."""
    memory = make_memory() if memory is None else memory
    return decoder.multimodal(decoder.unimodal(tokens, lengths), lengths, memory, image_index, record)


def padded(hidden: Tensor, lengths: Tensor = LENGTHS) -> Tensor:
    """float[P, D] -> float[C, T, D], zeros at padding."""
    out = hidden.new_zeros(len(lengths), T, hidden.shape[1])
    return out.masked_scatter(Layout.mask(lengths, T)[..., None], hidden)


@dataclass
class Gradients:
    values: dict[str, Tensor]
    parameters: dict[str, Tensor]


def run(decoder: nn.Module) -> Gradients:
    """Outputs, and the gradients of a random function of them with respect to all parameters and the memory."""
    memory = make_memory().requires_grad_()
    tokens = make_tokens()
    states = decoder.unimodal(tokens, LENGTHS)
    hidden = decoder.multimodal(states, LENGTHS, memory, IMAGE_INDEX)
    last = states[torch.arange(C), LENGTHS - 1]
    weights = torch.randn(hidden.shape, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    decoder.zero_grad()
    ((hidden * weights).sum() + last.square().sum() + (hidden @ decoder.head_weight.T).square().sum()).backward()
    gradients = {name: p.grad.clone() for name, p in decoder.named_parameters()}
    return Gradients({"hidden": hidden.detach(), "last": last.detach()}, gradients | {"memory": memory.grad})


@pytest.mark.parametrize(("fusion", "positions"), KINDS)
def test_packed_equals_unpacked_in_outputs_and_all_gradients(fusion, positions):
    packed, plain = (run(make_decoder(fusion, positions, packed=choice)) for choice in (True, False))
    assert packed.values["hidden"].shape == plain.values["hidden"].shape == (LENGTHS.sum(), WIDTH)
    for name, value in packed.values.items():
        torch.testing.assert_close(value, plain.values[name], rtol=1e-10, atol=1e-10)
    for name, gradient in packed.parameters.items():
        assert gradient.abs().max() > 0, name
        torch.testing.assert_close(gradient, plain.parameters[name], rtol=1e-10, atol=1e-10)


def test_token_wise_layers_see_real_tokens_and_filler_only():
    decoder, rows = make_decoder(), []
    for part in (decoder.unimodal_layers[0].feed_forward, decoder.multimodal_layers[1].feed_forward, decoder.norm):
        part.register_forward_hook(lambda _module, inputs, _out: rows.append(len(inputs[0])))
    hidden = hidden_of(decoder, make_tokens())
    assert (rows, len(hidden)) == ([56, 56, 56], 50)


@pytest.mark.parametrize("packed", [True, False])
@pytest.mark.parametrize(("fusion", "positions"), KINDS)
def test_what_stands_in_the_padding_never_matters(fusion, positions, packed):
    decoder = make_decoder(fusion, positions, packed=packed)
    tokens = make_tokens()
    other = torch.where(Layout.mask(LENGTHS, T), tokens, make_tokens(seed=9))
    assert not torch.equal(tokens, other)
    assert torch.equal(hidden_of(decoder, tokens), hidden_of(decoder, other))
    mask = Layout.mask(LENGTHS, T)
    assert torch.equal(decoder.unimodal(tokens, LENGTHS)[mask], decoder.unimodal(other, LENGTHS)[mask])


@pytest.mark.parametrize("packed", [True, False])
@pytest.mark.parametrize("fusion", FUSIONS)
def test_more_padding_changes_nothing(fusion, packed):
    decoder = make_decoder(fusion, packed=packed)
    lengths, tokens = LENGTHS.clamp(max=5), make_tokens()
    long = hidden_of(decoder, tokens, lengths)
    short = hidden_of(decoder, tokens[:, :5], lengths)
    torch.testing.assert_close(long, short, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("packed", [True, False])
@pytest.mark.parametrize(("fusion", "positions"), KINDS)
def test_a_later_token_leaves_earlier_states_as_they_are(fusion, positions, packed):
    decoder = make_decoder(fusion, positions, packed=packed)
    tokens = make_tokens()
    before = padded(hidden_of(decoder, tokens))
    for t in (1, 3, 6):
        changed = tokens.clone()
        changed[:, t] = (changed[:, t] + 1) % V
        after = padded(hidden_of(decoder, changed))
        torch.testing.assert_close(after[:, :t], before[:, :t], rtol=1e-12, atol=1e-12)
        reads_it = torch.gt(LENGTHS, t)
        assert ((after - before)[reads_it, t:].abs().amax(dim=(1, 2)) > 1e-6).all()
        torch.testing.assert_close(after[~reads_it], before[~reads_it], rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(("fusion", "positions"), KINDS)
def test_order_of_tokens_matters(fusion, positions):
    """The last state of a caption read backwards differs: positions are really there."""
    decoder = make_decoder(fusion, positions)
    tokens = torch.tensor([[1, 2, 3, 4, 5], [4, 3, 2, 1, 5]])
    lengths = torch.tensor([5, 5])
    memory, same_image = make_memory(), torch.tensor([0, 0])
    hidden = decoder.multimodal(decoder.unimodal(tokens, lengths), lengths, memory, same_image)
    assert (hidden[4] - hidden[9]).abs().max() > 1e-4


@pytest.mark.parametrize("packed", [True, False])
@pytest.mark.parametrize("fusion", FUSIONS)
def test_each_caption_reads_its_own_image(fusion, packed):
    """One caption at a time equals all together; another image changes exactly its own captions."""
    decoder, tokens, memory = make_decoder(fusion, packed=packed), make_tokens(), make_memory()
    together = padded(hidden_of(decoder, tokens, memory=memory))
    for c, length in enumerate(LENGTHS.tolist()):
        image = memory[IMAGE_INDEX[c]][None]
        alone = hidden_of(decoder, tokens[c : c + 1], LENGTHS[c : c + 1], image, torch.tensor([0]))
        torch.testing.assert_close(together[c, :length], alone, rtol=1e-10, atol=1e-10)
    changed = memory.clone()
    changed[1] += 1
    difference = (padded(hidden_of(decoder, tokens, memory=changed)) - together).abs().amax(dim=(1, 2))
    assert ((difference > 1e-6) == (IMAGE_INDEX == 1)).all()


@pytest.mark.parametrize("fusion", FUSIONS)
def test_images_may_stand_in_any_order(fusion):
    decoder, tokens, memory = make_decoder(fusion), make_tokens(), make_memory()
    order = torch.tensor([2, 0, 1])
    permuted = hidden_of(decoder, tokens, memory=memory[order], image_index=order.argsort()[IMAGE_INDEX])
    torch.testing.assert_close(permuted, hidden_of(decoder, tokens, memory=memory), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("packed", [True, False])
@pytest.mark.parametrize(("fusion", "positions"), KINDS)
def test_text_only_captions_see_no_image_and_disturb_no_other(fusion, positions, packed):
    decoder, tokens = make_decoder(fusion, positions, packed=packed), make_tokens()
    text_only = torch.arange(C) % 3 == 1
    index = IMAGE_INDEX.masked_fill(text_only, TEXT_ONLY)
    memory = make_memory().requires_grad_()
    hidden = padded(hidden_of(decoder, tokens, memory=memory, image_index=index))
    all_with_image = padded(hidden_of(decoder, tokens))
    torch.testing.assert_close(hidden[~text_only], all_with_image[~text_only], rtol=1e-12, atol=1e-12)
    elsewhere = padded(hidden_of(decoder, tokens, memory=make_memory(seed=7), image_index=index))
    assert torch.equal(hidden[text_only], elsewhere[text_only])
    hidden[text_only].square().sum().backward(retain_graph=True)
    assert memory.grad.abs().max() == 0
    decoder.zero_grad()
    hidden.square().sum().backward()
    assert all(p.grad.isfinite().all() for p in decoder.parameters() if p.grad is not None)


CHUNKS = {"one by one": [1] * T, "all at once": [T], "in chunks": [3, 1, 4], "start alone": [1, 5, 2]}


@pytest.mark.parametrize("chunks", CHUNKS.values(), ids=CHUNKS.keys())
@pytest.mark.parametrize(("fusion", "positions"), KINDS)
def test_decoding_with_a_cache_equals_the_full_forward(fusion, positions, chunks):
    decoder, memory = make_decoder(fusion, positions), make_memory()
    tokens = make_tokens()[:3]
    lengths, own = torch.full((3,), T), torch.arange(3)
    expected = hidden_of(decoder, tokens, lengths, memory, own).view(3, T, WIDTH) @ decoder.head_weight.T
    cache = decoder.start_decoding(memory)
    pieces, read = [], 0
    for size in chunks:
        assert cache.num_tokens == read
        pieces.append(decoder.decode(tokens[:, read : read + size], cache))
        read += size
    logits = torch.cat(pieces, dim=1)
    assert logits.shape == (3, T, V)
    torch.testing.assert_close(logits, expected, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("fusion", FUSIONS)
def test_decoding_computes_the_image_s_keys_once(fusion):
    decoder, memory = make_decoder(fusion), make_memory()
    calls = []
    for layer in decoder.multimodal_layers:
        part = layer.cross_attention.key_value if fusion == "cross_attention" else layer.self_attention.key_value
        part.register_forward_hook(lambda _module, inputs, _out: calls.append(inputs[0].shape))
    cache = decoder.start_decoding(memory)
    tokens = make_tokens()[:3]
    for t in range(4):
        decoder.decode(tokens[:, t : t + 1], cache)
    if fusion == "cross_attention":
        assert calls == [memory.shape] * 2
    else:
        assert calls[:2] == [(3 * M, WIDTH)] * 2
        assert set(calls[2:]) == {(3, WIDTH)}


def test_prefix_of_the_decoder_s_own_width_enters_as_it_is():
    assert make_decoder("prefix", memory_width=WIDTH).prefix_projection is None
    projected = make_decoder("prefix")
    assert projected.prefix_projection.weight.shape == (WIDTH, MEMORY_WIDTH)
    same = make_decoder("prefix", memory_width=WIDTH)
    same.load_state_dict({k: v for k, v in projected.state_dict().items() if "prefix_projection" not in k})
    memory = make_memory()
    torch.testing.assert_close(
        hidden_of(same, make_tokens(), memory=projected.prefix_projection(memory)),
        hidden_of(projected, make_tokens(), memory=memory),
    )


@pytest.mark.parametrize("packed", [True, False])
def test_recorded_cross_attention_sums_to_one_and_prefix_attention_to_less(packed):
    tokens = make_tokens()
    for fusion in FUSIONS:
        record = AttentionRecord()
        decoder = make_decoder(fusion, packed=packed)
        hidden = hidden_of(decoder, tokens, record=record)
        assert torch.equal(hidden, hidden_of(decoder, tokens))
        assert [w.shape for w in record.weights] == [(C, 2, T, M)] * 2
        for weights in record.weights:
            shares = weights.sum(-1)[Layout.mask(LENGTHS, T)[:, None].expand(-1, 2, -1)]
            if fusion == "cross_attention":
                torch.testing.assert_close(shares, torch.ones_like(shares))
            else:
                assert ((shares > 0) & (shares < 1)).all()


def plain_decoder(decoder: TransformerDecoder, tokens: Tensor, memory: Tensor) -> Tensor:
    """One caption int64[t] with one image's memory float[M, Dm], by PyTorch's own attention -> logits float[t, V]."""

    def attend(attention: nn.Module, x: Tensor, source: Tensor, causal: bool) -> Tensor:
        def every_head(parameters: Tensor) -> Tensor:
            """Key or value rows as if each query head had its own."""
            heads = parameters.unflatten(0, (-1, WIDTH // 2))
            return nn.Parameter(heads.repeat_interleave(2 // len(heads), dim=0).flatten(0, 1))

        keys, values = (every_head(rows) for rows in attention.key_value.weight.chunk(2))
        biases = [every_head(rows) for rows in attention.key_value.bias.chunk(2)]
        reference = nn.MultiheadAttention(WIDTH, 2, kdim=source.shape[1], vdim=source.shape[1]).double()
        reference.in_proj_weight = None
        reference._qkv_same_embed_dim = False
        reference.q_proj_weight, reference.k_proj_weight = attention.query.weight, keys
        reference.v_proj_weight = values
        reference.in_proj_bias = nn.Parameter(torch.cat([attention.query.bias, *biases]))
        reference.out_proj.weight, reference.out_proj.bias = attention.output.weight, attention.output.bias
        mask = ~torch.ones(len(x), len(x), dtype=torch.bool).tril() if causal else None
        return reference(x, source, source, attn_mask=mask)[0]

    x = decoder.token_embedding.weight[tokens]
    table = decoder.position_embedding if decoder.position_embedding is not None else decoder.fixed_positions
    x = x + table[: len(tokens)]
    skip = 0
    for number, layer in enumerate([*decoder.unimodal_layers, *decoder.multimodal_layers]):
        if number == len(decoder.unimodal_layers) and decoder.fusion == "prefix":
            x, skip = torch.cat([decoder.prefix_projection(memory), x]), len(memory)
        normed = layer.self_norm(x)
        x = x + attend(layer.self_attention, normed, normed, causal=True)
        if layer.self_feed_forward is not None:
            x = x + layer.self_feed_forward(layer.self_feed_forward_norm(x))
        if layer.cross_attention is not None:
            source = memory if layer.memory_norm is None else layer.memory_norm(memory)
            x = x + attend(layer.cross_attention, layer.cross_norm(x), source, causal=False)
        x = x + layer.feed_forward(layer.feed_forward_norm(x))
    return decoder.norm(x[skip:]) @ decoder.head.weight.T


@pytest.mark.parametrize("positions", ["sinusoidal", "learned"])
@pytest.mark.parametrize("fusion", FUSIONS)
def test_the_decoder_is_the_architecture_it_says(fusion, positions):
    decoder, tokens, memory = make_decoder(fusion, positions), make_tokens(), make_memory()
    logits = padded(hidden_of(decoder, tokens, memory=memory)) @ decoder.head_weight.T
    for c, length in enumerate(LENGTHS.tolist()):
        expected = plain_decoder(decoder, tokens[c, :length], memory[IMAGE_INDEX[c]])
        torch.testing.assert_close(logits[c, :length], expected, rtol=1e-10, atol=1e-10)


@variants
def test_every_variant_of_the_layers_is_the_architecture_it_says(fusion, variant):
    decoder = make_decoder(fusion, **variant | {"positions": "learned"})
    tokens, memory = make_tokens(), make_memory()
    logits = padded(hidden_of(decoder, tokens, memory=memory)) @ decoder.head_weight.T
    for c, length in enumerate(LENGTHS.tolist()):
        expected = plain_decoder(decoder, tokens[c, :length], memory[IMAGE_INDEX[c]])
        torch.testing.assert_close(logits[c, :length], expected, rtol=1e-10, atol=1e-10)


@variants
def test_every_variant_trains_all_parameters_packed_or_not(fusion, variant):
    packed, plain = (run(make_decoder(fusion, packed=choice, **variant)) for choice in (True, False))
    torch.testing.assert_close(packed.values, plain.values, rtol=1e-10, atol=1e-10)
    assert all(gradient.abs().max() > 0 for gradient in packed.parameters.values())
    torch.testing.assert_close(packed.parameters, plain.parameters, rtol=1e-10, atol=1e-10)


@variants
def test_every_variant_decodes_with_a_cache_as_without(fusion, variant):
    decoder, memory, tokens = make_decoder(fusion, **variant), make_memory(), make_tokens()[:3]
    expected = hidden_of(decoder, tokens, torch.full((3,), T), memory, torch.arange(3)) @ decoder.head_weight.T
    cache = decoder.start_decoding(memory)
    pieces = [decoder.decode(piece, cache) for piece in tokens.split([1, 2, T - 3], dim=1)]
    torch.testing.assert_close(torch.cat(pieces, dim=1).flatten(0, 1), expected, rtol=1e-10, atol=1e-10)


def test_the_cache_holds_key_value_heads_only():
    decoder, memory = make_decoder(num_key_value_heads=1), make_memory()
    cache = decoder.start_decoding(memory, room=2)
    decoder.decode(make_tokens()[:3, :2], cache)
    held = [cache.unimodal[0].keys, cache.multimodal[1].values, cache.memory[0][0], cache.memory[1][1]]
    assert [tensor.shape for tensor in held] == [(3, 1, n, WIDTH // 2) for n in (2, 2, M, M)]


CLS_POOLINGS = ("cls", "cls_shifted_mask")


@pytest.mark.parametrize("positions", POSITIONS)
def test_the_class_token_reads_its_caption_and_itself(positions):
    """As one more token behind the caption, whose embedding and position (but for rotary's) are its own."""
    decoder, tokens = make_decoder(positions=positions, text_pooling="cls"), make_tokens()
    pooled = decoder.text(tokens, LENGTHS).pooled
    for c, length in enumerate(LENGTHS.tolist()):
        x = torch.cat([decoder.token_embedding.weight[tokens[c, :length]], decoder.cls_embedding[None]])
        table = decoder.position_embedding if positions == "learned" else decoder.fixed_positions
        if table is not None:
            assert len(table) == T + 1
            x = x + table[[*range(length), T]]
        layout = Layout(1, length + 1, None)
        for layer in decoder.unimodal_layers:
            x = layer(x, layout)
        torch.testing.assert_close(pooled[c], x[-1], rtol=1e-10, atol=1e-10)


def test_the_shifted_class_token_reads_a_padding_token_in_place_of_itself():
    """As open_clip computes it: padded to the full length, class token last, its key hidden, one padding key seen."""
    decoder, tokens = make_decoder(text_pooling="cls_shifted_mask"), make_tokens()
    pooled = decoder.text(tokens, LENGTHS).pooled
    for c, length in enumerate(LENGTHS.tolist()):
        padded = tokens[c].masked_fill(torch.arange(T) >= length, 0)
        x = torch.cat([decoder.token_embedding.weight[padded], decoder.cls_embedding[None]])
        x = x + decoder.position_embedding
        seen = torch.ones(T + 1, T + 1, dtype=torch.bool).tril() & (torch.arange(T + 1) <= length)
        for layer in decoder.unimodal_layers:
            x = layer(x, Layout(1, T + 1, None), mask=seen[None, None])
        torch.testing.assert_close(pooled[c], x[-1], rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("packed", [True, False])
@pytest.mark.parametrize("positions", POSITIONS)
@pytest.mark.parametrize("text_pooling", CLS_POOLINGS)
def test_the_class_token_changes_no_other_state_and_no_padding_changes_it(text_pooling, positions, packed):
    decoder = make_decoder(positions=positions, text_pooling=text_pooling, packed=packed)
    lengths, tokens = LENGTHS.clamp(max=5), make_tokens()
    text, mask = decoder.text(tokens, lengths), Layout.mask(lengths, T)
    torch.testing.assert_close(text.states[mask], decoder.unimodal(tokens, lengths)[mask], rtol=1e-10, atol=1e-10)
    trimmed = decoder.text(tokens[:, :5], lengths)
    assert trimmed.states.shape == (C, 5, WIDTH)
    torch.testing.assert_close(trimmed.pooled, text.pooled, rtol=1e-10, atol=1e-10)
    other = decoder.text(torch.where(mask, tokens, make_tokens(seed=9)), lengths)
    assert torch.equal(other.pooled, text.pooled)
    alone = torch.cat([decoder.text(tokens[c : c + 1], lengths[c : c + 1]).pooled for c in range(C)])
    torch.testing.assert_close(alone, text.pooled, rtol=1e-10, atol=1e-10)
    text.pooled.square().sum().backward()
    unused = ("multimodal_layers", "norm", "head")
    trained = {n: p for n, p in decoder.named_parameters() if not n.startswith(unused)}
    assert all(p.grad is not None and p.grad.abs().max() > 0 for p in trained.values())


@pytest.mark.parametrize("text_pooling", CLS_POOLINGS)
def test_captions_do_not_depend_on_the_class_token(text_pooling):
    decoder, plain = make_decoder(text_pooling=text_pooling), make_decoder()
    weights = {k: v for k, v in decoder.state_dict().items() if k != "cls_embedding"}
    plain.load_state_dict(weights | {"position_embedding": weights["position_embedding"][:T]})
    tokens, memory = make_tokens(), make_memory()
    text = decoder.text(tokens, LENGTHS)
    hidden = [d.hidden(tokens, LENGTHS, memory, IMAGE_INDEX, t) for d, t in ((decoder, text), (plain, None))]
    torch.testing.assert_close(hidden[0], hidden[1], rtol=1e-10, atol=1e-10)
    cache, cached = decoder.start_decoding(memory), plain.start_decoding(memory)
    assert torch.equal(decoder.decode(tokens[:3], cache), plain.decode(tokens[:3], cached))


def test_tied_head_is_the_token_embedding():
    tied, untied = make_decoder(tie_weights=True), make_decoder(tie_weights=False)
    assert tied.head_weight is tied.token_embedding.weight
    assert untied.head_weight is not untied.token_embedding.weight
    count = sum(p.numel() for p in tied.parameters())
    assert sum(p.numel() for p in untied.parameters()) == count + V * WIDTH
    untied.load_state_dict(tied.state_dict())
    tokens = make_tokens()
    assert torch.equal(hidden_of(tied, tokens), hidden_of(untied, tokens))
    both = run(untied).parameters
    together = run(tied).parameters["token_embedding.weight"]
    torch.testing.assert_close(together, both["token_embedding.weight"] + both["head.weight"], rtol=1e-10, atol=1e-10)


def test_fixed_positions_are_scaled_like_the_embedding_and_are_no_parameters():
    torch.manual_seed(0)
    decoder = TransformerDecoder(V, MEMORY_WIDTH, T, width=WIDTH, num_heads=2, positions="sinusoidal")
    torch.testing.assert_close(decoder.fixed_positions, 0.02 * sinusoidal_positions(T, WIDTH))
    assert not any("position" in name for name in decoder.state_dict())
    assert decoder.position_embedding is None


@pytest.mark.parametrize(("fusion", "writers"), [("cross_attention", 2 * 1 + 3 * 2), ("prefix", 2 * 1 + 2 * 2)])
def test_initial_weights_keep_the_size_of_signals_and_count_the_residual_writers(fusion, writers):
    torch.manual_seed(0)
    decoder = TransformerDecoder(200, 64, T, width=64, fusion=fusion, unimodal_layers=1, multimodal_layers=2)
    layer = decoder.multimodal_layers[1]
    assert layer.self_attention.output.weight.std().item() == pytest.approx((64 * writers) ** -0.5, rel=0.06)
    assert layer.feed_forward[-1].weight.std().item() == pytest.approx((256 * writers) ** -0.5, rel=0.06)
    assert layer.self_attention.query.weight.std().item() == pytest.approx(64**-0.5, rel=0.06)
    for table in (decoder.head_weight, decoder.position_embedding):
        assert table.std().item() == pytest.approx(0.02, rel=0.1)


@pytest.mark.parametrize("tie_weights", [True, False])
def test_the_head_starts_small_so_that_the_first_loss_is_that_of_a_uniform_guess(tie_weights):
    torch.manual_seed(0)
    decoder = TransformerDecoder(50, 16, T, width=16, num_heads=2, tie_weights=tie_weights)
    memory = torch.randn(3, M, 16)
    logits = hidden_of(decoder, make_tokens(), memory=memory) @ decoder.head_weight.T
    uniform = torch.tensor(50.0).log()
    assert (-logits.log_softmax(-1) - uniform).abs().max() < 0.5


def test_dropout_acts_in_training_only():
    decoder = make_decoder(dropout=0.5)
    tokens = make_tokens()
    torch.manual_seed(0)
    assert not torch.equal(hidden_of(decoder, tokens), hidden_of(decoder, tokens))
    decoder.eval()
    assert torch.equal(hidden_of(decoder, tokens), hidden_of(decoder, tokens))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"unimodal_layers": 0}, r"^unimodal_layers: 0 and multimodal_layers=2 must both be at least 1"),
        ({"multimodal_layers": 0}, r"^unimodal_layers: 2 and multimodal_layers=0 must both be at least 1"),
        ({"width": 6, "positions": "rotary"}, r"^positions: rotary needs an even head width, not 6 / 2$"),
        ({"num_heads": 3}, r"^num_heads: 3 does not divide the width 8"),
        (
            {"fusion": "prefix", "alternating": True},
            r"^fusion: a prefix has no cross-attention, so alternating",
        ),
        (
            {"fusion": "prefix", "memory_norm": True},
            r"^fusion: a prefix has no cross-attention, so alternating",
        ),
        ({"num_key_value_heads": 3}, r"^num_key_value_heads: 3 does not divide the 2 query heads"),
    ],
)
def test_what_does_not_fit_is_refused_in_one_line(changes, message):
    with pytest.raises(UserError, match=message) as caught:
        make_decoder(**changes)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("positions", POSITIONS)
def test_captions_longer_than_the_positions_are_a_bug_with_a_clear_name(positions):
    decoder = make_decoder(positions=positions)
    tokens = torch.ones(1, T + 1, dtype=torch.int64)
    with pytest.raises(ValueError, match="9 tokens are more than the decoder's max_tokens 8"):
        decoder.unimodal(tokens, torch.tensor([T + 1]))
    cache = decoder.start_decoding(make_memory(1))
    decoder.decode(tokens[:, :T], cache)
    with pytest.raises(ValueError, match="9 tokens are more than"):
        decoder.decode(tokens[:, :1], cache)
