"""Our own text tower in float64: the architecture it says, packing, padding, directions, pooling."""

import itertools

import pytest
import torch
from torch import Tensor, nn

from mmlm.core.errors import UserError
from mmlm.model.packing import Layout
from mmlm.model.text_encoders.transformer import TransformerTextEncoder

V, T, WIDTH = 13, 8, 8
LENGTHS = torch.tensor([5, 3, 8, 4, 2, 3])
C = len(LENGTHS)
KINDS = list(itertools.product(("causal", "bidirectional"), ("end", "mean"), ("learned", "sinusoidal", "rotary")))


def make_encoder(attention="causal", pool="end", positions="learned", **changes) -> TransformerTextEncoder:
    """Two layers in float64, every parameter random and none small."""
    settings = {"width": WIDTH, "num_heads": 2, "num_layers": 2} | changes
    encoder = TransformerTextEncoder(V, T, attention=attention, pool=pool, positions=positions, **settings).double()
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in encoder.parameters():
            parameter.copy_(0.4 * torch.randn(parameter.shape, generator=generator, dtype=torch.float64))
    return encoder


def make_tokens(seed: int = 0) -> Tensor:
    return torch.randint(1, V, (C, T), generator=torch.Generator().manual_seed(seed))


def plain(encoder: TransformerTextEncoder, tokens: Tensor, causal: bool, mean: bool) -> Tensor:
    """One text int64[t] through PyTorch's own encoder layers -> float[D]."""
    x = encoder.token_embedding.weight[tokens]
    learned = encoder.position_embedding
    x = x + (encoder.fixed_positions if learned is None else learned)[: len(tokens)]
    mask = ~torch.ones(len(tokens), len(tokens), dtype=torch.bool).tril() if causal else None
    for layer in encoder.layers:
        theirs = nn.TransformerEncoderLayer(
            WIDTH, 2, 4 * WIDTH, dropout=0, activation="gelu", batch_first=True, norm_first=True
        ).double()
        attention, ours = theirs.self_attn, layer.self_attention
        attention.in_proj_weight = nn.Parameter(torch.cat([ours.query.weight, ours.key_value.weight]))
        attention.in_proj_bias = nn.Parameter(torch.cat([ours.query.bias, ours.key_value.bias]))
        attention.out_proj.load_state_dict(ours.output.state_dict())
        theirs.norm1, theirs.norm2 = layer.self_norm, layer.feed_forward_norm
        theirs.linear1, theirs.linear2 = layer.feed_forward[0], layer.feed_forward[2]
        x = theirs(x[None], src_mask=mask)[0]
    x = encoder.norm(x)
    return x.mean(dim=0) if mean else x[-1]


@pytest.mark.parametrize(("attention", "pool", "positions"), [kind for kind in KINDS if kind[2] != "rotary"])
def test_the_tower_is_the_architecture_it_says(attention, pool, positions):
    encoder, tokens = make_encoder(attention, pool, positions), make_tokens()
    out = encoder(tokens, LENGTHS)
    assert out.shape == (C, encoder.width)
    for c, length in enumerate(LENGTHS.tolist()):
        expected = plain(encoder, tokens[c, :length], attention == "causal", pool == "mean")
        torch.testing.assert_close(out[c], expected, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("packed", [True, False])
@pytest.mark.parametrize(("attention", "pool", "positions"), KINDS)
def test_neither_padding_nor_other_texts_matter(attention, pool, positions, packed):
    encoder, tokens = make_encoder(attention, pool, positions, packed=packed), make_tokens()
    before = encoder(tokens, LENGTHS)
    other = torch.where(Layout.mask(LENGTHS, T), tokens, make_tokens(seed=9))
    torch.testing.assert_close(encoder(other, LENGTHS), before, rtol=1e-12, atol=1e-12)
    for c, length in enumerate(LENGTHS.tolist()):
        alone = encoder(tokens[c : c + 1, :length], LENGTHS[c : c + 1])
        torch.testing.assert_close(alone[0], before[c], rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize(("attention", "pool", "positions"), KINDS)
def test_packing_changes_nothing_and_gradients_reach_every_parameter(attention, pool, positions):
    gradients = []
    for packed in (True, False):
        encoder = make_encoder(attention, pool, positions, packed=packed)
        encoder(make_tokens(), LENGTHS).square().sum().backward()
        gradients.append({name: p.grad for name, p in encoder.named_parameters()})
    for name, gradient in gradients[0].items():
        assert gradient.abs().max() > 0, name
        torch.testing.assert_close(gradient, gradients[1][name], rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize(("attention", "sees"), [("causal", False), ("bidirectional", True)])
def test_only_bidirectional_attention_sees_later_tokens(attention, sees):
    """Observed from the first layer's output at the first token."""
    encoder, firsts = make_encoder(attention, num_layers=1), []
    encoder.norm.register_forward_hook(lambda _module, inputs, _out: firsts.append(inputs[0][0]))
    tokens = torch.tensor([[1, 2, 3]])
    encoder(tokens, torch.tensor([3]))
    encoder(torch.tensor([[1, 2, 4]]), torch.tensor([3]))
    assert torch.equal(firsts[0], firsts[1]) is not sees


def test_order_of_tokens_matters():
    for positions in ("learned", "sinusoidal", "rotary"):
        encoder = make_encoder("bidirectional", "mean", positions)
        one, other = encoder(torch.tensor([[1, 2, 3, 4], [3, 1, 2, 4]]), torch.tensor([4, 4]))
        assert (one - other).abs().max() > 1e-4, positions


def test_dropout_acts_in_training_only():
    encoder, tokens = make_encoder(dropout=0.5), make_tokens()
    torch.manual_seed(0)
    assert not torch.equal(encoder(tokens, LENGTHS), encoder(tokens, LENGTHS))
    encoder.eval()
    assert torch.equal(encoder(tokens, LENGTHS), encoder(tokens, LENGTHS))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_layers": 0}, r"^num_layers: 0 must be at least 1$"),
        ({"dropout": -0.1}, r"^dropout: -0\.1 must lie in \[0, 1\)"),
        ({"width": 6, "positions": "rotary"}, r"^positions: rotary needs an even head width, not 6 / 2$"),
        ({"num_heads": 3}, r"^num_heads: 3 does not divide the width 8"),
    ],
)
def test_what_does_not_fit_is_refused_in_one_line(changes, message):
    with pytest.raises(UserError, match=message):
        make_encoder(**changes)


def test_texts_longer_than_the_positions_are_a_bug_with_a_clear_name():
    with pytest.raises(ValueError, match="9 tokens are more than the text encoder's max_tokens 8"):
        make_encoder()(torch.ones(1, T + 1, dtype=torch.int64), torch.tensor([T + 1]))
