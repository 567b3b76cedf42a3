"""A text read twice by the same layers, in float64: what each pass sees, against plain formulas, and with a cache."""

import itertools

import pytest
import torch
from torch import Tensor, nn

from mmlm.core.batch import TEXT_ONLY
from mmlm.core.errors import UserError
from mmlm.core.views import CAPTION, EMBED
from mmlm.model.attention import AttentionRecord
from mmlm.model.bridges.attentional_pooler import AttentionalPooler
from mmlm.model.decoders.two_pass import TwoPassDecoder
from mmlm.model.encoders.timm_vit import TimmVit
from mmlm.model.model import ImageTextModel
from mmlm.model.packing import Layout

PACKED = (True, False)
POSITIONS = ("sinusoidal", "learned", "rotary")
V, T, M, MEMORY_WIDTH, WIDTH = 13, 8, 3, 6, 8
LENGTHS = torch.tensor([5, 3, 8, 4, 2, 7, 6])
IMAGE_INDEX = torch.tensor([0, 1, 1, TEXT_ONLY, 2, 0, TEXT_ONLY])
C = len(LENGTHS)

packing = pytest.mark.parametrize("packed", PACKED)
FUSIONS = ("cross_attention", "prefix")
fusions = pytest.mark.parametrize("fusion", FUSIONS)


def make_decoder(fusion="cross_attention", **changes) -> TwoPassDecoder:
    """Four layers; by cross-attention, the second and the fourth read the image. Every parameter random, none small."""
    every = 2 if fusion == "cross_attention" else None
    sizes = {"width": WIDTH, "num_heads": 2, "num_layers": 4, "cross_attention_every": every} | changes
    sizes["fusion"] = fusion
    return stirred(TwoPassDecoder(V, MEMORY_WIDTH, T, **sizes))


def stirred(module: nn.Module) -> nn.Module:
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in module.double().parameters():
            parameter.copy_(0.4 * torch.randn(parameter.shape, generator=generator, dtype=torch.float64))
    return module


def make_tokens(seed: int = 0) -> Tensor:
    return torch.randint(1, V, (C, T), generator=torch.Generator().manual_seed(seed))


