"""The rules of an image encoder, tried on random pixels."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor, nn

from mmlm.check.modules import ModuleUnderTest, Outputs, stir
from mmlm.check.report import Check, expect, expect_attributes, expect_floating, expect_same, expect_shape
from mmlm.model.protocols import Encoder, EncoderOutput

IMAGES = 3


@dataclass(frozen=True)
class EncoderUnderTest:
    """An encoder, and the images that it is built for."""

    make: Callable[[], Encoder]
    """A new encoder."""
    image_size: int
    """S, pixels a side."""

    def new(self) -> Encoder:
        """An encoder in float64 and eval mode, no weight where it started."""
        torch.manual_seed(0)
        encoder = self.make()
        stir(cast(nn.Module, encoder).double().eval())
        return encoder

    def images(self) -> Tensor:
        """uint8[3, 3, S, S], random."""
        shape = (IMAGES, 3, self.image_size, self.image_size)
        return torch.randint(0, 256, shape, generator=torch.Generator().manual_seed(0), dtype=torch.uint8)

    def modules(self) -> Iterator[ModuleUnderTest]:
        """The encoder as a part with weights."""

        def outputs(module: nn.Module) -> Outputs:
            encoder = cast(Encoder, module)
            out = encoder(self.images())
            return {"tokens": out.tokens} | ({} if out.pooled is None else {"pooled": out.pooled})

        yield ModuleUnderTest(cast(Callable[[], nn.Module], self.make), outputs)


def _num_tokens(encoder: Encoder) -> int:
    return encoder.num_prefix_tokens + encoder.grid[0] * encoder.grid[1]


def _some_patches(encoder: Encoder, size: int) -> Tensor:
    """int64[3, K]: other patches of each image, ascending."""
    generator = torch.Generator().manual_seed(1)
    num_patches = encoder.grid[0] * encoder.grid[1]
    return torch.stack([torch.randperm(num_patches, generator=generator)[:size].sort().values for _ in range(IMAGES)])


def tokens(subject: EncoderUnderTest) -> None:
    """See ``SIZES``."""
    encoder = subject.new()
    kinds: dict[str, tuple[type, ...]] = {
        "width": (int,),
        "grid": (tuple,),
        "num_prefix_tokens": (int,),
        "pooled_width": (int, type(None)),
        "drops_patches": (bool,),
        "sees_some": (bool,),
    }
    expect_attributes(encoder, kinds, "Encoder")
    images = subject.images()
    out = encoder(images)
    expect(isinstance(out, EncoderOutput), f"forward returns a {type(out).__name__}", "return an EncoderOutput")
    shape = (len(images), _num_tokens(encoder), encoder.width)
    fix = "set num_prefix_tokens, grid and width to the sizes of the tokens that forward returns"
    expect_shape(out.tokens, shape, "tokens", "[B, num_prefix_tokens + rows * columns, width]", fix)
    expect_floating(out.tokens, torch.float64, "tokens")


def pooled(subject: EncoderUnderTest) -> None:
    """See ``SIZES``."""
    encoder, images = subject.new(), subject.images()
    out = encoder(images)
    if encoder.pooled_width is None:
        fix = "set pooled_width to its width, or return EncoderOutput(tokens) and leave pooling to the bridge"
        expect(out.pooled is None, "forward returns a pooled vector and pooled_width is None", fix)
    else:
        fix = "return it, with pooled_width as its width, or set pooled_width to None"
        expect_shape(out.pooled, (len(images), encoder.pooled_width), "pooled", "[B, pooled_width]", fix)


def images_apart(subject: EncoderUnderTest) -> None:
    """See ``RELATIONS``."""
    fix = "let no sum, norm or attention go over the batch (dimension 0)"
    encoder, images, order = subject.new(), subject.images(), torch.tensor([2, 0, 1])
    with torch.no_grad():
        together, alone, turned = encoder(images), encoder(images[1:2]), encoder(images[order])
    expect_same(alone.tokens, together.tokens[1:2], "tokens of an image alone", fix)
    expect_same(turned.tokens, together.tokens[order], "tokens of images in another order", fix)
    if together.pooled is not None and alone.pooled is not None:
        expect_same(alone.pooled, together.pooled[1:2], "pooled of an image alone", fix)


def some_tokens(subject: EncoderUnderTest) -> None:
    """See ``RELATIONS``."""
    encoder, images = subject.new(), subject.images()
    if not encoder.sees_some:
        return
    rows, columns = encoder.grid
    kept = _some_patches(encoder, max(1, rows * columns // 2))
    with torch.no_grad():
        found = encoder.some_tokens(images, kept)
        fix = "return one token for each listed patch, in order, without prefix tokens"
        expect_shape(found, (IMAGES, kept.shape[1], encoder.width), "some_tokens", "[B, K, width]", fix)
        # Other pixels everywhere but in the listed patches.
        listed = torch.zeros(IMAGES, rows * columns, dtype=torch.bool).scatter(1, kept, True).view(-1, 1, rows, columns)
        height, width = encoder.patch_size
        pixels = listed.repeat_interleave(height, dim=2).repeat_interleave(width, dim=3)
        changed = encoder.some_tokens(torch.where(pixels, images, 255 - images), kept)
    expect_same(changed, found, "tokens with other pixels elsewhere", "blank the patches that are not listed")


def patch_dropout(subject: EncoderUnderTest) -> None:
    """See ``RELATIONS``."""
    encoder = subject.new()
    if not encoder.drops_patches:
        return
    expect_attributes(encoder, {"num_kept": (int,)}, "Encoder")
    kept = _some_patches(encoder, encoder.num_kept)
    cast(nn.Module, encoder).train()
    shape = (IMAGES, encoder.num_prefix_tokens + encoder.num_kept, encoder.width)
    fix = "keep the patches listed in `kept`, and the prefix tokens"
    expect_shape(encoder(subject.images(), kept).tokens, shape, "tokens", "[B, num_prefix_tokens + K, width]", fix)


def resized(subject: EncoderUnderTest) -> None:
    """See ``RELATIONS``."""
    made = subject.new().resized("no parameter of this name", torch.zeros(1, 4, 4))
    expect(made is None, f"it returns a {type(made).__name__}", "return None unless the name is a position table's")


SIZES: tuple[Check[EncoderUnderTest], ...] = (
    Check("tokens are float[B, N, D], N = num_prefix_tokens + rows * columns of grid, D = width", tokens),
    Check("pooled is float[B, pooled_width], and None if pooled_width is None", pooled),
)
"""The rules about the sizes and types of what an encoder returns, which all others build on."""
RELATIONS: tuple[Check[EncoderUnderTest], ...] = (
    Check("an image's tokens do not depend on the other images or on their order", images_apart),
    Check("with sees_some, some_tokens encodes the listed patches without seeing another", some_tokens),
    Check("with drops_patches, a call with kept has the listed patches only", patch_dropout),
    Check("resized gives None for what is no position table", resized),
)
"""The rules about what an encoder's result depends on."""
