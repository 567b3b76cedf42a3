"""From a backbone's tokens to an encoder's output: what is pooled, what is kept, what is refused."""

import pytest
import torch

from mmlm.core.errors import UserError
from mmlm.model.encoders.readout import Normalize, Readout

TOKENS = torch.randn(2, 6, 5, generator=torch.Generator().manual_seed(0))
"""Class token, register token, four patches."""


def test_bytes_become_normalised_floats():
    images = torch.randint(0, 256, (2, 3, 4, 4), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    mean, std = (0.1, 0.2, 0.3), (0.4, 0.5, 0.6)
    normalised = Normalize(mean, std)(images)
    assert normalised.dtype == torch.float32
    for colour in range(3):
        expected = (images[:, colour].double() / 255 - mean[colour]) / std[colour]
        torch.testing.assert_close(normalised[:, colour].double(), expected, rtol=1e-5, atol=1e-5)
    assert Normalize(mean, std).state_dict() == {}


@pytest.mark.parametrize("keep", [True, False])
@pytest.mark.parametrize("pool", [None, "cls", "mean"])
def test_pooled_vector_and_tokens(pool, keep):
    readout = Readout(2, True, pool, keep)
    out = readout(TOKENS)
    assert readout.num_kept == (2 if keep else 0)
    assert torch.equal(out.tokens, TOKENS if keep else TOKENS[:, 2:])
    if pool is None:
        assert out.pooled is None
        assert readout.pooled_width(5) is None
    else:
        expected = TOKENS[:, 0] if pool == "cls" else (TOKENS[:, 2] + TOKENS[:, 3] + TOKENS[:, 4] + TOKENS[:, 5]) / 4
        torch.testing.assert_close(out.pooled, expected)
        assert readout.pooled_width(5) == 5


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((1, False, "cls", False), r"^pool: 'cls' needs a class token"),
        ((0, False, "max", False), r"^pool: 'max' is not one of cls, mean, null"),
        ((0, False, "mean", True), r"^keep_prefix_tokens: this architecture has no class or register tokens"),
    ],
)
def test_what_the_tokens_do_not_allow_is_refused(arguments, message):
    with pytest.raises(UserError, match=message):
        Readout(*arguments)