def make_memory(seed: int = 1) -> Tensor:
    return torch.randn(3, M, MEMORY_WIDTH, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def text_states(decoder: TwoPassDecoder, tokens: Tensor) -> Tensor:
    """float[C, T, D] of the pass without an image, zeros at padding."""
    states = decoder.text(tokens, LENGTHS).states
    return states.masked_fill(~Layout.mask(LENGTHS, T)[..., None], 0)


def caption_states(decoder: TwoPassDecoder, tokens: Tensor, memory: Tensor | None = None) -> Tensor:
    """float[C, T - 1, D] of the pass for captions, zeros at padding."""
    memory = make_memory() if memory is None else memory
    hidden = decoder.hidden(tokens, LENGTHS, memory, IMAGE_INDEX)
    return hidden.new_zeros(C, T - 1, WIDTH).masked_scatter(Layout.mask(LENGTHS - 1, T - 1)[..., None], hidden)


def really_sees(read, decoder: TwoPassDecoder) -> Tensor:
    """bool[C, positions, T]: whether a position of a pass reads a token, found out by changing one after another."""
    tokens, before = make_tokens(), read(decoder, make_tokens())
    columns = []
    for column in range(T):
        changed = tokens.clone()
        changed[:, column] = changed[:, column] % (V - 1) + 1
        difference = (read(decoder, changed) - before).abs().amax(dim=-1)
        # Either nothing but rounding, or plainly something.
        assert ((difference < 1e-12) | (difference > 1e-7)).all()
        columns.append(difference > 1e-7)
    return torch.stack(columns, dim=-1)


@packing
@fusions
@pytest.mark.parametrize("positions", POSITIONS)
def test_a_token_sees_later_ones_in_the_pass_without_the_image_and_none_in_the_other(positions, fusion, packed):
    decoder = make_decoder(fusion, positions=positions, packed=packed)
    real = Layout.mask(LENGTHS, T)
    assert torch.equal(really_sees(text_states, decoder), real[:, :, None] & real[:, None, :])
    real = Layout.mask(LENGTHS - 1, T - 1)
    causal = (real[:, :, None] & real[:, None, :]).tril()
    assert torch.equal(really_sees(caption_states, decoder), nn.functional.pad(causal, (0, 1)))


@fusions
@pytest.mark.parametrize("mixing", range(4))
def test_every_layer_does(mixing, fusion):
    """With one layer alone that mixes positions: or what another has seen would hide that this one does not look."""
    decoder = make_decoder(fusion)
    with torch.no_grad():
        for layer in [*decoder.layers[:mixing], *decoder.layers[mixing + 1 :]]:
            for parameter in layer.self_attention.output.parameters():
                parameter.zero_()
    real = Layout.mask(LENGTHS, T)
    assert torch.equal(really_sees(text_states, decoder), real[:, :, None] & real[:, None, :])
    real = Layout.mask(LENGTHS - 1, T - 1)
    causal = (real[:, :, None] & real[:, None, :]).tril()
    assert torch.equal(really_sees(caption_states, decoder), nn.functional.pad(causal, (0, 1)))


# Against plain formulas


def plain_attention(attention: nn.Module, queries: Tensor, source: Tensor, mask: Tensor | None = None) -> Tensor:
    """float[t, D], float[s, Ds], bool[t, s] -> float[t, D], one head and one token after another."""
    q, (k, v) = attention.query(queries), attention.key_value(source).chunk(2, dim=-1)
    rows = []
    for i in range(len(queries)):
        heads = []
        for head in range(2):
            part = slice(head * WIDTH // 2, (head + 1) * WIDTH // 2)
            seen = [j for j in range(len(source)) if mask is None or mask[i, j]]
            scores = torch.stack([(q[i, part] * k[j, part]).sum() / (WIDTH / 2) ** 0.5 for j in seen])
            heads.append((scores.softmax(0)[:, None] * v[seen, part]).sum(0))
        rows.append(torch.cat(heads))
    return attention.output(torch.stack(rows))


def plain_pass(decoder: TwoPassDecoder, tokens: Tensor, memory: Tensor | None, causal: bool) -> Tensor:
    """One text int64[t], with the memory float[M, Dm] of its image or None -> states float[t, D]."""
    x = decoder.token_embedding.weight[tokens] + decoder.position_embedding[: len(tokens)]
    front = 0
    if memory is not None and decoder.fusion == "prefix":
        x, front = torch.cat([decoder.prefix_projection(memory), x]), len(memory)
    mask = torch.ones(len(x), len(x), dtype=torch.bool)
    for i, j in itertools.product(range(len(x)), range(len(x))):
        mask[i, j] = not causal or j <= i or (i < front and j < front)
    for layer in decoder.layers:
        normed = layer.self_norm(x)
        x = x + plain_attention(layer.self_attention, normed, normed, mask)
        if layer.cross_attention is not None and memory is not None:
            x = x + plain_attention(layer.cross_attention, layer.cross_norm(x), memory)
        x = x + layer.feed_forward(layer.feed_forward_norm(x))
    return decoder.norm(x)[front:]


PLAIN = {
    "every layer": ("cross_attention", 1, [True, True, True]),
    "every second": ("cross_attention", 2, [False, True, False]),
    "every third": ("cross_attention", 3, [False, False, True]),
    "prefix": ("prefix", None, [False, False, False]),
}


@pytest.mark.parametrize(("fusion", "every", "reads"), PLAIN.values(), ids=PLAIN.keys())
def test_both_passes_are_the_plain_formula(fusion, every, reads):
    decoder, tokens = make_decoder(fusion, num_layers=3, cross_attention_every=every), make_tokens()
    assert [layer.cross_attention is not None for layer in decoder.layers] == reads
    text, hidden, memory = decoder.text(tokens, LENGTHS), caption_states(decoder, tokens), make_memory()
    for c, (length, image) in enumerate(zip(LENGTHS.tolist(), IMAGE_INDEX.tolist(), strict=True)):
        states = plain_pass(decoder, tokens[c, :length], None, causal=False)
        torch.testing.assert_close(text.states[c, :length], states, rtol=1e-10, atol=1e-12)
        torch.testing.assert_close(text.pooled[c], sum(states) / length, rtol=1e-10, atol=1e-12)
        seen = None if image == TEXT_ONLY else memory[image]
        expected = plain_pass(decoder, tokens[c, : length - 1], seen, causal=True)
        torch.testing.assert_close(hidden[c, : length - 1], expected, rtol=1e-10, atol=1e-12)


def gradients(decoder: TwoPassDecoder, text: bool, captions: bool) -> dict[str, Tensor]:
    """Of a random function of the text embedding, of the captions' states, or of their sum; by name; none left out."""
    total, generator = torch.zeros((), dtype=torch.float64), torch.Generator().manual_seed(3)
    memory = make_memory().requires_grad_()
    for wanted, read in (
        (text, lambda: decoder.text(make_tokens(), LENGTHS).pooled),
        (captions, lambda: decoder.hidden(make_tokens(), LENGTHS, memory, IMAGE_INDEX)),
    ):
        made = read()
        weights = torch.randn(made.shape, generator=generator, dtype=torch.float64)
        total = total + (made * weights).sum() * wanted
    names = dict(decoder.named_parameters()) | {"memory": memory}
    return dict(zip(names, torch.autograd.grad(total, list(names.values()), allow_unused=True), strict=True))


@fusions
def test_both_passes_move_the_same_weights(fusion):
    """The gradient of both losses is the sum of both; the image and what reads it have none of the text embedding's."""
    decoder = make_decoder(fusion, tie_weights=False)
    of_text, of_captions, of_both = (gradients(decoder, *which) for which in ((1, 0), (0, 1), (1, 1)))
    for name, both in of_both.items():
        if name == "head.weight":  # logits are made elsewhere
            assert both is None
            continue
        torch.testing.assert_close(both, of_text[name] + of_captions[name], rtol=1e-10, atol=1e-12)
        assert of_captions[name].abs().max() > 0, name
        reads_image = name.startswith(("memory", "prefix_projection")) or "cross_" in name
        assert bool(of_text[name].any()) is not reads_image, name


@fusions
def test_an_image_has_no_part_in_the_text_embedding_of_a_model(make_batch, fusion):
    torch.manual_seed(0)
    encoder = TimmVit(16, patch_size=8, width=12, depth=1, num_heads=2, class_token=False)
    bridge = AttentionalPooler(12, (2, 2), 8, num_heads=2, num_queries=3)
    every = 2 if fusion == "cross_attention" else None
    sizes = {"width": WIDTH, "num_heads": 2, "fusion": fusion, "cross_attention_every": every}
    decoder = TwoPassDecoder(V, bridge.memory_width, T, **sizes)
    model = ImageTextModel(encoder, bridge, decoder, embedding_width=6).double().eval()
    one, other = (make_batch((5, 3, 7), (0, 1, 1), 2, T, V, 16, seed=seed) for seed in (0, 1))
    other.tokens.copy_(one.tokens)
    first, second = (model(batch, (EMBED, CAPTION)) for batch in (one, other))
    assert torch.equal(first.text_embedding, second.text_embedding)
    assert not torch.equal(first.image_embedding, second.image_embedding)
    assert not torch.allclose(first.hidden[CAPTION], second.hidden[CAPTION])
    first.text_embedding[:, 0].sum().backward()
    assert all(p.grad is None for p in [*encoder.parameters(), *bridge.parameters()])
    # Captions are those of a pass in which nothing was embedded: the other pass leaves nothing behind.
    torch.testing.assert_close(model(one, (CAPTION,)).hidden[CAPTION], first.hidden[CAPTION], rtol=0, atol=0)


# Packing, padding, cache

CHUNKS = {"one by one": [1] * T, "all at once": [T], "in chunks": [3, 1, 4]}
CACHED = list(itertools.product(POSITIONS, [{}, {"num_key_value_heads": 1, "norm": "rms_norm"}]))


@pytest.mark.parametrize("chunks", CHUNKS.values(), ids=CHUNKS.keys())
@fusions
@pytest.mark.parametrize(("positions", "changes"), CACHED)
def test_decoding_with_a_cache_equals_the_full_forward(positions, changes, fusion, chunks):
    decoder, memory = make_decoder(fusion, positions=positions, **changes), make_memory()
    tokens = make_tokens()[:3]
    longer = torch.cat([tokens, tokens[:, :1]], dim=1)
    expected = decoder.hidden(longer, torch.full((3,), T + 1), memory, torch.arange(3)).view(3, T, WIDTH)
    cache, read, pieces = decoder.start_decoding(memory), 0, []
    for size in chunks:
        assert cache.num_tokens == read
        pieces.append(decoder.decode(tokens[:, read : read + size], cache))
        read += size
    torch.testing.assert_close(torch.cat(pieces, dim=1), expected @ decoder.head_weight.T, rtol=1e-10, atol=1e-10)


@fusions
def test_packed_equals_unpacked_in_both_passes_and_all_gradients(fusion):
    packed, plain = (gradients(make_decoder(fusion, packed=choice), 1, 1) for choice in PACKED)
    for name, value in packed.items():
        torch.testing.assert_close(value, plain[name], rtol=1e-10, atol=1e-10)


@packing
@fusions
def test_padding_changes_nothing(fusion, packed):
    decoder, tokens = make_decoder(fusion, packed=packed), make_tokens()
    other = torch.where(Layout.mask(LENGTHS, T), tokens, make_tokens(seed=9))
    for read in (text_states, caption_states):
        assert torch.equal(read(decoder, other), read(decoder, tokens))
    for c, length in enumerate(LENGTHS.tolist()):
        alone = decoder.text(tokens[c : c + 1, :length], LENGTHS[c : c + 1]).pooled
        torch.testing.assert_close(alone[0], decoder.text(tokens, LENGTHS).pooled[c], rtol=1e-10, atol=1e-12)


@packing
@pytest.mark.parametrize(("fusion", "layers"), [("cross_attention", 2), ("prefix", 4)])
def test_layers_that_read_the_image_record_what_they_look_at(fusion, layers, packed):
    record, tokens = AttentionRecord(), make_tokens()
    decoder = make_decoder(fusion, packed=packed)
    hidden = decoder.hidden(tokens, LENGTHS, make_memory(), IMAGE_INDEX, record=record)
    assert torch.equal(hidden, decoder.hidden(tokens, LENGTHS, make_memory(), IMAGE_INDEX))
    assert [weights.shape for weights in record.weights] == [(C, 2, T - 1, M)] * layers
    read = Layout.mask(LENGTHS - 1, T - 1) & (IMAGE_INDEX != TEXT_ONLY)[:, None]
    shares = record.weights[0].sum(-1)[read[:, None].expand(-1, 2, -1)]
    if fusion == "cross_attention":
        torch.testing.assert_close(shares, torch.ones_like(shares))
    else:  # the text takes its share
        assert ((shares > 0) & (shares < 1)).all()


def test_a_token_of_the_prefix_sees_all_of_the_image_and_no_text():
    """Found by what the cache holds of it: keys of the second layer are made of what the first has seen."""
    decoder, memory = make_decoder("prefix"), make_memory()
    before = decoder.start_decoding(memory).layers[1].shared[0]
    changed = memory.clone()
    changed[:, M - 1] += 1
    difference = (decoder.start_decoding(changed).layers[1].shared[0] - before).abs().amax(dim=(1, 3))
    assert (difference > 1e-6).all(), "the first image token sees the last"
    cache = decoder.start_decoding(memory)
    decoder.decode(make_tokens()[:3], cache)
    assert torch.equal(cache.layers[1].shared[0], before)


def test_a_prefix_of_the_decoder_s_own_width_enters_as_it_is():
    sizes = {"width": WIDTH, "num_heads": 2, "fusion": "prefix", "cross_attention_every": None}
    assert TwoPassDecoder(V, WIDTH, T, **sizes).prefix_projection is None
    assert TwoPassDecoder(V, MEMORY_WIDTH, T, **sizes).prefix_projection.weight.shape == (WIDTH, MEMORY_WIDTH)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_layers": 0}, r"^num_layers: 0 must be at least 1"),
        ({"cross_attention_every": 0}, r"^cross_attention_every: 0 must be at least 1"),
        (
            {"num_layers": 2, "cross_attention_every": 3},
            r"^cross_attention_every: 3 lets none of num_layers=2 read the image; use 2 or less$",
        ),
        ({"cross_attention_every": None}, r"^cross_attention_every: null is for fusion=prefix; use 1 or more$"),
        (
            {"fusion": "prefix", "cross_attention_every": 2},
            r"^cross_attention_every: 2 would do nothing, since every layer reads a prefix; use null$",
        ),
        ({"width": 6, "positions": "rotary"}, r"^positions: rotary needs an even head width, not 6 / 2$"),
        ({"num_heads": 3}, r"^num_heads: 3 does not divide the width 8"),
    ],
)
def test_what_does_not_fit_is_refused_in_one_line(changes, message):
    with pytest.raises(UserError, match=message) as caught:
        make_decoder(**changes)
    assert "\n" not in str(caught.value)


def test_texts_longer_than_the_positions_are_a_bug_with_a_clear_name():
    decoder, tokens = make_decoder(), torch.ones(1, T + 1, dtype=torch.int64)
    with pytest.raises(ValueError, match="9 tokens are more than the decoder's max_tokens 8"):
        decoder.text(tokens, torch.tensor([T + 1]))
