"""The rules of an image transform, tried on random pictures of several sizes."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from mmlm.check.report import Check, expect, expect_shape
from mmlm.data.transforms import Transform

SIZES = ((40, 40), (17, 30), (90, 20), (40, 40))
"""Heights and widths; the last picture has the size of the first."""


@dataclass(frozen=True)
class TransformUnderTest:
    """A transform, and the size that it makes."""

    make: Callable[[], Transform]
    image_size: int

    def pictures(self) -> list[Tensor]:
        """uint8[3, H, W] of ``SIZES``, random."""
        generator = torch.Generator().manual_seed(0)
        return [torch.randint(0, 256, (3, *size), generator=generator, dtype=torch.uint8) for size in SIZES]

    def uniforms(self, transform: Transform) -> Tensor:
        """float64[4, num_uniforms] in [0, 1)."""
        generator = torch.Generator().manual_seed(1)
        return torch.rand(len(SIZES), transform.num_uniforms, generator=generator, dtype=torch.float64)


def sizes(subject: TransformUnderTest) -> None:
    """See ``CHECKS``."""
    transform = subject.make()
    for given in (None, subject.uniforms(transform)):
        for pictures in (subject.pictures(), []):  # a share may have no image
            out = transform(pictures, None if given is None else given[: len(pictures)])
            shape = (len(pictures), 3, subject.image_size, subject.image_size)
            expect_shape(out, shape, "the result", "[B, 3, S, S]", "resize every picture to image_size")
            expect(out.dtype == torch.uint8, f"the result is {out.dtype}", "round and clamp it to uint8")


def repeatable(subject: TransformUnderTest) -> None:
    """See ``CHECKS``."""
    transform = subject.make()
    for name, given in {"without augmentation": None, "with equal uniforms": subject.uniforms(transform)}.items():
        one, other = transform(subject.pictures(), given), subject.make()(subject.pictures(), given)
        fix = "take all randomness from `uniforms`, and draw nothing for evaluation"
        expect(torch.equal(one, other), f"{name} the result is another one the second time", fix)


def pictures_apart(subject: TransformUnderTest) -> None:
    """See ``CHECKS``."""
    transform, pictures = subject.make(), subject.pictures()
    given = subject.uniforms(transform)
    for uniforms in (None, given):
        together = transform(pictures, uniforms)
        for row in range(len(pictures)):
            alone = transform(pictures[row : row + 1], None if uniforms is None else uniforms[row : row + 1])
            told = f"picture {row} alone is another one than among others"
            expect(torch.equal(alone[0], together[row]), told, "let nothing go over the batch (dimension 0)")


def input_kept(subject: TransformUnderTest) -> None:
    """See ``CHECKS``."""
    pictures, transform = subject.pictures(), subject.make()
    transform(pictures, subject.uniforms(transform))
    same = all(torch.equal(one, other) for one, other in zip(pictures, subject.pictures(), strict=True))
    expect(same, "a picture has changed in place", "work on a copy: the source may keep its pictures")


CHECKS: tuple[Check[TransformUnderTest], ...] = (
    Check("pictures of any size become uint8[B, 3, S, S], also none", sizes),
    Check("evaluation is without randomness, and augmentation depends on `uniforms` alone", repeatable),
    Check("a picture's result does not depend on the others", pictures_apart),
    Check("the pictures that are handed in stay as they are", input_kept),
)
"""The rules of a transform."""
