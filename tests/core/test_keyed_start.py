"""keyed_start: draws inside depend on the seed and the name alone, and leave the generators outside as they were."""

import pytest
import torch
from torch import nn

from mmlm.core.keyed_start import keyed_start
from mmlm.experiment.device import seed_everything


def drawn(*names: str) -> float:
    """A number drawn inside of the contexts of ``names``, one in the other."""
    if not names:
        return float(torch.rand((), dtype=torch.float64))
    with keyed_start(names[0]):
        return drawn(*names[1:])


def test_draws_depend_on_the_seed_and_the_name():
    torch.manual_seed(1)
    first = drawn("bridge")
    torch.rand(7)
    assert drawn("bridge") == first, "what was drawn before does not matter"
    assert drawn("decoder") != first
    torch.manual_seed(2)
    assert drawn("bridge") != first
    torch.manual_seed(1)
    assert drawn("bridge") == first


def test_contexts_nest():
    torch.manual_seed(1)
    with keyed_start("decoder"):
        torch.rand(5)
        block = drawn("layers.0")
        assert drawn("layers.1") != block
    assert drawn("decoder", "layers.0") == block
    assert len({block, drawn("layers.0"), drawn("encoder", "layers.0"), drawn("layers.0", "decoder")}) == 4
    torch.manual_seed(2)
    assert drawn("decoder", "layers.0") != block


@pytest.mark.parametrize("seed", [0, 5, -5, 2**63, 2**64 - 1])
def test_the_generator_outside_is_put_back(seed):
    torch.manual_seed(seed)
    torch.rand(3)
    state, initial = torch.get_rng_state(), torch.initial_seed()
    with keyed_start("encoder"):
        assert torch.initial_seed() != initial
        torch.manual_seed(3)  # a part may do so
        with pytest.raises(RuntimeError), keyed_start("inside"):
            torch.rand(-1)
        assert torch.initial_seed() == 3
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.initial_seed() == initial


def test_it_works_where_parts_are_built_without_memory():
    torch.manual_seed(1)
    state = torch.get_rng_state()
    with torch.device("meta"), keyed_start("encoder"):
        assert nn.Linear(2, 2).weight.is_meta
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_draws_on_a_cuda_device():
    seed_everything(1)
    torch.rand(3, device="cuda")
    state = torch.cuda.get_rng_state()
    with keyed_start("encoder"):
        first = torch.rand(4, device="cuda")
    assert torch.equal(torch.cuda.get_rng_state(), state)
    assert torch.cuda.initial_seed() == 1
    with keyed_start("encoder"):
        assert torch.equal(torch.rand(4, device="cuda"), first)
    with keyed_start("decoder"):
        assert not torch.equal(torch.rand(4, device="cuda"), first)
