"""The tower against a plain formula; the order of the tokens does not matter, their number does."""

import pytest
import torch
import torch.nn.functional as F

from mmlm.core.errors import ArgumentError
from mmlm.model.text_encoders.bag_of_words import BagOfWords


@pytest.fixture
def tower() -> BagOfWords:
    torch.manual_seed(0)
    tower = BagOfWords(vocab_size=20, width=8, mlp_ratio=2.0).double()
    for parameter in tower.parameters():
        torch.nn.init.normal_(parameter)
    return tower


def test_against_a_plain_formula(tower):
    tokens, lengths = torch.tensor([[1, 5, 7, 2], [1, 6, 2, 19]]), torch.tensor([4, 3])
    for row, own in enumerate(([1, 5, 7, 2], [1, 6, 2])):
        mean = sum(tower.token_embedding.weight[token] for token in own) / len(own)
        normed = F.layer_norm(mean, (8,), tower.norm_in.weight, tower.norm_in.bias)
        first, _, last = tower.feed_forward
        states = mean + last(F.gelu(first(normed)))
        expected = F.layer_norm(states, (8,), tower.norm.weight, tower.norm.bias)
        assert torch.allclose(tower(tokens, lengths)[row], expected)


def test_the_order_of_the_tokens_does_not_matter_and_their_number_does(tower):
    tokens = torch.tensor([[1, 5, 7, 9, 2], [1, 9, 5, 7, 2], [1, 9, 9, 7, 2]])
    one, turned, other = tower(tokens, torch.tensor([5, 5, 5]))
    assert torch.allclose(one, turned, rtol=0, atol=1e-12)
    assert not torch.allclose(one, other, atol=1e-2)


def test_settings_out_of_range_are_refused():
    with pytest.raises(ArgumentError, match="width: 0 must be at least 1"):
        BagOfWords(20, width=0)
    with pytest.raises(ArgumentError, match="mlp_ratio"):
        BagOfWords(20, width=8, mlp_ratio=0.0)
