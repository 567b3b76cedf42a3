"""The rules of a separate text tower, tried on random captions."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor, nn

from mmlm.check.batch import VOCABULARY, with_more_padding
from mmlm.check.modules import ModuleUnderTest, Outputs, stir, tolerance_of
from mmlm.check.report import Check, expect_attributes, expect_floating, expect_same, expect_shape
from mmlm.core.batch import Batch
from mmlm.model.protocols import TextEncoder


@dataclass(frozen=True)
class TextEncoderUnderTest:
    """A text tower, and the captions that it reads."""

    make: Callable[[], TextEncoder]
    """A new tower for ``VOCABULARY`` tokens."""
    batch: Batch
    """Captions of unequal lengths; the tower takes captions that are a few tokens longer, too."""

    def new(self) -> TextEncoder:
        """A tower in float64 and eval mode, no weight where it started."""
        torch.manual_seed(0)
        tower = self.make()
        stir(cast(nn.Module, tower).double().eval())
        return tower

    def modules(self) -> Iterator[ModuleUnderTest]:
        """The tower as a part with weights."""

        def outputs(module: nn.Module) -> Outputs:
            return {"the result": cast(TextEncoder, module)(self.batch.tokens, self.batch.lengths)}

        yield ModuleUnderTest(cast(Callable[[], nn.Module], self.make), outputs)

    def tolerance(self, tower: TextEncoder) -> float:
        """How exactly results can be compared."""
        first = next(cast(nn.Module, tower).parameters())

        def run(factor: float) -> Tensor:
            first.mul_(factor)
            result = tower(self.batch.tokens, self.batch.lengths)
            first.div_(factor)
            return result

        return tolerance_of(run)


def vectors(subject: TextEncoderUnderTest) -> None:
    """See ``SIZES``."""
    tower, batch = subject.new(), subject.batch
    expect_attributes(tower, {"width": (int,), "vocabulary": (str, type(None))}, "TextEncoder")
    out = tower(batch.tokens, batch.lengths)
    fix = "return one vector for each caption, with width as its width"
    expect_shape(out, (len(batch.lengths), tower.width), "the result", "[C, width]", fix)
    expect_floating(out, torch.float64, "the result")


@torch.no_grad()
def padding(subject: TextEncoderUnderTest) -> None:
    """See ``RELATIONS``."""
    tower, batch = subject.new(), subject.batch
    wanted, fix = tower(batch.tokens, batch.lengths), "mask what is behind `lengths` in attention and in pooling"
    tolerance = subject.tolerance(tower)
    expect_same(tower(_other_padding(batch), batch.lengths), wanted, "vectors with other padding", fix, tolerance)
    longer = tower(with_more_padding(batch).tokens, batch.lengths)
    expect_same(longer, wanted, "vectors with more padding", fix, tolerance)


@torch.no_grad()
def texts_apart(subject: TextEncoderUnderTest) -> None:
    """See ``RELATIONS``."""
    tower, batch = subject.new(), subject.batch
    order = torch.arange(len(batch.lengths)).roll(3)
    wanted, tolerance = tower(batch.tokens, batch.lengths), subject.tolerance(tower)
    fix = "let no sum, norm or attention go over the batch (dimension 0)"
    turned = tower(batch.tokens[order], batch.lengths[order])
    expect_same(turned, wanted[order], "vectors of captions in another order", fix, tolerance)
    alone = tower(batch.tokens[1:2], batch.lengths[1:2])
    expect_same(alone, wanted[1:2], "the vector of a caption alone", fix, tolerance)


def _other_padding(batch: Batch) -> Tensor:
    """The tokens with random ones in the place of padding."""
    behind = torch.arange(batch.tokens.shape[1])[None, :] >= batch.lengths[:, None]
    generator = torch.Generator().manual_seed(5)
    return torch.where(behind, torch.randint(3, VOCABULARY, batch.tokens.shape, generator=generator), batch.tokens)


SIZES: tuple[Check[TextEncoderUnderTest], ...] = (Check("the result is float[C, D], D = width", vectors),)
"""The rules about the sizes and types of what a tower returns, which all others build on."""
RELATIONS: tuple[Check[TextEncoderUnderTest], ...] = (
    Check("neither what stands in the padding nor more of it changes a vector", padding),
    Check("a caption's vector does not depend on the other captions or on their order", texts_apart),
)
"""The rules about what a tower's result depends on."""
