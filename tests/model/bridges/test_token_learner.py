"""TokenLearner against its formula written out in loops, and what its constructor refuses."""

import pytest
import torch
from torch import Tensor

from mmlm.core.errors import ArgumentError
from mmlm.model.bridges.token_learner import TokenLearner

N, PATCH_WIDTH, WIDTH, HIDDEN = 5, 6, 4, 7


def gelu(x: Tensor) -> Tensor:
    return x * (1 + torch.erf(x / 2**0.5)) / 2


@pytest.mark.parametrize("pool", [True, False])
def test_it_is_its_formula(pool, make_patches, randomise, layer_norm, assert_same_gradients):
    bridge = randomise(TokenLearner(PATCH_WIDTH, WIDTH, num_tokens=3, hidden_width=HIDDEN, pool=pool), 0.5)
    patches = make_patches(N, PATCH_WIDTH).requires_grad_()
    first, _, second = bridge.score
    rows, shares = [], []
    for image in patches:
        normed = layer_norm(image, bridge.norm)
        for token in range(3 + pool):
            hidden = [gelu(first.weight @ normed[n] + first.bias) for n in range(N)]
            weights = torch.stack([(second.weight[token] @ hidden[n]).exp() for n in range(N)])
            weights = weights / weights.sum()
            mean = sum(weights[n] * normed[n] for n in range(N))
            rows.append(bridge.projection.weight @ mean + bridge.projection.bias)
            shares.append(weights.detach())
    expected = torch.stack(rows).view(len(patches), 3 + pool, WIDTH)
    expected_shares = torch.stack(shares).view(len(patches), 3 + pool, N)[:, int(pool) :]
    found = bridge(patches)
    torch.testing.assert_close(found.memory, expected[:, int(pool) :])
    torch.testing.assert_close(bridge.patch_attention(patches), expected_shares.float())
    if pool:
        torch.testing.assert_close(found.pooled, expected[:, 0])
    ours = torch.cat([found.pooled[:, None], found.memory], dim=1) if pool else found.memory
    assert_same_gradients([ours], [expected], [patches, *bridge.parameters()])


@pytest.mark.parametrize("argument", ["num_tokens", "hidden_width"])
def test_nothing_is_refused(argument):
    with pytest.raises(ArgumentError, match=f"^{argument}: 0 must be at least 1$"):
        TokenLearner(PATCH_WIDTH, WIDTH, **{argument: 0})
