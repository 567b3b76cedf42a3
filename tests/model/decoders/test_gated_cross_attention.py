"""Flamingo's gated block against its formula; inside of a language model it is tested with the decoder."""

import copy

import pytest
import torch
from torch import Tensor, nn

from mmlm.core.batch import TEXT_ONLY
from mmlm.core.errors import UserError
from mmlm.model.decoders.gated_cross_attention import GatedCrossAttention, Memory, reading


def make_block() -> GatedCrossAttention:
    """Width 8, 2 heads, float64, every parameter random."""
    generator = torch.Generator().manual_seed(0)
    block = GatedCrossAttention(8, 2, memory_width=6, mlp_ratio=2).double()
    with torch.no_grad():
        for parameter in block.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator, dtype=torch.float64))
    return block


def numbers(*shape: int, seed: int = 1) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_a_gated_block_is_the_formula():
    block, x, memory = make_block(), numbers(3, 5, 8), numbers(3, 4, 6, seed=2)
    normed, heads = block.attention_norm(x), []
    keys, values = block.attention.key_value(memory).chunk(2, dim=-1)
    queries = block.attention.query(normed)
    for part in (slice(0, 4), slice(4, 8)):
        weights = (queries[..., part] @ keys[..., part].mT / 2).softmax(-1)
        heads.append(weights @ values[..., part])
    after = x + block.gate_attention.tanh() * block.attention.output(torch.cat(heads, -1))
    first, _, last = block.feed_forward
    inner = nn.functional.gelu(first(block.feed_forward_norm(after)))
    expected = after + block.gate_feed_forward.tanh() * last(inner)
    torch.testing.assert_close(block(x, Memory(block.keys_values(memory))), expected, rtol=1e-10, atol=1e-10)


def test_each_caption_reads_its_own_row_and_a_text_only_one_stays_as_it_is():
    block, x, memory = make_block(), numbers(4, 5, 8), numbers(2, 3, 6, seed=2)
    index = torch.tensor([1, TEXT_ONLY, 0, 1])
    out = block(x, Memory(block.keys_values(memory), index))
    assert torch.equal(out[1], x[1])
    for c in (0, 2, 3):
        own = block(x[c : c + 1], Memory(block.keys_values(memory[index[c]][None])))
        torch.testing.assert_close(out[c], own[0], rtol=1e-10, atol=1e-10)


def test_a_new_block_changes_nothing():
    x, memory = numbers(2, 5, 8).float(), numbers(2, 3, 6).float()
    block = GatedCrossAttention(8, 2, memory_width=6, mlp_ratio=4)
    assert torch.equal(block(x, Memory(block.keys_values(memory))), x)


class Doubling(nn.Module):
    def forward(self, hidden_states: Tensor, factor: int = 2) -> Tensor:
        return factor * hidden_states


def test_a_block_stands_before_its_layer_only_while_it_reads():
    block, layer, other, x = make_block(), Doubling(), Doubling(), numbers(2, 5, 8)
    block.insert_before(layer)
    memory = Memory(block.keys_values(numbers(2, 3, 6, seed=2)))
    seen = block(x, memory)
    with reading([block], [memory]):
        assert torch.equal(layer(x), 2 * seen)
        assert torch.equal(layer(hidden_states=x, factor=3), 3 * seen)
        assert torch.equal(other(x), 2 * x)
    assert torch.equal(layer(x), 2 * x)
    with pytest.raises(RuntimeError), reading([block], [memory]):
        raise RuntimeError("a pass that fails")
    assert torch.equal(layer(x), 2 * x)


def test_a_copied_model_reads_with_its_own_block():
    both = nn.ModuleDict({"block": make_block(), "layer": Doubling()})
    both["block"].insert_before(both["layer"])
    twin, x = copy.deepcopy(both), numbers(2, 5, 8)
    memory = Memory(both["block"].keys_values(numbers(2, 3, 6, seed=2)))
    with reading([both["block"]], [memory]):
        assert torch.equal(twin["layer"](x), 2 * x)
    with torch.no_grad():
        twin["block"].gate_attention.zero_()
        twin["block"].gate_feed_forward.zero_()
    with reading([twin["block"]], [memory]):
        assert torch.equal(twin["layer"](x), 2 * x)


def test_heads_must_divide_the_width():
    with pytest.raises(UserError, match="num_heads: 3 does not divide"):
        GatedCrossAttention(8, 3, memory_width=6, mlp_ratio=4)
