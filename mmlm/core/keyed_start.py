"""Initial weights by key: what a part starts from depends on the run's seed and the part's name, and on nothing else.

Drawn one after the other from one generator, the weights of a decoder would change with the number of weights that the
bridge before it has drawn. Two runs of one seed that differ in their bridge would then differ in their decoder too.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from mmlm.core.keyed_random import keyed_integer, stable_hash


@contextmanager
def keyed_start(name: str) -> Iterator[None]:
    """Everything that torch draws inside is a function of the seed outside and ``name``; outside nothing has moved.

    The seed is ``torch.initial_seed()``. Inside, that is the key of (seed, ``name``), so that contexts nest: what
    ``layers.0`` of ``decoder`` draws depends on (the run's seed, "decoder", "layers.0"). On leaving, the states of the
    CPU's generator and, if CUDA has been initialised, of every CUDA device's are put back, and the seed with them.

    Equal names below one seed give equal draws: things of one parent need names of their own. The generators of NumPy
    and of Python are not concerned (no part of ours, of timm or of transformers starts from them).
    """
    key = keyed_integer(torch.initial_seed(), stable_hash(name))
    on_cuda = torch.cuda.is_initialized()
    with torch.random.fork_rng(range(torch.cuda.device_count()) if on_cuda else [], device_type="cuda"):
        # torch.manual_seed would seed more than is put back: before CUDA is initialised, its seed for when it will be.
        torch.default_generator.manual_seed(key)
        if on_cuda:
            torch.cuda.manual_seed_all(key)
        yield
