"""The rules of a bridge, tried on random patches."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import cast

import torch
from torch import Tensor, nn

from mmlm.check.modules import ModuleUnderTest, Outputs, dtype_of, stir
from mmlm.check.report import (
    Check,
    expect,
    expect_attributes,
    expect_floating,
    expect_same,
    expect_shape,
)
from mmlm.core.errors import UserError
from mmlm.model.protocols import Bridge, BridgeOutput

IMAGES = 3


@dataclass(frozen=True)
class BridgeUnderTest:
    """A bridge, and what it is built for."""

    make: Callable[[bool], Bridge]
    """A new bridge; the argument is ``pool``. Raises UserError if the bridge cannot be built so."""
    patch_width: int
    """D of the encoder's tokens."""
    num_patches: int
    """N."""
    pools: tuple[bool, ...] = (True, False)
    """The values of ``pool`` to try."""

    def each(self, seed: int = 0) -> Iterator[tuple[bool, Bridge]]:
        """A bridge for each value of ``pool`` that it can be built with.

        In float64 and eval mode, no weight where it started.
        """
        for pool in self.pools:
            torch.manual_seed(seed)
            try:
                bridge = self.make(pool)
            except UserError:
                if pool:  # every bridge has to pool where the encoder does not; some can do nothing else
                    raise
                continue
            stir(cast(nn.Module, bridge).double().eval())
            yield pool, bridge

    def patches(self, dtype: torch.dtype = torch.float64) -> Tensor:
        """float[3, N, D], random."""
        generator = torch.Generator().manual_seed(0)
        return torch.randn(IMAGES, self.num_patches, self.patch_width, generator=generator, dtype=torch.float64).to(
            dtype
        )

    def modules(self) -> Iterator[ModuleUnderTest]:
        """The bridge as a part with weights, for each value of ``pool`` that it can be built with."""
        for pool, _ in self.each():
            yield ModuleUnderTest(cast(Callable[[], nn.Module], partial(self.make, pool)), self._outputs)

    def _outputs(self, module: nn.Module) -> Outputs:
        bridge = cast(Bridge, module)
        out = bridge(self.patches(dtype_of(module)))
        return {"memory": out.memory} | ({} if out.pooled is None else {"pooled": out.pooled})


def memory(subject: BridgeUnderTest) -> None:
    """See ``SIZES``."""
    for _, bridge in subject.each():
        kinds: dict[str, tuple[type, ...]] = {
            "memory_width": (int,),
            "num_memory": (int,),
            "pooled_width": (int, type(None)),
        }
        expect_attributes(bridge, kinds, "Bridge")
        images = subject.patches()
        out = bridge(images)
        expect(isinstance(out, BridgeOutput), f"forward returns a {type(out).__name__}", "return a BridgeOutput")
        shape = (len(images), bridge.num_memory, bridge.memory_width)
        fix = "set num_memory and memory_width to the sizes of the memory that forward returns"
        expect_shape(out.memory, shape, "memory", "[B, num_memory, memory_width]", fix)
        expect_floating(out.memory, torch.float64, "memory")


def pooled(subject: BridgeUnderTest) -> None:
    """See ``SIZES``."""
    for pool, bridge in subject.each():
        told = bridge.pooled_width is not None
        fix = "set pooled_width to the width of the pooled vector if pool is true, and to None if it is false"
        expect(told == pool, f"pooled_width is {bridge.pooled_width} with pool={str(pool).lower()}", fix)
        images = subject.patches()
        out = bridge(images)
        if not pool:
            fix = "return BridgeOutput(memory) where pool is false, and build nothing for the pooled vector"
            expect(out.pooled is None, "forward returns a pooled vector with pool=false", fix)
        else:
            shape = (len(images), cast(int, bridge.pooled_width))
            expect_shape(out.pooled, shape, "pooled", "[B, pooled_width]", fix)


def patch_attention(subject: BridgeUnderTest) -> None:
    """See ``SIZES``."""
    for _, bridge in subject.each():
        images = subject.patches()
        shares = bridge.patch_attention(images)
        shape = (len(images), bridge.num_memory, subject.num_patches)
        fix = "return for each memory token the share of each of the encoder's tokens in it"
        expect_shape(shares, shape, "patch_attention", "[B, num_memory, N]", fix)
        expect(shares.dtype == torch.float32, f"patch_attention is {shares.dtype}", "return it in float32 (.float())")
        expect(not (shares < 0).any(), "a share is negative", fix)
        ones = torch.ones(len(images), bridge.num_memory)
        expect_same(shares.sum(-1), ones, "the sum of a row", "divide each row by its sum, or take a softmax", 1e-5)


def images_apart(subject: BridgeUnderTest) -> None:
    """See ``RELATIONS``."""
    fix = "let no sum, norm or attention go over the batch (dimension 0)"
    for _, bridge in subject.each():
        x, order = subject.patches(), torch.tensor([2, 0, 1])
        together, turned, alone = bridge(x), bridge(x[order]), bridge(x[1:2])
        expect_same(alone.memory, together.memory[1:2], "memory of an image alone", fix)
        expect_same(turned.memory, together.memory[order], "memory of images in another order", fix)
        if together.pooled is not None:
            assert alone.pooled is not None
            assert turned.pooled is not None
            expect_same(alone.pooled, together.pooled[1:2], "pooled of an image alone", fix)
            expect_same(turned.pooled, together.pooled[order], "pooled of images in another order", fix)
        shares = bridge.patch_attention(x)
        expect_same(bridge.patch_attention(x[1:2]), shares[1:2], "patch_attention of an image alone", fix, 1e-5)


SIZES: tuple[Check[BridgeUnderTest], ...] = (
    Check("memory is float[B, M, Dm], M = num_memory and Dm = memory_width", memory),
    Check("pooled is float[B, pooled_width] exactly if the bridge was built with pool", pooled),
    Check("patch_attention is float32[B, M, N] and its rows sum to 1", patch_attention),
)
"""The rules about the sizes and types of what a bridge returns, which all others build on."""
RELATIONS: tuple[Check[BridgeUnderTest], ...] = (
    Check("an image's memory does not depend on the other images or on their order", images_apart),
)
"""The rules about what a bridge's result depends on."""
